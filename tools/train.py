"""The command `mixaug train` for people in a checkout: python tools/train.py policy=cutmix"""

import sys

from mixaug.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
