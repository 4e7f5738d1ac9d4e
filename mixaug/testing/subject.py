"""The policy under test and what it is given: images, labels, signals, a model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Generator, Tensor, nn

import mixaug
from mixaug import MixedBatch, Policy, Signals
from mixaug.checks import PER
from mixaug.pairing import Permutation
from mixaug.plan import Plan
from mixaug.registry import options_of

#: Number of samples in a batch: enough that two draws of partners or shares are hardly ever the same.
COUNT = 6
#: Deviation allowed to a share that is a mean over pixels.
ROUNDING = 1e-4
#: Number of channels of made-up features.
CHANNELS = 8


class ContractError(AssertionError):
    """A policy breaks a promise. The message names the policy and the promise, what was seen, what was expected."""


class Subject:
    """The policy under test, what it is given, and the promise that is being checked."""

    def __init__(
        self,
        make: str | Callable[..., Policy],
        options: dict[str, Any],
        signals: Callable[[Tensor, Tensor | None], Any] | None,
        model: Callable[[], nn.Module] | None,
        device: torch.device,
        size: tuple[int, ...],
        pretended: bool = False,
    ) -> None:
        self.promise = self.says = ""
        self.options, self.make_signals, self.device, self.size = options, signals, device, size
        self.make_model = _small_model if model is None else model
        self.name = make if isinstance(make, str) else getattr(make, "__name__", repr(make))
        self.make: Callable[..., Policy] = (
            (lambda **chosen: mixaug.create(make, **chosen)) if isinstance(make, str) else make
        )
        # Making a policy moves the device's own generator where it draws parameters there.
        self.forked = [device] if device.type == "cuda" and not pretended else []
        self.attaches = False
        first = self.policy()
        self.name = self.name if isinstance(make, str) else repr(first).split("\n")[0]
        self.offered = _offered(make, first)
        self._model: nn.Module | None = None

    def broken(self, actual: str, expected: str) -> ContractError:
        """The error that says what was seen in place of what was expected."""
        return ContractError(
            f"{self.name} breaks the promise {self.promise!r}: {self.says}\n  seen: {actual}\n  expected: {expected}"
        )

    def require(self, kept: bool | Tensor, actual: str, expected: str) -> None:
        """Raise where a promise is not kept."""
        if not kept:
            raise self.broken(actual, expected)

    def policy(self, **options: Any) -> Policy:
        """A new policy, attached to a model where it asks for that."""
        with torch.random.fork_rng(devices=self.forked), torch.device(self.device):
            torch.manual_seed(0)
            policy = self.make(**options)
            if not isinstance(policy, Policy):
                raise TypeError(
                    f"check_policy expects a function that makes a mixaug.Policy, got {type(policy).__name__}"
                )
            for part in policy.modules():
                if isinstance(part, Policy):
                    # Only rows of one batch can be told from each other by their pixels.
                    part.partners = None
                    if getattr(part.pairing, "metadata", ()) or getattr(part.pairing, "networks", ()):
                        part.pairing = Permutation()
            if _waits_for_model(policy):
                policy.attach(self.make_model())
                self.attaches = any(True for _ in policy.parameters())
        return policy

    def offers(self, **options: Any) -> Policy | None:
        """A policy with these options; None where it does not offer them, or refuses these values with an error."""
        if not set(options) <= self.offered:
            return None
        try:
            return self.policy(**options)
        except (TypeError, ValueError):
            return None

    def each_per(self) -> Iterator[tuple[str, Policy]]:
        """The policy for each way to share draws."""
        if "per" not in self.offered:
            yield "as it is", self.policy()
        for per in PER if "per" in self.offered else ():
            policy = self.offers(per=per)
            if policy is not None:
                yield f"per={per!r}", policy

    def seeded(self, seed: int) -> Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def labels(self, count: int = COUNT) -> Tensor:
        return torch.arange(count, device=self.device)

    def pictures(
        self,
        count: int = COUNT,
        size: tuple[int, ...] | None = None,
        dtype: torch.dtype = torch.float32,
        channels: int = 3,
    ) -> Tensor:
        """(count, channels, *size) of random pixels, nearly all of which differ."""
        images = _random_pixels((count, channels, *(self.size if size is None else size)))
        images = (images * 255).round().to(torch.uint8) if dtype == torch.uint8 else images.to(dtype, copy=True)
        return images.to(self.device)

    def alike(self) -> Tensor:
        """(COUNT, 3, *size) of one image: whatever differs between samples was drawn."""
        return self.pictures(1).expand(COUNT, *(-1,) * (1 + len(self.size))).contiguous()

    def signals(self, policy: Policy, images: Tensor, labels: Tensor | None, alike: bool = False) -> Any:
        if self.make_signals is not None:
            return self.make_signals(images, labels)
        if not policy.needs:
            return None
        if "hidden" in policy.needs or (self.attaches and "features" in policy.needs):
            # Made-up features would not be those of the stage that the policy chose.
            if self._model is None:
                with torch.random.fork_rng(devices=self.forked), torch.device(self.device):
                    self._model = self.make_model()
            return self._model
        return _made_up(images, alike)

    def mix(
        self,
        policy: Policy,
        images: Tensor,
        labels: Any = ...,
        seed: int | None = 1,
        alike: bool = False,
        **others: Any,
    ) -> MixedBatch:
        """One call of the policy, with a generator of its own unless the seed is None."""
        labels = self.labels(len(images)) if labels is ... else labels
        generator = others.pop("generator", None if seed is None else self.seeded(seed))
        signals = self.signals(policy, images, labels, alike)
        return policy(
            images, labels, generator=generator, **({} if signals is None else {"signals": signals}), **others
        )

    def plan(self, mixed: MixedBatch) -> Plan:
        """The plan that a batch carries."""
        # The words are made only when they are needed: writing out a plan writes out its tensors.
        if not isinstance(mixed.plan, Plan):
            raise self.broken(
                f"the mixed batch carries {mixed.plan!r} for a plan",
                "the plan that was drawn, so that masks, views and metadata can be mixed alike",
            )
        return mixed.plan

    def planes(self, size: tuple[int, ...]) -> Tensor:
        """(COUNT, COUNT, *size): plane i is one in sample i and zero in all others."""
        planes = torch.eye(COUNT, device=self.device).reshape(COUNT, COUNT, *(1,) * len(size))
        return planes.expand(-1, -1, *size).contiguous()

    def shares(self, plan: Plan) -> Tensor:
        """(COUNT, COUNT, *size) share of each sample in every pixel of what the model works on."""
        # A map inside a model is smaller than the images.
        shown = plan.mix(self.planes(tuple(-(-side // 8) for side in self.size) if plan.stages else self.size))
        for stage in plan.stages:
            shown = plan.mix_hidden(stage, shown)
        return shown

    def form(self, policy: Policy, mixed: MixedBatch, images: Tensor, labels: Any, when: str = "") -> None:
        """Shapes, dtypes and ranges of one result."""
        count, inputs, sources, weights = len(images), mixed.inputs, mixed.sources, mixed.weights
        for what, came, wanted in (
            ("inputs", (inputs.dtype, tuple(inputs.shape)), (images.dtype, tuple(images.shape))),
            ("memory layout of the inputs", inputs.stride(), images.stride()),
            ("device of the inputs", inputs.device, images.device),
            ("dtype of the sources", sources.dtype, torch.int64),
            ("dtype of the weights", weights.dtype, torch.float32),
            ("shape of the weights", tuple(weights.shape), tuple(sources.shape)),
            ("rows of sources", len(sources), count),
        ):
            self.require(came == wanted, f"{what}{when}: {came}", f"{wanted}")
        self.require(mixed.labels is labels, f"other labels than those handed in{when}", "the same tensor, unmixed")
        self.require(bool(inputs.isfinite().all()), f"inputs that are not finite{when}", "finite pixels")
        own = torch.arange(count, device=images.device)
        self.require(torch.equal(sources[:, 0], own), f"sources {sources.tolist()}{when}", "column 0 the sample itself")
        known = ((sources >= 0) & (sources < count)).all()
        self.require(known, f"sources {sources.tolist()}{when}", f"rows of the labels, 0 to {count - 1}")
        exact = normalised(policy)
        limit = 1 if exact else 2
        inside = ((weights >= 0) & (weights <= limit + 1e-6)).all()
        self.require(inside, f"weights {numbers(weights)}{when}", f"label shares in [0, {limit}]")
        if exact:
            total = weights.sum(1)
            self.require(
                torch.allclose(total, torch.ones_like(total), atol=1e-5),
                f"weights of a sample's labels with the sums {numbers(total)}{when}",
                "sums of one (a labeling that means otherwise says normalised = False)",
            )
        self.plan(mixed)

    def same(self, got: MixedBatch, wanted: MixedBatch, what: str, tolerance: float = 0.0) -> None:
        """Raise unless two mixed batches, and their plans, agree in everything."""
        actual, expected = tensors(got), tensors(wanted)
        for name in {**expected, **actual}:
            if name not in actual or name not in expected:
                raise self.broken(f"{what}: {name} is there only once", "the same plan")
            a, b = actual[name], expected[name]
            if a.shape != b.shape or a.dtype != b.dtype:
                seen = f"{tuple(a.shape)} {a.dtype}"
                raise self.broken(f"{what}: {name} is {seen}", f"{tuple(b.shape)} {b.dtype}")
            distance = (a.double() - b.double()).abs().max().item() if a.numel() and not a.is_complex() else 0.0
            if not distance <= tolerance:
                raise self.broken(f"{what}: {name} differs by up to {distance:g}", f"no difference above {tolerance:g}")


def _offered(make: str | Callable[..., Policy], policy: Policy) -> set[str]:
    """Names of all options that a policy takes."""
    if isinstance(make, str):
        return set(mixaug.describe(make).defaults)
    if inspect.isclass(make):
        return set(options_of(make))
    parameters = inspect.signature(make).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        # Such a function hands on whatever it gets.
        return set(options_of(type(policy)))
    return {parameter.name for parameter in parameters}


def _waits_for_model(policy: Policy) -> bool:
    """Whether a policy makes its parameters when it is shown a model, and has none yet."""
    members = [module for module in policy.modules() if isinstance(module, Policy)]
    waits = any(type(member).on_attach is not Policy.on_attach for member in members)
    return waits and not any(True for _ in policy.parameters())


def signal_arguments(s: Subject, policy: Policy, images: Tensor) -> dict[str, Any]:
    signals = s.signals(policy, images, s.labels(len(images)))
    return {} if signals is None else {"signals": signals}


def normalised(policy: Policy) -> bool:
    """Whether the weights of a sample's labels sum to one, as those of most labelings do."""
    members = [module for module in policy.modules() if isinstance(module, Policy)]
    return all(getattr(member.labeling, "normalised", True) for member in members)


