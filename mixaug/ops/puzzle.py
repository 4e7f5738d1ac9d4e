"""PuzzleMix's problem (arXiv:2009.06962): the costs of showing the one or the other image in each block, and edges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixaug.checks import check_images, check_partner, check_whole
from mixaug.ops import fused
from mixaug.ops.borders import border_cells, border_difference, cell_scales
from mixaug.ops.cells import largest_divisor, pooled_saliency

#: Dtypes of images that the kernel for costs reads.
KERNEL_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    check_material("puzzlemix_costs", images, partner, saliency)
    check_blocks("puzzlemix_costs", block_num, images.shape[2:])
    own = pooled_saliency(saliency, block_num)
    keep_own, keep_partner = own.index_select(0, partner), own.clone()
    borders = []
    for axis, (before, after) in enumerate(border_cells(images.detach(), block_num, neigh_size, std), start=1):
        # Each name says whose block comes first, the own or the partner's, and whose comes second.
        own_own = border_difference(before, after)
        partner_own = border_difference(before.index_select(0, partner), after)
        own_partner = border_difference(before, after.index_select(0, partner))
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
    # A weight is below zero, and the problem no longer a cut, only where pixels leave [0, 1] or gamma is above 1.
    return (
        (torch.stack(costs, dim=3) + own).nan_to_num(0.0),
        (border_v + smooth).nan_to_num(smooth).clamp(min=0),
        (border_h + smooth).nan_to_num(smooth).clamp(min=0),
    )


def cut_problem(
    images: Tensor,
    partner: Tensor,
    saliency: Tensor,
    lam: Tensor,
    *,
    block_num: int,
    n_labels: int,
    beta: float,
    gamma: float,
    eta: float,
    neigh_size: int,
    std: float | Sequence[float] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`puzzlemix_energy` of :func:`puzzlemix_costs`; on a CUDA device by one kernel."""
    if not fused.serves(images, saliency, lam) or images.dtype not in KERNEL_DTYPES:
        costs = puzzlemix_costs(
            images,
            partner,
            saliency,
            block_num=block_num,
            beta=beta,
            gamma=gamma,
            neigh_size=neigh_size,
            std=std,
        )
        return puzzlemix_energy(*costs, lam, n_labels=n_labels, beta=beta, eta=eta)
    check_blocks("puzzlemix", block_num, images.shape[2:])
    cell = [largest_divisor(side // block_num, neigh_size) for side in images.shape[2:]]
    smooth = beta / (16 * block_num)
    problem: tuple[Tensor, Tensor, Tensor] = torch.ops.mixaug.puzzlemix_problem(
        images.detach(),
        partner,
        pooled_saliency(saliency, block_num),
        cell_scales(images, cell, std).flatten(),
        lam,
        cell,
        n_labels,
        [smooth * gamma, smooth, eta / block_num**2],
    )
    return problem


def _by_kernel(
    images: Tensor,
    partner: Tensor,
    pooled: Tensor,
    scales: Tensor,
    lam: Tensor,
    cell: list[int],
    n_labels: int,
    weights: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Costs and edges of the cut from shares of saliency and the scales of its border cells, by one kernel."""
    from mixaug.ops.fused import puzzle_kernels

    sides, factors = (cell[0], cell[1]), (weights[0], weights[1], weights[2])
    with fused.current(images.device):
        return puzzle_kernels.costs(images, partner, pooled, scales.float(), lam, sides, n_labels, factors)


_problem = torch.library.custom_op("mixaug::puzzlemix_problem", _by_kernel, mutates_args=())


@_problem.register_fake
def _(
    images: Tensor,
    partner: Tensor,
    pooled: Tensor,
    scales: Tensor,
    lam: Tensor,
    cell: list[int],
    n_labels: int,
    weights: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    batch, blocks = pooled.shape[:2]
    sizes = (batch, blocks, blocks, n_labels), (batch, blocks - 1, blocks), (batch, blocks, blocks - 1)
    first, second, third = (torch.empty(size, dtype=torch.float32, device=images.device) for size in sizes)
    return first, second, third


def check_material(what: str, images: Tensor, partner: Tensor, saliency: Tensor) -> None:
    check_images(what, images, (2,))
    check_partner(what, partner, images.shape[0])
    expected = (images.shape[0], *images.shape[2:])
    if not isinstance(saliency, Tensor) or not saliency.is_floating_point() or tuple(saliency.shape) != expected:
        came = f"{tuple(saliency.shape)} {saliency.dtype}" if isinstance(saliency, Tensor) else type(saliency).__name__
        raise ValueError(f"{what} expects saliency {expected} floating point, a value per pixel, got {came}")


def check_blocks(what: str, block_num: int, size: Sequence[int]) -> None:
    check_whole(what, "block_num", block_num)
    if any(side % block_num for side in size):
        raise ValueError(
            f"{what} cuts images into {block_num} x {block_num} equal blocks, got images of size {tuple(size)}; "
            f"block_num must divide {math.gcd(*size)}"
        )
