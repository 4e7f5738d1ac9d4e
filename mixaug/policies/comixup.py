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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mixaug.batch import Batch
from mixaug.checks import check_images, check_out
from mixaug.draws import Draws
from mixaug.guidance import BySaliency
from mixaug.ops.layout import channels_last_format, deliver, single_precision, wide_dtype
from mixaug.ops.masks import cells_to_size
from mixaug.ops.potts import potts_labels
from mixaug.plan import Plan, Unmixed
from mixaug.registry import register

# Pixels over which the place of an image's saliency is averaged before its peak is sought.
PEAK_WINDOW = 8
# A label that is half of two inputs is a little cheaper than the mean of the two, and close to both.
SOFT_GAIN = 5e-4
SOFT_DISTANCE = 0.25
# Cost of labels that do not exist, times 1 + gamma: above every penalty of an overlap.
FORBIDDEN = 1e5
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
    grid = (min(block_num, saliency.shape[1]), min(block_num, saliency.shape[2]))
    blocks = F.adaptive_avg_pool2d(saliency.unsqueeze(1), grid).squeeze(1)
    total = blocks.sum((1, 2), keepdim=True)
    even = torch.full_like(blocks, 1 / (grid[0] * grid[1]))
    return -torch.where(total > 0, blocks / torch.where(total > 0, total, torch.ones_like(total)), even)


def comixup_distance(saliency: Tensor) -> Tensor:
    """L1 distance, in pixels, between the places where the images are most salient on average over 8 x 8 pixels.

    Args:
        saliency: (B, H, W) floating point.

    Returns:
        (B, B) float32.

    Raises:
        ValueError: another shape.
    """
    peaks = _peaks(_clean_saliency("comixup_distance", saliency))
    return (peaks[:, None] - peaks[None]).abs().sum(-1).float()


def comixup_compatibility(distance: Tensor, omega: float) -> Tensor:
    """``(1 - omega) I + omega m distance / sum(distance)``; the identity where all distances are zero.

    Args:
        distance: (..., m, m) of the inputs of a part.
        omega: share of the distances, in [0, 1].

    Returns:
        (..., m, m) of the dtype of ``distance``.
    """
    return _compatibility(distance, omega, distance.shape[-1])


def comixup_prior(cost: Tensor, dirichlet: Tensor, eta: float) -> Tensor:
    """``cost - eta / N * log(dirichlet + 1e-8)`` with N blocks: an offset for each input.

    Args:
        cost: (..., m, rows, columns).
        dirichlet: (..., m) shares that sum to 1.
        eta: weight.
    """
    blocks = cost.shape[-2] * cost.shape[-1]
    return cost - (eta / blocks) * torch.log(dirichlet + 1e-8)[..., None, None]


def comixup_objective(
    cost: Tensor,
    shares: Tensor,
    beta: float,
    gamma: float,
    threshold: float | None = None,
    *,
    soft_penalty: bool = False,
) -> Tensor:
    """What Co-Mixup minimises.

    Args:
        cost: (..., m, rows, columns) with the prior in it.
        shares: (..., outputs, m, rows, columns) of each input in each block, summing to 1 over the inputs.
        beta: weight of the differences of neighbours.
        gamma: weight of the overlap of outputs.
        threshold: share of one image's blocks above which an overlap counts; None counts all of it.
        soft_penalty: count only what lies above the threshold, not all of an overlap that does.

    Returns:
        (...) objective.
    """
    blocks = cost.shape[-2] * cost.shape[-1]
    data = (cost.unsqueeze(-4) * shares).sum((-4, -3, -2, -1))
    down = (shares[..., 1:, :] - shares[..., :-1, :]).square().sum((-4, -3, -2, -1))
    across = (shares[..., 1:] - shares[..., :-1]).square().sum((-4, -3, -2, -1))
    counts = shares.sum((-2, -1))
    elsewhere = counts.sum(-2, keepdim=True) - counts
    if threshold is not None and soft_penalty:
        elsewhere = (elsewhere - threshold * blocks).clamp(min=0)
    elif threshold is not None:
        elsewhere = elsewhere * (elsewhere > threshold * blocks)
    overlap = (elsewhere * counts).sum((-2, -1))
    return data + beta / blocks / 2 * (down + across) + gamma / blocks * overlap


