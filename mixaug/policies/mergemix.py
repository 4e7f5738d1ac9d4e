"""MergeMix (arXiv:2510.23479): the most attended tokens stay, where similar tokens share their attention.

    x' = x in the int(lam N) of N tokens of highest score, x[partner] elsewhere,   label share: own tokens of all
    score of a token = mean attention of the class token over the tokens that it was merged with

Tokens are merged by similarity (:mod:`mixaug.ops.token_merging`), so that what looks alike stays together: masks follow
objects more than single tokens of high attention do. lam ~ Beta(alpha, alpha).

``count="groups"`` is the form for vision-language models: of G merged groups the int(lam G) best stay.
:func:`mixaug.functional.mergemix_ranking` is its loss, which ranks the clean answer above the mixed one.

Departures from the authors' code. They merge inside every layer of a pass of their own, by the keys, and read what a
token gives to the class token in a chosen layer. Here one plain pass over the clean images gives the class token's
attention in the last block, as their form for vision-language models reads it, and the last feature map, by which
tokens are merged afterwards in ``rounds``: so any model will do. Members of a group have one score, and where not all
of them can stay the first do; theirs has no rule for it. ``scaled_labels`` is their ``lam_scale``: normal draws around
the merged share, stretched over the batch to 0 and 1, take the place of the own shares, whatever the masks. Their
further loss, plain Mixup of the same batch in a pass of its own, is not part of this policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import (
    check_choice,
    check_flag,
    check_images,
    check_out,
    check_partner,
    check_probability,
    check_share,
    check_whole,
)
from mixaug.draws import Draws
from mixaug.labeling import Area
from mixaug.ops.blend import blend_mask
from mixaug.ops.layout import single_precision
from mixaug.ops.masks import cells_to_size, top_mask
from mixaug.ops.token_merging import merge_tokens, token_matching
from mixaug.plan import MaskBlend, Plan
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "MergeMix",
    "answer_log_probability",
    "merge_rounds",
    "mergemix",
    "mergemix_groups",
    "mergemix_ranking",
    "mergemix_shares",
    "mergemix_tokens",
]

Count = Literal["tokens", "groups"]


def merge_rounds(tokens: Tensor, share: float, rounds: int = 4) -> tuple[Tensor, int]:
    """Merge a share of the tokens, a part in every round, each of which compares what the last one has left.

    Args:
        tokens: (B, N, D) floating point.
        share: of the tokens that go, in [0, 1]; each round takes at most half of what is left.
        rounds: at least 1.

    Returns:
        (B, N) int64 place of each token among those that are left, and the number of these.

    Raises:
        ValueError: an option out of range, another shape.
    """
    share = check_probability("merge_rounds", "share", share)
    rounds = check_whole("merge_rounds", "rounds", rounds)
    if tokens.ndim != 3:
        raise ValueError(f"merge_rounds expects tokens (B, N, D), got {tuple(tokens.shape)}")
    total, left = int(share * tokens.shape[1]), tokens.shape[1]
    places, sizes = torch.arange(left, device=tokens.device).expand(tokens.shape[:2]), None
    for turn in range(rounds):
        # What one round could not take is left to the next.
        goes = min(-(-(total - (tokens.shape[1] - left)) // (rounds - turn)), left // 2)
        if goes <= 0:
            continue
        if turn == 0:
            merged = single_precision(tokens.detach())
        found = token_matching(merged, goes)
        left -= goes
        merged, sizes = merge_tokens(merged, found, left, sizes)
        places = found.gather(1, places)
    return places.contiguous(), left


def mergemix_tokens(scores: Tensor, lam: Tensor) -> Tensor:
    """The int(lam N) tokens of highest score; of equal ones the first.

    Args:
        scores: (B, N) floating point.
        lam: (B,) or (1,) floating point in [0, 1].

    Returns:
        (B, N) bool, True for tokens that show the own image.

    Raises:
        ValueError: shapes that do not fit.
    """
    if scores.ndim != 2:
        raise ValueError(f"mergemix_tokens expects scores (B, N), got {tuple(scores.shape)}")
    check_share("mergemix_tokens", "lam", lam, scores.shape[0])
    return top_mask(scores, (lam * scores.shape[1]).long())


def mergemix_groups(scores: Tensor, places: Tensor, lam: Tensor) -> Tensor:
    """The tokens of the int(lam G) groups of highest score.

    Args:
        scores: (B, G) floating point, one for each group.
        places: (B, N) int64, the group of each token.
        lam: (B,) or (1,) floating point in [0, 1].

    Returns:
        (B, N) bool, True for tokens that show the own image.

    Raises:
        ValueError: shapes that do not fit.
    """
    if scores.ndim != 2 or places.ndim != 2 or len(scores) != len(places):
        raise ValueError(
            f"mergemix_groups expects scores (B, G) and places (B, N), got {tuple(scores.shape)} and "
            f"{tuple(places.shape)}"
        )
    return mergemix_tokens(scores, lam).gather(1, places)


def mergemix_shares(normal: Tensor, own: Tensor, merged: float) -> Tensor:
    """Label shares of the authors' ``lam_scale``.

    Args:
        normal: (B,) floating point standard normals.
        own: (B,) share of own tokens: the deviation of the draw.
        merged: share of merged tokens: its mean.

    Returns:
        (B,) of the dtype of ``normal`` in [0, 1): the least of the batch is 0, the largest nearly 1.
    """
    draw = merged + own.to(normal.dtype) * normal
    low, high = draw.min(), draw.max()
    return (draw - low) / (high - low + 1e-5)


def mergemix(
    images: Tensor, partner: Tensor, cells: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """Keep the own pixels in the chosen cells, copy the partner's elsewhere. Differentiable.

    Args:
        images: (B, C, H, W) floating point or uint8.
        partner: (B,) int64.
        cells: (B, h, w), or (1, h, w) for all, bool, True where the own image shows; pixel (y, x) lies in cell
            (floor(y h / H), floor(x w / W)).
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of own pixels.

    Raises:
        ValueError: shapes that do not fit, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("mergemix", images, (2,))
    check_partner("mergemix", partner, images.shape[0])
    check_out("mergemix", images, out, inplace)
    if cells.dtype != torch.bool:
        raise TypeError(f"mergemix expects cells of dtype torch.bool, True for own cells, got {cells.dtype}")
    if cells.ndim != 3 or cells.shape[0] not in (1, images.shape[0]) or not cells.numel():
        raise ValueError(f"mergemix expects cells ({images.shape[0]}, h, w) or (1, h, w), got {tuple(cells.shape)}")
    mask = cells_to_size(cells, images.shape[2:])
    lam = mask.flatten(1).mean(1, dtype=torch.float32).expand(images.shape[0])
    return blend_mask(images, partner, mask, out=out, inplace=inplace), lam


