"""A picture sheet of what policies do: python tools/gallery.py --out runs/gallery.png

Takes scikit-learn's two photographs, or two images of CIFAR-100: --sheets /path/to/cifar100_sheets --pick 10 2010.
"""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Draw the sheet, and on request one strip for each policy."""
    import mixaug
    from mixaug import gallery

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gallery.png"), help="PNG of all policies")
    parser.add_argument("--policies", nargs="+", default=mixaug.list_policies(), help="rows of the sheet")
    parser.add_argument("--strips", type=Path, help="folder for one PNG per policy")
    parser.add_argument("--sheets", type=Path, help="folder of CIFAR-100 sheets to take the images from")
    parser.add_argument("--pick", type=int, nargs=2, default=(10, 2010), help="rows of the training images of --sheets")
    parser.add_argument("--size", type=int, default=128, help="side of the photographs in pixels")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    try:
        for name in chosen.policies:
            mixaug.describe(name)
        if chosen.sheets is None:
            images = gallery.photographs(chosen.size)
        else:
            from mixaug import data

            images = data.load("image_sheets", root=chosen.sheets).train.images[list(chosen.pick)]
        gallery.draw(chosen.policies, images, chosen.out, seed=chosen.seed)
        print(f"wrote {chosen.out}")
        for name in chosen.policies if chosen.strips else []:
            gallery.draw([name], images, chosen.strips / f"{name}.png", seed=chosen.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
