"""Parts of a data set with classes: some of its classes, some of each class, and a validation part.

`mixaug.data.load` applies this to every set with classes, held in memory or read from files.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mixaug.data.reading import channel_statistics, shortened, stratified_rows
from mixaug.data.sets import ArrayData, DataSet, FileData, MappedData

__all__ = ["SPLIT_OPTIONS", "Classes", "chosen_classes", "with_splits"]

Classes = int | Sequence[int | str] | None


def with_splits(
    data: DataSet,
    *,
    classes: Classes = None,
    class_seed: int | None = None,
    per_class: int | None = None,
    valid_share: float = 0.0,
    imbalance: float | None = None,
    split_seed: int = 0,
) -> DataSet:
    """A data set of some classes, with a validation part and with fewer training samples.

    The steps come in this order: classes are chosen; the validation part is taken from their training samples;
    ``per_class`` of those that are left are kept, or fewer and fewer of each class with ``imbalance``. The validation
    part therefore depends on neither. The test part loses no sample of the classes that are kept.

    Args:
        data: a set whose training part has every class.
        classes: how many classes to keep, or which, by name or by number; None keeps all. Labels count the kept ones
            from 0: in the order of their numbers, or in the order in which they are listed.
        class_seed: draws the classes where ``classes`` is a number; None takes the first ones.
        per_class: training samples to keep of each class, >= 1; None keeps all. Of one seed, fewer are part of more.
        valid_share: share of the training samples for validation, drawn by class share, in [0, 1); 0 takes none.
            Validation samples are read as test samples are, without training's transform.
        imbalance: how many times as many training samples the first class keeps as the last one, >= 1: class k of K
            keeps n * imbalance^(-k / (K - 1)) of them, rounded down and at least 1. That is the long tail of
            arXiv:1901.05555, where n is the same for all classes; here it is ``per_class``, or the number of samples of
            the least frequent class, so that no class lacks any. None keeps all.
        split_seed: seed of the draws of samples, >= 0.

    Raises:
        TypeError: an option of another kind, parts other than `ArrayData`, `MappedData` and `FileData`.
        ValueError: an option out of range, a class that the set does not have, too few samples of a class, a share of
            a set that has a validation part of its own.
    """
    _check(data.name, class_seed, per_class, valid_share, split_seed)
    _check_imbalance(data.name, imbalance)
    kept = chosen_classes(data.name, data.class_names, classes, class_seed)
    chosen = data if kept == list(range(data.num_classes)) else _of_classes(data, kept)
    if valid_share or per_class is not None or imbalance is not None:
        chosen = _of_samples(chosen, per_class, valid_share, imbalance, split_seed)
    if not chosen.fitted or chosen.train is data.train:
        return chosen
    mean, std = channel_statistics(labelled(chosen.train).images)
    return chosen.replaced(mean=mean, std=std)


SPLIT_OPTIONS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(with_splits).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}
"""Options of `with_splits` and their defaults, which leave a data set as it is."""


def chosen_classes(what: str, names: Sequence[str], classes: Classes, class_seed: int | None) -> list[int]:
    """Numbers of the classes to keep.

    Args:
        what: name of the data set, for messages.
        names: names of all classes, in the order of the labels.
        classes, class_seed: see `with_splits`.

    Raises:
        TypeError: ``classes`` is neither a number, nor a list of names and numbers, nor None.
        ValueError: more classes than there are, an unknown or doubled one, a seed without a number to draw.
    """
    total = len(names)
    if class_seed is not None and (isinstance(classes, bool) or not isinstance(classes, int)):
        raise ValueError(
            f"data set {what!r}: class_seed={class_seed} draws as many classes as classes= says, which is {classes!r}"
        )
    if classes is None:
        return list(range(total))
    if isinstance(classes, int) and not isinstance(classes, bool):
        if not 1 <= classes <= total:
            raise ValueError(f"data set {what!r} expected classes in 1..{total}, got {classes}")
        if class_seed is None:
            return list(range(classes))
        return torch.randperm(total, generator=_generator("classes", class_seed))[:classes].sort().values.tolist()
    if isinstance(classes, (str, bool)) or not isinstance(classes, Sequence):
        raise TypeError(
            f"data set {what!r} expected classes to be a number, a list of names or numbers, or None, got {classes!r}"
        )
    numbers = []
    for entry in classes:
        if isinstance(entry, str):
            if names.count(entry) != 1:
                known = shortened([str(name) for name in names])
                raise ValueError(f"data set {what!r} has no class, or several, of the name {entry!r}; it has {known}")
            numbers.append(names.index(entry))
        elif isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < total:
            numbers.append(entry)
        else:
            raise ValueError(
                f"data set {what!r} expected classes by name or by number in 0..{total - 1}, got {entry!r}"
            )
    if not numbers or len(set(numbers)) != len(numbers):
        raise ValueError(f"data set {what!r} expected at least one class and each once, got {list(classes)}")
    return numbers


def labels_of(data: Any) -> Tensor:
    """(N,) int64 labels of a part, read without its images."""
    return torch.as_tensor(labelled(data).labels, dtype=torch.int64)


def labelled(data: Any) -> Any:
    """The part that has the labels: the one behind a transform, or the part itself.

    Raises:
        TypeError: a part of another kind than those of `mixaug.data`.
    """
    part = data.data if isinstance(data, MappedData) else data
    if not isinstance(part, (ArrayData, FileData)):
        raise TypeError(
            f"a choice of samples expects parts that are ArrayData, MappedData or FileData, got {type(data).__name__}"
        )
    return part


def _check(what: str, class_seed: Any, per_class: Any, valid_share: Any, split_seed: Any) -> None:
    for option, value, least in (("class_seed", class_seed, 0), ("per_class", per_class, 1)):
        if value is not None:
            _check_int(what, option, value, least)
    _check_int(what, "split_seed", split_seed, 0)
    if isinstance(valid_share, bool) or not isinstance(valid_share, (int, float)):
        raise TypeError(f"data set {what!r} expected valid_share to be a number, got {valid_share!r}")
    if not 0 <= valid_share < 1:
        raise ValueError(f"data set {what!r} expected valid_share in [0, 1), got {valid_share}")


def _check_imbalance(what: str, imbalance: Any) -> None:
    if imbalance is None:
        return
    if isinstance(imbalance, bool) or not isinstance(imbalance, (int, float)):
        raise TypeError(f"data set {what!r} expected imbalance to be a number or None, got {imbalance!r}")
    if not 1 <= imbalance < math.inf:
        raise ValueError(f"data set {what!r} expected imbalance >= 1, got {imbalance}")


def _check_int(what: str, option: str, value: Any, least: int) -> None:
    if value == "by_seed":
        raise ValueError(
            f"data set {what!r}: {option}='by_seed' is resolved by the training engine, which passes the run's seed; "
            "give an int here"
        )
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"data set {what!r} expected {option} to be an int, got {value!r}")
    if value < least:
        raise ValueError(f"data set {what!r} expected {option} >= {least}, got {value}")


def _of_classes(data: DataSet, kept: list[int]) -> DataSet:
    """The set with these classes alone, counted from 0."""
    new = torch.full((data.num_classes,), -1)
    new[kept] = torch.arange(len(kept))

    def part(samples: Any) -> Any:
        if samples is None:
            return None
        labels = new[labels_of(samples)]
        rows = torch.nonzero(labels >= 0).squeeze(1)
        return samples.take(rows, labels[rows])

    return data.replaced(
        train=part(data.train),
        valid=part(data.valid),
        test=part(data.test),
        num_classes=len(kept),
        class_names=tuple(data.class_names[number] for number in kept),
    )


def _of_samples(
    data: DataSet, per_class: int | None, valid_share: float, imbalance: float | None, split_seed: int
) -> DataSet:
    """The set with a validation part and with some of the training samples."""
    labels, valid, train = labels_of(data.train), data.valid, data.train
    rows = torch.arange(len(labels))
    if valid_share:
        if valid is not None:
            raise ValueError(
                f"data set {data.name!r} has a validation part of its own, and valid_share={valid_share} would take "
                "another one from the training part: choose one"
            )
        held = _valid_rows(data, labels, valid_share, split_seed)
        valid = _as_evaluated(train, data.test).take(rows[held])
        rows = rows[~held]
    if per_class is not None or imbalance is not None:
        left = labels[rows]
        most = int(torch.bincount(left, minlength=data.num_classes).min()) if per_class is None else per_class
        amounts = [most] * data.num_classes if imbalance is None else _long_tail(most, data.num_classes, imbalance)
        rows = rows[_per_class(data, left, amounts, split_seed)]
    part: Any = train
    return data.replaced(train=part.take(rows), valid=valid)


def _valid_rows(data: DataSet, labels: Tensor, share: float, seed: int) -> Tensor:
    """(N,) bool: which training samples are for validation."""
    size = round(len(labels) * share)
    if size < 1:
        raise ValueError(f"data set {data.name!r}: valid_share={share} of {len(labels)} training samples is none")
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[stratified_rows(labels, size, _generator("validation", seed))] = True
    emptied = set(labels.tolist()) - set(labels[~held].tolist())
    if emptied:
        names = shortened([data.class_names[label] for label in sorted(emptied)])
        raise ValueError(f"data set {data.name!r}: valid_share={share} leaves no training sample of {names}")
    return held


def _long_tail(most: int, classes: int, factor: float) -> list[int]:
    """Samples of each class, the first with ``most`` and ``factor`` times as many as the last one."""
    steps = max(classes - 1, 1)
    # A power that is whole but for rounding must not lose one: 50 / 10 is 5.
    return [max(1, math.floor(most * factor ** (-place / steps) + 1e-9)) for place in range(classes)]


def _per_class(data: DataSet, labels: Tensor, amounts: Sequence[int], seed: int) -> Tensor:
    """Places of so many samples of each class, in ascending order."""
    generator, places = _generator("per class", seed), []
    for label, amount in enumerate(amounts):
        members = torch.nonzero(labels == label).squeeze(1)
        if len(members) < amount:
            raise ValueError(
                f"data set {data.name!r}: per_class={amount}, but there are {len(members)} training samples of "
                f"{data.class_names[label]}"
            )
        places.append(members[torch.randperm(len(members), generator=generator)[:amount]])
    return torch.cat(places).sort().values


def _as_evaluated(train: Any, test: Any) -> Any:
    """The training samples as the test part's are read: with its transform in place of their own."""
    if isinstance(train, FileData) and isinstance(test, FileData):
        return replace(train, transform=test.transform)
    samples = labelled(train)
    return MappedData(samples, test.transform) if isinstance(test, MappedData) else samples


def _generator(purpose: str, seed: int) -> torch.Generator:
    """A stream for one draw; streams of other purposes and seeds are unrelated."""
    digest = hashlib.sha256(f"mixaug/data/{purpose}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
