"""The command line as a module: `python -m imagetok`."""

from imagetok.cli import main

if __name__ == "__main__":
    main()
