"""Every method as its answers to five questions, from what the code says of itself.

Who is mixed with whom, how much of each, how the inputs are combined, how much of each label, and what is run. Answers
are those of the default options. docs/answers.md is made of them.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch

from mixaug import objectives
from mixaug.batch import Batch
from mixaug.draws import mean_over_choices
from mixaug.listing import CLASSES, SAMPLES, SIDE, SmallModel, apart, counted_step, describe, plain_operations
from mixaug.networks import Auxiliary, Frozen
from mixaug.options import options_of
from mixaug.passes import Objective
from mixaug.policy import Policy
from mixaug.registry import create
from mixaug.step import MixStep

__all__ = ["QUESTIONS", "Answers", "answers_of", "answers_of_objective", "objective_names"]

#: The questions, in the order of the fields of :class:`Answers`.
QUESTIONS = ("who with whom", "how much of each", "how the inputs", "how much of each label", "what is run")
#: The answer where a method offers no part of that kind, and its class does not say what it does instead.
OWN_RULE = "the method's own rule"


@dataclass(frozen=True)
class Answers:
    """The answers of one method.

    Attributes:
        name: of the policy or the objective.
        who: who is mixed with whom, and where partners come from.
        how_much: the share of each.
        inputs: how the inputs are combined.
        labels: how much of each label.
        run: what is run, and what is minimised.
        needs: what it asks of the model, or of others, sorted.
        tasks: the kinds of labels it takes.
        passes, cost: see :class:`mixaug.listing.Card`; None where no step could be run.
    """

    name: str
    who: str
    how_much: str
    inputs: str
    labels: str
    run: str
    needs: tuple[str, ...]
    tasks: tuple[str, ...]
    passes: float | None
    cost: float | None


def answers_of(name: str) -> Answers:
    """The answers of a policy.

    Raises:
        ValueError: unknown name.
    """
    card, policy = describe(name), create(name)
    members = policy.members
    names = list(dict.fromkeys(type(member).__name__ for member in members))
    if len(names) > 1:
        who = how_much = labels = f"as {' or '.join(names)}"
    else:
        # A preset that chooses between one policy with this and with that option gives the answers of both.
        answers = zip(*map(_parts_of, members if len(members) > 1 else [policy]), strict=True)
        who, how_much, labels = (" Or: ".join(dict.fromkeys(each)) for each in answers)
    learns = any(True for _ in policy.mixer_parameters())
    run = "the mixed batch" if not card.needs else f"the mixed batch, with {', '.join(sorted(card.needs))} of the model"
    return Answers(
        name=name,
        who=who,
        how_much=how_much,
        inputs=card.summary.replace("``", "`"),
        labels=labels,
        run=run + (", and a network that learns to mix" if learns else ""),
        needs=tuple(sorted(card.needs)),
        tasks=card.tasks,
        passes=card.passes,
        cost=card.cost,
    )


def _parts_of(policy: Policy) -> tuple[str, str, str]:
    """What one policy answers to the first, the second and the fourth question."""
    cls = type(policy)
    own, options = {**cls.own_answers}, set(options_of(cls))
    who = own.get("pairing") or (_first_line(policy.pairing) if policy.has_partners else OWN_RULE)
    if policy.partners is not None:
        brought = _first_line(policy.partners)
        who = f"{who} {brought}" if policy.partners.asks_pairing else brought
    how_much = own.get("ratio") or (repr(policy.ratio) if {"alpha", "ratio"} & options else OWN_RULE)
    labels = own.get("labeling") or (_first_line(policy.labeling) if "labeling" in options else OWN_RULE)
    return who, how_much, labels


def objective_names() -> list[str]:
    """Names of the objectives that say what is run, as of their classes in :mod:`mixaug.objectives`."""
    return [name for name in objectives.__all__ if _is_objective(getattr(objectives, name))]


def answers_of_objective(name: str) -> Answers:
    """The answers of an objective, with the policy of its source.

    Args:
        name: of :func:`objective_names`.
    """
    target = getattr(objectives, name)
    policy, options = target.usual_policy
    told = ", ".join([repr(policy), *(f"{option}={value!r}" for option, value in options.items())])
    wants = _instance(target).wants
    needs = {kind: getattr(wants, kind) for kind in ("networks", "streams", "views", "metadata")}
    passes, cost = _counted(name)
    as_policy = "as the policy"
    return Answers(
        name=name,
        who=f"as the policy, in its source create({told})",
        how_much=as_policy,
        inputs=as_policy,
        labels=as_policy,
        run=_first_line(target),
        needs=tuple(f"{kind}: {one}" for kind, names in needs.items() for one in names),
        tasks=("classification",) if target.task == "classification" else ("classification", "regression"),
        passes=passes,
        cost=cost,
    )


@functools.cache
def _counted(name: str) -> tuple[float | None, float | None]:
    """Passes and cost of a step of an objective with the policy of its source; networks are copies of the model."""
    target = getattr(objectives, name)
    policy, options = target.usual_policy

    def run() -> tuple[float, float]:
        model, images = SmallModel(CLASSES), torch.rand(SAMPLES, 3, SIDE, SIDE)
        labels = torch.arange(SAMPLES) % CLASSES
        objective = target()
        if callable(getattr(objective, "normalised_by", None)):
            objective.normalised_by((0.0,), (1.0,))
        trained = objective.wants.trained
        beside = {
            name: (Auxiliary if name in trained else Frozen)(copy.deepcopy(model)) for name in objective.wants.networks
        }
        step = MixStep(model, create(policy, **options), objective, networks=beside)
        batch = Batch(
            images,
            labels,
            rows=torch.arange(SAMPLES),
            views=dict.fromkeys(objective.wants.views, images),
            streams={stream: Batch(images, labels) for stream in objective.wants.streams},
        )
        # A first step that is not counted fills what keeps earlier samples, such as DualMix's memory.
        counted_step(step, model, batch)
        return counted_step(step, model, batch)

    with apart():
        try:
            passes, operations = mean_over_choices(run)
        except (ValueError, TypeError, RuntimeError):
            # It needs more than can be made up here.
            return None, None
        return passes, operations / plain_operations("classification")


def _instance(target: Any) -> Any:
    """An objective with its defaults, which says what it wants; the class where it cannot be made without arguments."""
    try:
        return target()
    except TypeError:
        return target


def _is_objective(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Objective)


def _first_line(part: Any) -> str:
    line = (inspect.getdoc(part if inspect.isclass(part) else type(part)) or "").split("\n", 1)[0]
    return re.sub(r":\w+:(?=`)", "", line)
