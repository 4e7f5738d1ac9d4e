"""AdaMixUp (arXiv:1809.02499): mixup whose range of lam a network learns for every pair, and a discriminator beside it.

    (a, d, c) = softmax(G((m x + m' x') / 2)),  lam = a + u d      m, m' truncated normal noise, u uniform, one per pair
    x~ = lam x + (1 - lam) x',  y~ likewise
    L = CE of mixed and unmixed samples + CE of D: unmixed images are real, mixtures are not

G is a network like the model, with its own weights; D is a small head on the model's own trunk. A mixture that looks
like a real image of another class ("manifold intrusion") is one that D cannot tell. Nothing is detached: gradients of
both losses reach G through lam, in the image and in the label.

A batch of B is taken in halves. The first, F, is mixed with the first half of a permutation of the whole batch and also
trained on unmixed; D sees F, the second half S, which the classifier does not get, and the mixtures. So B rows come
out: B // 2 mixtures, then the images of F; an odd last row stays itself.

Differs from the authors' code: a sample that is its own partner is no mixture, and D does not learn to call it one
(``reference=True``); G gets the images normalised as the model gets them, not the raw ones.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_flag, check_not_negative, check_partner, check_whole
from mixaug.draws import Draws
from mixaug.ops.layout import single_precision
from mixaug.ops.precision import callers_precision
from mixaug.plan import Blend, Plan
from mixaug.policy import Policy, no_change
from mixaug.registry import register
from mixaug.signals import CleanSignals, MixedSignals, ModelSignals, Recorder, is_compiled
from mixaug.signals.hooks import hooked

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesPairing

    class Offered(TakesPairing, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["AdaMixUp", "adamixup_gate", "adamixup_lam", "adamixup_loss", "adamixup_rows", "truncated_normal"]

#: Standard deviation of the weights that heads start with, as in the authors' code.
HEAD_STD = 1e-3


def truncated_normal(unit: Tensor, bound: float = 2.0) -> Tensor:
    """Standard normal numbers within ``-bound`` and ``bound``, from uniform ones by the inverse distribution.

    Args:
        unit: floating point in [0, 1].
        bound: in standard deviations, positive; 2 as TensorFlow's ``truncated_normal``.

    Returns:
        Like ``unit``; 0 becomes ``-bound``, 1 becomes ``bound``.

    Raises:
        ValueError: a bound that is not positive.
    """
    if not bound > 0:
        raise ValueError(f"truncated_normal expects a positive bound, got {bound!r}")
    inside = math.erf(bound / math.sqrt(2))
    # The last clamp is for rounding at the ends alone.
    return (torch.erfinv((2 * unit - 1) * inside) * math.sqrt(2)).clamp(-bound, bound)


def adamixup_gate(images: Tensor, others: Tensor, noise: Tensor, other_noise: Tensor) -> Tensor:
    """What the generator sees of a pair, ``(noise * images + other_noise * others) / 2``.

    Args:
        images, others: (h, ...), the same shape.
        noise, other_noise: one number for every value of the images.

    Returns:
        (h, ...) contiguous, so that what is made of it does not depend on the layout of the images.
    """
    return ((noise * images + other_noise * others) / 2).contiguous()


def adamixup_lam(region: Tensor, unit: Tensor) -> Tensor:
    """Uniform in ``[a, a + d]``: ``a + unit * d``. Differentiable.

    Args:
        region: (h, 3) shares a, d, c of sum 1; c is what is left above the interval.
        unit: (h,) uniform in [0, 1).

    Returns:
        (h,) share of the own sample, in [0, 1].

    Raises:
        ValueError: shapes that do not fit.
    """
    if region.ndim != 2 or region.shape[1] != 3 or unit.shape != region.shape[:1]:
        raise ValueError(
            f"adamixup_lam expects region (h, 3) and unit (h,), got {tuple(region.shape)}, {tuple(unit.shape)}"
        )
    start, length, _ = region.unbind(1)
    return (start + unit * length).clamp(max=1.0)


def adamixup_rows(partner: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of mixtures and of what was mixed, as partners and shares of all its rows.

    Rows i < h = B // 2 are mixed with ``partner[i]``; rows h + i become row i as it is, which is what share 0 and the
    partner i mean; an odd last row stays.

    Args:
        partner: (B,) int64; only the first h count.
        lam: (h,) own shares in [0, 1].

    Returns:
        partner (B,) int64 and lam (B,).

    Raises:
        ValueError: shapes that do not fit.
    """
    batch_size = partner.shape[0]
    half, odd = batch_size // 2, batch_size % 2
    check_partner("adamixup_rows", partner, batch_size)
    if lam.shape != (half,):
        raise ValueError(f"adamixup_rows expects lam ({half},) for {batch_size} samples, got {tuple(lam.shape)}")
    own = torch.arange(batch_size, device=partner.device)
    partners = torch.cat([partner[:half], own[:half], own[2 * half :]])
    return partners, torch.cat([lam, lam.new_zeros(half), lam.new_ones(odd)])


