"""TokenMix (arXiv:2207.08409): several separate blocks of tokens show the partner; labels by what the tokens hold.

    x' = x[partner] in t of the n tokens, x elsewhere,   t = min(n, floor((1 - lam) n) + m)
    w = sum_own a,   w' = sum_partner's a[partner]       a: a map of where the class is, of sum 1

lam ~ Beta(alpha, alpha). The tokens are chosen as BEiT does: rectangles of random area and aspect ratio, until t tokens
are covered or ten proposals in a row do not fit; or all at random. Weights of the labels need not sum to 1.

The map is the attention of the class token in the clean images, a class activation map, or, passed as
``Signals(attention=...)``, one of a teacher, which is what the authors use.

Departures. OpenMixup sums the attention of the tokens that are hidden, of both images; here of those that show, as the
paper and the authors' code do. Maps are divided by their sum; OpenMixup's class token keeps a share for itself. Both
codes know one grid, 14 x 14, and draw one mask per batch (``per="batch"``); the authors' code fixes lam at 0.5
(``ratio=0.5``). Rounds of proposals are a fixed number of tensor operations without a look at their values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_choice, check_images, check_out, check_partner, check_whole
from mixaug.draws import Draws
from mixaug.labeling.content import Content, Source
from mixaug.ops import fused
from mixaug.ops.blend import blend_mask
from mixaug.ops.cells import patch_sides, patch_size_option
from mixaug.ops.layout import reads_freely, wide_dtype
from mixaug.ops.masks import cells_to_size, top_mask
from mixaug.plan import MaskBlend, Plan
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TokenMix", "content_targets", "tokenmix", "tokenmix_blocks", "tokenmix_count", "tokenmix_replay"]

Mode = Literal["block", "random"]


#: Largest number of blocks of one mask; on 14 x 14 tokens fewer than one mask in ten thousand would take more.
ROUNDS = 40


PROPOSALS = 10


LOG_ASPECT = math.log(1 / 0.3)


#: Most values, tokens times proposals, that a kernel looks at in one round.
MOST_VALUES = 16384


def tokenmix_count(lam: Tensor, total: int, minimum: int = 0) -> Tensor:
    """Number of tokens that show the partner: ``min(total, floor((1 - lam) total) + minimum)``.

    Args:
        lam: (R,) floating point in [0, 1]; float64 gives the authors' integers exactly.
        total: number of tokens.
        minimum: added to the share, at least 0.

    Returns:
        (R,) int64.
    """
    return (((1 - lam.to(wide_dtype(lam.device))) * total).long() + minimum).clamp(max=total)


def tokenmix_blocks(units: Tensor, count: Tensor, grid: Sequence[int]) -> Tensor:
    """Tokens of the partner, in blocks. A block is smaller than the grid along every axis of more than one token.

    Args:
        units: (R, N, K, 4) uniform in [0, 1): N blocks at most, the first that fits of K proposals each; of area,
            log aspect ratio, top and left.
        count: (R,) int64 number of tokens to cover; often a few stay uncovered.
        grid: rows and columns of tokens.

    Returns:
        (R, 1, *grid) bool, True where the partner shows.

    Raises:
        ValueError: shapes that do not fit.
    """
    if units.ndim != 4 or units.shape[3] != 4 or count.shape != units.shape[:1]:
        raise ValueError(
            f"tokenmix_blocks expects units (R, N, K, 4) and count (R,), got {tuple(units.shape)} and "
            f"{tuple(count.shape)}"
        )
    rows, columns = grid[0], grid[1]
    values = fused.power_of_two(units.shape[2]) * fused.power_of_two(rows) * fused.power_of_two(columns)
    if fused.serves(units, count) and values <= MOST_VALUES:
        return torch.ops.mixaug.tokenmix_kernel(units, _aspect(units[..., 1]), count, rows, columns)[:, None]
    # These are some thousand small operations, which a compiler would trace for minutes.
    place = _opaque_blocks if torch.compiler.is_compiling() else _blocks
    return place(units, count, rows, columns)[:, None]


def _aspect(unit: Tensor) -> Tensor:
    """Aspect ratios, uniform in their logarithm."""
    return ((2 * unit - 1) * LOG_ASPECT).exp()


def _blocks(units: Tensor, count: Tensor, rows: int, columns: int) -> Tensor:
    """(R, rows, columns) bool: :func:`tokenmix_blocks`, without checks."""
    masked = torch.zeros(len(count), rows, columns, dtype=torch.bool, device=units.device)
    active = torch.ones(len(count), 1, dtype=torch.bool, device=units.device)
    for proposals in units.unbind(1):
        if reads_freely(masked) and not bool(active.any()):
            break
        left_over = (count - masked.flatten(1).sum(1))[:, None]
        area = 1 + proposals[..., 0] * (left_over - 1).clamp(min=0)
        height, width, fits = _sides(area, _aspect(proposals[..., 1]), (rows, columns))
        top = (proposals[..., 2] * (rows - height + 1)).long().minimum(rows - height)
        left = (proposals[..., 3] * (columns - width + 1)).long().minimum(columns - width)
        accepted = _adds(masked, top, left, height, width, left_over) & fits & active
        masked = _cover(masked, top, left, height, width, accepted & (accepted.cumsum(1) == 1))
        active = accepted.any(1, keepdim=True)
    return masked


_opaque_blocks = torch.library.custom_op("mixaug::tokenmix_blocks", _blocks, mutates_args=())


@_opaque_blocks.register_fake
def _(units: Tensor, count: Tensor, rows: int, columns: int) -> Tensor:
    return torch.empty(count.shape[0], rows, columns, dtype=torch.bool, device=units.device)


def _by_kernel(units: Tensor, aspects: Tensor, count: Tensor, rows: int, columns: int) -> Tensor:
    """:func:`_blocks` with the aspect ratios of all proposals, by one kernel."""
    from mixaug.ops.fused import tokens_kernel

    with fused.current(units.device):
        return tokens_kernel.blocks(units.contiguous(), aspects.contiguous(), count.contiguous(), rows, columns)


_kernel = torch.library.custom_op("mixaug::tokenmix_kernel", _by_kernel, mutates_args=())


@_kernel.register_fake
def _(units: Tensor, aspects: Tensor, count: Tensor, rows: int, columns: int) -> Tensor:
    return torch.empty(count.shape[0], rows, columns, dtype=torch.bool, device=units.device)


def tokenmix_replay(attempts: Tensor, count: Tensor, grid: Sequence[int]) -> Tensor:
    """Tokens of the partner from proposals that were recorded one by one, such as those of the authors' code.

    Args:
        attempts: (R, N, 4) floating point: area, log aspect ratio, top, left in their order, NaN where none is left.
        count: (R,) int64 number of tokens to cover.
        grid: rows and columns of tokens.

    Returns:
        (R, 1, *grid) bool, True where the partner shows.

    Raises:
        ValueError: shapes that do not fit.
    """
    if attempts.ndim != 3 or attempts.shape[2] != 4 or count.shape != attempts.shape[:1]:
        raise ValueError(
            f"tokenmix_replay expects attempts (R, N, 4) and count (R,), got {tuple(attempts.shape)} and "
            f"{tuple(count.shape)}"
        )
    masked = torch.zeros(len(count), *grid, dtype=torch.bool, device=attempts.device)
    for attempt in attempts[:, :, None].unbind(1):
        height, width, fits = _sides(attempt[..., 0], attempt[..., 1].exp(), grid)
        place = attempt[..., 2:].nan_to_num().clamp(min=0).long()
        top, left = place[..., 0].minimum(grid[0] - height), place[..., 1].minimum(grid[1] - width)
        left_over = (count - masked.flatten(1).sum(1))[:, None]
        accepted = _adds(masked, top, left, height, width, left_over) & fits
        masked = _cover(masked, top, left, height, width, accepted)
    return masked[:, None]


def tokenmix(
    images: Tensor, partner: Tensor, tokens: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """Copy the partner's pixels into the chosen tokens. Differentiable.

    Args:
        images: (B, C, H, W) floating point or uint8.
        partner: (B,) int64.
        tokens: (B, 1, h, w), or (1, 1, h, w) for all, bool, True where the partner shows; pixel y belongs to the row
            floor(y h / H).
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of own pixels.

    Raises:
        ValueError: shapes that do not fit, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("tokenmix", images, (2,))
    check_partner("tokenmix", partner, images.shape[0])
    check_out("tokenmix", images, out, inplace)
    if tokens.dtype != torch.bool or tokens.ndim != 4 or tokens.shape[1] != 1:
        raise ValueError(
            f"tokenmix expects tokens (B, 1, h, w) bool, True where the partner shows, got {tuple(tokens.shape)} "
            f"{tokens.dtype}"
        )
    if tokens.shape[0] not in (1, images.shape[0]):
        raise ValueError(f"tokenmix expects {images.shape[0]} rows of tokens, or one for all, got {tokens.shape[0]}")
    own = ~tokens[:, 0]
    size = images.shape[2:]
    mixed = blend_mask(images, partner, cells_to_size(own, size), out=out, inplace=inplace)
    return mixed, _share_of_pixels(own, size).expand(images.shape[0])