def comixup_shares(
    cost: Tensor,
    compatibility: Tensor,
    start: Tensor,
    *,
    beta: float = 0.32,
    gamma: float = 1.0,
    threshold: float = 0.83,
    iterations: int = 4,
    soft_penalty: bool = False,
    valid: Tensor | None = None,
) -> Tensor:
    """Which inputs each block of each output shows, for P parts of m inputs and m outputs.

    In every sweep one output after another is solved anew, with the overlap with the others as a cost of each input.
    From the second sweep on a block may show the mean of two of the (up to three) inputs that its output uses most.
    The last sweep keeps two outputs from the same set of inputs. A part whose objective stands still is left alone.

    The cost of an overlap is linearised, so that a sweep can also make the objective worse. The last one therefore
    keeps an output as it was where the new one does not lower the objective with the threshold.

    Args:
        cost: (P, m, rows, columns) with the prior in it.
        compatibility: (P, m, m).
        start: (P, m, rows, columns) int64 inputs that the outputs show at first.
        beta, gamma, threshold, iterations, soft_penalty: see :class:`CoMixup`.
        valid: (P, m) bool, False for inputs and outputs that a smaller part lacks.

    Returns:
        (P, outputs, m, rows, columns) float32 shares, 1, a half or 0. Rows of outputs that are not there are zero.

    Raises:
        ValueError: shapes that do not fit, no iterations.
    """
    parts = cost.shape[:2]
    if cost.ndim != 4 or start.shape != cost.shape or tuple(compatibility.shape) != (*parts, parts[-1]):
        raise ValueError(
            "comixup_shares expects cost and start (P, m, rows, columns) and compatibility (P, m, m), got "
            f"{tuple(cost.shape)}, {tuple(start.shape)} and {tuple(compatibility.shape)}"
        )
    if valid is not None and (valid.shape != parts or valid.dtype != torch.bool):
        raise ValueError(f"comixup_shares expects valid {tuple(parts)} bool, got {tuple(valid.shape)} {valid.dtype}")
    if iterations < 1:
        raise ValueError(f"comixup_shares expects iterations >= 1, got {iterations}")
    if valid is None:
        valid = torch.ones(parts, dtype=torch.bool, device=cost.device)
    # Unrolled into a graph, the sweeps over all outputs would take a compiler minutes: one operator stands for them.
    solve = torch.ops.mixaug.comixup_shares if torch.compiler.is_compiling() else _sweeps
    found: Tensor = solve(cost, compatibility, start, valid, beta, gamma, threshold, iterations, soft_penalty)
    return found


@torch.no_grad()
def _sweeps(
    cost: Tensor,
    compatibility: Tensor,
    start: Tensor,
    valid: Tensor,
    beta: float,
    gamma: float,
    threshold: float,
    iterations: int,
    soft_penalty: bool,
) -> Tensor:
    """:func:`comixup_shares`, for checked arguments in fixed places."""
    parts, count, rows, columns = cost.shape
    blocks = rows * columns
    there = valid[:, :, None, None, None].float()
    shares = F.one_hot(start, count).movedim(-1, 2).float() * there
    never = FORBIDDEN * (1 + gamma)
    forbidden = (~valid).float() * never
    identity = torch.eye(count, device=cost.device)
    hard = (1 - identity).expand(parts, -1, -1)
    weight, strength, limit = beta / blocks, gamma / blocks, threshold * blocks

    extra = torch.zeros_like(shares[..., 0, 0])
    active = torch.ones(parts, dtype=torch.bool, device=cost.device)
    before = comixup_objective(cost, shares, beta, gamma)
    for sweep in range(iterations):
        outputs = list(shares.unbind(1))
        guarded = 0 < sweep == iterations - 1
        merit = _merit(cost, shares, extra, beta, gamma, threshold, soft_penalty) if guarded else before
        counts = shares.sum((3, 4))
        total = counts.sum(1)
        for output in range(count):
            used = counts[:, output]
            elsewhere = total - used
            reach = _times(compatibility, elsewhere)
            if soft_penalty:
                penalty = (reach - limit).clamp(min=0)
            else:
                penalty = _times(compatibility, elsewhere * (reach > limit))
            offset = 2 * strength * penalty + strength * extra[:, output] + forbidden
            unary = (cost + offset[:, :, None, None]).permute(0, 2, 3, 1)
            if sweep:
                unary, distance, inputs = _with_halves(unary, hard, identity, used, never)
            else:
                distance, inputs = hard, identity.expand(parts, -1, -1)
            labels = potts_labels(unary, distance, weight)
            chosen = inputs.gather(1, labels.flatten(1)[..., None].expand(-1, -1, count))
            solved = chosen.transpose(1, 2).unflatten(2, (rows, columns)) * there[:, output]
            better = active
            if guarded:
                tried = torch.stack([*outputs[:output], solved, *outputs[output + 1 :]], 1)
                reached = _merit(cost, tried, extra, beta, gamma, threshold, soft_penalty)
                better = active & (reached <= merit)
                merit = torch.where(better, reached, merit)
            outputs[output] = torch.where(better[:, None, None, None], solved, outputs[output])
            total = elsewhere + outputs[output].sum((2, 3))
        shares = torch.stack(outputs, 1)
        if sweep == iterations - 2:
            extra = _against_equal_sets(shares.sum((3, 4)) > 0)
        objective = comixup_objective(cost, shares, beta, gamma)
        active = active & ((before - objective).abs() >= 1e-6 * objective.abs())
        before = objective
    return shares


