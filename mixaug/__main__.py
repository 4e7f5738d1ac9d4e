"""``python -m mixaug``: the command :mod:`mixaug.cli`."""

import sys

from mixaug.cli import main

if __name__ == "__main__":
    sys.exit(main())
