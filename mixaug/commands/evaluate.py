"""Score finished runs: mixaug evaluate runs/<run> [--suite all] [--weights ema] [--device cpu]

Without --suite, the numbers of the task on the test set of one run or checkpoint, as JSON: top-1, top-5, NLL and
calibration error, or RMSE and others. With it, families of measures beside accuracy, kept in the run folder as
evaluation.json; a folder that holds runs stands for all finished ones in it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mixaug.commands import values
from mixaug.commands.arguments import STATUSES, status_of, status_of_all

__all__ = ["main", "parser"]

#: Families of `mixaug.engine.evaluation`, which is too heavy to import for a help page; a test holds both together.
FAMILIES = ("calibration", "temperature", "outliers", "attack", "occlusion", "corruption", "geometry", "activation")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        "mixaug evaluate",
        description=__doc__,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        *("runs",),
        type=values.text,
        nargs="+",
        metavar="RUN",
        help="a checkpoint file, or a run folder for its newest one",
    )
    made.add_argument("--weights", choices=("auto", "model", "ema"), default="auto")
    made.add_argument("--device", type=values.device, default="auto")
    made.add_argument(
        *("--trust",),
        type=values.dotted_name,
        metavar="NAME",
        action="append",
        default=[],
        help="full name that the run's config may call beside those of mixaug; may be given several times",
    )
    suite = made.add_argument_group("with --suite")
    suite.add_argument("--suite", metavar="FAMILIES", help=f"all, or some of {','.join(FAMILIES)}")
    suite.add_argument("--samples", type=values.whole(1), help="take at most so many test images, drawn by the seed")
    suite.add_argument("--seed", type=values.seed, help="seed of masks, starts and corruptions (default: 0)")
    suite.add_argument(
        *("--corrupted",), type=values.path, help="folder with the files of CIFAR-C (default: they are made and kept)"
    )
    suite.add_argument(
        *("--outliers",),
        type=values.text,
        nargs="+",
        metavar=("NAME", "OPTION=VALUE"),
        help="second data set, and its options, as data.<option> of mixaug train",
    )
    suite.add_argument(
        *("--pictures",),
        type=values.path,
        metavar="FOLDER",
        help="also draw decisions in a plane and the loss around the weights",
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Print the scores, or evaluate by families."""
    reader = parser()
    chosen = reader.parse_args(list(arguments))
    if chosen.suite is None:
        only_with = ("samples", "seed", "corrupted", "outliers", "pictures")
        needless = [name for name in only_with if getattr(chosen, name) is not None]
        if needless:
            reader.error(f"--{needless[0]} does nothing without --suite")
        if len(chosen.runs) > 1:
            # The other commands take settings as name=value, so that they are tried here too.
            settings = [name for name in chosen.runs if "=" in name and not Path(name).exists()]
            reader.error(
                f"{settings[0]!r} is no run folder: options are written as --device cpu"
                if settings
                else "several runs take --suite"
            )
    from mixaug.engine.errors import CheckpointError
    from mixaug.engine.explained import on_one_line

    faults = (CheckpointError, OSError, ValueError, TypeError)
    try:
        for path in map(Path, chosen.runs):
            # Of several, an absent one is counted at the end; the others are evaluated.
            if chosen.suite is None and not os.path.lexists(path):
                raise ValueError(f"expected a run folder or a checkpoint, and there is nothing at {str(path)!r}")
            if chosen.suite is None and path.is_dir() and not os.path.lexists(path / "config.yaml"):
                raise ValueError(f"{path} is no run folder: it has no config.yaml")
            if path.is_file() and not os.path.lexists(path.parent / "config.yaml"):
                raise ValueError(f"{path} is no checkpoint of a run: there is no config.yaml beside it")
        return _scores(chosen) if chosen.suite is None else _families(reader.prog, chosen, faults)
    except faults as error:
        _say(f"{reader.prog}: {on_one_line(error)}")
        return status_of(error, reads=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _scores(chosen: argparse.Namespace) -> int:
    from mixaug.engine.stored import evaluate_checkpoint

    [path] = chosen.runs
    print(json.dumps(evaluate_checkpoint(path, chosen.weights, chosen.device, chosen.trust, _say), indent=2))
    return 0


def _families(program: str, chosen: argparse.Namespace, faults: tuple[type[Exception], ...]) -> int:
    from mixaug.data import options_of_set
    from mixaug.engine.evaluation.datasets import DataSets
    from mixaug.engine.evaluation.pictures import draw_pictures
    from mixaug.engine.evaluation.suite import evaluate_run, families_named
    from mixaug.leaderboard.benchmark import check_folder

    families = families_named(chosen.suite, "--suite")
    seed = 0 if chosen.seed is None else chosen.seed
    for name, family in (("corrupted", "corruption"), ("outliers", "outliers")):
        if getattr(chosen, name) is not None and family not in families:
            raise ValueError(f"--{name} does nothing without the family {family} in --suite {chosen.suite}")
    if chosen.corrupted is not None and chosen.samples is not None:
        raise ValueError("--corrupted is for the whole test set: leave out --samples")
    if chosen.corrupted is not None and not chosen.corrupted.is_dir():
        raise ValueError(f"--corrupted expects a folder, got {str(chosen.corrupted)!r}")
    if chosen.pictures is not None:
        check_folder("--pictures", chosen.pictures)
    outliers = None if chosen.outliers is None else _spec(chosen.outliers)
    if outliers is not None:
        options_of_set(str(outliers["name"]))
    folders = [folder for path in chosen.runs for folder in _finished(Path(path))]
    from mixaug.engine.explained import on_one_line

    sets = DataSets()
    failed: list[int] = []
    for folder in folders:
        try:
            evaluate_run(
                folder,
                families,
                device=chosen.device,
                weights=chosen.weights,
                samples=chosen.samples,
                seed=seed,
                outliers=outliers,
                corrupted=chosen.corrupted,
                allow_targets=chosen.trust,
                say=lambda line: print(line, flush=True),
                sets=sets,
            )
            if chosen.pictures is not None:
                drawn = draw_pictures(
                    folder,
                    chosen.pictures / folder.name,
                    device=chosen.device,
                    weights=chosen.weights,
                    seed=seed,
                    allow_targets=chosen.trust,
                    sets=sets,
                )
                print("\n".join(f"wrote {path}" for path in drawn), flush=True)
        except faults as error:
            failed.append(status_of(error, reads=True))
            said = on_one_line(error)
            _say(f"{program}: {said}" if said.startswith(str(folder)) else f"{program}: {folder}: {said}")
    if failed and len(folders) > 1:
        _say(f"{program}: {len(failed)} of {len(folders)} runs were not evaluated")
    return status_of_all(failed, len(folders))


def _finished(path: Path) -> list[Path]:
    """The run folder itself, or the finished runs in classification below a folder."""
    if os.path.lexists(path / "config.yaml") or not path.is_dir():
        return [path]
    from mixaug.leaderboard import collect

    runs = [run for run in collect(path) if run.status == "finished" and run.task.name == "classification"]
    if not runs:
        raise ValueError(f"{path} holds no finished run in classification")
    return [run.folder for run in runs]


def _spec(words: list[str]) -> dict[str, object]:
    """A data set's name and its options, whose values are read as YAML."""
    import yaml

    name, *options = words
    pairs = [option.partition("=") for option in options]
    wrong = [option for option, (key, equals, _) in zip(options, pairs, strict=True) if not (key and equals)]
    if wrong:
        raise ValueError(f"--outliers expects options as NAME=VALUE, got {wrong[0]!r}")
    return {"name": name, **{key: yaml.safe_load(value) for key, _, value in pairs}}
