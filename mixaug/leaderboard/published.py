"""Our runs beside published figures: what may be compared, and a plain mark when it may not.

Everything that ties our names to the names in published/classification.csv stands in the four tables below.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from mixaug.engine.config import protocol_models

__all__ = [
    "ANY",
    "DATA",
    "METHODS",
    "MODELS",
    "PROTOCOLS",
    "Figure",
    "Match",
    "Rerun",
    "figures",
    "match",
    "policy_defaults",
]


# -- the tables ---------------------------------------------------------------------------------------------------

MODELS: dict[str, str] = {
    "cifar_resnet18": "ResNet-18",
    "cifar_resnext50_32x4d": "ResNeXt-50",
    "cifar_wrn28_8": "WRN-28-8",
    "cifar_wrn28_10": "WRN-28-10",
    "cifar_preact_resnet18": "PreActResNet-18",
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "resnext50_32x4d": "ResNeXt-50",
    "resnext101_32x4d": "ResNeXt-101",
    "deit_small_patch16_224": "DeiT-S/16",
    "swin_tiny_patch4_window7_224": "Swin-T",
    "convnext_tiny": "ConvNeXt-T",
    "cifar_convnext_tiny": "ConvNeXt-T",
}
"""Published backbone of a model name. Several of ours share one: the protocol's file says which of them it means."""


@dataclass(frozen=True)
class DataName:
    """A data set of ours under given options is a published one. ``options`` must hold, absent ones by default."""

    data: str
    published: str
    options: Mapping[str, object]


DATA: tuple[DataName, ...] = (
    DataName("cifar10", "CIFAR-10", {}),
    DataName("cifar100", "CIFAR-100", {}),
    # The sheets hold the images of CIFAR-100 losslessly: 100 fine labels, all classes.
    DataName("image_sheets", "CIFAR-100", {"labels": "fine", "classes": None}),
    DataName("tiny_imagenet", "Tiny-ImageNet", {}),
    DataName("cub", "CUB-200-2011", {}),
    DataName("aircraft", "FGVC-Aircraft", {}),
    DataName("cars", "Stanford-Cars", {}),
)

BY_PROTOCOL = frozenset({"transform", "test_transform", "image_size"})
"""Data options that a protocol sets; a run that departs from it is marked as such."""

LOCATIONS = frozenset({"folder", "root", "path", "download", "workers", "num_workers", "verify"})
"""Data options that say where the data lies or who reads it, not what it is."""


@dataclass(frozen=True)
class ProtocolName:
    """The tables a protocol reproduces: rows of ``source`` whose ``table`` starts with one of ``tables``."""

    source: str
    tables: tuple[str, ...]


_OPENMIXUP_CIFAR = ProtocolName(
    "OpenMixup",
    (
        "Mixup_cifar.md/CIFAR-10 ResNet-18",
        "Mixup_cifar.md/CIFAR-10 ResNeXt-50",
        "Mixup_cifar.md/CIFAR-100 ResNet-18",
        "Mixup_cifar.md/CIFAR-100 ResNeXt-50 and WRN-28-8",
    ),
)
_OPENMIXUP_CIFAR_VIT = ProtocolName(
    "OpenMixup",
    (
        "Mixup_cifar.md/CIFAR-100 DeiT-S",
        "Mixup_cifar.md/CIFAR-100 Swin-T",
        "Mixup_cifar.md/CIFAR-100 ConvNeXt-T",
    ),
)
PROTOCOLS: dict[str, ProtocolName] = {
    "openmixup_cifar": _OPENMIXUP_CIFAR,
    "openmixup_cifar_vit": _OPENMIXUP_CIFAR_VIT,
    "openmixup_tiny_imagenet": ProtocolName("OpenMixup", ("Mixup_imagenet.md/Tiny-ImageNet",)),
}


@dataclass(frozen=True)
class MethodName:
    """A policy of ours is a published method.

    ``alpha`` names the options compared with the published alpha, in order ("0.8/1" stands for two); it is empty where
    the published alpha has no effect. ``options`` are what the published runs used: a run that differs in one of them,
    or sets any other option away from its default, is marked. ``unlike`` says in what no run of ours can be like the
    published ones, whatever its options: there is then never a figure, and this is told in its place.
    """

    published: tuple[str, ...]
    alpha: tuple[str, ...] = ("alpha",)
    options: Mapping[str, object] = field(default_factory=dict)
    unlike: str = ""


ANY = object()
"""This marks an option whose value the protocol decides."""

_PER_BATCH: dict[str, object] = {"per": "batch"}  # OpenMixup draws one lambda and one mask for a whole batch
_OF_FOUR = "published: the best of four classifiers, two of the network and two of its momentum copy"
_ELSEWHERE = "published: the authors' implementation, with settings that are not told"

