"""The command `mixaug benchmark` for people in a checkout: python tools/benchmark.py experiment=photos"""

import sys

from mixaug.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
