"""Count what every policy launches on a GPU, without one: python tools/launches.py --help"""

import sys

from speed.launches import main

if __name__ == "__main__":
    sys.exit(main())
