"""Time every policy against the memory floor and other libraries: python tools/speed.py --help"""

import sys

from speed.command import main

if __name__ == "__main__":
    sys.exit(main())
