"""Begin a new policy from a working example: python tools/new_policy.py halfmix --arxiv 1905.04899 --paper "..."

Writes its file, config, test and card, then what is derived from them, as `make policies` does. Everything passes at
once; then make it the method that it is meant to be.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from catalogue import pictures
from catalogue.methods import CatalogueError
from catalogue.scaffold import PLACES, Request, new_policy

ROOT = Path(__file__).resolve().parents[1]

TO_DO = """
Now make it your method:
  {policy}  formula, pure functions (named in __all__), options, sample; what @register says
  {config}  every option with the default of the class
  {test}  a slow twin of the pure functions, what is special about the method
  {card}  when it helps and hurts, cost, defaults with their source
and, where they can be had, tests/golden/{name}_*.npz with tests/golden_adapters/{name}.py; a line in CHANGELOG.md.
Afterwards: python tools/policies.py --draw {name}, then make test. CONTRIBUTING.md says more.
"""


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write the files; 2 where the name cannot be used, and then nothing is written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="as users will type it: lower case")
    parser.add_argument("--class", dest="cls", help="name of the class; default: made of the policy's")
    parser.add_argument("--paper", default=Request.paper, help="title and venue of the source")
    parser.add_argument("--arxiv", help="arXiv id of the source")
    parser.add_argument("--family", default=Request.family, help="as in mixaug.registry.FAMILIES; default: masks")
    parser.add_argument("--no-picture", action="store_true", help="do not draw it yet")
    chosen = parser.parse_args(arguments)
    try:
        request = Request(chosen.name, chosen.cls, chosen.paper, chosen.arxiv, chosen.family)
        for path in new_policy(root, request):
            print(f"wrote {path}")
        for path in [] if chosen.no_picture else pictures.draw(root, [chosen.name]):
            print(f"drew {path.relative_to(root)}")
    except (CatalogueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(TO_DO.format(name=chosen.name, **{kind: place.format(chosen.name) for kind, place in PLACES.items()}), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