def answer_log_probability(logits: Tensor, answer: Tensor, ignored: int = -100) -> Tensor:
    """Sum of the log probabilities of the tokens of an answer, each told by the position before it.

    Args:
        logits: (B, T, V) of a language model.
        answer: (B, T) int64 token ids; ``ignored`` ones, such as the question's, do not count.
        ignored: id that does not count.

    Returns:
        (B,) float32 (float64 for float64).

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits.ndim != 3 or answer.shape != logits.shape[:2]:
        raise ValueError(
            f"answer_log_probability expects logits (B, T, V) and answer (B, T), got {tuple(logits.shape)} and "
            f"{tuple(answer.shape)}"
        )
    told, counts = answer[:, 1:], answer[:, 1:] != ignored
    each = single_precision(logits[:, :-1]).log_softmax(-1)
    each = each.gather(2, torch.where(counts, told, 0)[..., None])[..., 0]
    return (each * counts).sum(1)


def mergemix_ranking(logits: Tensor, mixed_logits: Tensor, answer: Tensor, lam: Tensor | float) -> Tensor:
    """The answer is to be likelier for the clean image than for the mixed one, by the partner's share (SimPO).

        mean of -log sigmoid((log p - log p') / T - (1 - lam))

    Args:
        logits: (B, T, V) for the clean images.
        mixed_logits: (B, T, V) for the mixed ones; no gradient flows to them.
        answer: (B, T) int64, see :func:`answer_log_probability`.
        lam: (B,), or one number, in [0, 1]: share of the own image.

    Returns:
        Scalar. T counts all positions, those that do not count in the answer too, as in the authors' code, which
        takes the mean of this and the cross-entropy of the answer.
    """
    better = answer_log_probability(logits, answer) - answer_log_probability(mixed_logits.detach(), answer)
    return -F.logsigmoid(better / answer.shape[1] - (1 - lam)).mean()


@register(
    "mergemix",
    paper="MergeMix: A Unified Augmentation Paradigm for Visual and Multi-Modal Understanding, ICLR 2026",
    arxiv="2510.23479",
    family="guided by the model",
)
class MergeMix(Policy):
    """Keep the sample's most attended tokens, similar ones together; the label share counts them.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0 is the authors' value.
        merged: share of the tokens that are merged away, in [0, 1]: 0.5 on CIFAR-100 and 0.25 on ImageNet in the
            authors' configurations. 0 leaves every token its own attention.
        rounds: in which they are merged, at least 1.
        count: what lam counts: ``"tokens"``, or ``"groups"`` of merged tokens, which then stay whole.
        scaled_labels: the authors' ``lam_scale``, see the module; with ``labeling="area"`` alone.
        ratio, pairing, labeling: see :class:`mixaug.Policy`; ``labeling="ratio"`` is the drawn lam.
        per: how often lam is drawn; once per batch in the authors' code.

    Raises:
        ValueError: an option out of range.
    """

    needs = frozenset({"attention", "features"})
    spatial = (2,)

    def __init__(
        self,
        alpha: float = 1.0,
        merged: float = 0.5,
        rounds: int = 4,
        count: Count = "tokens",
        scaled_labels: bool = False,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        self.merged = check_probability("MergeMix", "merged", merged)
        self.rounds = check_whole("MergeMix", "rounds", rounds, most=1000)
        check_choice("MergeMix", "count", count, get_args(Count))
        self.count: Count = count
        self.scaled_labels = check_flag("MergeMix", "scaled_labels", scaled_labels)
        if self.scaled_labels and not isinstance(self.labeling, Area):
            raise ValueError(
                f"MergeMix draws the labels with scaled_labels=True; it cannot use labeling={shared.get('labeling')!r}"
            )
        if not self.merged:
            self.needs = self.needs - {"features"} | self.labeling.needs

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        lam, size = self.ratio(draws), (batch.size[0], batch.size[1])
        signals = batch.ask("MergeMix")
        attention = single_precision(signals.attention(size).detach()).nan_to_num(0.0, 0.0, 0.0)
        grid = (attention.shape[1], attention.shape[2])
        scores = attention.flatten(1)
        places, groups = torch.arange(scores.shape[1], device=batch.device).expand_as(scores), scores.shape[1]
        if self.merged:
            features = single_precision(signals.features(size=size).detach())
            if tuple(features.shape[2:]) != grid:
                features = F.adaptive_avg_pool2d(features, grid)
            places, groups = merge_rounds(features.flatten(2).transpose(1, 2), self.merged, self.rounds)
            scores = merge_tokens(scores[..., None], places, groups)[0][..., 0]
        if self.count == "groups":
            own = mergemix_groups(scores, places, lam)
        else:
            own = mergemix_tokens(scores.gather(1, places), lam)
        mask = cells_to_size(own.unflatten(1, grid), size)
        weights = None
        if self.scaled_labels:
            share = mergemix_shares(draws.normal(per="sample"), own.float().mean(1), self.merged).float()
            weights = torch.stack([share, 1 - share], 1)
        return MaskBlend(partner=partner, lam=lam.float(), size=batch.size, mask=mask, weights=weights)