def adamixup_loss(logits: Tensor, partner: Tensor, *, reference: bool = False) -> Tensor:
    """Cross-entropy of the discriminator, mean over its samples.

    Args:
        logits: (3h, 2): of the unmixed images of both halves, then of the mixtures; column 1 says "real".
        partner: (h,) int64 partners of rows 0 to h - 1.
        reference: count samples that are their own partners as mixtures. Otherwise they are left out.

    Returns:
        Scalar, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit.
    """
    half = partner.shape[0]
    if partner.ndim != 1 or logits.shape != (3 * half, 2):
        raise ValueError(
            f"adamixup_loss expects logits (3h, 2) for partner (h,), got {tuple(logits.shape)}, {tuple(partner.shape)}"
        )
    number = torch.arange(3 * half, device=logits.device)
    losses = F.cross_entropy(single_precision(logits), (number < 2 * half).long(), reduction="none")
    if reference:
        return losses.mean()
    mixed = partner != number[:half]
    counted = torch.cat([mixed.new_ones(2 * half), mixed]).to(losses.dtype)
    # The divisor is never 0: the real images always count.
    return (losses * counted).sum() / counted.sum()


class RegionGenerator(nn.Module):
    """The network that says where lam of a pair may lie: a copy of a model's trunk, drawn anew, with a head of its own.

    Every module with ``reset_parameters`` is drawn anew from torch's default generator, and trained. Parameters of
    others keep the model's values: position embeddings, class tokens, scales of layers.

    Args:
        model: what to copy.
        classifier: name of its linear classifier, which the head replaces.
        width: of the head's hidden layer.
    """

    def __init__(self, model: nn.Module, classifier: str, width: int) -> None:
        super().__init__()
        self.network = copy.deepcopy(model)
        _draw_anew(self.network)
        old = self.network.get_submodule(classifier)
        if not isinstance(old, nn.Linear):
            raise ValueError(f"AdaMixUp expects a linear classifier {classifier!r}, got {type(old).__name__}")
        device, dtype = old.weight.device, old.weight.dtype
        layers = [nn.Linear(*sizes, device=device, dtype=dtype) for sizes in ((old.in_features, width), (width, 3))]
        head = _small(nn.Sequential(*layers))
        for parent in list(self.network.modules()):
            for name, child in list(parent._modules.items()):
                if child is old:
                    setattr(parent, name, head)
        self.head_name = classifier

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return cast(nn.Linear, cast(nn.Sequential, self.network.get_submodule(self.head_name))[0]).weight.dtype

    def forward(self, gated: Tensor) -> Tensor:
        """(h, ...) to shares (h, 3) float32 of sum 1: where the region begins, how long it is, what is left."""
        count = len(gated)
        if self.training and count == 1:
            # Batch norm of a map of 1x1 needs two values; of the same two it takes the same mean.
            gated = torch.cat([gated, gated])
        found: list[Tensor] = []
        head = self.network.get_submodule(self.head_name)
        hook = head.register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            with callers_precision(gated.device):
                self.network(gated)
        finally:
            hook.remove()
        if len(found) != 1 or found[0].ndim != 2:
            raise ValueError(
                f"AdaMixUp expects a model that calls its classifier once, on (B, D), but {type(self.network).__name__}"
                f" called it on {[(*shown.shape[:-1], 'D') for shown in found]}"
            )
        return found[0][:count].float().softmax(1)

    def check_like(self, model: nn.Module) -> None:
        """Raise a ValueError unless the model's trunk has the sizes of this one."""
        ours, theirs = (_trunk_sizes(network, self.head_name) for network in (self.network, model))
        if ours != theirs:
            names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
            raise ValueError(
                f"AdaMixUp is attached to another model already, which differs in {names[:3]}: make one policy for "
                "each model"
            )


