"""``python -m medgen`` is the same as ``medgen``."""

from medgen.cli import main

if __name__ == "__main__":
    main()
