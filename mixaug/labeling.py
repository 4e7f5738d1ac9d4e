"""How much of each label: from what a policy drew to the weights of the sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.backbone import has_class_token, token_grid
from mixaug.checks import check_probability
from mixaug.ops.attention import attention_lam, progressive_lam, token_label_share

if TYPE_CHECKING:
    from mixaug.batch import Batch, MixedBatch
    from mixaug.plan import Plan
    from mixaug.signals import Seen


@runtime_checkable
class Labeling(Protocol):
    """Weights of the sources' labels: (B, M) float32, column 0 for the sample itself.

    ``needs`` names the signals it asks of the model (see ``Policy.needs``). A labeling that can say more once the
    model has seen the mixed images names what it ``reads`` of that pass (see ``Policy.reads``) and has a method
    ``after(plan, mixed, seen)``, which gives the final weights.
    """

    needs: frozenset[str]

    def __call__(self, plan: Plan, batch: Batch) -> Tensor: ...


class Area:
    """The share of pixels that each source really covers."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return _two_shares(plan.area(), len(batch))


class Drawn:
    """The share that was drawn, whatever clipping and rounding made of it."""

    needs: frozenset[str] = frozenset()

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return _two_shares(plan.lam, len(batch))


class Attention:
    """The share of the class token's attention that falls on each source (TransMix, arXiv:2111.09833).

    Known after the mixed pass, whose own attention is read: :class:`mixaug.MixStep` or ``Policy.relabel`` puts it in
    the place of the area's share. For models without a class token see :meth:`mixaug.Signals.attention`. Works with
    every mask over images (B, C, H, W); a policy without one (mixup) keeps its weights.

    Args:
        attention_share: weight of the attention's share beside the area's, in [0, 1]: 0.5 as in the authors' code, 1
            as in their paper.

    Raises:
        ValueError: an option out of range.
    """

    needs = frozenset({"attention"})
    reads = frozenset({"attention"})

    def __init__(self, attention_share: float = 0.5) -> None:
        self.attention_share = check_probability("Attention", "attention_share", attention_share)

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return _area_of_images("attention", plan, batch)

    def after(self, plan: Plan, mixed: MixedBatch, seen: Seen) -> Tensor:
        """(B, 2) float32 weights from the attention of the mixed pass."""
        with torch.no_grad():
            found = _mask_and_area("attention", plan, mixed)
            if found is None:
                return mixed.weights
            mask, area = found
            attention = seen.attention(_height_and_width(mask)).detach()
            return _of_pair(attention_lam(attention, mask, area, attention_share=self.attention_share))


class Progressive:
    """From the area's share to the attention's, as far as the prediction agrees with the area's target.

    Progressive attention labeling of MixPro (arXiv:2304.12043): ``rho * attention + (1 - rho) * area``, rho the cosine
    of the area's target and the predicted probabilities. Known after the mixed pass; needs labels of classes. A policy
    without a mask keeps its weights.

    Args:
        attention: ``"mixed"`` reads the attention of the mixed images, as the paper; ``"own"`` that of the unmixed own
            images from one more pass in evaluation mode, as OpenMixup.
        label_smoothing: of the target that the prediction is compared with, in [0, 1]; the loss has its own.

    Raises:
        ValueError: an option out of range.
    """

    needs = frozenset({"attention", "outputs"})
    reads = frozenset({"attention"})

    def __init__(self, attention: Literal["mixed", "own"] = "mixed", label_smoothing: float = 0.1) -> None:
        if attention not in ("mixed", "own"):
            raise ValueError(f"Progressive expects attention 'mixed' or 'own', got {attention!r}")
        self.attention = attention
        self.label_smoothing = check_probability("Progressive", "label_smoothing", label_smoothing)
        if attention == "own":
            self.reads = frozenset({"outputs"})

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return _area_of_images("progressive", plan, batch)

    def after(self, plan: Plan, mixed: MixedBatch, seen: Seen) -> Tensor:
        """(B, 2) float32 weights from the attention and the outputs of the mixed pass."""
        with torch.no_grad():
            found = _mask_and_area("progressive", plan, mixed)
            if found is None:
                return mixed.weights
            mask, area = found
            logits = seen.outputs().detach()
            if logits.ndim != 2:
                raise ValueError(f"labeling 'progressive' expects class scores (B, K), got {tuple(logits.shape)}")
            source = seen if self.attention == "mixed" else seen.clean
            if source is None:
                raise ValueError(
                    "labeling 'progressive' of the own images' attention needs their signals: "
                    "policy.tap(model, mixed, clean), or mixaug.MixStep"
                )
            attention = source.attention(_height_and_width(mask)).detach()
            by_area = dataclasses.replace(mixed, weights=_of_pair(area))
            targets = by_area.targets(logits.shape[1], self.label_smoothing)
            return _of_pair(progressive_lam(attention, mask, area, targets, logits))