def content_targets(
    weights: Tensor, labels: Tensor, sources: Tensor, num_classes: int, label_smoothing: float = 0.0
) -> Tensor:
    """Dense targets as the authors smooth them: e / K for every class, and ``w - e / 2`` more for that of each source.

    ``MixedBatch.targets`` smooths in proportion to the weights, as for every other policy.

    Args:
        weights: (B, 2) shares of the labels.
        labels: (B,) int64 class ids.
        sources: (B, 2) int64 rows of ``labels``.
        num_classes: K.
        label_smoothing: e in [0, 1].

    Returns:
        (B, K) float32; rows sum to the sum of the weights. Negative where a weight is below e / 2 - e / K.
    """
    target = weights.new_full((len(weights), num_classes), label_smoothing / num_classes)
    return target.scatter_add_(1, labels.long()[sources], weights - label_smoothing / 2)


@register(
    "tokenmix",
    paper="TokenMix: Rethinking Image Mixing for Data Augmentation in Vision Transformers, ECCV 2022",
    arxiv="2207.08409",
    family="guided by the model",
)
class TokenMix(Policy):
    """Show the partner in several blocks of tokens; each label counts by the activation that its image still shows.

    Args:
        alpha: lam ~ Beta(alpha, alpha).
        mode: ``"block"``, rectangles as in BEiT, or ``"random"``, single tokens.
        patch_size: pixels of a token, one number or one for each axis. None takes the largest power of two that fits
            eight times into the image's shortest side: 4 at 32 pixels, 16 (14 x 14 tokens, the authors') at 224.
        grid: rows and columns of tokens in place of ``patch_size``, one number or two; at most one token per pixel.
        minimum_tokens: added to the partner's share of tokens; None takes a fourteenth of all, 14 of 14 x 14.
        labels_from: map that weighs the labels: ``"attention"`` of the class token or ``"cam"``, class activation.
        ratio, pairing, per: see :class:`mixaug.Policy`.
        labeling: ``"content"``, by the map; ``"area"``, by the pixels, needs no model; or ``"ratio"``.

    Raises:
        ValueError: an option out of range.
    """

    needs = frozenset({"attention"})
    spatial = (2,)
    shared_defaults: ClassVar[SharedOptions] = {"labeling": "content"}

    def __init__(
        self,
        alpha: float = 1.0,
        mode: Mode = "block",
        patch_size: int | Sequence[int] | None = None,
        grid: int | Sequence[int] | None = None,
        minimum_tokens: int | None = None,
        labels_from: Source = "attention",
        **shared: Unpack[SharedOptions],
    ) -> None:
        check_choice("TokenMix", "labels_from", labels_from, get_args(Source))
        labeling = shared.get("labeling", "content")
        if isinstance(labeling, str) and labeling == "content":
            shared["labeling"] = Content(labels_from)
        super().__init__(alpha=alpha, **shared)
        # Without labels from the model nothing is asked of it.
        self.needs = self.labeling.needs
        check_choice("TokenMix", "mode", mode, get_args(Mode))
        if grid is not None and patch_size is not None:
            raise ValueError(f"TokenMix expects patch_size or grid, not both, got {patch_size!r} and {grid!r}")
        self.mode: Mode = mode
        self.patch_size = patch_size_option("TokenMix", patch_size, spatial=self.spatial)
        self.grid = patch_size_option("TokenMix", grid, "grid", self.spatial)
        self.minimum_tokens = (
            None if minimum_tokens is None else check_whole("TokenMix", "minimum_tokens", minimum_tokens, 0)
        )
        self.labels_from: Source = labels_from

    def check(self, batch: Batch) -> None:
        super().check(batch)
        self._grid(batch.size)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        grid = self._grid(batch.size)
        total = math.prod(grid)
        lam = self.ratio(draws)
        count = tokenmix_count(lam, total, total // 14 if self.minimum_tokens is None else self.minimum_tokens)
        if self.mode == "block":
            tokens = tokenmix_blocks(draws.uniform(shape=(ROUNDS, PROPOSALS, 4)), count, grid)[:, 0]
        else:
            tokens = top_mask(draws.uniform(shape=(total,)), count).unflatten(1, grid)
        size = batch.size
        return MaskBlend(
            partner=partner,
            lam=lam.float(),
            size=size,
            mask=cells_to_size(~tokens, size),
            share=_share_of_pixels(~tokens, size),
        )

    def _grid(self, size: tuple[int, ...]) -> tuple[int, int]:
        if self.grid is not None:
            rows, columns = patch_sides("TokenMix's grid", self.grid, size)
            return min(rows, size[0]), min(columns, size[1])
        # bit_length: the largest power of two that is not above an eighth of the side, 1 for tiny images.
        automatic = 1 << max(0, (min(size) // 8).bit_length() - 1)
        height, width = patch_sides("TokenMix", automatic if self.patch_size is None else self.patch_size, size)
        return max(size[0] // height, 1), max(size[1] // width, 1)


def _sides(area: Tensor, aspect: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Height, width (0 where too large) and whether they fit, each (R, K)."""
    height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    # NaN fits nowhere. In a single row of tokens a block may be as high as the row.
    fits = (height < max(grid[0], 2)) & (width < max(grid[1], 2))
    none = torch.zeros_like(height)
    return torch.where(fits, height, none).long(), torch.where(fits, width, none).long(), fits


def _adds(masked: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, left_over: Tensor) -> Tensor:
    """(R, K) bool: whether a rectangle covers new tokens, and no more than are left over."""
    columns = masked.shape[2] + 1
    summed = F.pad((~masked).cumsum(1).cumsum(2), (1, 0, 1, 0)).flatten(1)

    def until(row: Tensor, column: Tensor) -> Tensor:
        return summed.gather(1, row * columns + column)

    bottom, right = top + height, left + width
    new = until(bottom, right) - until(top, right) - until(bottom, left) + until(top, left)
    return (new > 0) & (new <= left_over)


def _cover(masked: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, chosen: Tensor) -> Tensor:
    """(R, h, w) bool: ``masked`` and the chosen rectangle, at most one in each row of ``chosen`` (R, K)."""
    lines = []
    for low, extent, side in ((top, height, masked.shape[1]), (left, width, masked.shape[2])):
        place = torch.arange(side, device=masked.device)
        inside = (place >= low[..., None]) & (place < (low + extent)[..., None])
        lines.append((inside & chosen[..., None]).any(1))
    return masked | (lines[0][:, :, None] & lines[1][:, None, :])


def _share_of_pixels(cells: Tensor, size: Sequence[int]) -> Tensor:
    """(R,) float32 share of the pixels that the chosen cells cover, rounded once from the exact count."""
    pixels = cells.long()
    for d, side in enumerate(size):
        borders = (torch.arange(cells.shape[1 + d] + 1, device=cells.device) * side).add(cells.shape[1 + d] - 1)
        extent = borders.div(cells.shape[1 + d], rounding_mode="floor").diff()
        pixels = pixels * (extent[:, None] if d == 0 else extent)
    return (pixels.flatten(1).sum(1).to(wide_dtype(cells.device)) / math.prod(size)).float()
