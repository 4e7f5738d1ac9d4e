"""Regression rows beside published errors, and beside what the authors' code gave when it was run again.

No original table could be opened: every published number is quoted from another text or recalled, and marked so. The
reruns are of C-Mixup's code (arXiv:2210.05775) on the same files and splits, one number per seed; they are what an
implementation can be held to.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from mixaug.engine.reading import is_number
from mixaug.leaderboard.published import Figure, Match, Rerun, policy_defaults

__all__ = ["match"]

PROTOCOL = "cmixup"
MODELS = {"mlp": "MLP 3x128", "lstnet": "LST-Attn (LSTNet)"}


@dataclass(frozen=True)
class DataName:
    """What a data set of ours is called in the published tables and in the reruns.

    ``metric`` is the published column; ``epochs`` and ``model`` the length and the network of the authors' runs;
    ``options`` what a run must have set; a rerun's name may hold ``{split}``.
    """

    published: str
    epochs: int
    rerun: str = ""
    model: str = "mlp"
    metric: str = "RMSE"
    options: Mapping[str, object] = field(default_factory=dict)


_REFERENCE_SCALING = {"fit_on": "all", "scaling": "minmax"}
DATA: Mapping[str, DataName] = {
    "airfoil": DataName("Airfoil", 100, "Airfoil", options={**_REFERENCE_SCALING, "split": "by_seed"}),
    "no2": DataName("NO2", 100, "NO2-split{split}", options=_REFERENCE_SCALING),
    "communities_crime": DataName("Crime", 200, "CommunitiesAndCrime", metric="RMSE avg", options=_REFERENCE_SCALING),
    "skillcraft": DataName("SkillCraft", 100, "SkillCraft", metric="RMSE avg", options=_REFERENCE_SCALING),
    "exchange_rate": DataName("Exchange-Rate", 100, model="lstnet", options={"fit_on": "all", "scaling": "maxabs"}),
}

PUBLISHED: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "airfoil": {"cmixup": {"bandwidth": 1.75, "stages": ["layer1"]}},
    "no2": {"cmixup": {"bandwidth": 1.2}},
    "communities_crime": {"cmixup": {"bandwidth": 4.0, "stages": ["layer1"]}},
    "skillcraft": {"cmixup": {"bandwidth": 1.0}},
    "exchange_rate": {"cmixup": {"bandwidth": 0.05, "stages": ["layer1"]}},
}
"""Options of a policy on a data set, where the authors' runs differ from its defaults and from `COMMON`."""

COMMON: Mapping[str, Mapping[str, object]] = {
    "none": {},
    "mixup": {"pool": "all", "per": "batch"},
    "manifoldmix": {"pool": "all", "per": "batch", "stages": ["layer1"]},
    "cmixup": {"pool": "all", "per": "batch"},
    "regmix": {"pool": "all", "per": "batch", "limits": "learned"},
}

METHODS: Mapping[str, str] = {
    "none": "ERM",
    "mixup": "mixup",
    "manifoldmix": "Mani mixup",
    "cmixup": "C-Mixup",
    "regmix": "MixRL",
}
"""Name of each policy in the published tables. k-Mixup there is another method than k-nearest-neighbour mixup, and
Local Mixup weighs losses, so neither stands beside ours."""


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
) -> Match:
    """Find the published error and the rerun for one leaderboard row; arguments as in `published.match`."""
    method, entry = METHODS.get(policy), DATA.get(data)
    if method is None or entry is None or model not in MODELS:
        return Match(mark="no published figure")
    if protocol != PROTOCOL:
        return Match(mark="other protocol", detail=f"published runs keep to protocol={PROTOCOL}")
    if model != entry.model:
        return Match(mark="other model", detail=f"published with {entry.model}")
    actual = {key: data_options.get(key) for key in entry.options}
    differing = [f"{key}={value}" for key, value in actual.items() if value != entry.options[key]]
    if differing:
        return Match(mark="other data", detail=f"run on {', '.join(differing)}")
    if epochs != entry.epochs:
        return Match(mark="other epochs", detail=f"published at {entry.epochs}")
    if departures is None:
        return Match(mark="settings unknown", detail="the run's config cannot be compared with its protocol")
    if departures:
        return Match(mark="other settings", detail=", ".join(departures))
    defaults = policy_defaults(policy)
    options = {**defaults, **policy_options}
    alpha = {} if policy == "none" else {"alpha": 1.5 if data == "exchange_rate" else 2.0}
    expected = {**defaults, **COMMON[policy], **alpha, **PUBLISHED[data].get(policy, {})}
    other = [
        f"{key}={options.get(key)} (published: {expected.get(key)})"
        for key in sorted({*options, *expected})
        if _plain(options.get(key)) != _plain(expected.get(key))
    ]
    # Variants of the authors' own settings were rerun too: other bandwidths, alphas and places of mixing.
    free = ("alpha", "bandwidth", "stages") if policy == "cmixup" else ()
    rerun = None
    if not [option for option in other if option.partition("=")[0] not in free]:
        rerun = _rerun(entry.rerun.format(split=data_options.get("split")), _rerun_name(policy, options))
    if other:
        return Match(mark="" if rerun else "other options", detail=", ".join(other), rerun=rerun)
    figure = _figure(entry, method, MODELS[model])
    return Match(figure=figure, mark="" if figure or rerun else "no published figure", rerun=rerun)


def _plain(value: object) -> object:
    """Lists and tuples of a config and of a signature alike."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _rerun_name(policy: str, options: Mapping[str, Any]) -> str:
    """What the rerun with these options is called; empty where there is none."""
    if policy != "cmixup":
        return {"none": "erm", "mixup": "mixup", "manifoldmix": "manifold_mixup"}.get(policy, "")
    stages, bandwidth, alpha = options["stages"], options["bandwidth"], options["alpha"]
    if _plain(stages) not in (None, ["layer1"]) or not is_number(bandwidth) or not is_number(alpha):
        return ""
    place = "input" if stages is None else "manifold"
    return f"cmixup_{place}" + ("" if alpha == 2.0 else f"_alpha{alpha:g}") + f"_h{bandwidth:g}"


@cache
def _rows(name: str) -> tuple[dict[str, str], ...]:
    text = resources.files("mixaug.leaderboard").joinpath(f"published/{name}").read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def _rerun(dataset: str, method: str) -> Rerun | None:
    def column(name: str, key: str) -> tuple[float, ...]:
        return tuple(
            float(row[key])
            for row in _rows(name)
            # The file names the parts of a variant in either order.
            if row["dataset"] == dataset and set(row["method"].split("_")) == set(method.split("_"))
        )

    values = column("regression_reference_runs.csv", "rmse")
    worst = column("regression_reference_runs_worst_domain.csv", "worst_domain_rmse")
    return Rerun(f"{dataset} {method}", values, worst) if len(values) > 1 else None


def _figure(entry: DataName, method: str, backbone: str) -> Figure | None:
    found = [
        Figure(
            source=row["paper"],
            table=row["table"],
            dataset=row["dataset"],
            backbone=row["backbone"],
            epochs=None,
            method=row["method"],
            alpha=(),
            value=float(row["value"]),
            note=row["note"],
            status="unverified" if "unverified" in row["note"] else "quoted",
        )
        for row in _rows("regression.csv")
        if (row["dataset"], row["method"], row["metric"], row["backbone"])
        == (entry.published, method, entry.metric, backbone)
    ]
    # A figure read in some table comes before an unverified one, and C-Mixup's own table before other papers.
    found.sort(key=lambda figure: (figure.status == "unverified", figure.source != "C-Mixup"))
    return found[0] if found else None