METHODS: dict[str, MethodName] = {
    "none": MethodName(("Vanilla",), alpha=()),
    "mixup": MethodName(("MixUp",), options=_PER_BATCH),
    "cutmix": MethodName(("CutMix",), options=_PER_BATCH),
    "fmix": MethodName(("FMix",), options={**_PER_BATCH, "spectrum": "reference"}),
    # The protocol file sets the interpolation: nearest for the CNNs, bilinear for the transformers.
    "resizemix": MethodName(("ResizeMix",), options={**_PER_BATCH, "rule": "beta", "interpolation": ANY}),
    "gridmix": MethodName(("GridMix",), options=_PER_BATCH),
    # OpenMixup's SmoothMix draws a lambda and does not use it; its labels are swapped.
    "smoothmix": MethodName(("SmoothMix",), alpha=(), options={**_PER_BATCH, "reference_labels": True}),
    "saliencymix": MethodName(("SaliencyMix",), options=_PER_BATCH),
    "deit": MethodName(("DeiT",), alpha=("mixup_alpha", "cutmix_alpha"), options=_PER_BATCH),
    "rsb": MethodName(("RSB",), alpha=("mixup_alpha", "cutmix_alpha"), options=_PER_BATCH),
    "manifoldmix": MethodName(("ManifoldMix",), options=_PER_BATCH),
    "snapmix": MethodName(("SnapMix",), options=_PER_BATCH),
    "puzzlemix": MethodName(
        ("PuzzleMix",),
        unlike="published: a graph cut whose 32-bit costs overflow, so that it labels the most salient blocks wrongly; "
        "for transformers and ConvNeXt also a loss that averages the label shares over the batch",
    ),
    "attentivemix": MethodName(
        ("AttentiveMix+",),
        unlike="published: a pre-trained network whose batch norms stay in training mode; here it is in eval mode",
    ),
    "transmix": MethodName(
        ("TransMix",),
        unlike="published: in turn with Mixup (DeiT-S) or CutMix (Swin-T), and a loss that averages the label shares "
        "over the batch",
    ),
    "comixup": MethodName(("Co-Mixup",), alpha=("dirichlet",), unlike=_ELSEWHERE),
    "alignmix": MethodName(("AlignMix",), unlike=_ELSEWHERE),
    "automix": MethodName(("AutoMix",), unlike=_OF_FOUR),
    "samix": MethodName(("SAMix",), unlike=_OF_FOUR),
    # Its figures on the data of our protocols stand in its own repository's table, which names no epochs.
    "adautomix": MethodName(("AdAutoMix",)),
}
"""Published method of each policy name, and what must agree before their figures stand side by side."""


# -- figures and matching -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One published number: top-1 accuracy in percent, or an error.

    ``status`` is empty for a figure read in its source, else says how it is known: ``"quoted"``, ``"unverified"``.
    """

    source: str
    table: str
    dataset: str
    backbone: str
    epochs: int | None
    method: str
    alpha: tuple[float, ...]
    value: float
    note: str
    status: str = ""

    @property
    def statistic(self) -> str:
        """Which of our statistics of a run it is, as far as the note says one; else empty."""
        taken = {"median of last 10 epochs": "median10", "best of last 10 epochs": "best10"}
        return next((ours for theirs, ours in taken.items() if theirs in self.note), "")

    @property
    def citation(self) -> str:
        """Source, table and how the figure was taken."""
        return f"{self.source}, {self.table}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Rerun:
    """The authors' code, run by the makers of this project: one number per seed."""

    name: str
    values: tuple[float, ...]
    worst_group: tuple[float, ...] = ()

    def allowed(self, std: float, count: int) -> float:
        """Largest difference of means that the spread over seeds explains: 2.5 standard errors.

        Args:
            std: standard deviation over our seeds.
            count: how many they are.
        """
        return 2.5 * self._standard_error(std, count)

    def visible(self, std: float, count: int) -> float:
        """Smallest true gap of the means that would be called a difference in four of five such comparisons.

        The distance that is measured scatters about the true gap by one standard error, so in four of five cases it
        lies above the gap less 0.84 of them (the 80 % point of the normal distribution). Arguments as in `allowed`.
        """
        return self.allowed(std, count) + statistics.NormalDist().inv_cdf(0.8) * self._standard_error(std, count)

    def _standard_error(self, std: float, count: int) -> float:
        """Of the difference of the two means."""
        return math.sqrt(statistics.variance(self.values) / len(self.values) + std**2 / count)


@dataclass(frozen=True)
class Match:
    """The published figure that a row may stand beside, or a mark that says why there is none.

    ``mark`` is empty for a match, else one of ``"no published figure"``, ``"other data"``, ``"other protocol"``,
    ``"other epochs"``, ``"not like for like"`` (runs of this policy never are), ``"other alpha"``, ``"other options"``,
    ``"other settings"`` (a departure from the protocol), ``"settings unknown"``; ``detail`` says what was published, or
    what differs. ``rerun`` is what the authors' code gave when it was run for this project, where it was.
    """

    figure: Figure | None = None
    mark: str = ""
    detail: str = ""
    rerun: Rerun | None = None


