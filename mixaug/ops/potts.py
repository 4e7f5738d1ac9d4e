"""Labels of least energy on small grids: many problems at once, on any device, without reading a value back."""

from __future__ import annotations

import torch
from torch import Tensor

# Numbers of columns that are solved jointly and of joint states of a row that are compared bound time and memory.
STRIP = 4
STATES = 625
# Axis of (rows, columns, L, Q) that a message goes along, and whether it goes backwards.
DIRECTIONS = ((0, False), (0, True), (1, False), (1, True))


def potts_energy(unary: Tensor, distance: Tensor, weight: float, labels: Tensor) -> Tensor:
    """Unary costs of the chosen labels plus ``weight`` times the distance of every two neighbours' labels.

    Args:
        unary: (Q, rows, columns, L) cost of each label in each block.
        distance: (Q, L, L) distance of two labels.
        weight: of the distances, the same for all pairs of neighbours.
        labels: (Q, rows, columns) int64 in [0, L).

    Returns:
        (Q,) energies.
    """
    chosen = unary.gather(3, labels[..., None]).flatten(1).sum(1)
    down = _distances(distance, labels[:, :-1], labels[:, 1:])
    across = _distances(distance, labels[:, :, :-1], labels[:, :, 1:])
    return chosen + weight * (down.flatten(1).sum(1) + across.flatten(1).sum(1))


def potts_labels(unary: Tensor, distance: Tensor, weight: float, *, rounds: int = 2) -> Tensor:
    """Labels of least :func:`potts_energy`, up to the candidates that are compared.

    A few rounds of min-sum messages rank the labels of every block. Among the best five of each block the optimum is
    exact, by dynamic programming over rows, on grids of up to four columns; wider ones are solved in strips of four
    columns, one group of strips after another. So up to four columns and five labels the result is the optimum.

    Args:
        unary: (Q, rows, columns, L) floating point, finite.
        distance: (Q, L, L), 0 for equal labels, symmetric.
        weight: of the distances, not negative.
        rounds: of messages.

    Returns:
        (Q, rows, columns) int64.
    """
    columns, count = unary.shape[2:]
    beliefs = _beliefs(unary, distance, weight, rounds)
    width = min(STRIP, columns)
    kept = kept_candidates(count, width)
    candidates = beliefs.topk(kept, dim=3, largest=False).indices
    if columns <= STRIP:
        return _exact(unary, distance, weight, candidates)
    labels = candidates[..., 0]
    for starts in strips(columns):
        labels = _improved(unary, distance, weight, candidates, labels, starts, width)
    return labels


def _beliefs(unary: Tensor, distance: Tensor, weight: float, rounds: int) -> Tensor:
    """(Q, rows, columns, L) costs of each label with what the neighbours say of it: min-sum messages."""
    unary, apart = _problems_last(unary), weight * _problems_last(distance)
    beliefs = unary
    outgoing = unary.unsqueeze(0)
    for step in range(rounds):
        # The best choice of the sending block costs this much for each label of the receiving one.
        messages = (outgoing.unsqueeze(-2) + apart).amin(-3)
        messages = messages - messages.amin(-2, keepdim=True)
        incoming = [_shifted(messages[d % len(messages)], axis, turn) for d, (axis, turn) in enumerate(DIRECTIONS)]
        beliefs = unary + incoming[0] + incoming[1] + incoming[2] + incoming[3]
        if step + 1 < rounds:
            # A message to a neighbour leaves out what came from it, the message of the other turn on the same axis.
            outgoing = beliefs - torch.stack([incoming[1], incoming[0], incoming[3], incoming[2]])
    return beliefs.movedim(-1, 0).contiguous()


def _problems_last(values: Tensor) -> Tensor:
    """(Q, ...) to (..., Q), laid out so: operators are slow along axes of a few labels, which are broadcast."""
    return values.movedim(0, -1).contiguous()


def _shifted(values: Tensor, axis: int, backwards: bool) -> Tensor:
    """The values of the previous (or next) block along an axis; zeros at the border."""
    side = values.shape[axis]
    border = torch.zeros_like(values.narrow(axis, 0, 1))
    if backwards:
        return torch.cat([values.narrow(axis, 1, side - 1), border], axis)
    return torch.cat([border, values.narrow(axis, 0, side - 1)], axis)


