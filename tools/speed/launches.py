"""Operators that a policy, or a training step, launches on a GPU, counted on tensors that only pretend to lie on one.

An eager operator costs a launch of some four microseconds, whatever it computes; in small batches that is all it costs.
Views, allocations and looks at a tensor are free. An operator with a kernel of its own counts as one, and so does one
that launches several (a sort). `launches.csv` holds the most that each policy may launch; a test compares.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mixaug
from mixaug import MixStep, losses
from mixaug.near import near
from mixaug.ops import fused
from mixaug.testing.subject import CHANNELS, Subject
from mixaug.testing.surface import pretended_cuda
from speed.page import PAGE, write_between

BOUNDS = Path(__file__).parent / "launches.csv"
SIDES = (32, 224)
BATCH = 128
CLASSES = 10
#: Policies whose step on vectors is a row of its own.
STEPS = ("none", "mixup")
#: Operators that start no kernel.
FREE = frozenset({
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "device", "empty", "empty_like",
    "empty_strided", "expand", "lift_fresh", "new_empty", "new_empty_strided", "permute", "promote_types",
    "reshape", "resize_",
    "select", "slice", "split", "split_with_sizes", "squeeze", "sym_size", "t", "transpose", "unbind", "unfold",
    "unsqueeze", "view", "view_as_complex", "view_as_real",
})  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A policy with options, under the name that table and bounds use."""

    name: str
    policy: str
    options: tuple[tuple[str, Any], ...] = ()


def cases() -> list[Case]:
    """Every policy as it is made without options; those that draw the size of their work once for each size.

    SuperMix searches in steps: with one and with two of them, so that the difference is what each further one takes.
    """
    found = []
    for name in mixaug.list_policies():
        if name == "supermix":
            found += [Case(f"{name} {steps}", name, (("max_iter", steps),)) for steps in (1, 2)]
        elif name == "puzzlemix":
            found += [Case(f"{name} {blocks}", name, (("block_nums", blocks),)) for blocks in (2, 4, 8, 16)]
        elif name == "comixup":
            # Its default keeps the loss of the clean pass, which made-up signals have not.
            found.append(Case(name, name, (("clean_weight", 0.0),)))
        elif name in ("adautomix", "automix", "samix"):
            # Channels of the made-up features; without them they would ask a model.
            found.append(Case(name, name, (("channels", CHANNELS),)))
        else:
            found.append(Case(name, name))
        if name in ("cutmix", "fmix", "mixup"):
            found.append(Case(f"{name} of 4", name, (("sources", 4),)))
    return found


class Launches(TorchDispatchMode):
    """Counts the operators that start a kernel, by name, and the bytes of all that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes = 0

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func._schema.name.split("::")
        result = func(*args, **(kwargs or {}))
        if name not in FREE and namespace != "prim":
            self.counts[name] += 1
            self.bytes += sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
        return result


def _bytes(tensor: Tensor) -> int:
    """Of a tensor's values, those that an expanded axis repeats counted once."""
    sides = [side for side, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(sides) * tensor.element_size()


def of_policy(case: Case, side: int, batch: int = BATCH) -> Launches:
    """What one call launches. Policies that mix inside a model, or have a network of their own, run that as well.

    Raises:
        RuntimeError: a tensor of the result that is not on the device of the images.
    """
    if case.policy == "supermix":
        return _of_search(case, side)
    with pretended_cuda():
        make = partial(mixaug.create, case.policy, **dict(case.options))
        subject = Subject(make, {}, None, None, torch.device("cuda"), (side, side), pretended=True)
        policy = subject.policy()
        images, labels = torch.empty(batch, 3, side, side), torch.empty(batch, dtype=torch.int64)
        signals = subject.signals(policy, images, labels)
        with Launches() as launches:
            mixed = policy(images, labels, signals=signals)
        found: set[str] = set()

        def look(tensor: torch.Tensor) -> torch.Tensor:
            found.add(tensor.device.type)
            return tensor

        mixed.map_tensors(look)
    if found != {"cuda"}:
        raise RuntimeError(f"{case.policy} leaves tensors of its result on {sorted(found)}, images are on a GPU")
    return launches


def _of_search(case: Case, side: int, batch: int = 4) -> Launches:
    """What a search by gradients launches, with a network of one layer.

    A backward pass needs the device that its tensors say they are on, so these are on the CPU; under a mode that
    watches operators nothing there is steered by values, and the operators are those of a GPU.
    """
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, CLASSES))
    policy = mixaug.create(case.policy, network=network, **dict(case.options))
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(batch, 3, side, side, generator=generator), torch.arange(batch)
    with Launches() as launches:
        policy(images, labels, generator=generator)
    return launches


