"""Answer what only a GPU can tell, in two calls of a few minutes: python tools/gpu_day.py --help"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The checkout itself, wherever the call is made and whatever is installed.
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))
    # Packages that travelled along, now or in an earlier call, serve where the machine has none of its own.
    sys.path += [str(folder / "site") for folder in (root / "gpu_day", Path.home() / "gpu_day_data")]
    from gpu.command import main

    sys.exit(main())
