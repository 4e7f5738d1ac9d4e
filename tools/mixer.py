"""The command `mixaug mixer` for people in a checkout: python tools/mixer.py runs/automix-..."""

import sys

from mixaug.commands.mixer import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
