"""Score finished runs: python tools/evaluate.py runs/<run> [--suite all] [--weights ema] [--device cpu]

Without --suite, the numbers of the task on the test set of one run or checkpoint, as JSON. With it, families of
measures beside accuracy, kept in the run folder as evaluation.json; a folder that holds runs stands for all finished
ones in it.
"""

import argparse
import json
import sys
from pathlib import Path

from mixaug.engine.errors import CheckpointError
from mixaug.engine.evaluation.families import FAMILIES
from mixaug.engine.evaluation.pictures import draw_pictures
from mixaug.engine.evaluation.suite import evaluate_run, families_named
from mixaug.engine.stored import evaluate_checkpoint

TRUST = "full name that the run's config may call beside those of mixaug; may be given several times"
FAULTS = (CheckpointError, OSError, ValueError, TypeError)


def main() -> None:
    """Print the numbers of the task as JSON: top-1, top-5, NLL and calibration error, or RMSE and others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a checkpoint file, or a run folder for its newest one")
    parser.add_argument("--weights", choices=("auto", "model", "ema"), default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trust", metavar="NAME", action="append", default=[], help=TRUST)
    suite = parser.add_argument_group("with --suite")
    suite.add_argument("--suite", metavar="FAMILIES", help=f"all, or some of {','.join(FAMILIES)}")
    suite.add_argument("--samples", type=int, help="take at most so many test images, drawn by the seed")
    suite.add_argument("--seed", type=int, default=0, help="seed of masks, starts and corruptions (default: 0)")
    suite.add_argument("--corrupted", help="folder with the files of CIFAR-C (default: they are made and kept)")
    suite.add_argument(
        "--outliers",
        nargs="+",
        metavar=("NAME", "OPTION=VALUE"),
        help="second data set, and options of mixaug.data.load",
    )
    suite.add_argument(
        "--pictures", metavar="FOLDER", help="also draw decisions in a plane and the loss around the weights"
    )
    arguments = parser.parse_args()

    if arguments.suite is None:
        needless = [
            name for name in ("samples", "seed", "corrupted", "outliers", "pictures") if getattr(arguments, name)
        ]
        if needless:
            parser.error(f"--{needless[0]} does nothing without --suite")

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    try:
        if arguments.suite is None:
            if len(arguments.runs) > 1:
                parser.error("several runs take --suite")
            [path] = arguments.runs
            scores = evaluate_checkpoint(path, arguments.weights, arguments.device, arguments.trust, say)
            print(json.dumps(scores, indent=2))
            return
        families = families_named(arguments.suite)
        folders = [folder for path in arguments.runs for folder in finished(Path(path))]
        outliers = None if arguments.outliers is None else spec(arguments.outliers)
    except FAULTS as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    failed = []
    for folder in folders:
        try:
            evaluate_run(
                folder,
                families,
                device=arguments.device,
                weights=arguments.weights,
                samples=arguments.samples,
                seed=arguments.seed,
                outliers=outliers,
                corrupted=arguments.corrupted,
                allow_targets=arguments.trust,
                say=lambda line: print(line, flush=True),
            )
            if arguments.pictures is not None:
                drawn = draw_pictures(
                    folder,
                    Path(arguments.pictures) / folder.name,
                    device=arguments.device,
                    weights=arguments.weights,
                    seed=arguments.seed,
                    allow_targets=arguments.trust,
                )
                print("\n".join(f"wrote {path}" for path in drawn), flush=True)
        except FAULTS as error:
            failed.append(folder)
            say(f"{parser.prog}: {folder}: {error}")
    if failed:
        parser.exit(1, f"{parser.prog}: {len(failed)} of {len(folders)} runs were not evaluated\n")


def finished(path: Path) -> list[Path]:
    """The run folder itself, or the finished runs in classification below a folder."""
    if (path / "config.yaml").exists() or not path.is_dir():
        return [path]
    from mixaug.leaderboard import collect

    runs = [run for run in collect(path) if run.status == "finished" and run.task.name == "classification"]
    if not runs:
        raise ValueError(f"{path} holds no finished run in classification")
    return [run.folder for run in runs]


def spec(words: list[str]) -> dict[str, object]:
    """A data set's name and its options, whose values are read as YAML."""
    import yaml

    name, *options = words
    pairs = [option.partition("=") for option in options]
    wrong = [option for option, (key, equals, _) in zip(options, pairs, strict=True) if not (key and equals)]
    if wrong:
        raise ValueError(f"--outliers expects options as NAME=VALUE, got {wrong[0]!r}")
    return {"name": name, **{key: yaml.safe_load(value) for key, _, value in pairs}}


if __name__ == "__main__":
    main()
