"""Promises of what mixing means: pixels, labels, how often is drawn, what options do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mixaug import Policy, labeling
from mixaug.batch import Batch
from mixaug.checks import PER
from mixaug.draws import Draws
from mixaug.plan import Plan
from mixaug.testing.subject import COUNT, ROUNDING, Subject, equal, numbers

#: Deviation allowed to the own share that a network gives before it has learned, whatever lam it gets.
UNLEARNED = 0.05
#: Deviation allowed between the areas of masks that are drawn apart for the same lam.
ROUNDED = 0.1


def pixels(s: Subject) -> None:
    """Every pixel is a mean of the sources, in the shares that the plan's area and mask say; where it is a mean."""
    for per, policy in s.each_per():
        for seed in (7, 8, 9):
            images = s.pictures()
            mixed = s.mix(policy, images, seed=seed)
            plan = s.plan(mixed)
            if not plan.is_mean:
                continue
            shares = s.shares(plan)
            total = shares.sum(1)
            least = shares.min().item()
            s.require(least > -1e-6, f"a pixel that shows {least:g} of a sample, {per}", "no share below 0")
            s.require(
                torch.allclose(total, torch.ones_like(total), atol=1e-5),
                f"pixels whose shares sum to {total.min():g} up to {total.max():g}, {per}",
                "a weighted mean",
            )
            part = torch.zeros(COUNT, COUNT, device=s.device).scatter_(1, plan.sources, 1.0)
            strangers = (shares.flatten(2).amax(2) * (1 - part)).amax().item()
            s.require(
                strangers < 1e-5, f"pixels of a sample that is not among the sources, {per}", "sources that are all"
            )
            own = shares[torch.arange(COUNT), torch.arange(COUNT)]
            # A sample that is its own partner shows itself alone, whatever its mask.
            alone = (plan.sources[:, 1:] != s.labels()[:, None]).all(1)
            area, shown = plan.area().float().expand(COUNT), own.flatten(1).mean(1)
            if bool(alone.any()):
                distance = (area - shown)[alone].abs().max().item()
                s.require(
                    distance < ROUNDING,
                    f"area() says {numbers(area[alone])} where the pixels show {numbers(shown[alone])} of the own "
                    f"samples, {per}",
                    "area() to be the own sample's share of the pixels",
                )
            mask = plan.own_mask()
            if mask is not None and bool(alone.any()):
                wrong = (mask.float().expand(COUNT, *s.size) - own)[alone].abs().gt(ROUNDING).float().mean().item()
                s.require(
                    wrong == 0,
                    f"own_mask() is not what is shown in {wrong:.0%} of the pixels, {per}",
                    "the mask to be the own sample's share of every pixel",
                )
            _shown(s, policy, seed, per)
            parents = images[mixed.sources].flatten(3)
            lowest, highest = parents.amin((1, 3))[..., None] - 1e-5, parents.amax((1, 3))[..., None] + 1e-5
            inside = (mixed.inputs.flatten(2) >= lowest) & (mixed.inputs.flatten(2) <= highest)
            s.require(
                inside.all(), f"pixels beyond those of the sources, {per}", "a value between those of the sources"
            )


def _shown(s: Subject, policy: Policy, seed: int, per: str) -> None:
    """The inputs themselves, not only what the plan makes of other tensors."""
    column = (-1, *(1,) * (1 + len(s.size)))
    named = s.labels().float().reshape(column).expand(-1, 3, *s.size).contiguous()
    mixed = s.mix(policy, named, seed=seed)
    expected = (s.plan(mixed).mix(s.planes(s.size)) * named[None, :, 0]).sum(1)
    distance = (mixed.inputs[:, 0] - expected).abs().max().item()
    s.require(
        distance < ROUNDING * COUNT,
        f"inputs that are not what the plan shows, by up to {distance:g}, for images of value i in sample i, {per}",
        "mixed.inputs to be plan.mix(images)",
    )


def labels(s: Subject) -> None:
    """Labels say what is shown: the pixels with labeling="area", the drawn share with "ratio"; a labeling is obeyed."""
    # A labeling made here is asked for the weights: what a sample shows does not decide them then.
    for rule in ("area", "ratio", _Fixed()):
        policy = s.offers(labeling=rule)
        if policy is not None:
            _say(s, policy, rule if isinstance(rule, str) else "an object")
    policy = s.policy()
    if type(policy.labeling) is labeling.Area:
        _say(s, policy, "area")
        return
    if type(policy.labeling) is labeling.Drawn:
        _say(s, policy, "ratio")
        return
    # Other labelings weigh by something else, but none may weigh one image by what the other shows.
    together = 0.0
    for seed in range(8):
        mixed = s.mix(policy, s.pictures(), seed=seed)
        if not s.plan(mixed).is_mean:
            continue
        shown = s.shares(s.plan(mixed)).flatten(2).mean(2).diagonal()
        together += ((mixed.lam / mixed.weights.sum(1).clamp(min=1e-6) - 0.5) * (shown - 0.5)).sum().item()
    s.require(
        together >= 0,
        "own labels that weigh less the more the own sample shows: the labels are the wrong way round",
        "column 0 of the weights to be the own sample's",
    )


