"""SaliencyMix (arXiv:2006.01791): CutMix whose box shows the most salient place of the partner.

    x' = x[partner] inside the box, x outside,   lam' = share of pixels outside

The box has sides sqrt(1 - lam) times the image's, lam ~ Beta(alpha, alpha), its centre on the first maximum of
the partner's saliency, and is clipped at the border. Saliency is the fine-grained detector of OpenCV, bit for bit
but on the images' own device: differences of each pixel to its surroundings at six scales.

Departures. Both published codes hand the detector normalised float images, whose bytes it reads as if they were
8-bit pixels: their box lies almost at random, at one place for the whole batch. Here the detector sees 8-bit
pixels and every sample follows its own partner, as the paper reads. ``per="batch"`` is one lam and one box for
all, placed by the partner of the first sample, as in the codes.

What float images mean is said by ``mean`` and ``std``, the numbers that normalised them; pixels are then
8-bit roundings of ``image * std + mean``. Without them every image is stretched over its own range, which needs
no knowledge and reads no value back: the detector does not care about brightness, and little about contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import check_choice, check_images, check_statistics, per_channel
from mixaug.draws import Draws
from mixaug.ops import fused
from mixaug.ops.boxes import cutmix_boxes
from mixaug.ops.layout import reads_freely, take_rows, wide_dtype
from mixaug.ops.saliency import GREY_WEIGHTS, SCALES, eight_bits, saliency_maps, salient_places
from mixaug.plan import Paste, Plan
from mixaug.policies.cutmix import cutmix
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "SaliencyMix",
    "eight_bit_images",
    "fine_grained_saliency",
    "saliency_peak",
    "saliencymix",
    "saliencymix_boxes",
]

Channels = Literal["rgb", "bgr"]


def eight_bit_images(
    images: Tensor, mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None
) -> Tensor:
    """Images as 8-bit pixels, for detectors that expect such.

    Args:
        images: (B, C, H, W) uint8, which passes through, or floating point.
        mean, std: of the normalisation ``(pixel / 255 - mean) / std`` that made float images, one number or one
            for each channel; 0 and 1 for images in [0, 1]. None for both stretches each image over its own range.

    Returns:
        (B, C, H, W) uint8; rounded to nearest and clipped to 0 to 255. No gradient flows.

    Raises:
        ValueError: one of mean and std without the other, std not positive, another number of channels.
    """
    check_images("eight_bit_images", images, (2,))
    statistics = check_statistics("eight_bit_images", mean, std)
    if images.dtype == torch.uint8:
        return images
    pixels = images.detach()
    if pixels.dtype != torch.float64:
        pixels = pixels.float()
    if statistics is not None:
        statistics = per_channel("eight_bit_images", statistics, images.shape[1])
    if reads_freely(pixels):
        return eight_bits(pixels, statistics)
    if statistics is None:
        low, high = pixels.flatten(1).aminmax(dim=1)
        extent = (high - low).clamp(min=torch.finfo(pixels.dtype).tiny)
        pixels = (pixels - low.reshape(-1, 1, 1, 1)) / extent.reshape(-1, 1, 1, 1)
    else:
        means, stds = statistics
        # The sum goes channel by channel with plain numbers: a tensor made of them would cross to the device each call.
        planes = [pixels[:, c] * stds[c] + means[c] for c in range(images.shape[1])]
        pixels = torch.stack(planes, dim=1)
    return (pixels * 255).round_().clamp_(0, 255).to(torch.uint8)


def fine_grained_saliency(images: Tensor, *, channels: Channels = "rgb") -> Tensor:
    """Static fine-grained saliency, equal to OpenCV's bit for bit.

    Two binomial blurs of the grey image; at each of six scales the mean of the window around a pixel is compared
    with the pixel; brighter and darker differences are summed over the scales, scaled to 255 each, and added.
    The sum wraps around at 256, as it does there. The values are as exact for any size; OpenCV's are up to about
    256 x 256 pixels, where its float sums begin to round.

    Args:
        images: (B, C, H, W) uint8. Three channels become grey by the usual weights, one is grey already, and any
            other number is averaged.
        channels: order of three channels, ``"rgb"`` or ``"bgr"``.

    Returns:
        (B, H, W) uint8; zeros for a constant image, where OpenCV divides by zero.

    Raises:
        ValueError: another shape or order of channels.
        TypeError: images that are not uint8.
    """
    check_images("fine_grained_saliency", images, (2,))
    if images.dtype != torch.uint8:
        raise TypeError(
            f"fine_grained_saliency expects uint8 images, got {images.dtype}; make them with eight_bit_images"
        )
    if channels not in ("rgb", "bgr"):
        raise ValueError(f"fine_grained_saliency expects channels 'rgb' or 'bgr', got {channels!r}")
    # Three bodies give one result: on a CPU a few images at once, whose planes stay in its cache; a few kernels on a
    # CUDA device; operators over the whole batch elsewhere.
    if reads_freely(images):
        return saliency_maps(images, channels == "rgb")
    if fused.serves(images):
        found: Tensor = torch.ops.mixaug.fine_grained_saliency(images, channels == "rgb")
        return found
    return _detect(images, channels)


def _detect(images: Tensor, channels: Channels) -> Tensor:
    grey = _blur(_blur(_grey(images, channels)))
    height, width = grey.shape[1:]
    # Sums of whole numbers are exact in any order; int32 serves as long as they fit.
    whole = torch.int32 if height * width * 255 < 2**31 else torch.int64
    integral = grey.cumsum(1, dtype=whole).cumsum(2, dtype=whole)
    integral = torch.nn.functional.pad(integral, (1, 0, 1, 0))
    brighter: Tensor | None = None
    darker: Tensor | None = None
    centre = grey.float()
    for reach in SCALES:
        around = _window_sums(_window_sums(integral, 1, reach), 2, reach).sub_(grey)
        # A window of the pixel alone, in an image of one pixel, has no surroundings: 0 / 1.
        lines = _window_sides(height, reach, grey.device), _window_sides(width, reach, grey.device)
        count = (lines[0][:, None] * lines[1] - 1).clamp(min=1)
        # Whole steps towards zero, the fraction of each scale is lost as in 8-bit arithmetic.
        steps = (centre - around.float() / count.float()).trunc_()
        up, down = steps.clamp(min=0), steps.neg_().clamp_(min=0)
        brighter = up if brighter is None else brighter.add_(up)
        darker = down if darker is None else darker.add_(down)
    if brighter is None or darker is None:
        raise ValueError("fine_grained_saliency needs at least one scale")
    return (_full_range(brighter) + _full_range(darker)).remainder_(256).to(torch.uint8)


def _by_kernel(images: Tensor, is_rgb: bool) -> Tensor:
    from mixaug.ops.fused import saliency_kernels

    with fused.current(images.device):
        return saliency_kernels.detect(images, GREY_WEIGHTS if is_rgb else GREY_WEIGHTS[::-1], SCALES)


_kernel = torch.library.custom_op("mixaug::fine_grained_saliency", _by_kernel, mutates_args=())


@_kernel.register_fake
def _(images: Tensor, is_rgb: bool) -> Tensor:
    return torch.empty(images.shape[0], *images.shape[2:], dtype=torch.uint8, device=images.device)


def saliency_peak(saliency: Tensor) -> Tensor:
    """Position of each map's maximum, of equal ones the first in row-major order.

    Args:
        saliency: (R, H, W), any real dtype, without NaN.

    Returns:
        (R, 2) int64 y, x.

    Raises:
        ValueError: another shape.
    """
    if saliency.ndim != 3 or saliency.numel() == 0:
        raise ValueError(f"saliency_peak expects non-empty maps (R, H, W), got {tuple(saliency.shape)}")
    flat, width = saliency.flatten(1), saliency.shape[2]
    if reads_freely(flat) and flat.dtype in (torch.uint8, torch.float32, torch.float64):
        # NumPy's argmax is the first of equal values.
        first = torch.from_numpy(flat.numpy().argmax(1))
        return torch.stack([first // width, first % width], dim=1)
    # torch's argmax does not promise the first of equal values.
    places = torch.arange(flat.shape[1], device=flat.device)
    first = torch.where(flat == flat.amax(1, keepdim=True), places, flat.shape[1] - 1).amin(1)
    return torch.stack([first // width, first % width], dim=1)


def _salient_centers(
    images: Tensor, mean: float | Sequence[float] | None, std: float | Sequence[float] | None, channels: Channels
) -> Tensor:
    """(R, 2) int64 y, x: :func:`saliency_peak` of the images' maps."""
    pixels = images.detach()
    if not reads_freely(pixels):
        return saliency_peak(fine_grained_saliency(eight_bit_images(pixels, mean, std), channels=channels))
    # Where values may steer the work, few images need a map.
    statistics = check_statistics("saliencymix", mean, std)
    if pixels.dtype not in (torch.uint8, torch.float64):
        pixels = pixels.float()
    if statistics is not None:
        statistics = per_channel("saliencymix", statistics, pixels.shape[1])
    first, width = salient_places(pixels, statistics, channels == "rgb"), pixels.shape[3]
    return torch.stack([first // width, first % width], dim=1)


def saliencymix_boxes(lam: Tensor, saliency: Tensor) -> Tensor:
    """Boxes of area about 1 - lam around the peaks of the partners' saliency, clipped to the image.

    Args:
        lam: (R,) floating point in [0, 1]; float64 gives the authors' integers exactly.
        saliency: (R, H, W), any real dtype: row i is the map of the image that sample i receives from. From maps
            of the batch's images that is ``saliency[partner]``.

    Returns:
        (R, 4) int64 boxes y0, x0, y1, x1, half open; empty for a side below 2 pixels.

    Raises:
        ValueError: maps that do not fit lam.
    """
    return cutmix_boxes(lam, saliency_peak(saliency), saliency.shape[1:])


def saliencymix(
    images: Tensor, partner: Tensor, boxes: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """Paste each partner's box into each sample. Differentiable; the paste is CutMix's.

    Args:
        images: (B, C, H, W) floating point or uint8.
        partner: (B,) int64.
        boxes: (B, 4), or (1, 4) for all, int64, see :func:`saliencymix_boxes`.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``, and lam (B,) float32, the share of pixels kept.

    Raises:
        ValueError: shapes that do not fit, boxes outside the image, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("saliencymix", images, (2,))
    return cutmix(images, partner, boxes, out=out, inplace=inplace)


@register(
    "saliencymix",
    paper="SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better Regularization, ICLR 2021",
    arxiv="2006.01791",
    family="cut and paste",
)
class SaliencyMix(Policy):
    """Paste the most salient box of the partner into the sample; the label share is the area really kept.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0 is the authors' value for CIFAR and ImageNet.
        mean, std: of the normalisation that made float images, one number or one for each channel; 0 and 1 for
            images in [0, 1]. None for both stretches each image over its own range. Not used for uint8 images.
        channels: order of three channels, ``"rgb"`` or ``"bgr"``.
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`; ``labeling="ratio"`` keeps the drawn lam.
            ``per="batch"`` places one box for all, by the partner of the first sample.

    Raises:
        ValueError: an option out of range.
    """

    spatial = (2,)

    def __init__(
        self,
        alpha: float = 1.0,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        channels: Channels = "rgb",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        check_choice("SaliencyMix", "channels", channels, get_args(Channels))
        statistics = check_statistics("SaliencyMix", mean, std)
        self.mean = None if statistics is None else statistics[0]
        self.std = None if statistics is None else statistics[1]
        self.channels: Channels = channels

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if self.mean is not None and self.std is not None:
            per_channel("SaliencyMix", (self.mean, self.std), batch.images.shape[1])

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        lam = self.ratio(draws)
        images = take_rows(batch.images, partner[:1]) if self.per == "batch" else batch.images
        centers = _salient_centers(images, self.mean, self.std, self.channels)
        if self.per != "batch":
            centers = centers.index_select(0, partner)
        boxes = cutmix_boxes(lam, centers, batch.size)
        return Paste(partner=partner, lam=lam.float(), boxes=boxes, size=batch.size)


def _grey(images: Tensor, channels: Channels) -> Tensor:
    """(B, C, H, W) uint8 to (B, H, W) int32."""
    count = images.shape[1]
    if count == 1:
        return images[:, 0].int()
    if count == 3:
        weights = GREY_WEIGHTS if channels == "rgb" else GREY_WEIGHTS[::-1]
        planes = [images[:, c].int() * weight for c, weight in enumerate(weights)]
        return (planes[0] + planes[1] + planes[2] + (1 << 14)) >> 15
    return (2 * images.sum(1, dtype=torch.int32) + count) // (2 * count)


def _blur(grey: Tensor) -> Tensor:
    """Binomial 3 x 3 blur of (B, H, W) int32, rounded half up; the border is mirrored about its last pixel."""
    for axis in (1, 2):
        side = grey.shape[axis]
        before, after = grey.narrow(axis, min(1, side - 1), 1), grey.narrow(axis, max(side - 2, 0), 1)
        wide = torch.cat([before, grey, after], axis)
        grey = wide.narrow(axis, 0, side) + 2 * grey + wide.narrow(axis, 2, side)
    return (grey + 8) >> 4


def _window_sums(integral: Tensor, axis: int, reach: int) -> Tensor:
    """Sums over every pixel's window along one axis: reach - 1 pixels before it, reach after it, as far as there are.

    Args:
        integral: sums of all pixels before a place, with side + 1 places along the axis.
        axis: 1 or 2.
        reach: positive.
    """
    # Slices are read here: fetching by index goes value by value along the last axis.
    side = integral.shape[axis] - 1
    reach = min(reach, side)
    end = integral.narrow(axis, side, 1).expand([reach if d == axis else -1 for d in range(3)])
    sums = torch.cat([integral.narrow(axis, reach + 1, side - reach), end], axis)
    sums.narrow(axis, reach, side - reach).sub_(integral.narrow(axis, 1, side - reach))
    return sums


def _window_sides(side: int, reach: int, device: torch.device) -> Tensor:
    """(side,) int64, pixels in those windows."""
    place = torch.arange(side, device=device)
    return (place + reach + 1).clamp(max=side) - (place - reach + 1).clamp(min=0)


def _full_range(total: Tensor) -> Tensor:
    """(B, H, W) sums scaled so that each map's maximum is 255, in whole numbers; zeros stay."""
    largest = total.amax((1, 2), keepdim=True).clamp(min=1)
    # One float32 division comes first, then a product that cannot round a value below a whole number up to it.
    return ((total / largest).to(wide_dtype(total.device)) * 255).floor_()
