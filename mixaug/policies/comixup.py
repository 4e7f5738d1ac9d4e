"""Co-Mixup (arXiv:2102.03065): outputs of salient blocks of several inputs, chosen jointly for a part of a batch.

    min over z:  sum c z + beta / 2 * sum of squared differences of neighbours + gamma * A-weighted overlap of outputs

A part of m inputs gives m outputs. Each block of an output shows one input, or the mean of two. The cost c of a block
is minus its share of its image's saliency; neighbours should show the same input; and what the other outputs show
already, beyond a threshold, is penalised, so that outputs differ. There are no pairs and no lambda: output o is not
tied to input o, which may be missing in it.

The authors solve one output after another by alpha-beta swap on the CPU. Here output o of all parts is solved together,
on the device: :func:`mixaug.ops.potts.potts_labels`.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mixaug.batch import Batch
from mixaug.checks import (
    check_flag,
    check_images,
    check_not_negative,
    check_out,
    check_positive,
    check_probability,
    check_whole,
)
from mixaug.draws import Draws
from mixaug.ops.layout import channels_last_format, check_blends, deliver, single_precision
from mixaug.ops.masks import cells_to_size
from mixaug.ops.supermodular import comixup_shares, compatibility_of
from mixaug.plan import Plan, Unmixed
from mixaug.policies.saliency import SaliencyPolicy
from mixaug.registry import register

__all__ = ["CoMixup", "comixup", "comixup_compatibility", "comixup_costs", "comixup_distance", "comixup_prior"]

# Number of pixels over which the place of an image's saliency is averaged before its peak is sought.
PEAK_WINDOW = 8


BLOCK_NUMS = (2, 4, 8, 16)


def comixup_costs(saliency: Tensor, block_num: int) -> Tensor:
    """Minus the share of each block in its image's saliency.

    Args:
        saliency: (B, H, W) floating point. Values that are negative or not finite count as zero; an image without
            saliency has the same share everywhere.
        block_num: blocks along each side; at most one per pixel is made. They may differ by a pixel in size.

    Returns:
        (B, rows, columns) float32, each summing to -1.

    Raises:
        ValueError: another shape, fewer than one block.
    """
    saliency = _clean_saliency("comixup_costs", saliency)
    if block_num < 1:
        raise ValueError(f"comixup_costs expects block_num >= 1, got {block_num}")
    return _costs(saliency, block_num)


def _costs(saliency: Tensor, block_num: int) -> Tensor:
    """:func:`comixup_costs` of clean saliency."""
    grid = (min(block_num, saliency.shape[1]), min(block_num, saliency.shape[2]))
    blocks = F.adaptive_avg_pool2d(saliency.unsqueeze(1), grid).squeeze(1)
    total = blocks.sum((1, 2), keepdim=True)
    there = total > 0
    return torch.where(there, blocks / torch.where(there, -total, 1.0), -1 / (grid[0] * grid[1]))


def comixup_distance(saliency: Tensor) -> Tensor:
    """L1 distance, in pixels, between the places where the images are most salient on average over 8 x 8 pixels.

    Args:
        saliency: (B, H, W) floating point.

    Returns:
        (B, B) float32.

    Raises:
        ValueError: another shape.
    """
    return _distances(_clean_saliency("comixup_distance", saliency))


def _distances(saliency: Tensor) -> Tensor:
    """:func:`comixup_distance` of clean saliency."""
    peaks = _peaks(saliency)
    return (peaks[:, None] - peaks[None]).abs().sum(-1).float()


def comixup_compatibility(distance: Tensor, omega: float) -> Tensor:
    """``(1 - omega) I + omega m distance / sum(distance)``; the identity where all distances are zero.

    Args:
        distance: (..., m, m) of the inputs of a part.
        omega: share of the distances, in [0, 1].

    Returns:
        (..., m, m) of the dtype of ``distance``.
    """
    return compatibility_of(distance, omega, distance.shape[-1])


def comixup_prior(cost: Tensor, dirichlet: Tensor, eta: float) -> Tensor:
    """``cost - eta / N * log(dirichlet + 1e-8)`` with N blocks: an offset for each input.

    Args:
        cost: (..., m, rows, columns).
        dirichlet: (..., m) shares that sum to 1.
        eta: weight.
    """
    blocks = cost.shape[-2] * cost.shape[-1]
    return cost - (eta / blocks) * torch.log(dirichlet + 1e-8)[..., None, None]


def comixup(
    images: Tensor, sources: Tensor, shares: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """Show in every block the mean of one or two sources. Differentiable.

    Args:
        images: (B, C, H, W) floating point or uint8.
        sources: (B, M) int64 rows of the batch.
        shares: (B, M, rows, columns) of each source in each block: 1 for one source, or a half for two.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and weights (B, M) float32, the share of the pixels.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: another dtype.
    """
    check_images("comixup", images, (2,))
    check_out("comixup", images, out, inplace)
    size = tuple(images.shape[2:])
    if sources.ndim != 2 or sources.shape[0] != len(images) or sources.dtype != torch.int64:
        raise ValueError(
            f"comixup expects sources ({len(images)}, M) int64, got {tuple(sources.shape)} {sources.dtype}"
        )
    if shares.ndim != 4 or shares.shape[:2] != sources.shape or not shares.is_floating_point():
        raise ValueError(
            f"comixup expects shares {(*sources.shape, 'rows', 'columns')} floating point, got "
            f"{tuple(shares.shape)} {shares.dtype}"
        )
    if shares.shape[2] > size[0] or shares.shape[3] > size[1]:
        raise ValueError(f"comixup expects at most one block per pixel, got {tuple(shares.shape[2:])} for size {size}")
    first, second = _two_sources(sources, shares)
    return _mix_blocks(images, first, second, out, inplace), _pixel_shares(shares, size)


@dataclass(frozen=True, kw_only=True)
class BlockSources(Plan):
    """Every block of a grid shows one row of the batch, or the mean of two.

    Attributes:
        inputs: (B, M) int64 rows that went into each sample, the sample itself first.
        first, second: (B, rows, columns) int64 rows of the batch; equal where a block shows one.
        halves: whether any block may show two; if not, any dtype can be mixed.
    """

    inputs: Tensor
    first: Tensor
    second: Tensor
    halves: bool = True

    @property
    def sources(self) -> Tensor:
        return self.inputs

    def own_mask(self) -> Tensor:
        own = torch.arange(len(self.first), device=self.first.device)[:, None, None]
        share = ((self.first == own).float() + (self.second == own).float()) / 2
        return cells_to_size(share, self.size)

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return _mix_blocks(tensor, self.first, self.second if self.halves else None, out, inplace)


@register(
    "comixup",
    paper="Co-Mixup: Saliency Guided Joint Mixup with Supermodular Diversity, ICLR 2021",
    arxiv="2102.03065",
    family="guided by the model",
)
class CoMixup(SaliencyPolicy):
    """Show salient blocks of several inputs in every output, chosen jointly so that the outputs differ.

    Args:
        block_num: blocks along each side, or -1 to draw 2, 4, 8 or 16 for every batch. An image has at most one block
            per pixel along a side; blocks differ by a pixel in size where they do not divide it.
        part_size: inputs that are mixed together; the last part of a batch may be smaller.
        beta: weight of neighbours that show different inputs; 0.16 to 0.48 are useful with 4 blocks.
        gamma: weight of the overlap between outputs.
        threshold: overlap that costs nothing, in blocks of one image; 0.81 to 0.84 are useful with 4 blocks.
        eta: weight of the Dirichlet prior over the inputs.
        omega: share of the distance between salient places in the overlap, in [0, 1].
        dirichlet: concentration of the prior, positive; lower it with ``clean_weight=0``.
        iterations: sweeps over the outputs, at least 1. Blocks show two inputs from the second on.
        soft_penalty: penalise only the overlap above the threshold, not all of it once it is above.
        clean_weight: weight of the clean batch's loss, which is part of the step; 0 leaves it out and takes the
            saliency in evaluation mode. Beside a binary cross-entropy over K classes the authors use 2 / K.

    Raises:
        ValueError: an option out of range.
    """

    has_partners = False
    own_answers: ClassVar[Mapping[str, str]] = {
        "pairing": "All samples of a part of the batch, chosen jointly.",
        "ratio": "As saliency and the differences between outputs have it.",
        "labeling": "The share of pixels that each source really covers.",
    }

    def __init__(
        self,
        block_num: int = 4,
        part_size: int = 20,
        beta: float = 0.32,
        gamma: float = 1.0,
        threshold: float = 0.83,
        eta: float = 0.05,
        omega: float = 0.001,
        dirichlet: float = 2.0,
        iterations: int = 4,
        soft_penalty: bool = False,
        clean_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(block_num, numbers.Integral) or block_num != -1:
            check_whole("CoMixup", "block_num", block_num, reason="-1 draws it")
        self.block_num = int(block_num)
        self.part_size = check_whole("CoMixup", "part_size", part_size, 2)
        self.beta = check_not_negative("CoMixup", "beta", beta)
        self.gamma = check_not_negative("CoMixup", "gamma", gamma)
        self.threshold = check_not_negative("CoMixup", "threshold", threshold)
        self.eta = check_not_negative("CoMixup", "eta", eta)
        self.omega = check_probability("CoMixup", "omega", omega)
        self.dirichlet = check_positive("CoMixup", "dirichlet", dirichlet)
        self.iterations = check_whole(
            "CoMixup", "iterations", iterations, most=1000, reason="the labelling settles after a few"
        )
        self.soft_penalty = check_flag("CoMixup", "soft_penalty", soft_penalty)
        self.keep_clean(clean_weight)

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        """As :meth:`mixaug.Policy.plan`, without drawing partners, which mean nothing here."""
        if len(batch) == 1:
            return Unmixed.of(1, batch.device)
        own = torch.arange(len(batch), device=batch.device)
        return self.sample(batch, own, Draws(len(batch), batch.device, generator))

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        # The clean loss hands gradients on; nothing that follows does.
        saliency = self.saliency_of(batch)
        with torch.no_grad():
            return self._mosaic(batch, saliency, draws)

    def _mosaic(self, batch: Batch, saliency: Tensor, draws: Draws) -> Plan:
        count = min(self.part_size, len(batch))
        parts = -(-len(batch) // count)
        # Rows past the end of the last part repeat the last sample; `valid` keeps them out.
        rows = torch.arange(parts * count, device=batch.device).reshape(parts, count)
        valid = rows < len(batch)
        rows = rows.clamp(max=len(batch) - 1)
        sizes = valid.sum(1)

        saliency = _clean_saliency("CoMixup", saliency)
        both = valid[:, :, None] & valid[:, None]
        distance = torch.where(both, _distances(saliency)[rows[:, :, None], rows[:, None]], 0.0)
        compatibility = compatibility_of(distance, self.omega, sizes[:, None, None])
        blocks = self._block_num(batch.size, draws)
        cost = _costs(saliency, blocks)[rows]
        prior = _dirichlet(self.dirichlet, valid, draws)
        start = draws.uniform(shape=cost.shape[2:])[rows]
        start = torch.minimum((start * sizes[:, None, None, None]).long(), sizes[:, None, None, None] - 1)
        shares = comixup_shares(
            comixup_prior(cost, prior, self.eta),
            compatibility,
            start,
            beta=self.beta,
            gamma=self.gamma,
            threshold=self.threshold,
            iterations=self.iterations,
            soft_penalty=self.soft_penalty,
            valid=valid,
        )
        order, sources = _own_first(sizes, rows, len(batch))
        grid = shares.shape[3:]
        shares = shares.flatten(0, 1)[: len(batch)].gather(1, order[:, :, None, None].expand(-1, -1, *grid))
        first, second = _two_sources(sources, shares)
        weights = _pixel_shares(shares, batch.size)
        return BlockSources(
            partner=sources[:, 1],
            lam=weights[:, 0],
            weights=weights,
            size=batch.size,
            inputs=sources,
            first=first,
            second=second,
            halves=self.iterations > 1,
        )

    def _block_num(self, size: Sequence[int], draws: Draws) -> int:
        if self.block_num > 0:
            return self.block_num
        fitting = [number for number in BLOCK_NUMS if number <= min(size)] or [1]
        return fitting[draws.host_integer(len(fitting))]


def _clean_saliency(what: str, saliency: Tensor) -> Tensor:
    """(B, H, W) float32, finite and not negative, each map at most 1."""
    if saliency.ndim != 3 or not saliency.is_floating_point():
        raise ValueError(
            f"{what} expects saliency (B, H, W) floating point, got {tuple(saliency.shape)} {saliency.dtype}"
        )
    saliency = single_precision(saliency.detach()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
    # Only its proportions matter: sums of huge values must not overflow, nor those of tiny ones vanish.
    largest = saliency.amax((1, 2), keepdim=True)
    return (saliency / torch.where(largest > 0, largest, 1.0)).float()


def _peaks(saliency: Tensor) -> Tensor:
    """(B, 2) int64: row and column of the window that is most salient."""
    window = [min(PEAK_WINDOW, side) for side in saliency.shape[1:]]
    smooth = F.avg_pool2d(saliency.unsqueeze(1), window, stride=1).squeeze(1)
    place = smooth.flatten(1).argmax(1)
    columns = smooth.shape[2]
    return torch.stack([place // columns, place % columns], 1)


def _dirichlet(concentration: float, valid: Tensor, draws: Draws) -> Tensor:
    """(P, m) float32: Dirichlet shares of the inputs that each part has, 0 for the others."""
    parts, count = valid.shape
    logarithms = draws.log_gamma_variates(concentration, (parts * count,)).reshape(parts, count)
    return logarithms.masked_fill(~valid, float("-inf")).softmax(1).float()


def _own_first(sizes: Tensor, rows: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Order of a part's inputs for each sample, itself first, and the rows of the batch that they are.

    Returns:
        (B, m) int64 places in the part, and (B, m) int64 rows; a place that the part lacks is the sample's own row.
    """
    parts, count = rows.shape
    place = torch.arange(count, device=rows.device)
    own = place[:, None]
    order = torch.where(place == 0, own, place - (place <= own).long()).expand(parts, -1, -1)
    sources = rows[:, None].expand(-1, count, -1).gather(2, order)
    sources = torch.where(order < sizes[:, None, None], sources, rows[:, :, None])
    return order.reshape(-1, count)[:batch_size], sources.flatten(0, 1)[:batch_size]


