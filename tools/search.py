"""The command `mixaug search` for people in a checkout: python tools/search.py experiment=photos budget=30m"""

import sys

from mixaug.commands.search import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