@dataclass(frozen=True, kw_only=True)
class Regions(Blend):
    """Pairs blended by shares from learned regions, beside their first members unmixed: see :func:`adamixup_rows`.

    Gradients flow through ``lam`` and ``weights``, but not into ``out`` and not in place.

    Attributes:
        start, length: (B // 2,) float32, the region of lam in each pair.
    """

    start: Tensor
    length: Tensor

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        if (out is None and not inplace) or not self.lam.requires_grad:
            return super().mix(tensor, out=out, inplace=inplace)
        return dataclasses.replace(self, lam=self.lam.detach()).mix(tensor, out=out, inplace=inplace)


@register(
    "adamixup",
    paper="MixUp as Locally Linear Out-of-Manifold Regularization, AAAI 2019",
    arxiv="1809.02499",
    family="learned",
)
class AdaMixUp(Policy):
    """Mixup within a range of lam learned for every pair, with a discriminator of mixtures and real images.

    Of every batch of B samples B // 2 are mixed and the same ones also come unmixed; the others only serve the
    discriminator. Train through :class:`mixaug.MixStep`. The generator of the ranges is made when a model is attached:
    a whole network like it, drawn anew. The discriminator's head learns with the model.

    Args:
        discriminator: weight of the discriminator's loss; 0 leaves it out, with its pass of the model.
        width: of the hidden layer of the generator's head.
        reference: let the discriminator call a sample that is its own partner a mixture, as the authors' code does.
        pairing: who mixes with whom; of (B,) partners the first B // 2 count.

    Raises:
        ValueError: an option out of range; when mixing, a policy that no model was attached to.
    """

    needs = frozenset({"pooled"})
    spatial = (2,)
    not_offered = ("alpha", "ratio", "labeling", "per", "partners")
    own_answers: ClassVar[Mapping[str, str]] = {
        "ratio": "Uniform in a range that a network learns for every pair.",
        "labeling": "As the inputs.",
    }

    def __init__(
        self,
        discriminator: float = 1.0,
        width: int = 100,
        reference: bool = False,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(**shared)
        self.discriminator = check_not_negative("AdaMixUp", "discriminator", discriminator)
        self.width = check_whole("AdaMixUp", "width", width, most=2**16, reason="a hidden layer of a small network")
        self.reference = check_flag("AdaMixUp", "reference", reference)
        self.region: RegionGenerator | None = None
        self.intrusion: nn.Sequential | None = None

    def on_attach(self, signals: ModelSignals) -> None:
        existing = None if self.intrusion is None else cast(nn.Linear, self.intrusion[0])
        first = signals.like_classifier("AdaMixUp", existing)
        if self.region is None:
            self.region = RegionGenerator(signals.inner, signals.classifier(), self.width).train(self.training)
        else:
            self.region.check_like(signals.inner)
        if self.discriminator and self.intrusion is None:
            last = nn.Linear(first.out_features, 2, device=first.weight.device, dtype=first.weight.dtype)
            self.intrusion = _small(nn.Sequential(first, last))

    def mixer_parameters(self) -> list[nn.Parameter]:
        return [] if self.region is None else list(self.region.parameters())

    def generator(self) -> RegionGenerator:
        """The network that gives the regions.

        Raises:
            ValueError: the policy has not been attached to a model.
        """
        if self.region is None:
            raise ValueError(
                "AdaMixUp has no generator yet: train through mixaug.MixStep, or call policy.attach(model) first"
            )
        return self.region

    def check(self, batch: Batch) -> None:
        super().check(batch)
        self.generator()

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        generator = self.generator()
        half = len(batch) // 2
        noise = truncated_normal(draws.uniform(shape=batch.images.shape[1:], dtype=torch.float32))
        unit = draws.uniform(dtype=torch.float32)[:half]
        # The generator learns; the images do not.
        images = batch.images.detach()
        own, other = (x.to(generator.dtype) for x in (images[:half], images.index_select(0, partner[:half])))
        first, second = (x.to(generator.dtype) for x in (noise[:half], noise[half : 2 * half]))
        region = generator(adamixup_gate(own, other, first, second))
        partners, lam = adamixup_rows(partner, adamixup_lam(region, unit))
        return Regions(partner=partners, lam=lam, start=region[:, 0], length=region[:, 1])

    def auxiliary_loss(self, mixed: MixedBatch, seen: MixedSignals) -> dict[str, Tensor]:
        plan = mixed.plan
        if plan is None or not plan.mixes:
            learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return {"not_mixed": no_change(learning)} if learning else {}
        if self.intrusion is None:
            return {}
        logits = self.intrusion_logits(mixed, seen)
        loss = adamixup_loss(logits, plan.partner[: len(logits) // 3], reference=self.reference)
        return {"intrusion": self.discriminator * loss}

    def intrusion_logits(self, mixed: MixedBatch, seen: MixedSignals) -> Tensor:
        """What the discriminator makes of a batch, in one more pass of the model with gradient.

        Args:
            mixed: from this policy.
            seen: from :meth:`tap`, with the signals of the unmixed images.

        Returns:
            (3h, 2) for h = B // 2: the images of both halves, then the mixtures; column 1 says "real".

        Raises:
            ValueError: no discriminator, or no unmixed images.
        """
        if self.intrusion is None:
            raise ValueError("AdaMixUp has no discriminator: none was asked for, or no model is attached")
        if not isinstance(seen.clean, CleanSignals):
            raise ValueError(
                "AdaMixUp's discriminator looks at the unmixed images: train through mixaug.MixStep, or pass "
                "ModelSignals(model).of(images, labels) to tap(model, mixed, clean)"
            )
        half = len(mixed) // 2
        shown = torch.cat([seen.clean.images[: 2 * half], mixed.inputs[:half]])
        pooled = _pooled(seen.source, shown)
        return single_precision(self.intrusion(pooled.to(cast(nn.Linear, self.intrusion[0]).weight.dtype)))


def _pooled(source: ModelSignals, images: Tensor) -> Tensor:
    """(N, D) what the classifier takes in, with gradients to the model and to the images."""
    recorder = Recorder(source, frozenset({"pooled"}))
    # Code compiled before the hooks were there would not see them.
    eager = torch.compiler.set_stance("force_eager") if is_compiled(source.model) else contextlib.nullcontext()
    with hooked("AdaMixUp", source.inner, recorder=recorder), eager:
        source.model(images)
    return recorder.pooled(True)


def _draw_anew(network: nn.Module) -> None:
    # Children come before parents: a parent that draws for its children has the last word.
    for module in reversed(list(network.modules())):
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)


def _small(head: nn.Sequential) -> nn.Sequential:
    """The head of linear layers, as the authors draw its weights."""
    for layer in (module for module in head if isinstance(module, nn.Linear)):
        nn.init.normal_(layer.weight, std=HEAD_STD)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return head


def _trunk_sizes(network: nn.Module, head: str) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        if not name.startswith(f"{head}.")
    }
