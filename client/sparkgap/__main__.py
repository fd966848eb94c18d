"""``python -m sparkgap`` is the command ``sparkgap``."""

from sparkgap.cli import main

if __name__ == "__main__":
    main()
