"""The command `mixaug gallery` for people in a checkout: python tools/gallery.py --out runs/gallery.png"""

import sys

from mixaug.commands.gallery import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
