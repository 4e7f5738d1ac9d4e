"""The command `mixaug leaderboard` for people in a checkout: python tools/leaderboard.py runs/photos"""

import sys

from mixaug.commands.leaderboard import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
