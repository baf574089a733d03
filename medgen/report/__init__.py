"""Pictures and pages that show a detection to people. Knows no file format and no torch."""