def of_step(policy: str = "none", batch: int = BATCH) -> Launches:
    """What the forward pass of a :class:`mixaug.MixStep` around one linear layer and the cross-entropy launches."""
    with pretended_cuda():
        step = MixStep(nn.Linear(64, CLASSES), mixaug.create(policy), losses.MixedCrossEntropy())
        inputs, labels = torch.empty(batch, 64), torch.empty(batch, dtype=torch.int64)
        with Launches() as launches:
            step(inputs, labels)
    return launches


def read_bounds(path: Path = BOUNDS) -> dict[tuple[str, int], int]:
    """The most that a case may launch, by its name and the images' side; side 0 is a step on vectors."""
    with path.open() as file:
        return {(row["case"], int(row["side"])): int(row["most"]) for row in csv.DictReader(file)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, or what one case launches by operator; 1 where a bound is passed."""
    parser = argparse.ArgumentParser(description="Count what every policy launches on a GPU, without one.")
    parser.add_argument("--cases", nargs="+", help="names of the table's rows; all of them without")
    parser.add_argument("--sides", nargs="+", type=int, default=list(SIDES), help="pixels of an image's side")
    parser.add_argument("--operators", action="store_true", help="show every operator with its count")
    parser.add_argument("--csv", type=Path, help="write the counts as a file of bounds")
    parser.add_argument("--page", action="store_true", help="write the table of docs/speed.md, and end")
    options = parser.parse_args(arguments)
    if options.page:
        if options != parser.parse_args(["--page"]):
            parser.error("--page writes one table of all cases: leave out the rest")
        write_between(
            PAGE, "launches", [f"`python tools/launches.py --page`; torch {torch.__version__}.", "", *_page()]
        )
        return 0
    known = [*map(_step_of, STEPS), *(case.name for case in cases())]
    for name in options.cases or ():
        if name not in known:
            close = near(name, known)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there is {', '.join(known)}"
            parser.error(f"there is no case {name!r}; {hint}")
    bounds, passed, rows = read_bounds(), 0, []
    print("| case | side | launches | at most |\n|---|--:|--:|--:|")
    for name, side, launches in _counted(options.cases, options.sides):
        most = bounds.get((name, side))
        over = most is not None and launches.total > most
        passed += over
        rows.append((name, side, launches.total))
        print(f"| {name} | {side or ''} | {launches.total} | {'' if most is None else most}{' passed' * over} |")
        if options.operators:
            print(
                "".join(f"|  | {operator} | {count} | |\n" for operator, count in launches.counts.most_common()), end=""
            )
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("case", "side", "most"))
            writer.writerows(rows)
    return int(passed > 0)


def _page() -> list[str]:
    """The most that every case may launch, and beside it what it would launch without kernels of its own."""
    lines = ["| batch of 128 images | launches, at most | by torch operators alone |", "|---|--:|--:|"]
    side = SIDES[0]
    for (name, where), most in read_bounds().items():
        if where not in (0, side):
            continue
        counts = []
        for serves in (fused.serves, lambda *tensors: False):
            # Some policies toss a coin for the batch: the same one for both.
            torch.manual_seed(0)
            with patch.object(fused, "serves", serves):
                counts.append(next(_counted([name], [side]))[2].total)
        lines.append(f"| {name} | {most} | {counts[1] if counts[1] != counts[0] else ''} |")
    return lines


def _step_of(policy: str) -> str:
    return f"step of {policy}"


def _counted(names: Sequence[str] | None, sides: Sequence[int]) -> Iterator[tuple[str, int, Launches]]:
    for policy in STEPS:
        name = _step_of(policy)
        if names is None or name in names:
            yield name, 0, of_step(policy)
    for case in cases():
        for side in sides:
            if names is None or case.name in names:
                yield case.name, side, of_policy(case, side)