@lru_cache(maxsize=32)
def _random_pixels(shape: tuple[int, ...]) -> Tensor:
    # Many checks look at the same images; a copy takes a tenth of what drawing them anew does.
    return torch.rand(shape, generator=torch.Generator().manual_seed(11))


def _made_up(images: Tensor, alike: bool) -> Signals:
    """Random signals of every kind for images (B, C, H, W), the same in each call; none for others."""
    size = tuple(images.shape[2:])
    if len(size) != 2:
        return Signals()
    generator = torch.Generator().manual_seed(99)
    count, grid = len(images), [min(side, 7) for side in size]

    def made(*shape: int) -> Tensor:
        if alike:
            return torch.rand(1, *shape, generator=generator).to(images.device).repeat(count, *(1,) * len(shape))
        return torch.rand(count, *shape, generator=generator).to(images.device)

    return Signals(
        saliency=made(*size),
        cam=made(*grid),
        attention=made(*grid),
        features=made(CHANNELS, *grid),
        outputs=made(10),
        pooled=made(8),
    )


def _small_model() -> nn.Module:
    import mixaug.models  # mixaug.models is needed only for policies that mix inside a model.

    return mixaug.models.create("cifar_resnet8", num_classes=10)


def tensors(mixed: MixedBatch) -> dict[str, Tensor]:
    """All tensors of a mixed batch and of its plan, by name."""
    named = {"inputs": mixed.inputs, "sources": mixed.sources, "weights": mixed.weights}
    if mixed.plan is not None:
        _collect(mixed.plan, "the plan's", named)
    return named


def _collect(value: Any, name: str, named: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        named[name] = value
    elif isinstance(value, Plan):
        for field in dataclasses.fields(value):
            _collect(getattr(value, field.name), f"{name} {field.name}", named)
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            _collect(item, f"{name} [{index}]", named)


def equal(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def numbers(values: Tensor) -> str:
    return str([round(value, 4) for value in values.detach().flatten().tolist()[:12]])
