"""The command `mixaug evaluate` for people in a checkout: python tools/evaluate.py runs/<run>"""

import sys

from mixaug.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
