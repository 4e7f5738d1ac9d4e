"""Cells of an image that move to where they are seen: PuzzleMix's truncated deferred acceptance (arXiv:2009.06962)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixaug.ops import fused
from mixaug.ops.layout import reads_freely

#: Most cells of a grid whose moves are one kernel: those of a row are one block of it.
MOST_CELLS = 1024


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
    # Three bodies give one result: on a CPU only the cells without a place are looked at, elsewhere all of them, on a
    # CUDA device by one kernel.
    if reads_freely(saliency, visible):
        return torch.from_numpy(_moves_of_few(saliency.numpy(), visible.numpy(), t_eps))
    if fused.serves(saliency, visible) and saliency.dtype == torch.float32 and saliency[0].numel() <= MOST_CELLS:
        moves: Tensor = torch.ops.mixaug.puzzlemix_moves(saliency.detach(), visible, t_eps)
        return moves
    return _moves_of_all(saliency, visible, t_eps)


def _moves_of_all(saliency: Tensor, visible: Tensor, t_eps: float) -> Tensor:
    rows, columns = saliency.shape[1:]
    places = torch.arange(rows * columns, device=saliency.device)
    height, width = max(rows - 1, 1), max(columns - 1, 1)
    # Whole numbers are computed first: places at equal distances must stay equal, since the first of them is asked.
    y, x = places // columns * width, places % columns * height
    distance = ((y[:, None] - y).square() + (x[:, None] - x).square()) / (height * width) ** 2
    gain = saliency.flatten(1)[:, :, None] * visible.flatten(1)[:, None]
    cost = t_eps * distance - gain  # B, cell, place
    for _ in range(max(rows, columns)):
        least, choice = cost.min(2)
        asked = torch.where(least < 0, least, torch.inf)
        taken = torch.full_like(asked, torch.inf).scatter_reduce(1, choice, asked, "amin")
        first = asked.isfinite() & (asked == taken.gather(1, choice))
        # The first of equal cells wins.
        cell = torch.where(first, places, len(places))
        winner = torch.full_like(cell, len(places)).scatter_reduce(1, choice, cell, "amin")
        lost = winner.gather(1, choice) != places
        cost.scatter_add_(2, choice[..., None], lost[..., None].to(cost.dtype))
    return torch.where(winner < len(places), winner, places).reshape(visible.shape)


def _by_kernel(saliency: Tensor, visible: Tensor, t_eps: float) -> Tensor:
    """:func:`_moves_of_all` by one kernel."""
    from mixaug.ops.fused import transport_kernel

    with fused.current(saliency.device):
        return transport_kernel.moves(saliency.contiguous(), visible.contiguous(), t_eps)


_as_operator = torch.library.custom_op("mixaug::puzzlemix_moves", _by_kernel, mutates_args=())


@_as_operator.register_fake
def _(saliency: Tensor, visible: Tensor, t_eps: float) -> Tensor:
    return torch.empty(saliency.shape, dtype=torch.int64, device=saliency.device)


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