@cache
def figures() -> tuple[Figure, ...]:
    """All published top-1 figures that ship with the package, in the file's order."""
    text = resources.files("mixaug.leaderboard").joinpath("published/classification.csv").read_text("utf-8")
    return tuple(
        Figure(
            source=row["source"],
            table=row["table"],
            dataset=row["dataset"],
            backbone=row["backbone"],
            epochs=int(row["epochs"]) if row["epochs"] else None,
            method=row["method"],
            alpha=tuple(float(part) for part in row["alpha"].split("/")) if row["alpha"] else (),
            value=float(row["value"]),
            note=row["note"],
        )
        for row in csv.DictReader(text.splitlines())
        if row["metric"] == "top1"
    )


def match(
    *,
    policy: str,
    policy_options: Mapping[str, Any],
    model: str,
    data: str,
    data_options: Mapping[str, Any],
    protocol: str,
    epochs: int,
    departures: Sequence[str] | None = (),
    defaults: Mapping[str, Any] | None = None,
) -> Match:
    """Find the published figure for one leaderboard row.

    Args:
        policy, model, data, protocol: our names.
        policy_options, data_options: what the run set.
        epochs: length of the run.
        departures: overrides in which the run departs from its protocol; None if that cannot be told.
        defaults: values of the options that the run did not set; None asks the registry.
    """
    method, backbone = METHODS.get(policy), MODELS.get(model)
    sets = [entry for entry in DATA if entry.data == data]
    if method is None or backbone is None or not sets:
        return Match(mark="no published figure")
    candidates = [
        figure
        for figure in figures()
        if figure.backbone == backbone
        and figure.method in method.published
        and figure.dataset in {entry.published for entry in sets}
    ]
    if not candidates:
        return Match(mark="no published figure")

    datasets = {entry.published for entry in sets if not _data_differences(entry, data_options)}
    if not datasets:
        return Match(mark="other data", detail=f"run on {', '.join(_data_differences(sets[0], data_options))}")
    candidates = [figure for figure in candidates if figure.dataset in datasets]

    rules = PROTOCOLS.get(protocol)
    same = [f for f in candidates if rules and f.source == rules.source and f.table.startswith(rules.tables)]
    if not same:
        sources = ", ".join(dict.fromkeys(figure.source for figure in candidates))
        return Match(mark="other protocol", detail=f"published by {sources}")

    meant = protocol_models(protocol)
    if model not in meant:
        return Match(mark="other model", detail=f"protocol={protocol} means {', '.join(meant)}")

    timed = [figure for figure in same if figure.epochs == epochs]
    if not timed:
        lengths = ", ".join(str(length) for length in sorted({f.epochs for f in same if f.epochs is not None}))
        return Match(mark="other epochs", detail=f"published at {lengths}")
    if method.unlike:
        return Match(mark="not like for like", detail=method.unlike)

    # With another objective it is another method, whatever its alpha.
    objectives = [departure for departure in departures or () if departure.startswith("objective=")]
    if objectives:
        return Match(mark="other settings", detail=objectives[0])
    defaults = policy_defaults(policy) if defaults is None else defaults
    options = {**defaults, **policy_options}
    ours = tuple(options.get(name) for name in method.alpha)
    agreeing = [figure for figure in timed if not method.alpha or not figure.alpha or _same(figure.alpha, ours)]
    if not agreeing:
        published = "/".join(f"{value:g}" for value in timed[0].alpha)
        return Match(mark="other alpha", detail=f"published with {published}, run with {_show(ours)}")

    differing = _option_differences(method, options, policy_options, defaults)
    if differing:
        return Match(mark="other options", detail=", ".join(differing))
    if departures is None:
        return Match(mark="settings unknown", detail="the run's config cannot be compared with its protocol")
    if departures:
        return Match(mark="other settings", detail=", ".join(departures))
    return Match(figure=agreeing[0])


def _data_differences(entry: DataName, data_options: Mapping[str, Any]) -> list[str]:
    compared = {key: value for key, value in data_options.items() if key not in LOCATIONS | BY_PROTOCOL}
    return [
        f"{key}={value}"
        for key, value in sorted(compared.items())
        if value != entry.options.get(key) and value is not None
    ]


def _option_differences(
    method: MethodName,
    options: Mapping[str, Any],
    policy_options: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> list[str]:
    differing = [
        f"{key}={options.get(key)} (published: {value})"
        for key, value in method.options.items()
        if key in options and value is not ANY and options[key] != value
    ]
    for key, value in sorted(policy_options.items()):
        if key in method.alpha or key in method.options:
            continue
        usual = defaults.get(key)
        if value != (list(usual) if isinstance(usual, tuple) else usual):
            differing.append(f"{key}={value}")
    return differing


@cache
def policy_defaults(policy: str) -> Mapping[str, Any]:
    """Every option of a registered policy with its default; empty for a policy that is not installed here."""
    import mixaug

    return dict(mixaug.describe(policy).defaults) if policy in mixaug.list_policies() else {}


def _same(published: tuple[float, ...], ours: tuple[object, ...]) -> bool:
    return len(published) == len(ours) and all(
        isinstance(value, (int, float)) and math.isclose(value, number)
        for number, value in zip(published, ours, strict=True)
    )


def _show(values: tuple[object, ...]) -> str:
    return "/".join(f"{value:g}" if isinstance(value, (int, float)) else str(value) for value in values)
