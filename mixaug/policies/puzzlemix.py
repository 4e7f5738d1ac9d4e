"""PuzzleMix (arXiv:2009.06962): blocks of two images chosen by saliency with a graph cut, then moved into sight.

    x' = M * T(x) + (1 - M) * T'(x[partner]),   M one level in {0, 1/(L-1), ..., 1} per block of an n x n grid

M minimises, over all blocks i and neighbours i, j,

    sum_i  M_i s'_i + (1 - M_i) s_i  +  eta / n^2 (-log Binomial(M_i; alpha))
    + beta / (16 n) sum_ij  (M_i - M_j)^2 + gamma d_ij(M_i, M_j)

with s the saliency of the sample (s' of its partner) summing to 1 over the blocks, d the difference of the pixels
that meet at the border of two blocks, alpha ~ Beta(a, a) a prior, not the label share: that is the mean of M. T moves
blocks of the sample to places where M shows it, by a truncated deferred acceptance: each block asks for the nearest
place in sight; a place takes the one of most saliency less distance.

Departures from the authors' code. The cut is solved for the whole batch, within a proven 1 % on a CPU and in fixed work
on a device (:mod:`mixaug.ops.gridcut`); theirs loops over samples, overflows int32 where a block has much saliency
and then labels it wrongly, and misses the minimum by up to 2 %. Moves are gathered, not multiplied with dense plans.
A block side that ``neigh_size`` (or ``t_size``) does not divide takes its largest divisor below; theirs fails (224
pixels, n = 16). Zero or non-finite saliency counts as even. A place whose own block has no saliency and gets no
mover keeps its block; theirs turns black.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import (
    check_images,
    check_partner,
    check_probability,
    check_share,
    check_statistics,
    per_channel,
)
from mixaug.draws import Draws, Per
from mixaug.guidance import BySaliency
from mixaug.labeling import Labeling
from mixaug.ops.blend import blend_mask
from mixaug.ops.gridcut import grid_cut
from mixaug.ops.layout import (
    SLICE_BYTES,
    channels_last_format,
    deliver,
    over_channels,
    reads_freely,
    single_precision,
    take_rows,
)
from mixaug.ops.masks import cells_to_pixels
from mixaug.pairing import Pairing
from mixaug.plan import Plan
from mixaug.ratio import Ratio
from mixaug.registry import register
from mixaug.signals import PassSignals

Moves = tuple[Tensor, Tensor]
#: Share of cells that show both images from which on blending all of them is faster than those alone (on a CPU).
MANY_BLENDED = 0.3


def pooled_saliency(saliency: Tensor, grid: int | Sequence[int]) -> Tensor:
    """Saliency per cell of a grid, each map with the sum 1.

    Args:
        saliency: (B, H, W) floating point; negative and non-finite values count as 0.
        grid: cells along each axis, which must divide H and W.

    Returns:
        (B, *grid) float32; even where a map has no saliency at all.

    Raises:
        ValueError: a shape or grid that does not fit.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if saliency.ndim != 3 or saliency.shape[1] % rows or saliency.shape[2] % columns:
        raise ValueError(
            f"pooled_saliency expects maps (B, H, W) whose sides are multiples of {(rows, columns)}, "
            f"got {tuple(saliency.shape)}"
        )
    height, width = saliency.shape[1] // rows, saliency.shape[2] // columns
    maps = single_precision(saliency.detach()).float()
    cells = maps.unflatten(1, (rows, height)).sum(2).unflatten(2, (columns, width)).sum(3)
    cells = cells.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    # By the largest first: neither tiny nor huge gradients may leave the range of float32.
    cells = cells / cells.amax((1, 2), keepdim=True).clamp(min=torch.finfo(cells.dtype).tiny)
    total = cells.sum((1, 2), keepdim=True)
    return torch.where(total > 0.5, cells / total.clamp(min=0.5), 1 / (rows * columns))


