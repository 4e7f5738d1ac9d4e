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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import (
    check_flag,
    check_not_negative,
    check_probability,
    check_share,
    check_statistics,
    check_whole,
    check_whole_numbers,
    per_channel,
)
from mixaug.draws import Draws
from mixaug.ops.borders import per_channel_column
from mixaug.ops.cells import Moves, largest_divisor, pooled_saliency, puzzlemix_blend
from mixaug.ops.gridcut import grid_cut
from mixaug.ops.layout import deliver, single_precision
from mixaug.ops.masks import cells_to_pixels
from mixaug.ops.puzzle import check_material, cut_problem
from mixaug.ops.transport import puzzlemix_moves
from mixaug.plan import Plan
from mixaug.policies.saliency import SaliencyPolicy
from mixaug.policy import SharedOptions
from mixaug.registry import register
from mixaug.signals import CleanSignals

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PuzzleMix", "perturbed_images", "puzzlemix"]


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
    shift, scale = (
        per_channel_column(values, images) for values in per_channel("perturbed_images", statistics, images.shape[1])
    )
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
    check_material("puzzlemix", images, partner, saliency)
    check_share("puzzlemix", "lam", lam, images.shape[0])
    _check_options("puzzlemix", n_labels, beta, gamma, eta, neigh_size, t_size, t_eps)
    statistics = check_statistics("puzzlemix", mean, std)
    size = (images.shape[2], images.shape[3])
    problem = cut_problem(
        images,
        partner,
        saliency,
        lam,
        block_num=block_num,
        n_labels=n_labels,
        beta=beta,
        gamma=gamma,
        eta=eta,
        neigh_size=neigh_size,
        std=None if statistics is None else statistics[1],
    )
    labels = grid_cut(*problem)
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

    @property
    def relocates(self) -> bool:
        return bool(self.moves)

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
    family="guided by the model",
)
class PuzzleMix(SaliencyPolicy):
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
        clean_weight: 0 takes the saliency with the model in evaluation mode and drops its gradients. Above 0 the pass
            is one of training, and ``clean_weight`` times its loss, with its gradients, is part of the step.
        adv_p: probability, for own images and for partners, that a batch mixes adversarially perturbed images.
            Needs mean, std and a model behind the signals, and costs one more pass in such batches.
        adv_eps: largest perturbation, of pixels in [0, 1].
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`; they draw the prior. ``labeling="ratio"`` would weigh
            labels by it.

    Raises:
        ValueError: an option out of range; when mixing, images that none of ``block_nums`` divides.
    """

    shared_defaults: ClassVar[SharedOptions] = {"per": "batch"}

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
        clean_weight: float = 0.0,
        adv_p: float = 0.0,
        adv_eps: float = 10 / 255,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        self.block_nums = check_whole_numbers("PuzzleMix", "block_nums", block_nums)
        _check_options("PuzzleMix", n_labels, beta, gamma, eta, neigh_size, t_size, t_eps)
        self.n_labels, self.neigh_size = int(n_labels), int(neigh_size)
        self.t_size = None if t_size is None else int(t_size)
        self.beta, self.gamma, self.eta, self.t_eps = float(beta), float(gamma), float(eta), float(t_eps)
        self.transport = self.relocates = check_flag("PuzzleMix", "transport", transport)
        self.statistics = check_statistics("PuzzleMix", mean, std)
        self.mean = None if self.statistics is None else self.statistics[0]
        self.std = None if self.statistics is None else self.statistics[1]
        self.keep_clean(clean_weight)
        self.adv_eps = check_not_negative("PuzzleMix", "adv_eps", adv_eps)
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
        # The batch has one grid, as in the authors' code: its shape is work for the host, which is
        # done once.
        blocks_a_side = fitting[draws.host_integer(len(fitting))] if len(fitting) > 1 else fitting[0]
        lam = self.ratio(draws)
        noisy = (False, False)
        if self.adv_p > 0:
            chances = (self.adv_p, 1 - self.adv_p)
            noisy = (draws.host_choice(chances) == 0, draws.host_choice(chances) == 0)
        noise: tuple[Tensor, ...] = ()
        if any(noisy):
            noise = (self._perturbation(batch, draws),)
        saliency = self.saliency_of(batch)
        check_material("PuzzleMix", batch.images, partner, saliency)
        with torch.no_grad():
            problem = cut_problem(
                batch.images,
                partner,
                saliency,
                lam,
                block_num=blocks_a_side,
                n_labels=self.n_labels,
                beta=self.beta,
                gamma=self.gamma,
                eta=self.eta,
                neigh_size=self.neigh_size,
                std=self.std,
            )
            blocks = 1 - grid_cut(*problem).float() / (self.n_labels - 1)
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
        if not isinstance(signals, CleanSignals) or batch.labels is None or self.statistics is None:
            raise ValueError("PuzzleMix with adv_p above 0 needs labels and a model: pass signals=model, not tensors")
        images = batch.images.detach()
        mean, std = (per_channel_column(values, images) for values in self.statistics)
        start = draws.uniform(-self.adv_eps, self.adv_eps, images.shape[1:], dtype=torch.float32, per="sample")
        pixels = images.float() * std + mean
        start = (pixels + start).clamp(0, 1) - pixels
        gradient = signals.gradient_at(images + (start / std).to(images.dtype))
        stepped = start + (self.adv_eps + 2 / 255) * gradient.sign().float()
        return stepped.clamp(-self.adv_eps, self.adv_eps) * draws.uniform(dtype=torch.float32, per="batch")


def _check_options(
    what: str, n_labels: int, beta: float, gamma: float, eta: float, neigh_size: int, t_size: int | None, t_eps: float
) -> None:
    check_whole(what, "n_labels", n_labels, 2, 8)
    for name, value in (("beta", beta), ("gamma", gamma), ("eta", eta), ("t_eps", t_eps)):
        check_not_negative(what, name, value)
    for name, pixels in (("neigh_size", neigh_size), ("t_size", 1 if t_size is None else t_size)):
        check_whole(what, name, pixels, most=2**16, reason="pixels of an image")


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
    # Two batches are in one: the second half holds what partners look like.
    double, rows = torch.cat([own, others]), torch.arange(count, device=images.device)
    doubled = tuple(torch.cat([move, move]) for move in moves) if moves is not None else None
    towards = torch.cat([partner + count, rows])
    mixed = puzzlemix_blend(
        double, towards, torch.cat([blocks, blocks]), None if doubled is None else (doubled[0], doubled[1])
    )
    return mixed[:count]
