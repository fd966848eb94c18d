"""``python -m sparkgap_server``: the same as the command ``sparkgap-server``."""

from sparkgap_server.cli import main

if __name__ == "__main__":
    main()
