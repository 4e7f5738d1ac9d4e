"""SUMix (arXiv:2407.07805): the weights of the labels follow what the model sees, and a loss for what it cannot know.

On top of any policy with weights (lam, 1 - lam). p, q: softmax of the logits of the clean and the mixed images,

    a = s n(softmax(q - p)),  a' = s n(softmax(q - p[partner]))       each p without the class of the other image
    lam' = lam e^(-a[y]) / (lam e^(-a[y]) + (1 - lam) e^(-a'[y']))    y' = y[partner], n(v) = v / |v|

    + gamma (lam CE(V, y) + (1 - lam) CE(V', y')),   V = e^(-(u + u~ + a)),  V' = e^(-(u[partner] + u~ + a'))

u and u~ are n(softmax(layer(pooled))) of the clean and the mixed images, and V stands for logits. The clean images take
one more pass, in training mode and with gradient. No gradient flows through a and lam'.

Departures from the released code. Its factor s is the batch size, so that results depend on it, and on the number of
devices; here s is a number, 100, the batch size of its CIFAR-100 configs (``scale=None`` takes the batch's). It
averages the cross-entropies over the batch before lam' weighs them; here every sample has its own lam'. It removes the
true class from p where both images have the same; here nothing is removed there. ``reference=True`` does the last two
its way.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import (
    check_choice,
    check_class_ids,
    check_flag,
    check_not_negative,
    check_partner,
    check_positive,
    shown,
)
from mixaug.ops.layout import single_precision
from mixaug.options import check_read
from mixaug.plan import Plan
from mixaug.policy import Policy, no_change
from mixaug.registry import create, describe, register
from mixaug.signals import MixedSignals, ModelSignals, Signals

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesPairing, TakesPer

    class Offered(TakesPairing, TakesPer, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["SUMix", "sumix_distances", "sumix_loss", "sumix_uncertainty", "sumix_weights"]

Uncertainty = Literal["layer", "logits"]
#: Largest exponent: V beyond e^30 would be a logit that no softmax resolves.
LARGEST_EXPONENT = 30.0
#: Value of alpha, the authors', for a policy that is made by name.
DEFAULT_ALPHA = 0.2


def sumix_distance(
    clean_logits: Tensor, mixed_logits: Tensor, other: Tensor, scale: float, skip: Tensor | None = None
) -> Tensor:
    """Semantic distance of the mixed samples to one of their sources, ``scale n(softmax(q - p))``.

    Args:
        clean_logits: (B, K) of the source.
        mixed_logits: (B, K).
        other: (B,) int64 class of the other source, which is removed from p.
        scale: factor, positive.
        skip: (B,) bool, where nothing is removed; None for nowhere.

    Returns:
        (B, K) in (0, scale], float32 (float64 for float64 logits). No gradient flows.
    """
    p = single_precision(clean_logits.detach()).softmax(1)
    q = single_precision(mixed_logits.detach()).softmax(1)
    kept = torch.zeros_like(p[:, :1]) if skip is None else p.gather(1, other[:, None]) * skip[:, None]
    p = p.scatter(1, other[:, None], kept)
    return scale * F.normalize((q - p).softmax(1), dim=1)


def sumix_distances(
    clean_logits: Tensor,
    mixed_logits: Tensor,
    labels: Tensor,
    partner: Tensor,
    *,
    scale: float | None = None,
    reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """Semantic distances to the sample itself and to its partner, see :func:`sumix_distance`.

    Args:
        clean_logits: (B, K) of the unmixed batch.
        mixed_logits: (B, K).
        labels: (B,) int64 class ids.
        partner: (B,) int64.
        scale: factor; None for the batch size.
        reference: remove the class also where both sources have the same.

    Returns:
        Two tensors (B, K).

    Raises:
        ValueError: shapes that do not fit.
    """
    _check("sumix_distances", clean_logits, mixed_logits, labels, partner)
    factor = float(len(labels)) if scale is None else scale
    labels = labels.long()
    others = labels.index_select(0, partner)
    skip = None if reference else labels == others
    own = sumix_distance(clean_logits, mixed_logits, others, factor, skip)
    return own, sumix_distance(clean_logits.index_select(0, partner), mixed_logits, labels, factor, skip)


def sumix_weights(
    distances: tuple[Tensor, Tensor], labels: Tensor, partner: Tensor, weights: Tensor, *, reference: bool = False
) -> Tensor:
    """Weights of the labels, corrected by the semantic distances. No gradient flows.

    Args:
        distances: two tensors (B, K), from :func:`sumix_distances`.
        labels: (B,) int64 class ids.
        partner: (B,) int64.
        weights: (B, 2) as drawn, >= 0.
        reference: give every sample the mean of the batch, which is what the released loss amounts to.

    Returns:
        (B, 2) float32 in [0, 1], rows of sum 1; ``weights`` where both are 0.
    """
    labels = labels.long()
    own = distances[0].gather(1, labels[:, None])[:, 0]
    other = distances[1].gather(1, labels.index_select(0, partner)[:, None])[:, 0]
    # In logarithms the quotient of exponentials neither under- nor overflows.
    shares = weights.detach().to(own.dtype)
    lam = torch.sigmoid(shares[:, 0].log() - shares[:, 1].log() - own + other)
    if reference:
        lam = lam.mean().expand_as(lam)
    corrected = torch.stack([lam, 1 - lam], 1)
    return torch.where((shares > 0).any(1, keepdim=True), corrected, shares).float()


def sumix_uncertainty(outputs: Tensor) -> Tensor:
    """(B, K) outputs of the uncertainty layer as unit vectors, ``n(softmax(outputs))``."""
    return F.normalize(single_precision(outputs).softmax(1), dim=1)


def sumix_loss(
    clean: Tensor, mixed: Tensor, distances: tuple[Tensor, Tensor], labels: Tensor, partner: Tensor, weights: Tensor
) -> Tensor:
    """The uncertainty term, without its factor gamma.

    Args:
        clean: (B, K) uncertainty of the unmixed samples.
        mixed: (B, K) of the mixed ones.
        distances: from :func:`sumix_distances`.
        labels: (B,) int64 class ids.
        partner: (B,) int64.
        weights: (B, 2) as drawn, before any correction.

    Returns:
        A scalar, mean over the samples.
    """
    labels = labels.long()
    clean, mixed = single_precision(clean), single_precision(mixed)
    own = _as_logits(clean + mixed + distances[0])
    other = _as_logits(clean.index_select(0, partner) + mixed + distances[1])
    losses = torch.stack(
        [
            F.cross_entropy(own, labels, reduction="none"),
            F.cross_entropy(other, labels.index_select(0, partner), reduction="none"),
        ],
        dim=1,
    )
    return (losses * weights.detach()).sum(1).mean()


@register(
    "sumix",
    paper="SUMix: Mixup with Semantic and Uncertain Information, ECCV 2024",
    arxiv="2407.07805",
    family="guided by the model",
)
class SUMix(Policy):
    """Mix by another policy; correct the weights by what the model sees, and add a loss of its uncertainty.

    Train through :class:`mixaug.MixStep`. Labels are class ids, or shares of classes, whose largest one counts.

    Args:
        policy: what mixes the images: a name of the registry, or a policy that pairs every sample with one other.
        alpha: of the policy made by name, where that draws by one; one that does not refuses any but the default.
        gamma: weight of the uncertainty term; 0 leaves it out, and the layer.
        scale: factor of the semantic distances, positive; None takes the batch size, as the released code does.
        uncertainty: ``"layer"``, a linear layer on the pooled features, a parameter of the policy; or ``"logits"``,
            the class scores themselves, as in the authors' ImageNet configs.
        reference: weigh and average as the released code does.
        pairing, per: of the policy made by name, see :class:`mixaug.Policy`.

    Raises:
        TypeError: ``policy`` is neither a name nor a policy.
        ValueError: an option out of range, or one that only a policy made by name can take.
    """

    needs = frozenset({"outputs", "pooled"})
    reads = frozenset({"outputs", "pooled"})
    spatial = None
    not_offered = ("ratio", "labeling", "partners")
    own_answers: ClassVar[Mapping[str, str]] = {
        "labeling": "That of the policy it mixes by, corrected by how both images are seen in the mixture.",
    }

    def __init__(
        self,
        policy: str | Policy = "cutmix",
        alpha: float = DEFAULT_ALPHA,
        gamma: float = 0.5,
        scale: float | None = 100.0,
        uncertainty: Uncertainty = "layer",
        reference: bool = False,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        if not isinstance(policy, (str, Policy)):
            raise TypeError(f"SUMix expects policy as a policy or its name, got {shown(policy)}")
        pairing, per = shared.get("pairing"), self.per
        if isinstance(policy, Policy) and (pairing is not None or per != "sample"):
            raise ValueError("SUMix got a policy that is made already: give pairing and per to that policy")
        if isinstance(policy, Policy):
            check_read(self, "mixes by a policy that is made already", alpha=alpha)
        check_choice("SUMix", "uncertainty", uncertainty, get_args(Uncertainty))
        self.gamma = check_not_negative("SUMix", "gamma", gamma)
        self.scale = None if scale is None else check_positive("SUMix", "scale", scale)
        self.uncertainty: Uncertainty = uncertainty
        self.reference = check_flag("SUMix", "reference", reference)
        self.policy = _make(policy, alpha=alpha, pairing=pairing, per=per) if isinstance(policy, str) else policy
        if not self._has_layer:
            self.needs, self.reads = self.needs - {"pooled"}, self.reads - {"pooled"}
        self.needs = self.needs | self.policy.needs
        self.reads = self.reads | self.policy.reads
        self.layer: nn.Linear | None = None

    @property
    def needs_labels(self) -> bool:
        return self.policy.needs_labels

    @property
    def _has_layer(self) -> bool:
        return self.gamma > 0 and self.uncertainty == "layer"

    def check(self, batch: Batch) -> None:
        self.policy.check(batch)
        super().check(batch)

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        return self.policy.plan(batch, generator, partner)

    def on_attach(self, signals: ModelSignals) -> None:
        if self._has_layer:
            self.layer = signals.like_classifier("SUMix", self.layer)

    def relabel(self, mixed: MixedBatch, seen: MixedSignals) -> MixedBatch:
        drawn = self.policy.relabel(mixed, seen)
        if mixed.plan is None or not mixed.plan.mixes:
            return drawn
        partner, labels, distances = self._distances(drawn, seen)
        weights = sumix_weights(distances, labels, partner, drawn.weights, reference=self.reference)
        return dataclasses.replace(drawn, weights=weights)

    def early_loss(self, images: Tensor, mixed: MixedBatch, clean: Signals) -> dict[str, Tensor]:
        return self.policy.early_loss(images, mixed, clean)

    def auxiliary_loss(self, mixed: MixedBatch, seen: MixedSignals) -> dict[str, Tensor]:
        plan = mixed.plan
        unmixed = plan is None or not plan.mixes
        as_drawn = mixed if plan is None or plan.weights is None else dataclasses.replace(mixed, weights=plan.weights)
        drawn = self.policy.relabel(as_drawn, seen)
        terms = dict(self.policy.auxiliary_loss(drawn, seen))
        if not self.gamma:
            return terms
        if self._has_layer and self.layer is None:
            raise ValueError(
                "SUMix has no uncertainty layer yet: train through mixaug.MixStep, call policy.attach(model), or use "
                "uncertainty='logits'"
            )
        if unmixed:
            if self.layer is not None:
                terms["uncertainty"] = no_change(self.layer.parameters())
            return terms
        partner, labels, distances = self._distances(drawn, seen)
        clean, blend = self._uncertainty(seen)
        terms["uncertainty"] = self.gamma * sumix_loss(clean, blend, distances, labels, partner, drawn.weights)
        return terms

    def _distances(self, mixed: MixedBatch, seen: MixedSignals) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Partners (B,), class ids (B,) and the two semantic distances."""
        labels = mixed.labels
        if mixed.sources.shape[1] != 2:
            raise ValueError(f"SUMix works on pairs, but its policy mixes {mixed.sources.shape[1]} sources")
        if labels is None or (labels.is_floating_point() and (labels.ndim != 2 or labels.shape[1] < 2)):
            came = None if labels is None else f"{tuple(labels.shape)} {labels.dtype}"
            raise ValueError(f"SUMix expects class ids (B,) or shares of classes (B, K) as labels, got {came}")
        labels = labels.argmax(1) if labels.ndim == 2 else labels.long()
        partner = mixed.sources[:, 1]
        clean = _clean_of(seen).outputs(mode="train", grad=True)
        pair = sumix_distances(clean, seen.outputs(), labels, partner, scale=self.scale, reference=self.reference)
        return partner, labels, pair

    def _uncertainty(self, seen: MixedSignals) -> tuple[Tensor, Tensor]:
        clean_pass = _clean_of(seen)
        if self.layer is None:
            return clean_pass.outputs(mode="train", grad=True), seen.outputs(grad=True)
        dtype = self.layer.weight.dtype
        clean = self.layer(clean_pass.pooled(mode="train", grad=True).to(dtype))
        return sumix_uncertainty(clean), sumix_uncertainty(self.layer(seen.pooled(grad=True).to(dtype)))


