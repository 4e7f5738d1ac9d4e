"""Answer what only a GPU can tell, in two calls of a few minutes: python tools/gpu_day.py --help"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The checkout itself, wherever the call is made and whatever is installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from gpu.command import main

    sys.exit(main())