@torch.library.custom_op("mixaug::comixup_shares", mutates_args=())
def _as_operator(
    cost: Tensor,
    compatibility: Tensor,
    start: Tensor,
    valid: Tensor,
    beta: float,
    gamma: float,
    threshold: float,
    iterations: int,
    soft_penalty: bool,
) -> Tensor:
    return _sweeps(cost, compatibility, start, valid, beta, gamma, threshold, iterations, soft_penalty)


@_as_operator.register_fake
def _(cost: Tensor, compatibility: Tensor, start: Tensor, valid: Tensor, *options: Any) -> Tensor:
    parts, count, rows, columns = cost.shape
    return cost.new_empty(parts, count, count, rows, columns)


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
)
class CoMixup(BySaliency):
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
        dirichlet: concentration of the prior, positive; lower it with ``clean_lam=0``.
        iterations: sweeps over the outputs, at least 1. Blocks show two inputs from the second on.
        soft_penalty: penalise only the overlap above the threshold, not all of it once it is above.
        clean_lam: weight of the clean batch's loss, which is part of the step; 0 leaves it out and takes the saliency
            in evaluation mode. Beside a binary cross-entropy over K classes the authors use 2 / K.

    Raises:
        ValueError: an option out of range.
    """

    has_partners = False

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
        clean_lam: float = 1.0,
    ) -> None:
        super().__init__()
        if not _is_int(block_num) or (block_num < 1 and block_num != -1):
            raise ValueError(f"CoMixup expects block_num as an integer >= 1, or -1 to draw it, got {block_num!r}")
        for name, value, least in (("part_size", part_size, 2), ("iterations", iterations, 1)):
            if not _is_int(value) or value < least:
                raise ValueError(f"CoMixup expects {name} as an integer >= {least}, got {value!r}")
        weights = {"beta": beta, "gamma": gamma, "threshold": threshold, "eta": eta}
        for name, weight in weights.items():
            if not _is_number(weight) or not 0 <= weight < float("inf"):
                raise ValueError(f"CoMixup expects {name} as a finite number >= 0, got {weight!r}")
        if not _is_number(omega) or not 0 <= omega <= 1:
            raise ValueError(f"CoMixup expects omega in [0, 1], got {omega!r}")
        if not _is_number(dirichlet) or not 0 < dirichlet < float("inf"):
            raise ValueError(f"CoMixup expects dirichlet as a positive number, got {dirichlet!r}")
        self.block_num = int(block_num)
        self.part_size = int(part_size)
        self.beta = float(beta)
        self.gamma = float(gamma)
        self.threshold = float(threshold)
        self.eta = float(eta)
        self.omega = float(omega)
        self.dirichlet = float(dirichlet)
        self.iterations = int(iterations)
        self.soft_penalty = bool(soft_penalty)
        self.keep_clean(clean_lam)

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
        sizes = (len(batch) - count * torch.arange(parts, device=batch.device)).clamp(max=count)
        valid = torch.arange(count, device=batch.device) < sizes[:, None]
        # Rows past the end of the last part repeat the last sample; `valid` keeps them out.
        rows = torch.arange(parts * count, device=batch.device).clamp(max=len(batch) - 1).reshape(parts, count)

        both = (valid[:, :, None] & valid[:, None]).float()
        distance = comixup_distance(saliency)[rows[:, :, None], rows[:, None]] * both
        compatibility = _compatibility(distance, self.omega, sizes[:, None, None])
        blocks = self._block_num(batch.size, draws)
        cost = comixup_costs(saliency, blocks)[rows]
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
    return (saliency / torch.where(largest > 0, largest, torch.ones_like(largest))).float()


def _peaks(saliency: Tensor) -> Tensor:
    """(B, 2) int64: row and column of the window that is most salient."""
    window = [min(PEAK_WINDOW, side) for side in saliency.shape[1:]]
    smooth = F.avg_pool2d(saliency.unsqueeze(1), window, stride=1).squeeze(1)
    place = smooth.flatten(1).argmax(1)
    columns = smooth.shape[2]
    return torch.stack([place // columns, place % columns], 1)


def _compatibility(distance: Tensor, omega: float, inputs: int | Tensor) -> Tensor:
    identity = torch.eye(distance.shape[-1], device=distance.device, dtype=distance.dtype)
    total = distance.sum((-2, -1), keepdim=True)
    scaled = distance * inputs / torch.where(total > 0, total, torch.ones_like(total))
    return torch.where(total > 0, (1 - omega) * identity + omega * scaled, identity)


def _dirichlet(concentration: float, valid: Tensor, draws: Draws) -> Tensor:
    """(P, m) float32: Dirichlet shares of the inputs that each part has, 0 for the others."""
    parts, count = valid.shape
    shape = torch.full((parts * count,), concentration + 1, device=draws.device, dtype=wide_dtype(draws.device))
    gamma = torch._standard_gamma(shape, generator=draws.generator)
    # Gamma(a) = Gamma(a + 1) U^(1/a), in logarithms, so that small concentrations do not underflow; 1 - U is in (0, 1].
    unit = torch.rand(shape.shape, generator=draws.generator, device=draws.device, dtype=shape.dtype)
    logarithms = (gamma.log() + torch.log1p(-unit) / concentration).reshape(parts, count)
    return logarithms.masked_fill(~valid, float("-inf")).softmax(1).float()


def _with_halves(
    unary: Tensor, hard: Tensor, identity: Tensor, used: Tensor, never: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels for the halves of two among the three inputs that an output uses most, next to one for each input.

    Args:
        unary: (P, rows, columns, m).
        hard: (P, m, m) distances.
        identity: (m, m).
        used: (P, m) blocks of each input in the output so far.
        never: cost of a half of two that the output does not use.

    Returns:
        Unary costs (P, rows, columns, m + S), distances (P, m + S, m + S), shares of the inputs (P, m + S, m).
    """
    parts, count = used.shape
    number, most = used.topk(min(3, count), dim=1)
    pairs = [(0, 1), (0, 2), (1, 2)] if count >= 3 else [(0, 1)]
    members = identity[most]
    halves = torch.stack([(members[:, a] + members[:, b]) / 2 for a, b in pairs], 1)
    missing = torch.stack([number[:, b] <= 0 for _, b in pairs], 1).float()
    grid = unary.shape[1:3]
    means = [
        (unary.gather(3, _everywhere(most[:, a], grid)) + unary.gather(3, _everywhere(most[:, b], grid))) / 2
        for a, b in pairs
    ]
    costs = torch.cat(means, 3) - SOFT_GAIN + never * missing[:, None, None]
    near = torch.where(halves > 0, SOFT_DISTANCE, 1.0)
    among = (1 - torch.eye(len(pairs), device=used.device)).expand(parts, -1, -1)
    upper, lower = torch.cat([hard, near.transpose(1, 2)], 2), torch.cat([near, among], 2)
    inputs = torch.cat([identity.expand(parts, -1, -1), halves], 1)
    return torch.cat([unary, costs], 3), torch.cat([upper, lower], 1), inputs


