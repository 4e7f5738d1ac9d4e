"""TL-Align (arXiv:2210.06455): CutMix on the grid of tokens, with labels that travel with them through the model.

    x' = x[partner] in a box of whole patches, x outside,   lam' = w of the class token after the last block
    w <- (A w + w) / 2 in every block, from w = own share of each token, and of the area for the class token

A is the block's attention of the pass that trains on the mixed images, averaged over the heads. The authors carry a row
of K classes for every token; all of them are mixtures of two labels, so one number for each says the same. A w comes
from the fused kernel, called with the recorded queries and keys; no N x N matrix is stored. The pure functions are
:func:`mixaug.functional.tlalign`, ``token_label_shares`` and ``token_label_share``.

The box is CutMix's with tokens for pixels: sides g sqrt(1 - lam), rounded down to even, clipped. So a grid of one or
two patches has none: such images stay unmixed. Departures: the authors draw one box for the batch (``per="batch"``) and
pair it with itself reversed (``pairing="reversed"``); their grid is square and their patches have 16 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from mixaug.batch import Batch
from mixaug.checks import check_boxes, check_images
from mixaug.draws import Draws
from mixaug.ops.boxes import cutmix_boxes
from mixaug.ops.cells import patch_sides, patch_size_option
from mixaug.plan import Paste, Plan
from mixaug.policies.cutmix import cutmix
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TLAlign", "patch_grid", "tlalign"]

#: Side in pixels of a patch where neither the user nor the model says: that of the authors' models.
USUAL_PATCH = 16


def patch_grid(patch_size: int | Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """Whole patches along each axis, at least one.

    Args:
        patch_size: pixels of a patch, one number or one for each axis.
        size: (H, W).
    """
    sides = patch_sides("patch_grid", patch_size, size)
    return tuple(max(pixels // side, 1) for side, pixels in zip(sides, size, strict=True))


def tlalign(
    images: Tensor,
    partner: Tensor,
    token_boxes: Tensor,
    patch_size: int | Sequence[int],
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Paste whole patches of the partner into each sample. Differentiable.

    Args:
        images: (B, C, H, W) floating point or uint8. Patches that do not tile them are stretched over them.
        partner: (B,) int64.
        token_boxes: (B, 4), or (1, 4) for all, int64 y0, x0, y1, x1 in patches, half open, clipped to
            :func:`patch_grid`; :func:`cutmix_boxes` with that grid makes them.
        patch_size: pixels of a patch, one number or one for each axis.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of own pixels.

    Raises:
        ValueError: shapes that do not fit, boxes outside the grid, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("tlalign", images, (2,))
    size = images.shape[2:]
    grid = patch_grid(patch_size, size)
    check_boxes("tlalign", token_boxes, images.shape[0], grid, "token_boxes")
    return cutmix(images, partner, _in_pixels(token_boxes, grid, size), out=out, inplace=inplace)


@register(
    "tlalign",
    paper="Token-Label Alignment for Vision Transformers, ICCV 2023",
    arxiv="2210.06455",
    family="guided by the model",
)
class TLAlign(Policy):
    """Paste a box of whole patches of the partner; the label share is carried through the blocks with the tokens.

    For models with global attention that can be read, such as the vision transformers of timm and torchvision. Its
    labeling alone is ``create(name, labeling="token_labels")``, for any method with a mask. Until the model has seen
    the mixed images (:class:`mixaug.MixStep`, ``relabel``) the weights are the area's.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0 is the authors' value.
        patch_size: pixels of a patch, one number or one for each axis. None asks the model for its own, and takes 16
            from one that does not say. An image that is no whole number of patches is divided evenly.
        ratio, pairing, per: see :class:`mixaug.Policy`.
        labeling: ``"token_labels"``, or another, see :class:`mixaug.Policy`; ``"area"`` needs no signals.

    Raises:
        ValueError: an option out of range.
    """

    spatial = (2,)
    needs = frozenset({"attention"})
    shared_defaults: ClassVar[SharedOptions] = {"labeling": "token_labels"}

    def __init__(
        self,
        alpha: float = 1.0,
        patch_size: int | Sequence[int] | None = None,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        self.needs = self.labeling.needs
        self.patch_size = patch_size_option("TLAlign", patch_size, spatial=self.spatial)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if self.patch_size is not None:
            patch_sides("TLAlign", self.patch_size, batch.size)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        patch = self.patch_size
        if patch is None:
            patch = _patch_of(None if batch.signals is None else batch.signals.model)
        grid = patch_grid(patch, batch.size)
        lam = self.ratio(draws)
        boxes = _in_pixels(cutmix_boxes(lam, draws.pixels(grid), grid), grid, batch.size)
        return Paste(partner=partner, lam=lam.float(), boxes=boxes, size=batch.size)


def _in_pixels(token_boxes: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Boxes of patches as boxes of pixels: pixel i lies in patch floor(i g / H)."""
    columns = zip(token_boxes.unbind(1), [*grid, *grid], [*size, *size], strict=True)
    return torch.stack([(place * pixels + count - 1) // count for place, count, pixels in columns], dim=1)


def _patch_of(model: nn.Module | None) -> int | tuple[int, ...]:
    size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if size is None:
        size = getattr(model, "patch_size", None)
    if isinstance(size, int):
        return size
    known = isinstance(size, Sequence) and len(size) == 2
    return (int(size[0]), int(size[1])) if known else USUAL_PATCH  # type: ignore[index]
