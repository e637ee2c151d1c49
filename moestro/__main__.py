"""`python -m moestro`: the same program as `moestro`. Next: cli/main.py."""

from moestro.cli.main import main

if __name__ == "__main__":
    main()
