"""What `--check` fails on: what became slower on this machine, and rivals whose lead a training step feels.

Goals are no part of it: they say where mixing could be, and tables show which are missed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch.nn import functional as F

from mixaug import models
from speed.goals import kept
from speed.sections import LARGE_SIDE, PLAIN, Row
from speed.setting import LAYOUTS, Setting
from speed.timing import Ratio

#: A median may be this many times the recorded one: less is noise on a shared machine.
SLOWER = 1.1
#: The share of a training step that another library may be faster by.
FELT = 0.02
#: The backbone whose step is taken where images are large.
LARGE_MODEL = "resnet18"
PLACE = ("section", "setting", "job", "per", "output")
COLUMNS = ("device", "threads", *PLACE, "median", "low", "high")


def figure(row: Row) -> Ratio:
    """What a row is judged by: a fresh result beside a fresh lerp, since the allocator may cost both two floors."""
    return row.floor if row.fresh_lerp is None else row.fresh_lerp


def record(path: Path, rows: Iterable[Row], conditions: Mapping[str, str], *, replace: bool) -> None:
    """Keep the rows of a run in a file, those that it already has of this machine only if they are to be replaced.

    A run that is compared does not replace what it was compared with: small losses of many runs would add up unseen.
    """
    machine = (conditions["device"], conditions["threads"])
    found, new = _read(path), {(*machine, *place): figure(row) for place, row in _judged(rows).items()}
    found = found | new if replace else new | found
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for place, ratio in found.items():
            writer.writerow([*place, *(f"{value:.4f}" for value in (ratio.median, ratio.low, ratio.high))])


def recorded(path: Path, conditions: Mapping[str, str]) -> dict[tuple[str, ...], Ratio]:
    """The figures of a file that were taken on the machine of ``conditions`` with as many threads, by their row."""
    machine = (conditions["device"], conditions["threads"])
    return {place[2:]: ratio for place, ratio in _read(path).items() if place[:2] == machine}


def regressions(rows: Iterable[Row], earlier: Mapping[tuple[str, ...], Ratio]) -> tuple[list[str], int]:
    """What became slower, in words, and how many rows were compared.

    A row is slower where even its best round is above the worst recorded one, and its median above ``SLOWER`` medians.
    """
    slower, compared = [], 0
    for place, row in _judged(rows).items():
        before, now = earlier.get(place), figure(row)
        if before is None:
            continue
        compared += 1
        if now.low > before.high and now.median > SLOWER * before.median:
            slower.append(
                f"{' '.join(place)}: {now.median:.2f} ({now.low:.2f} to {now.high:.2f}), recorded {before.median:.2f} "
                f"({before.low:.2f} to {before.high:.2f})"
            )
    return slower, compared


def leads(rows: Sequence[Row], step: Callable[[str], float]) -> tuple[list[str], int]:
    """Rivals that are faster by more than ``FELT`` of a training step, in words, and how many rows have a rival.

    Args:
        rows: of a run; of our outputs the best one counts, by its best round.
        step: milliseconds of a training step on batches of a setting, by the setting's name.
    """
    least: dict[tuple[str, str, str, str], tuple[float, Row]] = {}
    for row in rows:
        if row.library != PLAIN or row.against_best_peer is None:
            continue
        lost = row.milliseconds * (1 - 1 / row.against_best_peer.low)
        place = (row.section, row.setting, row.job, row.per)
        if place not in least or lost < least[place][0]:
            least[place] = lost, row
    felt = []
    for place, (lost, row) in least.items():
        if lost > 0 and lost > FELT * step(row.setting):
            felt.append(
                f"{' '.join(place)}: {row.best_peer} is {lost:.2f} ms faster, {lost / step(row.setting):.1%} of a "
                f"training step of {step(row.setting):.0f} ms"
            )
    return felt, len(least)


def step_milliseconds(setting: Setting, model_name: str, attempts: int = 3) -> float:
    """A training step without mixing on a batch of a setting, its best of some attempts.

    On a CPU a step on eight images is taken, and multiplied: a whole one of large images takes a minute.
    """
    name = LARGE_MODEL if setting.shape[-1] >= LARGE_SIDE else model_name
    device = torch.device(setting.device)
    count = setting.shape[0] if device.type == "cuda" else min(setting.shape[0], 8)
    images = torch.rand(count, *setting.shape[1:], device=device).to(memory_format=LAYOUTS[setting.layout])
    labels = torch.arange(count, device=device) % setting.num_classes
    model = models.create(name, num_classes=setting.num_classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    best = float("inf")
    for _ in range(attempts + 1):
        begun = perf_counter()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, perf_counter() - begun)
    return 1000 * best * setting.shape[0] / count


def _judged(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    return {(row.section, row.setting, row.job, row.per, output): row for output, row in kept(rows)}


def _read(path: Path) -> dict[tuple[str, ...], Ratio]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            (line["device"], line["threads"], *(line[name] for name in PLACE)): Ratio(
                float(line["median"]), float(line["low"]), float(line["high"])
            )
            for line in csv.DictReader(file)
        }
