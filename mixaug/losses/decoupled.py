"""Decoupled mixup (arXiv:2203.10761): a mixed sample's classes no longer compete with each other.

    L = CE(z, t) + sum_i eta_i (-log phi_i),   phi_i = exp z_i / sum_{c not mixed with i} exp z_c

t is the mixed target, i runs over the classes that were mixed, and phi_i is the probability of class i where the other
mixed classes are left out. So both classes are pushed up whatever the ratio is. eta_i = eta r(w_i), with w_i the
label's share and r(w) = (w / threshold)^power below the threshold, 1 above it.

Departures from OpenMixup's code: samples of one class only keep the plain loss, and nothing else is left out (a guard
of that code drops the term of a whole batch where all shares are equal); each eta belongs to its own class.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from mixaug.batch import MixedBatch
from mixaug.checks import check_choice, check_not_negative, check_positive_share
from mixaug.losses.checks import check_inputs, check_options, compute_dtype, labels_of, outputs_of, reduced
from mixaug.losses.cross_entropy import mixed_cross_entropy
from mixaug.options import Offering

#: Choice of the mixed classes that are decoupled: all, the one of less share, or the one of more.
Side = Literal["both", "less", "more"]
#: Share that a source must exceed to count as mixed in.
LEAST_SHARE = 1e-3


def decoupled_regularizer(
    logits: Tensor,
    labels: Tensor,
    sources: Tensor,
    weights: Tensor,
    *,
    eta: float = 0.1,
    side: Side = "both",
    power: float = 0.0,
    threshold: float = 1.0,
) -> Tensor:
    """(B,) ``sum_i eta_i (-log phi_i)`` of the module's header.

    Args:
        logits: (B, K) floating; half precision is computed in float32.
        labels: (N,) class ids.
        sources: (B, M) int64 rows of ``labels``.
        weights: (B, M) floating shares; those up to 0.001 do not count as mixed.
        eta: weight of the term, not negative.
        side: ``"both"`` for all classes, ``"less"`` for the one of least share, ``"more"`` for that of most.
        power, threshold: of r, see the header.

    Returns:
        float32 (float64 for float64 logits); 0 for a sample of one class alone.
    """
    dtype = compute_dtype(logits)
    values, shares = logits.to(dtype), weights.to(dtype)
    ids = labels.long()[sources]
    counts = shares > LEAST_SHARE
    # Each source is decoupled from the classes of the others that are mixed in and are not its own class.
    others = counts[:, None, :] & (ids[:, :, None] != ids[:, None, :])
    mixed = counts & others.any(2)
    factor = torch.where(shares < threshold, (shares / threshold).clamp(min=0) ** power, torch.ones_like(shares))
    if side != "both":
        # Ties take the first: with equal shares there is no lesser one.
        hidden = torch.inf if side == "less" else -torch.inf
        ranked = torch.where(mixed, shares, hidden)
        chosen = ranked.argmin(1) if side == "less" else ranked.argmax(1)
        mixed = mixed & (torch.arange(ids.shape[1], device=ids.device) == chosen[:, None])
    total = torch.zeros_like(values[:, 0])
    for source in range(ids.shape[1]):
        away = torch.zeros_like(values, dtype=torch.int32).scatter_add_(1, ids, others[:, source].to(torch.int32)) > 0
        left = values.masked_fill(away, -torch.inf)
        decoupled = left.logsumexp(1) - values.gather(1, ids[:, source : source + 1])[:, 0]
        total = total + torch.where(mixed[:, source], eta * factor[:, source] * decoupled, torch.zeros_like(total))
    return total


class DecoupledCrossEntropy(Offering, nn.Module):
    """Mixed cross-entropy and the decoupled term; ``forward(logits, mixed)`` takes a MixedBatch with class ids.

    Args:
        eta: weight of the term, not negative: 0.1 in the paper's default.
        side: ``"both"``, ``"less"`` or ``"more"``, see :func:`decoupled_regularizer`.
        power: of the label's share in eta; 0 leaves the share out.
        threshold: in (0, 1], from which on a share counts as 1.
        label_smoothing: of the cross-entropy, in [0, 1].
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an option out of range.
    """

    #: What the labels are: "classification" or "regression".
    task: ClassVar[str] = "classification"
    usual_policy = ("cutmix", {"alpha": 0.2})

    def __init__(
        self,
        eta: float = 0.1,
        side: Side = "both",
        power: float = 0.0,
        threshold: float = 1.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_options("DecoupledCrossEntropy", label_smoothing, reduction)
        name = "DecoupledCrossEntropy"
        check_choice(name, "side", side, get_args(Side))
        self.eta = check_not_negative(name, "eta", eta)
        self.power = check_not_negative(name, "power", power)
        self.threshold = check_positive_share(name, "threshold", threshold)
        self.side: Side = side
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(self, logits: Any, mixed: MixedBatch) -> Tensor:
        """Loss of ``logits`` (B, K), or of outputs with an entry or attribute ``logits``.

        Raises:
            TypeError: labels that are no class ids.
        """
        logits = outputs_of("DecoupledCrossEntropy", logits)
        labels = labels_of("DecoupledCrossEntropy", mixed)
        check_inputs("DecoupledCrossEntropy", logits, labels, mixed.sources, mixed.weights, None)
        if labels.ndim != 1:
            raise TypeError(
                "DecoupledCrossEntropy needs to know which classes were mixed: pass class ids (N,), got labels of "
                f"shape {tuple(labels.shape)}"
            )
        plain = mixed_cross_entropy(
            logits,
            labels,
            mixed.sources,
            mixed.weights,
            label_smoothing=self.label_smoothing,
            reduction="none",
            uniform=mixed.uniform,
        )
        loss = plain + decoupled_regularizer(
            logits,
            labels,
            mixed.sources,
            mixed.weights,
            eta=self.eta,
            side=self.side,
            power=self.power,
            threshold=self.threshold,
        )
        return reduced(loss, mixed.importance, self.reduction)

    def extra_repr(self) -> str:
        return f"eta={self.eta:g}, side={self.side!r}, power={self.power:g}, threshold={self.threshold:g}"
