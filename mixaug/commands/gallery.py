"""Draw what policies do, and what a trained model sees: mixaug gallery --out runs/gallery.png

Takes scikit-learn's two photographs, or two images of CIFAR-100: --sheets /path/to/cifar100_sheets --pick 10 2010.
One picture for each of some policies and nothing else: --only mixup cutmix --strips docs/images/policies.
One row with a picture of each of some policies: --row --policies mixup cutmix --out row.png.
Of a run of `mixaug train`, its model's signals and its policy's mixed images: --run runs/<run> --samples 6.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixaug.commands import values
from mixaug.commands.arguments import STATUSES, status_of

__all__ = ["main", "parser"]

TRUST = "full name that the config of --run may call beside those of mixaug; may be given several times"

#: Side in pixels below which some policies have nothing to cut, and one beyond which a sheet is larger than a page.
SMALLEST, LARGEST = 16, 2048
#: The defaults of what goes without --run, and of what goes with it alone.
ALONE: Mapping[str, Any] = {"size": 128, "pick": (10, 2010)}
OF_RUN: Mapping[str, Any] = {"samples": 6, "split": "test", "device": "auto"}


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        "mixaug gallery",
        description=__doc__,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=values.path, help="the PNG to write (default: runs/gallery.png)")
    made.add_argument("--policies", type=values.text, nargs="+", help="rows of the sheet; default: all")
    made.add_argument("--row", action="store_true", help="no sheet, but one picture of each policy side by side")
    made.add_argument("--strips", type=values.path, help="folder for one PNG per policy")
    made.add_argument(
        "--only", type=values.text, nargs="+", metavar="NAME", help="draw these PNGs in --strips, and no sheet"
    )
    made.add_argument("--sheets", type=values.path, help="folder of CIFAR-100 sheets to take the images from")
    made.add_argument("--pick", type=values.whole(0), nargs=2, help="rows of the training images of --sheets")
    made.add_argument("--size", type=int, help="side of the photographs in pixels (default: 128)")
    made.add_argument("--run", type=values.path, help="run folder: draw what its model sees and its policy does")
    made.add_argument("--samples", type=values.whole(2), help="images of --run, at least 2 (default: 6)")
    made.add_argument("--split", choices=("test", "train"), help="set of --run that they are from (default: test)")
    made.add_argument("--device", type=values.device, help="of --run (default: auto)")
    made.add_argument("--trust", type=values.dotted_name, metavar="NAME", action="append", default=[], help=TRUST)
    made.add_argument("--seed", type=values.seed, default=0, help="of the draws, and of the choice of samples")
    return made


def main(arguments: Sequence[str]) -> int:
    """Draw the sheet of all policies, and on request one strip for each; or the sheet of a run."""
    reader = parser()
    chosen = reader.parse_args(list(arguments))
    if chosen.run is None and chosen.trust:
        reader.error("--trust says what the config of --run may call: give --run too")
    if chosen.run is not None and (chosen.policies or chosen.only or chosen.strips or chosen.sheets):
        reader.error("--run takes policy and images from the run: leave out --policies, --only, --strips and --sheets")
    if chosen.row and (chosen.only or chosen.run is not None):
        reader.error("--row draws --policies side by side: leave out --only and --run")
    if chosen.only and (chosen.policies or chosen.strips is None):
        reader.error("--only says which PNGs to draw in the folder --strips: give that, and leave out --policies")
    if chosen.only and chosen.out is not None:
        reader.error("--only draws no sheet: leave out --out")
    if chosen.pick is not None and chosen.sheets is None:
        reader.error("--pick says which images of --sheets: give that too")
    if chosen.size is not None and (chosen.sheets is not None or chosen.run is not None):
        reader.error("--size is of the photographs: leave it out beside --sheets and --run")
    for option in OF_RUN if chosen.run is None else ():
        if getattr(chosen, option) is not None:
            reader.error(f"--{option} is of --run: give that too")
    for option, usual in {"out": Path("runs/gallery.png"), **ALONE, **OF_RUN}.items():
        if getattr(chosen, option) is None:
            setattr(chosen, option, usual)
    if chosen.out.suffix.lower() != ".png" or chosen.out.is_dir():
        reader.error(f"--out expects the name of a PNG, such as runs/gallery.png, got {str(chosen.out)!r}")
    if not SMALLEST <= chosen.size <= LARGEST:
        reader.error(f"--size expects {SMALLEST} to {LARGEST} pixels, got {chosen.size}")
    from mixaug.engine.errors import CheckpointError
    from mixaug.engine.explained import on_one_line

    try:
        return draw_policies(chosen) if chosen.run is None else draw_run(chosen)
    except (ValueError, TypeError, OSError, CheckpointError) as error:
        print(f"error: {on_one_line(error)}", file=sys.stderr)
        return status_of(error, reads=True)


def draw_policies(chosen: argparse.Namespace) -> int:
    """What every policy makes of two images."""
    import mixaug
    from mixaug import gallery

    names = chosen.only or chosen.policies or mixaug.list_policies()
    for name in names:
        mixaug.describe(name)
    if chosen.sheets is None:
        images = gallery.photographs(chosen.size)
    else:
        from mixaug import data

        train: Any = data.load("image_sheets", root=chosen.sheets).train
        count = len(train.images)
        if not all(0 <= row < count for row in chosen.pick):
            raise ValueError(f"--pick expects two rows in 0..{count - 1} of the training images, got {chosen.pick}")
        images = train.images[list(chosen.pick)]
    if chosen.row:
        gallery.save(gallery.row(names, images, seed=chosen.seed), chosen.out)
    elif not chosen.only:
        gallery.draw(names, images, chosen.out, seed=chosen.seed)
    if not chosen.only:
        print(f"wrote {chosen.out}")
    if chosen.strips is not None:
        for path in gallery.draw_strips(names, chosen.strips, images, seed=chosen.seed):
            print(f"wrote {path}")
    return 0


def draw_run(chosen: argparse.Namespace) -> int:
    """What a trained model sees, and what its policy makes of that."""
    from mixaug import gallery
    from mixaug.engine.pictures import open_run

    run = open_run(chosen.run, chosen.device, allow_targets=chosen.trust)
    images, labels = run.samples(chosen.split, chosen.samples, chosen.seed)
    config, data = run.config, run.batches.data
    figure = gallery.signal_sheet(
        run.step.signals(),
        images,
        labels,
        run.step.policy,
        mean=run.batches.mean,
        std=run.batches.std,
        class_names=data.class_names,
        title=f"{config.choices.policy}, {config.model.name}, {data.name} ({chosen.split}), epoch {run.epoch}",
        seed=chosen.seed,
    )
    gallery.save(figure, chosen.out)
    print(f"wrote {chosen.out}")
    return 0
