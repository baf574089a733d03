"""What a person asks for: one file per verb, from loaded inputs and a package to a result."""