class TokenLabels:
    """Labels that travel with the tokens through all blocks of attention (TL-Align, arXiv:2210.06455).

    Every token starts with the label of its patch, or its share of both where the mask cuts through, the tokens before
    them with the area's; every block mixes the labels by its attention, half and half with what they were. The label is
    the class token's after the last block; for models whose classifier reads the mean of the tokens, that of the image
    tokens. Known after the mixed pass. A policy without a mask keeps its weights.
    """

    needs = frozenset({"attention"})
    reads = frozenset({"attentions"})

    def __call__(self, plan: Plan, batch: Batch) -> Tensor:
        return _area_of_images("token_labels", plan, batch)

    def after(self, plan: Plan, mixed: MixedBatch, seen: Seen) -> Tensor:
        """(B, 2) float32 weights from the attention of all blocks of the mixed pass.

        Raises:
            ValueError: a model whose attention cannot be read, or that changes its tokens between the blocks.
        """
        with torch.no_grad():
            found = _mask_and_area("token_labels", plan, mixed)
            if found is None:
                return mixed.weights
            mask, area = found
            blocks = seen.every_attention()
            counts, prefix = {block.key.shape[2] for block in blocks}, blocks[0].prefix
            if len(counts) > 1:
                raise ValueError(
                    "labeling 'token_labels' needs the same tokens in every block, got blocks of "
                    f"{sorted(counts)} tokens"
                )
            grid = token_grid(seen.model, counts.pop() - prefix, _height_and_width(mask))
            tokens = F.adaptive_avg_pool2d(mask.float()[:, None], grid)[:, 0]
            pooled = not _reads_class_token(seen.model)
            return _of_pair(token_label_share(blocks, tokens, area, prefix, pooled=pooled))


def _reads_class_token(model: nn.Module | None) -> bool:
    """Whether the classifier takes the class token, and not a mean of tokens."""
    if model is None or not has_class_token(model):
        return False
    pool = getattr(model, "global_pool", None)
    return pool in ("token", "") if isinstance(pool, str) else True


def _area_of_images(name: str, plan: Plan, batch: Batch) -> Tensor:
    """The area's shares, which stand until the model has seen the mixed images."""
    if batch.images.ndim != 4:
        raise ValueError(f"labeling {name!r} expects images (B, C, H, W), got shape {tuple(batch.images.shape)}")
    return _two_shares(plan.area(), len(batch))


def _mask_and_area(name: str, plan: Plan, mixed: MixedBatch) -> tuple[Tensor, Tensor] | None:
    """Own mask (R, H, W) and own share of the area (B,) float32; None for a policy without a mask."""
    mask = plan.own_mask()
    if mask is None:
        return None
    # The plan's weights and not the batch's, which an earlier call may have replaced.
    weights = mixed.weights if plan.weights is None else plan.weights
    if weights.shape[1] != 2:
        raise ValueError(f"labeling {name!r} weighs pairs; these samples have {weights.shape[1]} sources each")
    return mask, weights[:, 0].float().expand(len(mixed))


def _height_and_width(mask: Tensor) -> tuple[int, int]:
    return mask.shape[-2], mask.shape[-1]


def _of_pair(own: Tensor) -> Tensor:
    return torch.stack([own, 1 - own], dim=1)


def _two_shares(lam: Tensor, batch_size: int) -> Tensor:
    lam = lam.float()
    return torch.stack([lam, 1 - lam], dim=1).expand(batch_size, 2)


NAMED: dict[str, Callable[[], Labeling]] = {
    "area": Area,
    "ratio": Drawn,
    "attention": Attention,
    "progressive": Progressive,
    "token_labels": TokenLabels,
}


def make(labeling: str | Labeling) -> Labeling:
    """The :class:`Labeling` that a policy's options ask for: a name of ``NAMED``, or an object.

    Raises:
        ValueError: unknown name.
        TypeError: neither a name nor a Labeling.
    """
    if isinstance(labeling, str):
        if labeling not in NAMED:
            raise ValueError(f"unknown labeling {labeling!r}; expected one of {list(NAMED)} or a Labeling object")
        return NAMED[labeling]()
    if not callable(labeling):
        raise TypeError(f"labeling expects a name or a Labeling, got {type(labeling).__name__}")
    return labeling
