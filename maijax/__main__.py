"""`python -m maijax`."""

import sys

from maijax.cli import main

if __name__ == "__main__":  # reading processes of the data pipeline import this file too
    sys.exit(main())