def _everywhere(rows: Tensor, grid: Sequence[int]) -> Tensor:
    return rows[:, None, None, None].expand(-1, *grid, 1)


def _against_equal_sets(uses: Tensor) -> Tensor:
    """(P, outputs, m) 0 or 1: of two outputs with one set of inputs, the first avoids its first, the second its second.

    Args:
        uses: (P, outputs, m) bool.
    """
    equal = (uses[:, :, None] == uses[:, None]).all(3) & (uses.sum(2) > 1)[:, None]
    place = uses.long().cumsum(2)
    first, second = uses & (place == 1), uses & (place == 2)
    again, before = equal.triu(1).any(2), equal.triu(1).any(1)
    return ((first & again[..., None]) | (second & before[..., None])).float()


def _merit(
    cost: Tensor, shares: Tensor, extra: Tensor, beta: float, gamma: float, threshold: float, soft_penalty: bool
) -> Tensor:
    """(P,) objective with the threshold and with the cost of sets of inputs that two outputs share."""
    blocks = cost.shape[-2] * cost.shape[-1]
    objective = comixup_objective(cost, shares, beta, gamma, threshold, soft_penalty=soft_penalty)
    return objective + gamma / blocks * (extra * shares.sum((3, 4))).sum((1, 2))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(P, m, m) times (P, m), in full precision also where matrix products are not."""
    return (matrix * vector[:, None]).sum(2)


def _own_first(sizes: Tensor, rows: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Order of a part's inputs for each sample, itself first, and the rows of the batch that they are.

    Returns:
        (B, m) int64 places in the part, and (B, m) int64 rows; a place that the part lacks is the sample's own row.
    """
    count = rows.shape[1]
    sample = torch.arange(batch_size, device=rows.device)
    part, own = sample // count, (sample % count)[:, None]
    place = torch.arange(count, device=rows.device)
    order = torch.where(place == 0, own, place - (place <= own).long())
    sources = rows[part[:, None], order]
    return order, torch.where(order < sizes[part][:, None], sources, sample[:, None])


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
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise TypeError(
            f"a mean of {images.dtype} values has no meaning, and blocks may show two images; for a label map pass "
            "num_classes to MixedBatch.apply to get per-pixel class shares, for an image pass uint8 or a float dtype"
        )
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


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
