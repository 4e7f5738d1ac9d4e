"""What the suite takes of a model: one function a family, from a `Subject` to numbers and curves by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixaug import functional
from mixaug.engine.evaluation import activation, attack, calibration, corruption, geometry, occlusion, outliers
from mixaug.engine.evaluation.draws import sample_order, sample_uniforms
from mixaug.engine.evaluation.subject import Split, Subject, Unavailable

__all__ = ["FAMILIES", "HEADLINES", "Found"]

SHARES = tuple(share / 10 for share in range(10))
MASKING_SAMPLES = 200
"""The check against masked gradients takes so many images at most: an image costs as much as some 640 predictions."""
HISTOGRAM = 40


@dataclass(frozen=True)
class Found:
    """What a family found.

    Attributes:
        numbers: one number by name, for tables.
        curves: lists of numbers by name, for figures.
        notes: sentences that belong beside the numbers.
    """

    numbers: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As a JSON object; numbers that are not finite become null."""
        content = asdict(self)
        content["numbers"] = {name: value if math.isfinite(value) else None for name, value in self.numbers.items()}
        return content


def take_calibration(subject: Subject) -> Found:
    """Calibration of the plain logits on the test set."""
    found = subject.on_test
    return Found(calibration.calibration(found.logits, found.labels), _diagram(found.logits, found.labels))


def take_temperature(subject: Subject) -> Found:
    """The temperature that fits a validation split, and the calibration of the test set with it."""
    valid = subject.predictions(subject.validation)
    try:
        temperature = calibration.fit_temperature(valid.logits, valid.labels)
    except ValueError as error:
        raise Unavailable(str(error)) from error
    scaled = subject.on_test.logits / temperature
    labels = subject.on_test.labels
    numbers = calibration.calibration(scaled, labels)
    changed = {name: value for name, value in numbers.items() if name not in ("accuracy", "aurra")}
    return Found({"temperature": temperature, **changed}, _diagram(scaled, labels))


def take_outliers(subject: Subject) -> Found:
    """How well scores tell images of another data set from the test set."""
    if subject.outliers is None:
        raise Unavailable("no second data set was named: --outliers NAME [OPTION=VALUE ...]")
    inside = subject.on_test
    none = torch.zeros(len(subject.outliers), dtype=torch.int64)
    outside = subject.predictions(Split(subject.outliers, none))
    scores: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
        "msp": lambda logits, _: outliers.msp(logits),
        "energy": lambda logits, _: outliers.energy(logits),
        "max_logit": lambda logits, _: outliers.max_logit(logits),
    }
    notes = []
    if inside.features is not None:
        bank = subject.on_train
        features = subject.features(bank.features)
        means, covariance = _statistics(subject, features, bank.labels)
        neighbours = min(outliers.NEIGHBOURS, len(features))
        scores["mahalanobis"] = lambda _, h: outliers.mahalanobis(subject.features(h), means, covariance)
        scores["knn"] = lambda _, h: outliers.knn(subject.features(h), features, neighbours)
    else:
        notes.append("mahalanobis and knn are left out: the model has no linear classifier to be found")
    numbers: dict[str, float] = {"samples": len(subject.outliers)}
    curves = {}
    for name, score in scores.items():
        pair = [score(each.logits, each.features) for each in (inside, outside)]
        numbers |= {f"{name}_{measure}": value for measure, value in outliers.detection(*pair).items()}
        low, high = (float(limit) for limit in torch.cat(pair).quantile(torch.tensor([0.005, 0.995]).to(pair[0])))
        for side, values in zip(("in", "out"), pair, strict=True):
            kept = values[(values >= low) & (values <= high)].float().cpu()
            curves[f"{name}_{side}"] = (torch.histc(kept, HISTOGRAM, low, high) / len(values)).tolist()
        curves[f"{name}_range"] = [low, high]
    return Found(numbers, curves, notes)


def take_attack(subject: Subject) -> Found:
    """Accuracy under FGSM and PGD, and on a few images whether gradients are masked."""
    split = subject.test
    usual = _shares(subject, split, torch.arange(len(split)), attack.outcomes)
    order = sample_order(torch.zeros(1, dtype=torch.int64), len(split), subject.seed, "masking")[0]
    few = order[:MASKING_SAMPLES].sort().values
    thorough = _shares(subject, split, few, attack.thorough_outcomes)
    numbers = {"epsilon": attack.EPSILON, **{name: 100 * share for name, share in usual.items()}}
    numbers |= {f"check_{name}": 100 * share for name, share in thorough.items()} | {"check_samples": len(few)}
    return Found(numbers, notes=attack.masking_signs(thorough))