def _clean_of(seen: MixedSignals) -> Signals:
    if seen.clean is None:
        raise ValueError("SUMix compares with the clean outputs: pass them to tap(model, mixed, clean)")
    return seen.clean


def _make(name: str, **options: Any) -> Policy:
    try:
        known = describe(name).defaults
    except ValueError as error:
        raise ValueError(f"SUMix expects policy as a policy or its name, got an {error}") from None
    unfit = [key for key, plain in (("pairing", None), ("per", "sample")) if key not in known and options[key] != plain]
    if unfit:
        raise ValueError(f"SUMix got {unfit[0]}={options[unfit[0]]!r}, but policy {name!r} has no such option")
    options = {key: value for key, value in options.items() if key in known}
    if options.get("alpha") == DEFAULT_ALPHA:
        # Nobody asked for it: a policy that draws nothing by it does without.
        with contextlib.suppress(ValueError):
            return create(name, **options)
        del options["alpha"]
    return create(name, **options)


def _as_logits(exponent: Tensor) -> Tensor:
    return (-exponent).clamp(max=LARGEST_EXPONENT).exp()


def _check(what: str, clean_logits: Tensor, mixed_logits: Tensor, labels: Tensor, partner: Tensor) -> None:
    if clean_logits.ndim != 2 or clean_logits.shape != mixed_logits.shape:
        raise ValueError(
            f"{what} expects clean and mixed logits (B, K), got {tuple(clean_logits.shape)} and "
            f"{tuple(mixed_logits.shape)}"
        )
    if labels.shape != clean_logits.shape[:1] or labels.is_floating_point():
        raise ValueError(f"{what} expects class ids ({len(clean_logits)},), got {tuple(labels.shape)} {labels.dtype}")
    check_class_ids(what, labels, clean_logits.shape[1])
    check_partner(what, partner, len(clean_logits))
