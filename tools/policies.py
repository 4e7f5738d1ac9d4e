"""Bring up to date what lists the policies, and draw the pictures that are missing: python tools/policies.py

`make policies` does the same, with --answers. Pictures that exist stay as they are: --draw NAME draws one anew, --check
only looks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from catalogue import answers, derived, pictures
from catalogue.methods import CatalogueError, read_methods

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write the derived files of a checkout; 1 where ``--check`` found one out of date, 2 for an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    parser.add_argument("--draw", nargs="+", default=[], metavar="NAME", help="draw these pictures anew")
    parser.add_argument("--answers", action="store_true", help="run a step of every method and write docs/answers.md")
    parser.add_argument("--no-pictures", action="store_true", help="draw none")
    chosen = parser.parse_args(arguments)
    if chosen.draw and (chosen.check or chosen.no_pictures):
        parser.error("--draw goes with neither --check nor --no-pictures")
    try:
        unknown = set(chosen.draw) - {method.name for method in read_methods(root)}
        if unknown:
            raise CatalogueError(f"--draw: no policy of mixaug is named {min(unknown)!r}")
        if chosen.check:
            return check(root)
        for path in derived.update(root):
            print(f"wrote {path}")
        for path in answers.update(root) if chosen.answers else []:
            print(f"wrote {path}")
        missing = [] if chosen.no_pictures else derived.missing_strips(root)
        for path in pictures.draw(root, sorted({*missing, *chosen.draw})):
            print(f"drew {path.relative_to(root)}")
    except (CatalogueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check(root: Path) -> int:
    """Say what is out of date."""
    found = [str(path) for path in derived.stale(root)]
    found += [str(derived.STRIPS / f"{name}.png") for name in derived.missing_strips(root)]
    for path in found:
        print(f"{path} is out of date or missing: make policies", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