def _two_sources(sources: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """(B, rows, columns) rows of the batch that each block shows, twice the same where it shows one."""
    grid = shares.shape[2:]
    largest, which = shares.topk(min(2, shares.shape[1]), dim=1)
    rows = sources[..., None, None].expand(-1, -1, *grid).gather(1, which)
    first, second = rows[:, 0], torch.where(largest[:, -1] > 0, rows[:, -1], rows[:, 0])
    # Which of two halves comes first must not depend on how a device sorts equal numbers.
    return torch.minimum(first, second), torch.maximum(first, second)


def _pixel_shares(shares: Tensor, size: Sequence[int]) -> Tensor:
    """(B, M) float32 share of the pixels of each source, from its shares of the blocks (B, M, rows, columns)."""
    if not torch.compiler.is_compiling() and not any(s % n for n, s in zip(shares.shape[2:], size, strict=True)):
        return shares.float().mean((2, 3))
    # Block i of n begins at pixel ceil(i * side / n).
    pixels = []
    for blocks, side in zip(shares.shape[2:], size, strict=True):
        borders = -(-torch.arange(blocks + 1, device=shares.device) * side // blocks)
        pixels.append((borders[1:] - borders[:-1]).float())
    counts = shares.float() * (pixels[0][:, None] * pixels[1])
    return counts.sum((2, 3)) / (size[0] * size[1])


def _mix_blocks(images: Tensor, first: Tensor, second: Tensor | None, out: Tensor | None, inplace: bool) -> Tensor:
    size = images.shape[-2:]
    one = _take_pixels(images, cells_to_size(first, size))
    if second is None:
        return deliver(one, images, out, inplace)
    check_blends(images)
    other = _take_pixels(images, cells_to_size(second, size))
    if images.dtype in (torch.float32, torch.float64):
        # Halves are exact: a block of one image is that image.
        return deliver(one * 0.5 + other * 0.5, images, out, inplace)
    mean = one.float() * 0.5 + other.float() * 0.5
    if images.dtype == torch.uint8:
        mean = mean.round()
    return deliver(mean.to(images.dtype), images, out, inplace)


def _take_pixels(images: Tensor, rows: Tensor) -> Tensor:
    """Every pixel from its own row of the batch: (B, ..., H, W) and (B, H, W) int64, in the images' memory format."""
    if channels_last_format(images) is not None:
        source = images.movedim(1, -1)
        return source.gather(0, rows[..., None].expand_as(source)).movedim(-1, 1)
    between = [1] * (images.ndim - 3)
    return images.gather(0, rows.reshape(len(rows), *between, *rows.shape[1:]).expand_as(images))