def _say(s: Subject, policy: Policy, rule: str) -> None:
    for seed in range(4):
        mixed = s.mix(policy, s.pictures(), seed=seed)
        plan, weights = s.plan(mixed), mixed.weights
        if rule == "area" and not plan.is_mean:
            area = plan.area().float().expand(COUNT)
            _agree(s, weights[:, :1], area[:, None], "labels by area: a sample shows", "area()")
        elif rule == "area":
            weighed = torch.zeros(COUNT, COUNT, device=s.device).scatter_add_(1, mixed.sources, weights)
            shown = s.shares(plan).flatten(2).mean(2)
            what = 'labeling="area"' if "labeling" in s.offered else "labels by area"
            _agree(s, weighed, shown, f"{what}: a sample shows", "the share of the pixels")
        elif rule == "ratio":
            own = plan.lam.float().expand(COUNT)
            _agree(s, weights[:, :1], own[:, None], 'labeling="ratio": the drawn own share is', "the drawn lam")
        else:
            fixed = _Fixed()(plan, Batch(mixed.inputs))
            s.require(
                weights.shape == fixed.shape and torch.allclose(weights, fixed),
                f"weights {numbers(weights[0])} although a labeling object gave {numbers(fixed[0])}: labeling= "
                "has no effect",
                "a plan whose weights are left to the labeling, or a refusal of the option",
            )


def _agree(s: Subject, weighed: Tensor, shown: Tensor, what: str, expected: str) -> None:
    distance = (weighed - shown).abs()
    if distance.max().item() < ROUNDING:
        return
    row = int(distance.amax(1).argmax())
    own, label = (
        shown[row, row if shown.shape[1] > 1 else 0].item(),
        weighed[row, row if weighed.shape[1] > 1 else 0].item(),
    )
    swapped = abs(label - (1 - own)) < ROUNDING and abs(label - own) > ROUNDING
    hint = ": the labels are the wrong way round" if swapped else ""
    raise s.broken(f"{what} {own:.4f} of itself, and its own label weighs {label:.4f}{hint}", f"labels by {expected}")


def per(s: Subject) -> None:
    """per="sample" draws for every sample, per="batch" once for all, per="pair" once for two that mix together."""
    if "per" not in s.offered:
        return
    images = s.alike()
    drawn = {}
    for per in PER:
        policy = s.offers(per=per)
        if policy is None:
            continue
        drawn[per] = [s.mix(policy, images, seed=seed, alike=True) for seed in range(4)]
    for mixed in drawn.get("batch", []):
        plan = s.plan(mixed)
        for what, values, limit in (("lam", plan.lam, ROUNDING), ("area()", plan.area(), ROUNDED)):
            same = bool((values - values[:1]).abs().max() < limit)
            s.require(same, f'per="batch": {what} is {numbers(values)}, of samples that are alike', "one for all")
    for mixed in drawn.get("pair", []):
        plan = s.plan(mixed)
        partner = plan.partner
        mutual = torch.equal(partner[partner], s.labels())
        s.require(mutual, f'per="pair": partners {partner.tolist()}', "two samples that mix with each other")
        for what, values in _drawn(s, plan):
            same = bool((values - values[partner]).abs().max() < ROUNDING)
            s.require(
                same, f'per="pair": {what} differs between two samples that mix, and are alike', "one draw for two"
            )
    if "sample" in drawn and not _draws_nothing(s):
        differ = any(
            bool((values - values[:1]).abs().max() > 1e-6)
            for mixed in drawn["sample"]
            for _, values in _drawn(s, s.plan(mixed))
        )
        s.require(
            differ, 'per="sample": all samples of a batch got the same mask and share, in four batches', "a draw each"
        )


def _drawn(s: Subject, plan: Plan) -> list[tuple[str, Tensor]]:
    """What shows of the draws: the mask where there is one, and else the share, for every sample."""
    mask = plan.own_mask()
    if mask is not None:
        return [("the mask", mask.float().expand(COUNT, *s.size).flatten(1))]
    return [("area()", plan.area().expand(COUNT)[:, None])]


