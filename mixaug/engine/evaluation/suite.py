"""The families over a finished run folder, each taken once: what was found is in ``evaluation.json``.

A family is taken again only where something that decides its numbers has changed: the checkpoint, the seed, the number
of samples, the data that were handed in, or the family itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixaug.checks import check_choice, check_whole
from mixaug.engine import checkpoint
from mixaug.engine.distributed import start
from mixaug.engine.errors import CheckpointError, ConfigError
from mixaug.engine.evaluation import corruption
from mixaug.engine.evaluation.datasets import DataSets
from mixaug.engine.evaluation.families import FAMILIES, HEADLINES
from mixaug.engine.evaluation.subject import Split, Subject, Unavailable
from mixaug.engine.lock import RunLock
from mixaug.engine.reading import DamagedFile, is_number, read_object
from mixaug.engine.results import digest_beside
from mixaug.engine.run import status, write_json
from mixaug.engine.stored import open_model
from mixaug.engine.tasks import CLASSIFICATION, task_of

__all__ = ["RESULTS", "FamilyResult", "evaluate_run", "families_named", "read_results"]

RESULTS = "evaluation.json"
"""Name of the file in the run folder."""

VERSION = 1
"""Counts up where the numbers of a family change their meaning, so that they are taken anew."""


def families_named(suite: str | Sequence[str], what: str = "suite") -> list[str]:
    """The families that ``"all"``, one name, several with commas between them, or a list of names asks for, in order.

    Args:
        suite: what is asked for.
        what: how the one who asks calls that, for the message.

    Raises:
        ValueError: a family that does not exist; the message lists those that do.
    """
    wanted = suite.split(",") if isinstance(suite, str) else list(suite)
    names = [name.strip() for name in wanted]
    for name in names:
        check_choice(what, "each family", name, ["all", *FAMILIES])
    return [name for name in FAMILIES if "all" in names or name in names]


def evaluate_run(
    folder: Path | str,
    suite: str | Sequence[str] = "all",
    *,
    device: str = "auto",
    weights: str = "auto",
    samples: int | None = None,
    seed: int = 0,
    outliers: Mapping[str, Any] | None = None,
    corrupted: Path | str | None = None,
    valid: tuple[Tensor, Tensor] | None = None,
    allow_targets: Collection[str] = (),
    say: Callable[[str], None] = print,
    sets: DataSets | None = None,
) -> dict[str, Any]:
    """Take families of measures of a finished run and keep them in its folder.

    Args:
        folder: a run folder, of anybody: its config builds what a run of mixaug is made of and nothing else.
        suite: see `families_named`.
        device: "auto", "cpu", "cuda".
        weights: "model", "ema", or "auto": the averaged weights where the run kept them.
        samples: at most so many test images, drawn by the seed; None takes all.
        seed: of every draw. Runs that are compared need the same one.
        outliers: ``name`` and options of a second data set, see `outlier_images`; None leaves that family out.
        corrupted: a folder with the files of CIFAR-C for the run's whole test set. None makes the corruptions and keeps
            them in ``corrupted`` beside the run folder, for all runs on the same images.
        valid: (N, C, H, W) uint8 images and (N,) int64 labels to fit the temperature on; None takes the validation
            split of the data set, and leaves the family out where there is none.
        allow_targets: full names that the config may call beside those of mixaug.
        say: called with a line for every family.
        sets: data sets that are at hand; hand the same one to the calls for several runs, and each set is loaded once.

    Returns:
        The content of ``evaluation.json``; ``families`` has for each ``numbers``, ``curves``, ``notes``, ``samples``
        (test images), ``seconds`` and ``passes`` (its cost, in passes over these images without gradients), or
        ``skipped``, the reason.

    Raises:
        FileNotFoundError, CheckpointError, ConfigError, DamagedFile: see `mixaug.engine.stored.evaluate_checkpoint`.
        ConfigError: a run that is not finished, or one in regression.
        RunFolderError: the folder cannot be written, or another process holds it.
        ValueError: options that cannot be.
    """
    folder = Path(folder)
    names = families_named(suite)
    most = None if samples is None else check_whole("evaluate", "samples", samples)
    check_choice("evaluate", "weights", weights, ("auto", "model", "ema"))
    if "corruption" in names and corrupted is not None and most is not None:
        raise ValueError(f"evaluate: corrupted={corrupted} is for the whole test set; leave samples={most} out")
    given = None if valid is None else _checked_split(*valid)
    if status(folder) != "finished":
        raise ConfigError(f"{folder} is not the folder of a finished run: it is {status(folder)}")
    with RunLock(folder, say) as lock:
        lock.take()
        settings = _settings(folder, names, weights, most, seed, outliers, corrupted, given)
        before = _kept(folder, say)
        families: dict[str, Any] = dict(before.get("families", {}))
        todo = [name for name in names if not _is_done(families.get(name), settings[name])]
        for name in names:
            if name not in todo:
                say(f"{folder.name}  {name}: done before")
        if not todo:
            return before
        at_hand = DataSets() if sets is None else sets
        subject = _subject(folder, weights, device, allow_targets, seed, most, outliers, corrupted, given, say, at_hand)
        result: dict[str, Any] = {}
        for name in todo:
            families[name] = {"settings": settings[name], **_taken(subject, name)}
            say(f"{folder.name}  {name}: {_line(name, families[name])}")
            ordered = {family: families[family] for family in FAMILIES if family in families}
            result = {"config": digest_beside(folder), "families": ordered}
            write_json(folder / RESULTS, result)
        say(f"{folder.name}  {_cost([families[name] for name in todo])}")
        return result


@dataclass(frozen=True)
class FamilyResult:
    """What one family found of one run.

    Attributes:
        numbers, curves: see `mixaug.engine.evaluation.families.Found`; finite numbers alone.
        notes: sentences that belong beside them.
        settings: what runs must share to be compared, as text: all that decides the numbers but the checkpoint.
        samples: how many test images there were; 0 where the file does not say it.
    """

    numbers: dict[str, float]
    curves: dict[str, list[float]]
    notes: list[str]
    settings: str
    samples: int = 0


def read_results(folder: Path | str) -> dict[str, FamilyResult]:
    """The families in the ``evaluation.json`` of a folder, of anybody, by name; those that were left out are not there.

    Raises:
        FileNotFoundError: nothing was evaluated.
        DamagedFile: the file is not one of the suite, or that of another run than the config beside it.
    """
    content = read_object(Path(folder) / RESULTS)
    families, digest = content.get("families"), content.get("config")
    if digest is not None and digest_beside(Path(folder)) not in (None, digest):
        raise DamagedFile(
            f"{RESULTS}: it is that of another run, whose settings are not those of the config.yaml beside it"
        )
    if not isinstance(families, dict):
        raise DamagedFile(f"{RESULTS}: families: expected a mapping")
    found: dict[str, FamilyResult] = {}
    for name in FAMILIES:
        entry = families.get(name)
        if not isinstance(entry, dict) or "skipped" in entry:
            continue
        numbers, curves, notes, settings = (entry.get(key) for key in ("numbers", "curves", "notes", "settings"))
        if not (isinstance(numbers, dict) and isinstance(curves, dict) and isinstance(settings, dict)):
            raise DamagedFile(f"{RESULTS}: {name}: expected numbers, curves and settings")
        shared = {key: value for key, value in settings.items() if key != "checkpoint"}
        found[name] = FamilyResult(
            {key: float(value) for key, value in numbers.items() if is_number(value)},
            {
                key: [float(value) for value in values]
                for key, values in curves.items()
                if isinstance(values, list) and all(map(is_number, values))
            },
            [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else [],
            json.dumps(shared, sort_keys=True),
            max(0, samples) if isinstance(samples := entry.get("samples"), int) else 0,
        )
    return found


def _taken(subject: Subject, name: str) -> dict[str, Any]:
    began, predicted = time.perf_counter(), subject.predicted
    try:
        found = FAMILIES[name](subject).plain()
    except Unavailable as reason:
        return {"skipped": str(reason)}
    if subject.device.type == "cuda":
        torch.cuda.synchronize(subject.device)
    seconds = time.perf_counter() - began
    passes = (subject.predicted - predicted) / len(subject.test)
    return {**found, "samples": len(subject.test), "seconds": round(seconds, 2), "passes": round(passes, 2)}


def _line(name: str, entry: Mapping[str, Any]) -> str:
    if "skipped" in entry:
        return f"left out: {entry['skipped']}"
    numbers = entry["numbers"]
    shown = [f"{key} {numbers[key]:.4g}" for key in HEADLINES[name] if numbers.get(key) is not None]
    notes = "".join(f"; {note}" for note in entry["notes"])
    return f"{', '.join(shown)}{notes} ({entry['seconds']:.1f} s, {entry['passes']:.1f} passes over the test images)"


def _cost(entries: Sequence[Mapping[str, Any]]) -> str:
    taken = [entry for entry in entries if "skipped" not in entry]
    passes, seconds = (sum(entry[key] for entry in taken) for key in ("passes", "seconds"))
    return f"{len(taken)} families: {seconds:.1f} s, as much as {passes:.1f} passes over the test images"


def _is_done(entry: Any, settings: dict[str, Any]) -> bool:
    # What was left out for want of something may be there now, and costs nothing to try.
    return isinstance(entry, dict) and entry.get("settings") == settings and "skipped" not in entry


def _settings(
    folder: Path,
    names: Sequence[str],
    weights: str,
    samples: int | None,
    seed: int,
    outliers: Mapping[str, Any] | None,
    corrupted: Path | str | None,
    valid: Split | None,
) -> dict[str, dict[str, Any]]:
    """What decides the numbers of each family, as JSON has it."""
    newest = checkpoint.last_good(folder)
    if newest is None:
        raise CheckpointError(f"{folder} has no checkpoint that can be read")
    common = {
        "version": VERSION,
        "checkpoint": hashlib.sha256(Path(newest).read_bytes()).hexdigest()[:16],
        "weights": weights,
        "samples": samples,
        "seed": seed,
    }
    own: dict[str, dict[str, Any]] = {
        "outliers": {"outliers": None if outliers is None else {key: str(value) for key, value in outliers.items()}},
        "corruption": {"corrupted": None if corrupted is None else str(Path(corrupted).resolve())},
        "temperature": {"valid": None if valid is None else _digest(valid)},
    }
    return {name: json.loads(json.dumps({**common, **own.get(name, {})})) for name in names}


def _subject(
    folder: Path,
    weights: str,
    device: str,
    allow_targets: Collection[str],
    seed: int,
    samples: int | None,
    outliers: Mapping[str, Any] | None,
    corrupted: Path | str | None,
    valid: Split | None,
    say: Callable[[str], None],
    sets: DataSets,
) -> Subject:
    model, config, data = open_model(folder, weights, allow_targets, say, sets.of_run)
    if task_of(data) is not CLASSIFICATION:
        raise ConfigError(f"{folder}: the suite is for classification, and data={data.name} has numbers as labels")
    world = start(device)
    if world.size > 1:
        raise ConfigError("the suite runs in one process; several runs can be evaluated side by side")

    @functools.cache
    def kept() -> Path:
        split = subject.test
        return corruption.kept_folder(folder.parent / "corrupted", data.name, split.images, split.labels, seed)

    def open_corrupted(split: Split, name: str) -> Any:
        if corrupted is not None:
            return corruption.open_set(Path(corrupted), name, split.labels)
        return corruption.open_set(kept(), name, split.labels, split.images, seed)

    subject = Subject(model, config, data, world, seed, samples, valid, corrupted=open_corrupted)
    if outliers is not None:
        shape = tuple(subject.test.images.shape[1:])
        subject.outliers = sets.outliers(outliers, shape, len(subject.test), seed)
    return subject


def _kept(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    try:
        found = read_object(folder / RESULTS)
    except FileNotFoundError:
        return {}
    except DamagedFile as error:
        say(f"{folder}: {error}; everything is taken anew")
        return {}
    if not isinstance(found.get("families"), dict):
        say(f"{folder}: {RESULTS} is not one of the suite; everything is taken anew")
        return {}
    return found


def _checked_split(images: Tensor, labels: Tensor) -> Split:
    if (
        images.dtype != torch.uint8
        or images.ndim != 4
        or labels.dtype != torch.int64
        or labels.shape != images.shape[:1]
    ):
        raise ValueError(
            "evaluate expects valid as uint8 images (N, C, H, W) and int64 labels (N,), got "
            f"{tuple(images.shape)} {images.dtype} and {tuple(labels.shape)} {labels.dtype}"
        )
    return Split(images, labels)


def _digest(split: Split) -> str:
    content = hashlib.sha256(split.images.contiguous().numpy().tobytes())
    content.update(split.labels.contiguous().numpy().tobytes())
    return content.hexdigest()[:16]
