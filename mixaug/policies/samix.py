"""SAMix (arXiv:2111.15454): AutoMix with a mixer that sees both maps, scaled by lambda, and a balanced loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mixaug.batch import MixedBatch
from mixaug.checks import check_not_negative, check_probability
from mixaug.losses import MixedCrossEntropy
from mixaug.ops.layout import single_precision
from mixaug.policies.learned.blocks import Upsampling, attended, start_small, tokens
from mixaug.policies.learned.objective import objective_of
from mixaug.policies.learned.pairs import PairMixer, PairOptions
from mixaug.registry import register
from mixaug.signals import ModelSignals

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SAMix", "balanced_cross_entropy", "rescaled_lam"]

#: Largest ``k`` that is told apart: above it the cubic is the same to three digits.
LARGEST_CUBIC = 10.0


def rescaled_lam(lam: Tensor, k: float) -> Tensor:
    """Pull lam towards one half by a cubic that keeps 0, 0.5 and 1.

    ``(4/3 lam^3 - 2 lam^2 + (k + 1) lam) / (k + 1/3)``. The released code caps k at 10.

    Args:
        lam: any shape, in [0, 1].
        k: 0.25 on CIFAR; -1 leaves lam as it is. Values in (-1, 0] would fold it.

    Raises:
        ValueError: another k.
    """
    if k == -1:
        return lam
    if not k >= 0:
        raise ValueError(f"rescaled_lam expects k >= 0, or -1 to leave lam as it is, got {k!r}")
    top = min(float(k), LARGEST_CUBIC) + 1
    return (4 / 3 * lam**3 - 2 * lam**2 + top * lam) / (top - 2 / 3)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, eta: float) -> Tensor:
    """Cross-entropy in two parts: which of the two classes it is, and, with weight eta, that it is one of them.

    ``-[lam log q_own + (1 - lam) log q_partner] - eta log(p_own + p_partner)`` with q the probabilities among the two
    classes alone. With eta = 1 it is the cross-entropy of the mixed labels. Where both are of one class, the first part
    is nothing.

    Args:
        logits: (n, K) floating point.
        labels: (B,) class ids, B >= n.
        partner: (n,) int64 rows of ``labels``.
        lam: (n,) or (1,) own shares.
        eta: in [0, 1].

    Returns:
        Scalar mean, float32.
    """
    scores = single_precision(logits).log_softmax(1)
    own, other = labels[: len(logits), None].long(), labels.index_select(0, partner)[:, None].long()
    first, second = scores.gather(1, own)[:, 0], scores.gather(1, other)[:, 0]
    same = (own == other)[:, 0]
    either = torch.where(same, first, torch.logaddexp(first, second))
    lam = lam.to(scores.dtype)
    local = lam * (either - first) + (1 - lam) * (either - second)
    return (local - eta * either).mean()


class SAMixBlock(nn.Module):
    """SAMix's mixer: queries and keys of both maps, values by a small network of the partner's.

    Both maps are scaled by 1 plus their share, see :func:`rescaled_lam`.

    Args:
        channels: C of the features, at least 2.
        k: of the rescaling.
        dropout: behind the values, in [0, 1]: 0.1 in the published settings of ImageNet and ViT.
    """

    def __init__(self, channels: int, k: float = -1.0, dropout: float = 0.0) -> None:
        super().__init__()
        half = channels // 2
        self.k = k
        self.query = nn.Conv2d(2 * channels, half, 1)
        self.key = nn.Conv2d(2 * channels, half, 1)
        self.value = nn.Sequential(
            nn.Conv2d(channels, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ELU(),
            nn.Conv2d(half, 1, 1, bias=False),
            nn.Dropout(dropout),
        )
        start_small(self)

    def forward(self, own: Tensor, other: Tensor, lam: Tensor) -> Tensor:
        """Logits (B, h, w) of the partner's share.

        Args:
            own, other: (B, C, h, w) float32 features of the sample and of its partner.
            lam: (B,) or (1,) own share.
        """
        share = rescaled_lam(lam, self.k).reshape(-1, 1, 1, 1)
        own, other = own * (1 + share), other * (2 - share)
        both = torch.cat([own, other], 1)
        query, key = tokens(self.query(both)), tokens(self.key(both))
        return attended(query, key, tokens(self.value(other))).reshape(len(own), *own.shape[2:])


@register(
    "samix",
    paper="Boosting Discriminative Visual Representation Learning with Scenario-Agnostic Mixup",
    arxiv="2111.15454",
    family="learned",
)
class SAMix(PairMixer):
    """AutoMix with a mixer that sees both maps, a reward for masks that vary, a balanced loss; train through MixStep.

    Args:
        alpha: of Beta(alpha, alpha).
        k: of :func:`rescaled_lam`: 0.25 in the published CIFAR settings, -1 for large data.
        dropout: of the mixer, see :class:`SAMixBlock`.
        eta: weight in [0, 1] of the part of the mixer's loss against all other classes; 1 is the plain loss of the
            step, which is what the released code computes with cross-entropy. Below 1, 0.5 in the paper, labels must
            be class ids and the loss of the step plain cross-entropy.
        upsampling: of the mask's logits.
        variance: factor of the reward for masks that vary, see :func:`mixaug.policies.learned.pairs.mask_loss`.
        mask_adjust: chance in [0, 1] that the classifier's masks are given the mean lam.
        **shared: mask_weight, mask_weight_end, mask_margin, reference: see :class:`mixaug.policies.learned.PairMixer`;
            all others: see :class:`mixaug.policies.learned.LearnedMixer`.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        *,
        k: float = 0.25,
        dropout: float = 0.0,
        eta: float = 1.0,
        upsampling: Upsampling = "bilinear",
        variance: float = 2.0,
        mask_adjust: float = 0.25,
        **shared: Unpack[PairOptions],
    ) -> None:
        super().__init__(alpha=alpha, upsampling=upsampling, mask_adjust=mask_adjust, **shared)
        self.k = -1.0 if isinstance(k, (int, float)) and k == -1 else check_not_negative("SAMix", "k", k)
        self.dropout = check_probability("SAMix", "dropout", dropout)
        self.eta = check_probability("SAMix", "eta", eta)
        self.variance = check_not_negative("SAMix", "variance", variance)
        self.make_known_block()

    def block_settings(self) -> dict[str, Any]:
        return {"k": self.k}

    def make_block(self, channels: int) -> nn.Module:
        return SAMixBlock(channels, self.k, self.dropout)

    def generator_objective(self, outputs: Tensor, pair: MixedBatch, source: ModelSignals) -> Tensor:
        if self.eta == 1:
            return super().generator_objective(outputs, pair, source)
        labels, objective = pair.labels, objective_of(source)
        if (
            not isinstance(objective, MixedCrossEntropy)
            or objective.label_smoothing
            or objective.class_weight is not None
        ):
            raise ValueError(
                f"SAMix(eta={self.eta:g}) divides a plain MixedCrossEntropy into two parts, but the step's loss is "
                f"{objective}; eta=1 takes any"
            )
        if labels is None or labels.is_floating_point() or labels.ndim != 1:
            came = None if labels is None else f"{tuple(labels.shape)} {labels.dtype}"
            raise ValueError(f"SAMix(eta={self.eta:g}) expects class ids (B,), got {came}; eta=1 takes any labels")
        return balanced_cross_entropy(outputs, labels, pair.sources[:, 1], pair.weights[:, 0], self.eta)