def take_occlusion(subject: Subject) -> Found:
    """Accuracy with a share of the cells covered by the mean colour or by another image's, and with cells moved."""
    split = subject.test
    size = (int(split.images.shape[2]), int(split.images.shape[3]))
    cell = _cell(size)
    cells = occlusion.cell_count(size, cell)
    partners = subject.partners(split)
    numbers: dict[str, float] = {"cell": cell}
    curves: dict[str, list[float]] = {"shares": list(SHARES)}

    def cover(share: float, foreign: bool) -> Callable[[Tensor, Tensor], Tensor]:
        def change(images: Tensor, rows: Tensor) -> Tensor:
            dropped = occlusion.dropped_cells(sample_order(rows, cells, subject.seed, "cells"), share)
            others = split.images[partners[rows.cpu()]].to(images.device) if foreign else None
            return occlusion.occlude(images, dropped, cell, 0.0 if others is None else subject.normalize(others))

        return change

    clean = subject.accuracy(split)
    for name in ("mean", "foreign"):
        curve = [clean, *(subject.accuracy(split, cover(share, name == "foreign")) for share in SHARES[1:])]
        curves[name] = curve
        numbers[f"{name}_area"] = occlusion.area_under_curve(SHARES, curve)
        numbers[f"{name}_half"] = curve[SHARES.index(0.5)]
    numbers["selectivity"] = numbers["foreign_area"] - numbers["mean_area"]
    for side in (2, 4, 8):
        if any(length % side for length in size) or size[0] != size[1]:
            continue

        def move(images: Tensor, rows: Tensor, side: int = side) -> Tensor:
            order = sample_order(rows, side * side, subject.seed, f"places {side}")
            return occlusion.shuffle_patches(images, order, size[0] // side)

        numbers[f"shuffled_{side}x{side}"] = subject.accuracy(split, move)
    return Found(numbers, curves)


def take_corruption(subject: Subject) -> Found:
    """Error on the fifteen corruptions in five severities."""
    split = subject.test
    if tuple(split.images.shape[1:]) != (3, 32, 32):
        raise Unavailable(
            f"the constants of CIFAR-C are for images of 3x32x32, and data={subject.data.name} has "
            f"{'x'.join(map(str, split.images.shape[1:]))}"
        )
    if subject.corrupted is None:
        raise Unavailable("there is no folder to keep the corrupted sets in")
    curves = {
        name: [100 - subject.accuracy(Split(images, split.labels)) for images in subject.corrupted(split, name)]
        for name in corruption.CORRUPTIONS
    }
    numbers = {name: sum(errors) / len(errors) for name, errors in curves.items()}
    by_severity = [sum(errors) / len(errors) for errors in zip(*curves.values(), strict=True)]
    numbers |= {f"severity_{level}": error for level, error in enumerate(by_severity, 1)}
    return Found({"mean_error": sum(by_severity) / len(by_severity), **numbers}, curves)


def take_geometry(subject: Subject) -> Found:
    """Neural collapse of the training set, alignment and uniformity of the test set, mixtures on foreign ground."""
    train = subject.on_train
    features, layer = subject.features(train.features), subject.classifier
    if layer is None:
        raise Unavailable(f"{type(subject.model).__name__} has no linear classifier to be found")
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    means, _ = _statistics(subject, features, train.labels)
    numbers = geometry.neural_collapse(features, train.labels, weight, bias)
    numbers["train_accuracy"] = 100 * numbers.pop("accuracy")
    on_test = subject.features(subject.on_test.features)
    try:
        numbers["alignment"] = float(geometry.class_alignment(on_test, subject.on_test.labels))
        numbers["uniformity"] = float(geometry.uniformity(on_test))
    except ValueError as error:
        raise Unavailable(f"{len(on_test)} test images are too few: {error}") from error
    for kind in ("mixup", "cutmix"):
        foreign, other = _mixtures(subject, kind, means)
        numbers |= {f"intrusion_{kind}": 100 * foreign, f"disagreement_{kind}": 100 * other}
    return Found(numbers)


def take_activation(subject: Subject) -> Found:
    """How much class activation lies on the object: in halves of two images, and on masks where the data have them."""
    split, partners = subject.test, subject.partners(subject.test)
    found: list[tuple[Tensor, Tensor]] = []
    for rows in subject.chunks(len(split)):
        both = subject.normalize(split.images[torch.cat([rows, partners[rows]])].to(subject.device))
        on_left = sample_uniforms(rows.to(subject.device), (), subject.seed, "half") < 0.5
        shown = activation.halves(both[: len(rows)], both[len(rows) :], on_left)
        maps = subject.class_activation(shown, split.labels[rows])
        found.append(activation.activation_on(maps, activation.half_regions(on_left, *maps.shape[1:])))
    numbers = _percent("half", found)
    masks = subject.object_masks
    if masks is None:
        return Found(numbers)
    # An image whose mask is empty has no object to look at.
    held = masks.flatten(1).any(1).nonzero()[:, 0]
    if not len(held):
        return Found(numbers, notes=["no test image has an object in its mask"])
    found, areas = [], []
    for rows in held.split(subject.batch_size):
        region = masks[rows].to(subject.device)
        images = subject.normalize(split.images[rows].to(subject.device))
        found.append(activation.activation_on(subject.class_activation(images, split.labels[rows]), region))
        areas.append(region.double().flatten(1).mean(1))
    area = 100 * float(torch.cat(areas).mean())
    return Found(numbers | _percent("object", found) | {"object_area": area, "object_samples": len(held)})


FAMILIES: Mapping[str, Callable[[Subject], Found]] = {
    "calibration": take_calibration,
    "temperature": take_temperature,
    "outliers": take_outliers,
    "attack": take_attack,
    "occlusion": take_occlusion,
    "corruption": take_corruption,
    "geometry": take_geometry,
    "activation": take_activation,
}
"""The families by name, in the order in which they are taken."""

HEADLINES: Mapping[str, tuple[str, ...]] = {
    "calibration": ("ece", "ece_mass", "brier", "nll"),
    "temperature": ("temperature", "ece", "nll"),
    "outliers": ("msp_auroc", "energy_auroc", "knn_auroc", "msp_fpr95"),
    "attack": ("clean", "fgsm", "pgd", "check_pgd_strong"),
    "occlusion": ("mean_area", "foreign_area", "selectivity", "shuffled_4x4"),
    "corruption": ("mean_error", "severity_1", "severity_5"),
    "geometry": ("nc1", "nc3", "uniformity", "intrusion_mixup"),
    "activation": ("half_share", "half_pointing", "object_share", "object_pointing", "object_area"),
}
"""The numbers of each family that a line has room for."""


def _diagram(logits: Tensor, labels: Tensor) -> dict[str, list[float]]:
    found = calibration.reliability(logits.double().softmax(1), labels)
    return {name: getattr(found, name).tolist() for name in ("edges", "count", "confidence", "accuracy")}


def _statistics(subject: Subject, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Class means and shared covariance of the training set."""
    try:
        return outliers.class_statistics(features, labels, subject.classes)
    except ValueError as error:
        raise Unavailable(f"training set of data={subject.data.name}: {error}") from error


def _shares(
    subject: Subject, split: Split, rows: Tensor, outcomes: Callable[..., dict[str, Tensor]]
) -> dict[str, float]:
    """Mean of each outcome over the samples with these numbers."""
    sums: dict[str, Tensor] = {}
    for part in rows.split(subject.gradient_batch_size):
        pixels = split.images[part].to(subject.device).float() / 255
        labels = split.labels[part].to(subject.device)
        found = outcomes(subject.pixel_model, pixels, labels, part.to(subject.device), seed=subject.seed)
        for name, right in found.items():
            sums[name] = sums.get(name, 0) + right.sum()
    return {name: float(total) / len(rows) for name, total in sums.items()}


def _percent(name: str, found: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Means of what `activation.activation_on` gave for all batches."""
    shares, hits = (torch.cat(parts) for parts in zip(*found, strict=True))
    return {f"{name}_share": 100 * float(shares.mean()), f"{name}_pointing": 100 * float(hits.mean())}


def _cell(size: tuple[int, int]) -> int:
    """Side of a cell: 16 pixels from 128 on, as in the literature; in smaller ones the largest that gives 8 a side."""
    if min(size) >= 128 and not any(length % 16 for length in size):
        return 16
    return next(side for side in range(max(min(size) // 8, 1), 0, -1) if not any(length % side for length in size))


@torch.no_grad()
def _mixtures(subject: Subject, kind: str, means: Tensor) -> tuple[float, float]:
    """Shares of test mixtures whose nearest class is foreign, and is not the one that has most of the label."""
    split, partners = subject.test, subject.partners(subject.test)
    counts = torch.zeros(2, dtype=torch.int64, device=subject.device)
    height, width = split.images.shape[2:]
    for rows in subject.chunks(len(split)):
        both = torch.cat([split.images[rows], split.images[partners[rows]]]).to(subject.device)
        images = subject.normalize(both)
        count = len(rows)
        partner = torch.arange(2 * count, device=subject.device).roll(count)
        u = sample_uniforms(rows.to(subject.device), (3,), subject.seed, f"mixture {kind}").repeat(2, 1)
        lam = u[:, 0]
        if kind == "mixup":
            mixed = functional.mixup(images, partner, lam)
        else:
            centres = (u[:, 1:] * u.new_tensor([height, width])).long()
            mixed, lam = functional.cutmix(images, partner, functional.cutmix_boxes(lam, centres, (height, width)))
        read = subject.features(subject.shown(mixed[:count])[1])
        labels = torch.stack([split.labels[rows], split.labels[partners[rows]]], 1).to(subject.device)
        weights = torch.stack([lam[:count], 1 - lam[:count]], 1)
        counts += torch.stack([each.sum() for each in geometry.intrusion(read, labels, weights, means)])
    foreign, other = (counts / len(split)).tolist()
    return foreign, other
