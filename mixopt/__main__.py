"""``python -m mixopt``: the same as the ``mixopt`` command."""

from mixopt.cli import main

if __name__ == "__main__":
    main()
