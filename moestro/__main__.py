"""`moestro` and `python -m moestro`: imports the program and runs it. Next: cli/main.py."""

import sys


def main() -> None:
    """Run the program; Ctrl-C is one line while it is still being imported, too."""
    try:
        from moestro.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("moestro: stopped\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