def _exact(unary: Tensor, distance: Tensor, weight: float, candidates: Tensor) -> Tensor:
    """Best choice of one candidate for every block. A row is one variable with K ** columns states.

    Args:
        unary: (Q, R, W, L).
        distance: (Q, L, L).
        weight: of the distances.
        candidates: (Q, R, W, K) int64.

    Returns:
        (Q, R, W) int64 labels.
    """
    problems, rows, width, kept = candidates.shape
    energy = _spread(_problems_last(unary.gather(3, candidates)))
    if width > 1:
        across = weight * _distances(distance, candidates[:, :, :-1, :, None], candidates[:, :, 1:, None, :])
        across = _problems_last(across)
        for column in range(width - 1):
            before, after = kept**column, kept ** (width - column - 2)
            table = across[:, column].reshape(rows, 1, kept * kept, 1, problems)
            energy = energy.reshape(rows, before, kept * kept, after, problems) + table
        energy = energy.reshape(rows, -1, problems)
    best = [energy[0]]
    if rows > 1:
        down = weight * _distances(distance, candidates[:, :-1, :, :, None], candidates[:, 1:, :, None, :])
        down = _problems_last(down)
    for row in range(1, rows):
        passed = best[-1]
        for column in range(width):
            # The first axis is this row's state in the column; it leaves, and the next row's state comes in.
            passed = (passed.reshape(kept, -1, 1, problems) + down[row - 1, column].unsqueeze(1)).amin(0)
        best.append(passed.reshape(-1, problems) + energy[row])
    powers = kept ** torch.arange(width - 1, -1, -1, device=unary.device)[:, None]
    chosen = []
    total = best[-1]
    for row in range(rows - 1, -1, -1):
        digits = total.argmin(0) // powers % kept
        chosen.append(digits)
        if row:
            picked = down[row - 1].gather(2, digits[:, None, None].expand(-1, kept, 1, -1)).squeeze(2)
            total = best[row - 1] + _spread(picked)
    states = torch.stack(chosen[::-1]).movedim(-1, 0)
    return candidates.gather(3, states[..., None]).squeeze(3)


def _spread(values: Tensor) -> Tensor:
    """(..., W, K, Q) values of each column's states to (..., K ** W, Q), the sums over all joint states of a row."""
    total = values[..., 0, :, :]
    for column in range(1, values.shape[-3]):
        total = (total.unsqueeze(-2) + values[..., column, None, :, :]).flatten(-3, -2)
    return total


def _improved(
    unary: Tensor, distance: Tensor, weight: float, candidates: Tensor, labels: Tensor, starts: list[int], width: int
) -> Tensor:
    """The labels with the best ones in some strips of columns that do not touch, all others fixed."""
    problems, rows, columns, count = unary.shape
    strips = len(starts)
    # Every strip is a problem of its own, which pays for its distance to the columns beside it.
    beside = weight * distance.gather(1, labels.flatten(1)[..., None].expand(-1, -1, count)).unflatten(
        1, (rows, columns)
    )
    parts, choices = [], []
    for start in starts:
        cost = list(unary[:, :, start : start + width].unbind(2))
        if start:
            cost[0] = cost[0] + beside[:, :, start - 1]
        if start + width < columns:
            cost[-1] = cost[-1] + beside[:, :, start + width]
        parts.append(torch.stack(cost, 2))
        own = labels[:, :, start : start + width, None]
        offered = candidates[:, :, start : start + width]
        # The label a block has now must stay possible: it takes the place of the worst candidate where it is missing.
        missing = (offered != own).all(3, keepdim=True)
        choices.append(torch.cat([offered[..., :-1], torch.where(missing, own, offered[..., -1:])], 3))
    solved = _exact(torch.cat(parts), distance.repeat(strips, 1, 1), weight, torch.cat(choices))
    result = labels.clone()
    for place, start in enumerate(starts):
        result[:, :, start : start + width] = solved[place * problems : (place + 1) * problems]
    return result


def kept_candidates(count: int, width: int) -> int:
    """How many of ``count`` labels are compared for each block of a strip of ``width`` columns."""
    return min(count, _largest_root(STATES, width))


def strips(columns: int) -> list[list[int]]:
    """First columns of strips that cover and overlap, in groups whose strips do not touch each other."""
    if columns <= STRIP:
        return [[0]]
    starts = [*range(0, columns - STRIP, STRIP), columns - STRIP]
    starts += [start for start in range(STRIP // 2, columns - STRIP, STRIP) if start not in starts]
    groups: list[list[int]] = []
    for start in starts:
        for group in groups:
            if all(abs(start - other) > STRIP for other in group):
                group.append(start)
                break
        else:
            groups.append([start])
    return groups


def _distances(distance: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``distance[q, first[q, ...], second[q, ...]]``, the indices broadcast."""
    index = first * distance.shape[-1] + second
    return distance.flatten(1).gather(1, index.flatten(1)).reshape(index.shape)


def _largest_root(number: int, degree: int) -> int:
    root = 1
    while (root + 1) ** degree <= number:
        root += 1
    return root
