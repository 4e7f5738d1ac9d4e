"""Find the policy that serves data and a model best: mixaug search data=photos model=cifar_resnet8 budget=30m

    mixaug search experiment=photos budget=30m jobs=1
    mixaug search data=diabetes model=mlp objective=squared_error optimizer=adam budget=5m search=regression
    mixaug search data.valid_share=0.2 budget=10m "search.policies.mixup.alpha=[0.1,0.4]" ~search.policies.fmix

Successive halving: every trial (a policy with options) is trained a little, the best on the validation set go on
exactly where they stopped, the last ones in full. Then none, the usual policy and the winner are compared on the test
set with fresh seeds. The same command again goes on where it was. Beside the arguments of `mixaug train`:

    budget=30m          seconds of training in all, also 90s, 30m, 1.5h; two runs at a time spend two seconds a second
    search=images       the trials, or regression, or FOLDER/search/mine.yaml with --config-dir (default: by the data)
    search.eta=3        and the file's other settings: policies, usual, probe_epochs, last_seeds, final_seeds
    jobs=2              runs at a time (default: one per GPU, or one per core)
    out=folder          for runs, search.md, search.html and search.csv (default: <root>/search-<hash>)
    clock=wall          what a second is; cpu: one that a run computes, for a CPU that others use as well
    launch=fork         or command: a fresh `mixaug train` for each run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mixaug.commands import values
from mixaug.commands.arguments import FAILED, STATUSES, WRONG, split, status_of

__all__ = ["main", "parser"]


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        "mixaug search",
        description=__doc__,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("overrides", nargs="*", metavar="key=value", help="as described above")
    own = "config files of your own: FOLDER/search/mine.yaml"
    made.add_argument("--config-dir", type=values.path, metavar="FOLDER", help=own)
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the search that the arguments name."""
    reader = parser()
    if not arguments:
        reader.print_help()
        return 2
    chosen = reader.parse_intermixed_args(list(arguments))
    from mixaug.engine.errors import ConfigError, RunHeld
    from mixaug.engine.explained import on_one_line

    try:
        own, overrides = split("search", chosen.overrides)
        if "budget" not in own:
            raise ConfigError("budget is missing: how long may training take in all? budget=30m")
        from mixaug.leaderboard.search import BudgetTooSmall, run_search

        try:
            return run_search(overrides, **own, config_dir=chosen.config_dir)
        except BudgetTooSmall as error:
            print(f"error: {error}", file=sys.stderr)
            return FAILED if error.begun else WRONG
    except RunHeld as error:
        print(on_one_line(error), file=sys.stderr)
        return status_of(error)
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {on_one_line(error)}", file=sys.stderr)
        return status_of(error)
