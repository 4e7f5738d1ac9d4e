"""GuidedMixup (arXiv:2306.16612): every pixel goes to the image that is the more salient there.

    m = p / (p + p[partner])   per pixel,   x' = m * x + (1 - m) * x[partner],   label share mean(m)

p is a saliency map, blurred, of sum 1. Partners are images that are salient in different places: one cycle through the
batch, greedy on the distance of the maps. No lam is drawn, and with the greedy pairing nothing at all.

Saliency: ``"gradient"`` (Guided-AP), the gradient of the loss with respect to the image, costs a forward and a
backward pass; ``"spectral"`` (Guided-SR), the spectral residual of the image, needs no model.

Differs from the authors' code: its general branch pairs at random, because the option ``greedy`` is passed on under
another name that is then not known; the fine-grained branch pairs greedily, as the paper says and as here. Where both
maps are zero theirs divides 0 by 0; here both images show alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mixaug.batch import Batch
from mixaug.checks import check_choice, check_images, check_partner, check_whole
from mixaug.draws import Draws
from mixaug.ops import fused
from mixaug.ops.blend import blend_mask
from mixaug.ops.filters import check_blur, gaussian_blur, spectral_residual
from mixaug.ops.layout import reads_freely, single_precision
from mixaug.plan import MaskBlend, Plan
from mixaug.policies.saliency import SaliencyPolicy
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesLabeling, TakesPairing

    class Offered(TakesPairing, TakesLabeling, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["GuidedMix", "greedy_cycle", "guided_maps", "guided_mask", "guidedmix", "map_distance"]

Saliency = Literal["gradient", "spectral"]


Distance = Literal["l2", "l1", "cosine"]


DISTANCES = ("l2", "l1", "cosine")


#: Largest part whose cycle one kernel finds: a row of distances is one block of it.
MOST_SAMPLES = 4096


def guided_maps(saliency: Tensor, kernel_size: int = 7, sigma: float = 3.0) -> Tensor:
    """Saliency blurred, each map divided by its sum.

    Args:
        saliency: (B, H, W) floating point, >= 0 up to scale. Negative and non-finite values count as zero.
        kernel_size, sigma: of the blur.

    Returns:
        (B, H, W) float32 (float64 for float64), each map of sum 1; constant where the saliency is zero.

    Raises:
        ValueError: another shape.
    """
    with torch.no_grad(), torch.autocast(saliency.device.type, enabled=False):
        maps = single_precision(saliency.detach())
        maps = torch.where(maps.isfinite(), maps, torch.zeros_like(maps)).clamp_(min=0)
        # The maps are scaled first, so that sums stay finite.
        maps = maps / maps.flatten(1).amax(1).clamp(min=torch.finfo(maps.dtype).tiny)[:, None, None]
        maps = gaussian_blur(maps, kernel_size, sigma)
        total = maps.sum((1, 2), keepdim=True)
        even = torch.full_like(maps, 1 / (maps.shape[1] * maps.shape[2]))
        return torch.where(total > 0, maps / total.clamp(min=torch.finfo(maps.dtype).tiny), even)


def map_distance(maps: Tensor, distance: Distance = "l2") -> Tensor:
    """Distances between all maps.

    Args:
        maps: (B, H, W) floating point; or (P, n, H, W), P parts of n maps each.
        distance: ``"l2"``, ``"l1"`` or ``"cosine"`` (1 - cosine).

    Returns:
        (B, B) or (P, n, n) float32 (float64 for float64), symmetric.

    Raises:
        ValueError: another shape or distance.
    """
    if maps.ndim not in (3, 4) or distance not in DISTANCES:
        raise ValueError(f"map_distance expects maps (B, H, W) and one of {DISTANCES}, got {maps.shape}, {distance!r}")
    with torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
        rows = single_precision(maps).flatten(-2)
        if distance == "cosine":
            rows = F.normalize(rows, dim=-1)
            found = 1 - rows @ rows.transpose(-2, -1)
        elif distance == "l2":
            # A common part changes no distance, but without it the terms that cancel in the expanded square are small.
            rows = rows - rows.mean(-2, keepdim=True)
            found = torch.cdist(rows, rows)
        else:
            found = torch.cdist(rows, rows, p=1.0)
        # A matrix product need not be symmetric to the last bit, and the greedy search would see it.
        return (found + found.transpose(-2, -1)) / 2


def greedy_cycle(distance: Tensor) -> Tensor:
    """One cycle through all samples, each followed by the farthest one that is still free.

    Starts at the largest entry; of equal ones the first counts. The last sample closes the cycle.

    Args:
        distance: (B, B) floating point; or (P, n, n) for P cycles at once. Finite; the diagonal does not count.

    Returns:
        (B,) or (P, n) int64 partners: a permutation without fixed points for B >= 2.

    Raises:
        ValueError: another shape.
    """
    if distance.ndim not in (2, 3) or distance.shape[-1] != distance.shape[-2] or not distance.numel():
        raise ValueError(f"greedy_cycle expects distance (B, B), got {tuple(distance.shape)}")
    several = distance.detach() if distance.ndim == 3 else distance.detach()[None]
    # Each step depends on the one before. On a CPU B steps of numpy take no time; on a CUDA device one kernel takes
    # them all; elsewhere they are B times a few small kernels, without a value read back.
    if fused.serves(several) and 2 <= several.shape[-1] <= MOST_SAMPLES:
        found = torch.ops.mixaug.greedy_cycle(several)
    else:
        found = _cycle_on_host(several) if reads_freely(several) else _cycle_on_device(several)
    return found if distance.ndim == 3 else found[0]


def _cycle_on_host(distance: Tensor) -> Tensor:
    found = np.zeros(distance.shape[:2], dtype=np.int64)
    # numpy knows no bfloat16.
    for part, allowed in enumerate(single_precision(distance).numpy().copy()):
        count = len(allowed)
        if count == 1:
            continue
        np.fill_diagonal(allowed, -np.inf)
        first, current = (int(place) for place in divmod(int(allowed.argmax()), count))
        found[part, first] = current
        allowed[:, first] = -np.inf
        for _ in range(count - 2):
            following = int(allowed[current].argmax())
            found[part, current] = following
            allowed[:, current] = -np.inf
            current = following
        found[part, current] = first
    return torch.from_numpy(found)


def _cycle_on_device(distance: Tensor) -> Tensor:
    parts, count = distance.shape[:2]
    found = torch.zeros(parts, count, dtype=torch.int64, device=distance.device)
    if count == 1:
        return found
    places = torch.arange(count, device=distance.device)
    allowed = single_precision(distance).masked_fill(places[:, None] == places, -torch.inf)
    start = allowed.flatten(1).argmax(1, keepdim=True)
    first, current = start // count, start % count
    found = found.scatter(1, first, current)
    taken = torch.zeros(parts, count, device=distance.device, dtype=allowed.dtype).scatter(1, first, -torch.inf)
    for _ in range(count - 2):
        taken = taken.scatter(1, current, -torch.inf)
        row = allowed.gather(1, current[:, :, None].expand(-1, -1, count))[:, 0]
        following = (row + taken).argmax(1, keepdim=True)
        found = found.scatter(1, current, following)
        current = following
    return found.scatter(1, current, first)


def _by_kernel(distance: Tensor) -> Tensor:
    from mixaug.ops.fused import cycle_kernel

    with fused.current(distance.device):
        return cycle_kernel.cycles(single_precision(distance).contiguous())


_kernel = torch.library.custom_op("mixaug::greedy_cycle", _by_kernel, mutates_args=())


@_kernel.register_fake
def _(distance: Tensor) -> Tensor:
    return torch.empty(distance.shape[:2], dtype=torch.int64, device=distance.device)


def guided_mask(maps: Tensor, partner: Tensor) -> Tensor:
    """Share of the own image per pixel.

    Args:
        maps: (B, H, W) floating point >= 0, see :func:`guided_maps`.
        partner: (B,) int64.

    Returns:
        (B, H, W) of the dtype of ``maps``, in [0, 1]; 1/2 where both maps are zero.
    """
    if maps.ndim != 3 or not maps.is_floating_point():
        raise ValueError(f"guided_mask expects maps (B, H, W) floating point, got {tuple(maps.shape)} {maps.dtype}")
    check_partner("guided_mask", partner, maps.shape[0])
    total = maps + maps.index_select(0, partner)
    return torch.where(total > 0, maps / total, torch.full_like(maps, 0.5))


def guidedmix(
    images: Tensor, partner: Tensor, maps: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Blend every pixel in the proportion of the two maps. Differentiable in the images.

    Args:
        images: (B, C, H, W) floating point or uint8.
        partner: (B,) int64.
        maps: (B, H, W), see :func:`guided_maps`.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``; lam (B,) float32, mean of the mask; the mask
        (B, 1, H, W), share of the own image.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_images("guidedmix", images, (2,))
    if maps.shape != (images.shape[0], *images.shape[2:]):
        raise ValueError(f"guidedmix expects maps {(images.shape[0], *images.shape[2:])}, got {tuple(maps.shape)}")
    mask = guided_mask(maps.detach(), partner)
    mixed = blend_mask(images, partner, mask, out=out, inplace=inplace)
    return mixed, mask.flatten(1).mean(1, dtype=torch.float32), mask[:, None]


@dataclass(frozen=True)
class MappedBatch(Batch):
    """A batch with its saliency maps, so that pairing and mixing share them.

    Attributes:
        maps: (B, H, W), see :func:`guided_maps`.
    """

    maps: Tensor | None = None


class GreedyCycle:
    """Each sample with one that is salient elsewhere: :func:`greedy_cycle` on the distance of saliency maps.

    In a policy without such maps they are the spectral residuals of the images.

    Args:
        distance: ``"l2"``, ``"l1"`` or ``"cosine"``.
        part_size: search within consecutive parts of that many samples; None takes the batch as one. A sample left
            alone in the last part meets itself.

    Raises:
        ValueError: an option out of range.
    """

    involution = False

    def __init__(self, distance: Distance = "l2", part_size: int | None = None) -> None:
        check_choice("GreedyCycle", "distance", distance, DISTANCES)
        self.distance: Distance = distance
        self.part_size = None if part_size is None else check_whole("GreedyCycle", "part_size", part_size, 2)

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        maps = batch.maps if isinstance(batch, MappedBatch) else None
        if maps is None:
            maps = guided_maps(spectral_residual(batch.images))
        count = len(maps)
        side = min(self.part_size or count, count)
        whole = count // side * side
        found = []
        for start, stop, members in ((0, whole, side), (whole, count, count - whole)):
            if start == stop:
                continue
            parts = maps[start:stop].unflatten(0, (-1, members))
            first = torch.arange(start, stop, members, device=maps.device)[:, None]
            found.append((greedy_cycle(map_distance(parts, self.distance)).to(first.device) + first).flatten())
        return torch.cat(found)

    def __repr__(self) -> str:
        return f"GreedyCycle(distance={self.distance!r}, part_size={self.part_size})"


@register(
    "guidedmix",
    paper="GuidedMixup: An Efficient Mixup Strategy Guided by Saliency Maps, AAAI 2023",
    arxiv="2306.16612",
    family="guided by the model",
)
class GuidedMix(SaliencyPolicy):
    """Show of two images at every pixel the more salient one, softly; partners that are salient elsewhere.

    Args:
        saliency: ``"gradient"`` of the loss with respect to the image (Guided-AP), which needs the model or given
            maps; or ``"spectral"`` residual of the image (Guided-SR), which needs neither.
        blur_size, blur_sigma: of the Gaussian blur of the maps, in pixels.
        distance, part_size: of the default pairing, see :class:`GreedyCycle`.
        clean_weight: weight of the clean images' loss, whose gradients the saliency pass has computed, as a part of the
            step; the model is in training mode in that pass then. 0 discards them, in evaluation mode.
        pairing: None for the greedy cycle; else see :class:`mixaug.Policy`.
        labeling: see :class:`mixaug.Policy`; ``"area"`` is the mean of the mask.

    Raises:
        ValueError: an option out of range, or one that has no effect beside the others; when drawing, given saliency
            of another size than the images.
    """

    not_offered = ("alpha", "ratio", "per", "partners")
    own_answers: ClassVar[Mapping[str, str]] = {
        "ratio": "At each pixel, the own part of the saliency of both.",
    }

    def __init__(
        self,
        saliency: Saliency = "gradient",
        blur_size: int = 7,
        blur_sigma: float = 3.0,
        distance: Distance = "l2",
        part_size: int | None = None,
        clean_weight: float = 0.0,
        **shared: Unpack[Offered],
    ) -> None:
        check_choice("GuidedMix", "distance", distance, DISTANCES)
        part_size = None if part_size is None else check_whole("GuidedMix", "part_size", part_size, 2)
        pairing = shared.get("pairing")
        if pairing is not None and (distance, part_size) != ("l2", None):
            raise ValueError(
                f"GuidedMix: distance={distance!r} and part_size={part_size} are of the greedy pairing; leave them "
                f"out with pairing={pairing!r}, or pass pairing=GreedyCycle(...)"
            )
        if pairing is None:
            shared["pairing"] = GreedyCycle(distance, part_size)
        super().__init__(**shared)
        check_choice("GuidedMix", "saliency", saliency, ("gradient", "spectral"))
        self.blur_size, self.blur_sigma = check_blur("GuidedMix", blur_size, blur_sigma, "blur_size", "blur_sigma")
        self.keep_clean(clean_weight)
        if saliency == "spectral" and clean_weight:
            raise ValueError(
                "GuidedMix: clean_weight weighs the loss of the saliency pass, which saliency='spectral' lacks"
            )
        if saliency == "spectral":
            self.needs = self.labeling.needs
        self.saliency: Saliency = saliency
        self.distance: Distance = distance
        self.part_size = part_size

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        if len(batch) > 1:
            fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(Batch)}
            batch = MappedBatch(**fields, maps=self._maps(batch))
        return super().plan(batch, generator, partner)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        maps = batch.maps if isinstance(batch, MappedBatch) else None
        mask = guided_mask(self._maps(batch) if maps is None else maps, partner).float()
        share = mask.flatten(1).mean(1)
        return MaskBlend(partner=partner, lam=share, size=batch.size, mask=mask, share=share)

    def _maps(self, batch: Batch) -> Tensor:
        if self.saliency == "spectral":
            found = spectral_residual(batch.images, self.blur_size, self.blur_sigma)
        else:
            found = self.saliency_of(batch)
        return guided_maps(found, self.blur_size, self.blur_sigma)