def puzzlemix_costs(
    images: Tensor,
    partner: Tensor,
    saliency: Tensor,
    *,
    block_num: int,
    beta: float = 1.2,
    gamma: float = 0.5,
    neigh_size: int = 4,
    std: float | Sequence[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Costs of showing the one or the other image in each block, and what the data add to its borders.

    Args:
        images: (B, C, H, W) floating point or uint8.
        partner: (B,) int64.
        saliency: (B, H, W) of the images.
        block_num: n blocks along each side, a divisor of H and W.
        beta, gamma: weights of smoothness and of the pixels at the borders.
        neigh_size: pixels at each side of a border that are compared; the largest divisor of the block's side that
            is not above it.
        std: standard deviations that normalised the images, one or one per channel; 1 for images in [0, 1]. None
            divides by the range of values in the batch. uint8 images are divided by 255 instead.

    Returns:
        float32: cost where the mask is 1 (B, n, n), cost where it is 0 (B, n, n), and border terms (B, n - 1, n)
        between a block and the one below, (B, n, n - 1) between a block and the one to the right.

    Raises:
        ValueError: shapes that do not fit, a block_num that does not divide the sides.
    """
    _check_material("puzzlemix_costs", images, partner, saliency)
    _check_blocks("puzzlemix_costs", block_num, images.shape[2:])
    own = pooled_saliency(saliency, block_num)
    keep_own, keep_partner = own.index_select(0, partner), own.clone()
    borders = []
    for axis, (before, after) in enumerate(_border_cells(images.detach(), block_num, neigh_size, std), start=1):
        # Own or partner's block first, own or partner's second.
        own_own = _border_difference(before, after)
        partner_own = _border_difference(before.index_select(0, partner), after)
        own_partner = _border_difference(before, after.index_select(0, partner))
        weight = beta * gamma / (16 * block_num)
        oo, po, op, pp = (
            weight * d if axis == 1 else weight * d.mT
            for d in (own_own, partner_own, own_partner, own_own.index_select(0, partner))
        )
        keep_own.narrow(axis, 0, block_num - 1).add_((op + oo) / 2)
        keep_partner.narrow(axis, 0, block_num - 1).add_((po + pp) / 2)
        keep_own.narrow(axis, 1, block_num - 1).add_((po + oo) / 2)
        keep_partner.narrow(axis, 1, block_num - 1).add_((op + pp) / 2)
        borders.append((op + po - oo - pp) / 2)
    return keep_own, keep_partner, borders[0], borders[1]


def puzzlemix_energy(
    keep_own: Tensor,
    keep_partner: Tensor,
    border_v: Tensor,
    border_h: Tensor,
    lam: Tensor,
    *,
    n_labels: int = 3,
    beta: float = 1.2,
    eta: float = 0.2,
) -> tuple[Tensor, Tensor, Tensor]:
    """The energy whose minimum is the mask, for :func:`mixaug.ops.gridcut.grid_cut`.

    Args:
        keep_own, keep_partner, border_v, border_h: from :func:`puzzlemix_costs`.
        lam: (B,) or (1,) in [0, 1], the prior share of the own image.
        n_labels: L levels of the mask; label l is the level 1 - l / (L - 1).
        beta, eta: weights of smoothness and prior.

    Returns:
        float32 costs (B, n, n, L) and edge weights (B, n - 1, n), (B, n, n - 1), not negative.
    """
    blocks, last = keep_own.shape[1], n_labels - 1
    prior = lam.double() if lam.device.type != "mps" else lam.float()
    levels = [
        -(math.comb(last, label) * prior ** (last - label) * (1 - prior) ** label + 1e-8).log()
        for label in range(n_labels)
    ]
    own = eta / blocks**2 * torch.stack(levels, dim=1).float()[:, None, None]
    costs = [torch.lerp(keep_own, keep_partner, label / last) for label in range(n_labels)]
    smooth = beta / (16 * blocks)
    # Below zero only where pixels leave [0, 1] or gamma is above 1: no longer a cut.
    return (
        (torch.stack(costs, dim=3) + own).nan_to_num(0.0),
        (border_v + smooth).nan_to_num(smooth).clamp(min=0),
        (border_h + smooth).nan_to_num(smooth).clamp(min=0),
    )


def puzzlemix_moves(saliency: Tensor, visible: Tensor, *, t_eps: float = 0.8) -> Tensor:
    """Which cell moves to each place: salient cells go where they are seen, near ones first.

    Cell i gains its saliency at a visible place and pays ``t_eps`` times the squared distance as a share of the
    grid's sides. In each of t rounds, the longer side of the grid, every cell without a place asks for the cheapest
    one that has not refused it, if that costs less than nothing; places keep the cheapest who asked.

    Args:
        saliency: (B, t, u), each with the sum 1, from :func:`pooled_saliency`.
        visible: (B, t, u) bool: where the image is seen, the mask above 0.
        t_eps: price of distance.

    Returns:
        (B, t, u) int64: the cell, counted row by row, that a place shows; itself where nothing moved there.

    Raises:
        ValueError: shapes that do not fit.
    """
    if saliency.ndim != 3 or saliency.shape != visible.shape:
        raise ValueError(
            f"puzzlemix_moves expects saliency and visible (B, t, u), got {tuple(saliency.shape)} and "
            f"{tuple(visible.shape)}"
        )
    # Two bodies, one result: on a CPU only the cells without a place are looked at, elsewhere all of them.
    if reads_freely(saliency, visible):
        return torch.from_numpy(_moves_of_few(saliency.numpy(), visible.numpy(), t_eps))
    return _moves_of_all(saliency, visible, t_eps)


def puzzlemix_blend(
    images: Tensor,
    partner: Tensor,
    blocks: Tensor,
    moves: Moves | None = None,
    *,
    out: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Put the blocks together. Differentiable.

    Args:
        images: (B, ..., H, W); floating point or uint8, for boolean blocks of any dtype.
        partner: (B,) int64.
        blocks: (B, n, n) share of the own image per block, bool or floating point in [0, 1].
        moves: (B, t, u) int64 for the own images and for the partners, from :func:`puzzlemix_moves`; t and u are
            multiples of n. None moves nothing.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: a dtype that cannot be blended.
    """
    grid = tuple((blocks if moves is None else moves[0]).shape[1:])
    size = tuple(images.shape[-2:])
    if (
        blocks.ndim != 3
        or images.ndim < 3
        or any(side % count or count % block for side, count, block in zip(size, grid, blocks.shape[1:], strict=True))
    ):
        raise ValueError(
            f"puzzlemix_blend expects blocks and moves whose sides divide those of the images, got blocks "
            f"{tuple(blocks.shape)}, moves {grid}, images {tuple(images.shape)}"
        )
    copies = blocks.dtype == torch.bool
    if not copies and not images.is_floating_point() and images.dtype != torch.uint8:
        raise TypeError(
            f"a blend of {images.dtype} values has no meaning; for a label map pass num_classes to "
            "MixedBatch.apply to get per-pixel class shares, for an image pass uint8 or a float dtype"
        )
    # Two bodies, one result: on a CPU whole rows of cells are copied, elsewhere pixels are gathered.
    if reads_freely(images, blocks) and (moves is not None or images[0].numel() >= SLICE_BYTES // 4):
        return deliver(_blend_rows(images, partner, blocks, moves, grid), images, out, inplace)
    share = cells_to_pixels(blocks, [side // n for side, n in zip(size, blocks.shape[1:], strict=True)], size)
    if moves is None:
        return blend_mask(images, partner, share, out=out, inplace=inplace)
    own = _gathered(images, moves[0])
    other = _gathered(take_rows(images, partner), moves[1])
    return deliver(_weighed(own, other, over_channels(share, images)), images, out, inplace)


def perturbed_images(
    images: Tensor, noise: Tensor, *, mean: float | Sequence[float], std: float | Sequence[float]
) -> Tensor:
    """Images with noise added to their pixels in [0, 1], clipped to that range.

    Args:
        images: (B, C, H, W) floating point, normalised as ``(pixel - mean) / std``.
        noise: (B, C, H, W) in units of pixels.
        mean, std: one number or one per channel.

    Raises:
        ValueError: noise of another shape, images that are not floating point, mean and std that do not fit.
    """
    if noise.shape != images.shape or not images.is_floating_point():
        raise ValueError(
            f"perturbed_images expects float images and noise of one shape, got {tuple(images.shape)} {images.dtype} "
            f"and {tuple(noise.shape)}"
        )
    statistics = check_statistics("perturbed_images", mean, std)
    if statistics is None:
        raise ValueError("perturbed_images expects mean and std, got None")
    shift, scale = (_column(values, images) for values in per_channel("perturbed_images", statistics, images.shape[1]))
    pixels = (single_precision(images) * scale + shift + noise).clamp(0, 1)
    return ((pixels - shift) / scale).to(images.dtype)


def puzzlemix(
    images: Tensor,
    partner: Tensor,
    lam: Tensor,
    saliency: Tensor,
    *,
    block_num: int,
    n_labels: int = 3,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
    neigh_size: int = 4,
    transport: bool = True,
    t_size: int | None = None,
    t_eps: float = 0.8,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    noise: Tensor | None = None,
    noisy: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor, Tensor, Moves | None]:
    """Cut, move and put together. Differentiable with respect to the images, not to the saliency.

    Args:
        images: (B, C, H, W) floating point or uint8.
        partner: (B,) int64.
        lam: (B,) or (1,) floating point in [0, 1]: the prior alpha, not the share of the label.
        saliency: (B, H, W) floating point, any scale.
        block_num: n blocks along each side, a divisor of H and W.
        n_labels: levels of the mask, 2 to 8; with 2 nothing is blended.
        beta, gamma, eta, neigh_size: see :func:`puzzlemix_costs` and :func:`puzzlemix_energy`.
        transport: move cells into sight.
        t_size: pixels of a cell that moves; None, or a size not below a block's, moves whole blocks. The largest
            divisor of the block's side that is not above it.
        t_eps: price of distance, see :func:`puzzlemix_moves`.
        mean, std: of the normalisation of float images, one number or one per channel; 0 and 1 for images in
            [0, 1]. Without them differences are measured by the range of values in the batch.
        noise: (B, C, H, W) in pixels of [0, 1], added to the images that are put together, which are then clipped
            to [0, 1]; not seen by the cut. Needs mean and std.
        noisy: whether it is added to the own images, and to the partners.

    Returns:
        Mixed images; lam (B,) float32, the mean of the mask; the mask (B, 1, H, W) float32; the moves of own and
        partner, (B, t, u) int64 each as :func:`puzzlemix_moves` gives them, or None.

    Raises:
        ValueError: shapes that do not fit, an option out of range.
        TypeError: another dtype.
    """
    _check_material("puzzlemix", images, partner, saliency)
    check_share("puzzlemix", "lam", lam, images.shape[0])
    _check_options("puzzlemix", n_labels, beta, gamma, eta, neigh_size, t_size, t_eps)
    statistics = check_statistics("puzzlemix", mean, std)
    size = (images.shape[2], images.shape[3])
    costs = puzzlemix_costs(
        images,
        partner,
        saliency,
        block_num=block_num,
        beta=beta,
        gamma=gamma,
        neigh_size=neigh_size,
        std=None if statistics is None else statistics[1],
    )
    labels = grid_cut(*puzzlemix_energy(*costs, lam, n_labels=n_labels, beta=beta, eta=eta))
    blocks = 1 - labels.float() / (n_labels - 1)
    moves = _moves(saliency, partner, blocks, size, t_size, t_eps) if transport else None
    shown = blocks > 0.5 if n_labels == 2 else blocks
    if noise is None:
        mixed = puzzlemix_blend(images, partner, shown, moves)
    else:
        mixed = _blend_noisy(images, partner, shown, moves, noise, noisy, statistics)
    sides = [side // block_num for side in size]
    return mixed, blocks.mean((1, 2)), cells_to_pixels(blocks, sides, size).unsqueeze(1), moves


@dataclass(frozen=True, kw_only=True)
class Puzzle(Plan):
    """Blocks of two images, moved within each.

    Attributes:
        blocks: (B, n, n) share of the own image, float32, or bool where nothing is blended.
        moves: (B, t, u) int64 of the own images and of the partners; empty where nothing moves.
        noise: (B, C, H, W) float32 to add to the images in [0, 1] before; empty without.
        noisy: whether own images, and partners, get it.
        statistics: mean and std that normalised the images; empty without noise.
    """

    blocks: Tensor
    moves: tuple[Tensor, ...] = ()
    noise: tuple[Tensor, ...] = ()
    noisy: tuple[bool, bool] = (False, False)
    statistics: tuple[tuple[float, ...], ...] = ()

    def area(self) -> Tensor:
        return self.blocks.flatten(1).mean(1, dtype=torch.float32)

    def own_mask(self) -> Tensor:
        sides = [side // n for side, n in zip(self.size, self.blocks.shape[1:], strict=True)]
        return cells_to_pixels(self.blocks, sides, self.size)

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        moves = (self.moves[0], self.moves[1]) if self.moves else None
        if self.noise and tensor.shape == self.noise[0].shape and tensor.is_floating_point():
            statistics = self.statistics[0], self.statistics[1]
            mixed = _blend_noisy(tensor, self.partner, self.blocks, moves, self.noise[0], self.noisy, statistics)
            return deliver(mixed, tensor, out, inplace)
        return puzzlemix_blend(tensor, self.partner, self.blocks, moves, out=out, inplace=inplace)


@register(
    "puzzlemix",
    paper="Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup, ICML 2020",
    arxiv="2009.06962",
)
class PuzzleMix(BySaliency):
    """Blocks of two images by saliency, chosen with a graph cut and moved into sight; labels by the mask's mean.

    Args:
        alpha: the prior share is drawn from Beta(alpha, alpha); 1.0 is the authors' value.
        block_nums: blocks along a side; each batch draws one of those that divide both sides of its images.
        n_labels: levels of the mask, 2 to 8; 2 cuts without blending.
        beta, gamma, eta: weights of smoothness, of the pixels at borders, of the prior.
        neigh_size: pixels at a border that are compared, see :func:`puzzlemix_costs`.
        transport: move cells into sight.
        t_size: pixels of a cell that moves; None moves whole blocks, the authors' -1.
        t_eps: price of distance.
        mean, std: of the normalisation of float images, one number or one per channel; 0 and 1 for images in
            [0, 1]. Without them the range of values in the batch stands for std.
        clean_lam: 0 takes the saliency with the model in evaluation mode and drops its gradients. Above 0 the pass is
            one of training, and ``clean_lam`` times its loss, with its gradients, is part of the step.
        adv_p: probability, for own images and for partners, that a batch mixes adversarially perturbed images.
            Needs mean, std and a model behind the signals, and costs one more pass in such batches.
        adv_eps: largest perturbation, of pixels in [0, 1].
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`; they draw the prior. ``labeling="ratio"`` would weigh
            labels by it.

    Raises:
        ValueError: an option out of range; when mixing, images that none of ``block_nums`` divides.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        block_nums: Sequence[int] = (2, 4, 8, 16),
        n_labels: int = 3,
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        neigh_size: int = 4,
        transport: bool = True,
        t_size: int | None = None,
        t_eps: float = 0.8,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        clean_lam: float = 0.0,
        adv_p: float = 0.0,
        adv_eps: float = 10 / 255,
        *,
        ratio: str | float | Ratio = "beta",
        pairing: str | Pairing | None = None,
        labeling: str | Labeling = "area",
        per: Per = "batch",
    ) -> None:
        super().__init__(alpha=alpha, ratio=ratio, pairing=pairing, labeling=labeling, per=per)
        counts = [block_nums] if isinstance(block_nums, int) else list(block_nums)
        if not counts or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in counts):
            raise ValueError(f"PuzzleMix expects block_nums as positive integers, got {block_nums!r}")
        self.block_nums = tuple(counts)
        _check_options("PuzzleMix", n_labels, beta, gamma, eta, neigh_size, t_size, t_eps)
        self.n_labels, self.neigh_size, self.t_size = n_labels, neigh_size, t_size
        self.beta, self.gamma, self.eta, self.t_eps = float(beta), float(gamma), float(eta), float(t_eps)
        self.transport = bool(transport)
        self.statistics = check_statistics("PuzzleMix", mean, std)
        self.mean = None if self.statistics is None else self.statistics[0]
        self.std = None if self.statistics is None else self.statistics[1]
        self.keep_clean(clean_lam)
        if not 0 <= adv_eps < math.inf:
            raise ValueError(f"PuzzleMix expects adv_eps as a number that is not negative, got {adv_eps!r}")
        self.adv_eps = float(adv_eps)
        self.adv_p = check_probability("PuzzleMix", "adv_p", adv_p)
        if self.adv_p > 0 and self.statistics is None:
            raise ValueError("PuzzleMix perturbs pixels in [0, 1] with adv_p above 0: pass mean and std")

    def check(self, batch: Batch) -> None:
        super().check(batch)
        self.fitting(batch.size)
        if self.statistics is not None:
            per_channel("PuzzleMix", self.statistics, batch.images.shape[1])

    def fitting(self, size: Sequence[int]) -> list[int]:
        """Those of ``block_nums`` that divide images of this size, or a ValueError."""
        found = [n for n in self.block_nums if not any(side % n for side in size)]
        if not found:
            common = math.gcd(*size)
            divisors = [n for n in range(1, min(common, 64) + 1) if common % n == 0]
            raise ValueError(
                f"PuzzleMix cuts images into n x n equal blocks: none of block_nums={self.block_nums} divides images "
                f"of size {tuple(size)}; {divisors} do, or crop or resize the images"
            )
        return found

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        fitting = self.fitting(batch.size)
        # One grid for the batch, as the authors': its shape is work for the host, and no sample waits for another's.
        blocks_a_side = fitting[draws.host_integer(len(fitting))] if len(fitting) > 1 else fitting[0]
        lam = self.ratio(draws)
        noisy = (False, False)
        if self.adv_p > 0:
            noisy = (draws.host_uniform() < self.adv_p, draws.host_uniform() < self.adv_p)
        noise: tuple[Tensor, ...] = ()
        if any(noisy):
            noise = (self._perturbation(batch, draws),)
        saliency = self.saliency_of(batch)
        _check_material("PuzzleMix", batch.images, partner, saliency)
        with torch.no_grad():
            costs = puzzlemix_costs(
                batch.images,
                partner,
                saliency,
                block_num=blocks_a_side,
                beta=self.beta,
                gamma=self.gamma,
                neigh_size=self.neigh_size,
                std=self.std,
            )
            energy = puzzlemix_energy(*costs, lam, n_labels=self.n_labels, beta=self.beta, eta=self.eta)
            blocks = 1 - grid_cut(*energy).float() / (self.n_labels - 1)
            moves: tuple[Tensor, ...] = ()
            if self.transport:
                size = (batch.size[0], batch.size[1])
                moves = _moves(saliency, partner, blocks, size, self.t_size, self.t_eps)
        return Puzzle(
            partner=partner,
            lam=lam.float(),
            size=batch.size,
            blocks=blocks > 0.5 if self.n_labels == 2 else blocks,
            moves=moves,
            noise=noise,
            noisy=noisy,
            statistics=() if not noise or self.statistics is None else self.statistics,
        )

    def _perturbation(self, batch: Batch, draws: Draws) -> Tensor:
        """One step of the fast gradient sign method from a random start, times U(0, 1): (B, C, H, W)."""
        signals = batch.ask("PuzzleMix")
        if not isinstance(signals, PassSignals) or batch.labels is None or self.statistics is None:
            raise ValueError("PuzzleMix with adv_p above 0 needs labels and a model: pass signals=model, not tensors")
        images = batch.images.detach()
        mean, std = (_column(values, images) for values in self.statistics)
        start = draws.uniform(-self.adv_eps, self.adv_eps, images.shape[1:], dtype=torch.float32, per="sample")
        pixels = images.float() * std + mean
        start = (pixels + start).clamp(0, 1) - pixels
        gradient = signals.gradient_at(images + (start / std).to(images.dtype))
        stepped = start + (self.adv_eps + 2 / 255) * gradient.sign().float()
        return stepped.clamp(-self.adv_eps, self.adv_eps) * draws.uniform(dtype=torch.float32, per="batch")


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is not above ``most``."""
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def _check_material(what: str, images: Tensor, partner: Tensor, saliency: Tensor) -> None:
    check_images(what, images, (2,))
    check_partner(what, partner, images.shape[0])
    expected = (images.shape[0], *images.shape[2:])
    if not isinstance(saliency, Tensor) or not saliency.is_floating_point() or tuple(saliency.shape) != expected:
        came = f"{tuple(saliency.shape)} {saliency.dtype}" if isinstance(saliency, Tensor) else type(saliency).__name__
        raise ValueError(f"{what} expects saliency {expected} floating point, a value per pixel, got {came}")


def _check_blocks(what: str, block_num: int, size: Sequence[int]) -> None:
    if isinstance(block_num, bool) or not isinstance(block_num, int) or block_num < 1:
        raise ValueError(f"{what} expects block_num as a positive integer, got {block_num!r}")
    if any(side % block_num for side in size):
        raise ValueError(
            f"{what} cuts images into {block_num} x {block_num} equal blocks, got images of size {tuple(size)}; "
            f"block_num must divide {math.gcd(*size)}"
        )


def _check_options(
    what: str, n_labels: int, beta: float, gamma: float, eta: float, neigh_size: int, t_size: int | None, t_eps: float
) -> None:
    if isinstance(n_labels, bool) or not isinstance(n_labels, int) or not 2 <= n_labels <= 8:
        raise ValueError(f"{what} expects n_labels from 2 to 8, got {n_labels!r}")
    for name, value in (("beta", beta), ("gamma", gamma), ("eta", eta), ("t_eps", t_eps)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{what} expects {name} as a number that is not negative, got {value!r}")
    for name, pixels in (("neigh_size", neigh_size), ("t_size", 1 if t_size is None else t_size)):
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1:
            raise ValueError(f"{what} expects {name} as a positive number of pixels, got {pixels!r}")


def _column(values: Sequence[float], images: Tensor) -> Tensor:
    """(C, 1, 1) float32 of one number per channel or one for all, without a copy from the host."""
    many = list(values) * images.shape[1] if len(values) == 1 else list(values)
    ones = torch.ones(1, 1, 1, device=images.device)
    return torch.cat([value * ones for value in many])


def _pixel_scales(images: Tensor, std: float | Sequence[float] | None) -> Tensor:
    """(C, 1, 1) or (1, 1, 1) factors that bring differences of images to those of pixels in [0, 1]."""
    if images.dtype == torch.uint8:
        return torch.full((1, 1, 1), 1 / 255, device=images.device)
    if std is not None:
        return _column((std,) if isinstance(std, (int, float)) else std, images)
    low, high = images.detach().aminmax()
    extent = single_precision(high) - single_precision(low)
    # A range that is not finite measures nothing: no border terms then.
    return torch.where(extent.isfinite() & (extent > 0), 1 / extent, 0.0).float().reshape(1, 1, 1)


def _border_cells(
    images: Tensor, blocks: int, neigh_size: int, std: float | Sequence[float] | None
) -> list[tuple[Tensor, Tensor]]:
    """Means of cells at both sides of every border, in units of pixels in [0, 1].

    For borders between a block and the one below, then to the right: the cells before and after, (B, C, n - 1, n, k)
    each, k cells along a block's side.
    """
    sides = [side // blocks for side in images.shape[2:]]
    cell = [largest_divisor(side, neigh_size) for side in sides]
    scales = _pixel_scales(images, std) / math.prod(cell)
    along = [side // pixels for side, pixels in zip(sides, cell, strict=True)]
    if all(count <= 2 for count in along):
        # Every cell lies at a border: all are made once.
        means = _cell_sums(images, 2, cell[0])
        means = _cell_sums(means, 3, cell[1]) * scales
        rows, columns = means.unflatten(2, (blocks, along[0])), means.unflatten(3, (blocks, along[1]))
        down = rows[:, :, :-1, -1], rows[:, :, 1:, 0]
        right = columns[:, :, :, :-1, -1].mT, columns[:, :, :, 1:, 0].mT
    else:
        rows, columns = images.unflatten(2, (blocks, sides[0])), images.unflatten(3, (blocks, sides[1]))
        strips = rows[:, :, :-1, -cell[0] :], rows[:, :, 1:, : cell[0]]
        down = _pair(_cell_sums(_sum_over(strip, 3), 3, cell[1]) * scales for strip in strips)
        strips = columns[:, :, :, :-1, -cell[1] :], columns[:, :, :, 1:, : cell[1]]
        right = _pair((_cell_sums(_sum_over(strip, 4), 2, cell[0]) * scales).mT for strip in strips)
    return [
        (before.unflatten(3, (blocks, count)), after.unflatten(3, (blocks, count)))
        for (before, after), count in ((down, along[1]), (right, along[0]))
    ]


def _pair(tensors: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    first, second = tensors
    return first, second


def _cell_sums(images: Tensor, axis: int, pixels: int) -> Tensor:
    """Sums over cells of some pixels along an axis."""
    return _sum_over(images.unflatten(axis, (-1, pixels)), axis + 1)


def _sum_over(values: Tensor, axis: int) -> Tensor:
    """Sum over a short axis in float32: as a few additions of large tensors, since short reductions are slow."""
    return functools.reduce(torch.add, [part.float() for part in values.unbind(axis)])


def _border_difference(before: Tensor, after: Tensor) -> Tensor:
    """(B, n - 1, n) mean difference over channels and cells."""
    total = _sum_over((before - after).abs_(), 1) / before.shape[1]
    return total.squeeze(3) if total.shape[3] == 1 else total.mean(3)


def _moves(
    saliency: Tensor, partner: Tensor, blocks: Tensor, size: tuple[int, int], t_size: int | None, t_eps: float
) -> Moves:
    """Moves of own images and partners, on the grid of blocks or a finer one of cells of ``t_size`` pixels."""
    count = blocks.shape[1]
    sides = [side // count for side in size]
    if t_size is not None:
        sides = [largest_divisor(side, t_size) for side in sides]
    grid = [side // cell for side, cell in zip(size, sides, strict=True)]
    own = pooled_saliency(saliency, grid)
    shown = cells_to_pixels(blocks, [cells // count for cells in grid], grid)
    both = torch.cat([own, own.index_select(0, partner)])
    first, second = puzzlemix_moves(both, torch.cat([shown > 0, shown < 1]), t_eps=t_eps).chunk(2)
    return first, second


def _moves_of_all(saliency: Tensor, visible: Tensor, t_eps: float) -> Tensor:
    rows, columns = saliency.shape[1:]
    places = torch.arange(rows * columns, device=saliency.device)
    height, width = max(rows - 1, 1), max(columns - 1, 1)
    # Whole numbers first: places at equal distances must stay equal, the first of them is asked.
    y, x = places // columns * width, places % columns * height
    distance = ((y[:, None] - y).square() + (x[:, None] - x).square()) / (height * width) ** 2
    gain = saliency.flatten(1)[:, :, None] * visible.flatten(1)[:, None]
    cost = t_eps * distance - gain  # B, cell, place
    for _ in range(max(rows, columns)):
        least, choice = cost.min(2)
        asked = torch.where(least < 0, least, torch.inf)
        taken = torch.full_like(asked, torch.inf).scatter_reduce(1, choice, asked, "amin")
        first = asked.isfinite() & (asked == taken.gather(1, choice))
        # Of equal ones the first cell.
        cell = torch.where(first, places, len(places))
        winner = torch.full_like(cell, len(places)).scatter_reduce(1, choice, cell, "amin")
        lost = winner.gather(1, choice) != places
        cost.scatter_add_(2, choice[..., None], lost[..., None].to(cost.dtype))
    return torch.where(winner < len(places), winner, places).reshape(visible.shape)


@functools.lru_cache(maxsize=32)
def _offsets(rows: int, columns: int) -> tuple[Any, Any, Any]:
    """Ways from a cell to a place, the shortest first, then in the order of places: dy, dx, squared length."""
    dy, dx = (grid.ravel() for grid in np.mgrid[1 - rows : rows, 1 - columns : columns])
    height, width = max(rows - 1, 1), max(columns - 1, 1)
    exact = (dy * width) ** 2 + (dx * height) ** 2
    order = np.argsort(exact, kind="stable")
    dy, dx = dy[order], dx[order]
    return dy, dx, (exact[order] / (height * width) ** 2).astype(np.float32)


def _moves_of_few(saliency: Any, visible: Any, t_eps: float) -> Any:
    """:func:`puzzlemix_moves` in NumPy: after the first round only cells that were refused ask again."""
    batch, rows, columns = saliency.shape
    cells = rows * columns
    gain = saliency.reshape(-1)
    seen = visible.reshape(-1)
    dy, dx, length = _offsets(rows, columns)
    price = np.float32(t_eps) * length
    reach = int(np.searchsorted(price, gain.max(initial=0.0), side="left"))
    dy, dx, price = dy[:reach], dx[:reach], price[:reach]
    holder = np.tile(np.arange(cells), batch)
    moves = holder.reshape(batch, rows, columns)
    if reach < 2:
        return moves
    # Each visible place is first asked for by its own cell, which it takes: that leaves the cells out of sight.
    held = np.where(seen, -gain, np.float32(0))
    margin_y, margin_x = int(np.abs(dy).max()), int(np.abs(dx).max())
    padded = np.zeros((batch, rows + 2 * margin_y, columns + 2 * margin_x), dtype=bool)
    padded[:, margin_y : margin_y + rows, margin_x : margin_x + columns] = visible
    step, flat = padded.shape[2], padded.reshape(-1)
    way, shift = dy * step + dx, dy * columns + dx
    asking = np.flatnonzero(~seen & (gain > price[1]))
    next_way = np.ones(batch * cells, dtype=np.int64)
    for _ in range(max(rows, columns)):
        if not len(asking):
            break
        sample, cell = asking // cells, asking % cells
        corner = sample * padded[0].size + (cell // columns + margin_y) * step + cell % columns + margin_x
        most = int(np.searchsorted(price, gain[asking].max(), side="left"))
        open_ = flat[corner[:, None] + way[:most]]
        open_ &= np.arange(most) >= next_way[asking, None]
        open_ &= price[:most] < gain[asking, None]
        wish = open_.argmax(1)
        some = open_[np.arange(len(asking)), wish]
        asking, wish = asking[some], wish[some]
        next_way[asking] = wish + 1
        place, cost = asking + shift[wish], price[wish] - gain[asking]
        order = np.lexsort((asking, cost, place))
        asking, place, cost = asking[order], place[order], cost[order]
        best = np.ones(len(place), dtype=bool)
        best[1:] = place[1:] != place[:-1]
        before = place - place % cells + holder[place]
        wins = best & ((cost < held[place]) | ((cost == held[place]) & (asking < before)))
        won = place[wins]
        # Who held a place has been refused there; its next way comes after the one that led to it.
        ousted = before[wins]
        holder[won], held[won] = asking[wins] % cells, cost[wins]
        asking = np.concatenate([asking[~wins], ousted])
    return moves


def _blend_rows(images: Tensor, partner: Tensor, blocks: Tensor, moves: Moves | None, grid: tuple[int, ...]) -> Tensor:
    """Copy rows of cells, and blend those that show both images."""
    last = channels_last_format(images)
    source = images.movedim(1, -1) if last is not None else images.contiguous()
    source = source.flatten(3) if last is not None else source.reshape(len(images), -1, *images.shape[-2:])
    # A row of a cell is memory in one piece: (sample, [channels], y, column of cells) of W / columns pixels.
    inner = source.shape[3] if last is not None else 1
    planes = 1 if last is not None else source.shape[1]
    height, width = images.shape[-2:]
    rows, columns = grid
    tall = height // rows
    memory = source.reshape(-1, width // columns * inner)
    share = blocks.numpy().astype(np.float32)
    share = share.repeat(rows // share.shape[1], 1).repeat(columns // share.shape[2], 2)

    def lines(sample: Any, move: Tensor | None) -> Any:
        """Row of ``memory`` for each (sample, cell): (B, rows, columns), of its first plane's first row."""
        cell = np.arange(rows * columns).reshape(rows, columns) if move is None else move.numpy()
        return sample[:, None, None] * (planes * height * columns) + cell // columns * (tall * columns) + cell % columns

    first = lines(np.arange(len(images)), None if moves is None else moves[0])
    second = lines(partner.numpy(), None if moves is None else moves[1])
    within = (np.arange(planes)[:, None] * height + np.arange(tall)) * columns
    values = _as_numpy(memory)

    def all_rows(cells: Any) -> Any:
        # (B, rows, columns) to (B, planes, rows, tall, columns), the order of memory.
        return cells[:, None, :, None, :] + within[:, None, :, None]

    def taken(rows_: Any) -> Tensor:
        return _as_torch(np.take(values, rows_.reshape(-1), axis=0, mode="clip"), images.dtype)

    both = (share > 0) & (share < 1)
    if both.mean() > MANY_BLENDED:
        weight = torch.from_numpy(share)[:, None, :, None, :, None]
        weight = weight.expand(len(images), planes, rows, tall, columns, values.shape[1] if width < 8 * columns else 1)
        pair = [taken(all_rows(cells)) for cells in (first, second)]
        mixed = _weighed(pair[0], pair[1], weight.reshape(len(pair[0]), -1))
    else:
        mixed = taken(all_rows(np.where(share >= 0.5, first, second)))
        if both.any():
            b, r, c = (index[:, None, None] for index in np.nonzero(both))
            where = (((b * planes + np.arange(planes)[:, None]) * rows + r) * tall + np.arange(tall)) * columns + c
            pair = [taken(cells[both][:, None, None] + within) for cells in (first, second)]
            weight = torch.from_numpy(np.broadcast_to(share[both][:, None, None], where.shape).reshape(-1, 1).copy())
            _as_numpy(mixed)[where.reshape(-1)] = _as_numpy(_weighed(pair[0], pair[1], weight))
    mixed = mixed.reshape(source.shape)
    if last is None:
        return mixed.reshape(images.shape)
    return mixed.reshape(images.movedim(1, -1).shape).movedim(-1, 1)


def _as_numpy(tensor: Tensor) -> Any:
    """The same memory; bfloat16, which NumPy lacks, as 16-bit integers."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _as_torch(array: Any, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor


def _gathered(images: Tensor, moves: Tensor) -> Tensor:
    """Images (B, ..., H, W) with cell ``moves[b, r, c]`` at the place r, c."""
    height, width = images.shape[-2:]
    rows, columns = moves.shape[1:]
    tall, wide = height // rows, width // columns
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    cell = cells_to_pixels(moves, (tall, wide), (height, width))
    pixel = (cell // columns * tall + (y % tall)[:, None]) * width + cell % columns * wide + x % wide
    flat = images.reshape(images.shape[0], -1, height * width)
    moved = flat.gather(2, pixel.reshape(len(images), 1, -1).expand_as(flat)).reshape(images.shape)
    format_ = channels_last_format(images)
    return moved if format_ is None else moved.contiguous(memory_format=format_)


def _weighed(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """``share * own + (1 - share) * other``; half precision and uint8 in float32, uint8 rounded half to even."""
    if share.dtype == torch.bool:
        return torch.where(share, own, other)
    if own.dtype in (torch.float32, torch.float64):
        return torch.lerp(other, own, share.to(own.dtype))
    mixed = torch.lerp(other.float(), own.float(), share.float())
    return (mixed.round() if own.dtype == torch.uint8 else mixed).to(own.dtype)


def _blend_noisy(
    images: Tensor,
    partner: Tensor,
    blocks: Tensor,
    moves: Moves | None,
    noise: Tensor,
    noisy: tuple[bool, bool],
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Tensor:
    """:func:`puzzlemix_blend` of images with ``noise`` added to own, partners or both."""
    if statistics is None:
        raise ValueError("puzzlemix adds noise to pixels in [0, 1]: pass mean and std, 0 and 1 for images in [0, 1]")
    perturbed = perturbed_images(images, noise, mean=statistics[0], std=statistics[1])
    if noisy[0] == noisy[1]:
        return puzzlemix_blend(perturbed if noisy[0] else images, partner, blocks, moves)
    own, others = (perturbed, images) if noisy[0] else (images, perturbed)
    count = len(images)
    # Two batches in one: the second half holds what partners look like.
    double, rows = torch.cat([own, others]), torch.arange(count, device=images.device)
    doubled = tuple(torch.cat([move, move]) for move in moves) if moves is not None else None
    towards = torch.cat([partner + count, rows])
    mixed = puzzlemix_blend(
        double, towards, torch.cat([blocks, blocks]), None if doubled is None else (doubled[0], doubled[1])
    )
    return mixed[:count]