def _draws_nothing(s: Subject) -> bool:
    """Whether nothing but partners is random."""
    policy = s.offers(pairing="shift", per="sample")
    if policy is None:
        return False
    generator = s.seeded(1)
    state = generator.get_state()
    s.mix(policy, s.pictures(), generator=generator)
    return torch.equal(generator.get_state(), state)


def options(s: Subject) -> None:
    """Every option that is offered changes something, or is refused with an error."""
    values: dict[str, tuple[Any, Any]] = {
        "alpha": (0.2, 8.0),
        "ratio": (_Shares(0.3), _Shares(0.6)),
        "pairing": ("shift", "reversed"),
        "per": ("sample", "batch"),
    }
    for option, pair in values.items():
        one, two = (s.offers(**{option: value}) for value in pair)
        if one is not None and two is not None:
            with _beta_by_alpha() if option == "alpha" else contextlib.nullcontext():
                _differ(s, one, two, f"{option}={pair[0]!r} and {option}={pair[1]!r}")
    for option, value in s.options.items():
        _differ(s, s.policy(), s.policy(**{option: value}), f"the default and {option}={value!r}")
    for option in ("shift", "reversed"):
        policy = s.offers(pairing=option)
        if policy is None:
            continue
        mixed = s.mix(policy, s.pictures(), seed=21)
        wanted = policy.pairing(Batch(s.pictures(), s.labels()), Draws(COUNT, s.device))
        both = (mixed.weights > 0).sum(1) > 1
        right = (mixed.sources[:, 1] == wanted) | ~both
        s.require(
            right.all(),
            f"pairing={option!r}: samples mixed with {mixed.sources[:, 1].tolist()}",
            f"the partners that the pairing chose, {wanted.tolist()}",
        )
    low, high = s.offers(ratio=0.1), s.offers(ratio=0.9)
    if low is not None and high is not None:
        little, much = (_own_share(s, policy) for policy in (low, high))
        s.require(
            much >= little - UNLEARNED,
            f"ratio=0.9 shows {much:.3f} of the own samples, ratio=0.1 {little:.3f}",
            "more of the own sample with a larger lam, its own share",
        )


def _differ(s: Subject, one: Policy, two: Policy, what: str) -> None:
    # What is drawn and not used does not count: it has to show in the batch, or inside the model.
    for seed in range(6):
        first, second = (s.mix(policy, s.pictures(), seed=seed) for policy in (one, two))
        shown = [s.shares(s.plan(mixed)) for mixed in (first, second)]
        names = ("inputs", "weights", "sources")
        if not equal(*shown) or any(not equal(getattr(first, name), getattr(second, name)) for name in names):
            return
    raise s.broken(f"{what} give the same batches, six of six", "an option that changes something, or a refusal of it")


def _own_share(s: Subject, policy: Policy) -> float:
    plans = [s.plan(s.mix(policy, s.pictures(), seed=seed)) for seed in range(4)]
    return sum(s.shares(plan).flatten(2).mean(2).diagonal().mean().item() for plan in plans) / len(plans)


class _Shares:
    """A ratio that takes nothing from the generator, whose other draws then stay the same: one number after another."""

    def __init__(self, first: float) -> None:
        self.first, self.calls = first, 0

    def __call__(self, draws: Draws) -> Tensor:
        # Shares are divided by their sum, so that equal ones would say nothing.
        value = self.first + 0.07 * (self.calls % 3)
        self.calls += 1
        rows = 1 if draws.per == "batch" else draws.batch_size
        return torch.full((rows,), value, device=draws.device)

    def __repr__(self) -> str:
        return f"{self.first:g}"


@contextlib.contextmanager
def _beta_by_alpha() -> Iterator[None]:
    """Every Beta gives the same shares: how much it takes from the generator depends on alpha, and all else on that."""
    plain = Draws.beta
    shares: dict[float, _Shares] = {}

    def by_alpha(self: Draws, alpha: float, beta: float) -> Tensor:
        return shares.setdefault(alpha, _Shares(0.3 if alpha < 1 else 0.6))(self)

    Draws.beta = by_alpha  # type: ignore[method-assign]
    try:
        yield
    finally:
        Draws.beta = plain  # type: ignore[method-assign]


class _Fixed:
    """A labeling that looks at nothing: 0.3125 for the sample itself, the rest evenly for the others."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        rows, columns = plan.sources.shape
        weights = torch.full((rows, columns), 0.6875 / max(columns - 1, 1), device=plan.sources.device)
        weights[:, 0] = 0.3125
        return weights
