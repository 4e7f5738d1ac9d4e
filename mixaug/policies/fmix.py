"""FMix (arXiv:2002.12047): irregular blobs, made by thresholding a low-frequency random image.

    grey = real inverse FFT of  (a + i b) / max(|f|, 1 / longest side)^decay,   a, b standard normal
    x'   = x where grey is among the k largest, x[partner] elsewhere,   k = lam N rounded up or down, half and half

lam ~ Beta(alpha, alpha) is the label share as drawn; the pixels differ from it by less than one. With softness s
(``max_soft``, clamped to lam and 1 - lam) the s N pixels on either side of the threshold get a linear ramp.

``spectrum="isotropic"`` is what the paper describes: blobs with no preferred direction. Waves along the first axes
alone appear once in a half spectrum and waves along the last axis twice; they are weighted so that both have the
same energy, for odd sides too. ``spectrum="reference"`` is the authors' code, on which the published numbers rest:
it takes the first two rows of the noise for the real and imaginary part, so the image holds only the horizontal
waves 0 and 1 and one side of the vertical ones. The authors draw one mask per batch: ``per="batch"``.

``frequencies=k`` keeps the lowest k frequencies of every axis (waves per image 0, ..., k - 1) and builds the grey
image with one small matrix product per axis: far fewer random numbers and no FFT. At 224 pixels and k = 16 the
mask differs in about 0.06 % of the pixels from the full one.

``sources=k`` cuts the grey image at k - 1 thresholds: the darker a pixel, the later the sample that it shows. Shares
w ~ Dirichlet(alpha, ..., alpha), and each sample shows w N pixels, rounded up or down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.checks import (
    check_choice,
    check_images,
    check_not_negative,
    check_out,
    check_partner,
    check_positive,
    check_share,
    check_whole,
)
from mixaug.draws import Draws
from mixaug.ops import fused
from mixaug.ops.blend import blend_mask
from mixaug.ops.layout import wide_dtype
from mixaug.ops.masks import ranks
from mixaug.ops.parts import in_parts
from mixaug.plan import MaskBlend, Plan
from mixaug.policies.several import Regions, check_sources, rows_of, shares_of_regions
from mixaug.policy import Policy, SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["FMix", "fmix", "fourier_image", "fourier_mask", "fourier_noise_shape"]

Spectrum = Literal["isotropic", "reference"]
SPECTRA = ("isotropic", "reference")


def fourier_noise_shape(
    size: Sequence[int], *, spectrum: Spectrum = "isotropic", frequencies: int | None = None
) -> tuple[int, ...]:
    """Shape (1, *frequencies of each axis, 2) of the noise of one mask; real and imaginary part come last.

    Args:
        size: spatial size of the images: (H, W), or one or three sides.
        spectrum: ``"isotropic"``: (1, H, W // 2 + 1, 2). ``"reference"``: the same for even W, one column more
            for odd W, as in the authors' code; for (H, W) with H >= 2 only.
        frequencies: keep the lowest ones of every axis: (1, 2k - 1, k, 2) within the bounds of the above.

    Raises:
        ValueError: an unknown spectrum, frequencies below 1, or a size that the spectrum is not made for.
    """
    _check_spectrum("fourier_noise_shape", size, spectrum, frequencies)
    *leading, last = size
    if spectrum == "reference":
        return (1, *leading, min(last // 2 + 1 + last % 2, last), 2)
    half = last // 2 + 1
    if frequencies is None:
        return (1, *leading, half, 2)
    return (1, *(min(2 * frequencies - 1, side) for side in leading), min(frequencies, half), 2)


def fourier_image(
    noise: Tensor,
    size: Sequence[int],
    *,
    decay: float,
    spectrum: Spectrum = "isotropic",
    frequencies: int | None = None,
) -> Tensor:
    """Low-frequency random images, scaled to [0, 1]. Deterministic given the noise.

    Args:
        noise: (R, *fourier_noise_shape(size)) float32 or float64 standard normals. ``"reference"`` reads the first
            two rows alone, so (R, 1, 2, n, 2) will do.
        size: (H, W), or one or three sides.
        decay: slope of the amplitude over the frequency, positive; larger is smoother.
        spectrum, frequencies: see :func:`fourier_noise_shape`.

    Returns:
        (R, 1, *size) of the dtype of ``noise``; constant images come out as zeros.

    Raises:
        ValueError: noise of another shape, or an option out of range.
    """
    size = tuple(size)
    _check_noise("fourier_image", noise, size, spectrum, frequencies)

    def scaled(noise: Tensor) -> Tensor:
        grey = _grey("fourier_image", noise, size, decay, spectrum, frequencies).flatten(1)
        grey = grey - grey.amin(1, keepdim=True)
        grey = grey / grey.amax(1, keepdim=True).clamp(min=torch.finfo(grey.dtype).tiny)
        return grey.reshape(-1, 1, *size)

    return in_parts(scaled, noise, bytes_per_row=math.prod(size) * noise.element_size())


def fourier_mask(
    noise: Tensor,
    lam: Tensor,
    size: Sequence[int],
    *,
    decay: float,
    round_up: Tensor,
    max_soft: float = 0.0,
    spectrum: Spectrum = "isotropic",
    frequencies: int | None = None,
) -> Tensor:
    """Masks of smooth blobs that cover an exact share of the image.

    Args:
        noise: see :func:`fourier_image`.
        lam: (R,) floating point in [0, 1], share of the own image.
        size: (H, W), or one or three sides.
        decay: slope of the amplitude over the frequency, positive.
        round_up: (R,) bool: the number of own pixels is lam N rounded up, else down.
        max_soft: share of the pixels in [0, 0.5] on each side of the threshold that get a linear ramp; clamped to
            lam and 1 - lam.
        spectrum, frequencies: see :func:`fourier_noise_shape`.

    Returns:
        (R, 1, *size): bool, True where the own image shows; float32 in [0, 1] with ``max_soft > 0``. Exactly
        ceil or floor of lam N pixels are own (for a ramp: in sum). Equal grey values go by position.

    Raises:
        ValueError: shapes that do not fit, or an option out of range.
    """
    size = tuple(size)
    if not 0.0 <= max_soft <= 0.5:
        raise ValueError(f"fourier_mask expects max_soft in [0, 0.5], got {max_soft!r}")
    check_share("fourier_mask", "lam", lam, noise.shape[0])
    if lam.shape[0] != noise.shape[0] or round_up.shape != lam.shape or round_up.dtype != torch.bool:
        raise ValueError(
            f"fourier_mask expects lam ({noise.shape[0]},) and round_up ({noise.shape[0]},) bool for noise "
            f"{tuple(noise.shape)}, got {tuple(lam.shape)} and {tuple(round_up.shape)} {round_up.dtype}"
        )
    _check_noise("fourier_mask", noise, size, spectrum, frequencies)

    def masks(noise: Tensor, lam: Tensor, round_up: Tensor) -> Tensor:
        grey = _grey("fourier_mask", noise, size, decay, spectrum, frequencies).flatten(1)
        count = own_count(lam, math.prod(size), round_up)
        mask = largest(grey, count) if max_soft == 0 else _ramp(grey, count, lam, max_soft)
        return mask.reshape(-1, 1, *size)

    return in_parts(masks, noise, lam, round_up, bytes_per_row=math.prod(size) * noise.element_size())


def own_count(lam: Tensor, pixels: int, round_up: Tensor) -> Tensor:
    """(R,) int64 number of own pixels: lam times ``pixels``, rounded up or down."""
    exact = lam.to(wide_dtype(lam.device)) * pixels
    return torch.where(round_up, exact.ceil(), exact.floor()).long()


def level_sets(grey: Tensor, shares: Tensor, offset: Tensor) -> Tensor:
    """Divide images by brightness into regions of given shares.

    Region m holds ``floor(N c_m + offset) - floor(N c_{m-1} + offset)`` of N pixels, c the shares summed up: their own
    number of pixels rounded up or down, and with a uniform offset right on average.

    Args:
        grey: (R, N) floating; the brightest pixels are region 0, and of equal ones the first come first.
        shares: (R, M) floating, rows sum to 1.
        offset: (R,) floating in [0, 1).

    Returns:
        (R, N) int64 region of each pixel.
    """
    wide = wide_dtype(grey.device)
    ends = (shares[:, :-1].to(wide).cumsum(1) * grey.shape[1] + offset.to(wide)[:, None]).floor().long()
    return torch.searchsorted(ends.contiguous(), ranks(grey), right=True)


def largest(scores: Tensor, count: Tensor) -> Tensor:
    """True for the ``count`` largest scores of each row; of equal ones the first. (R, N), (R,) int64 -> (R, N)."""
    # Three bodies give one result: on a CPU partial sorting row by row beats a full sort of all rows tenfold, on a CUDA
    # device one kernel looks for each row's threshold.
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        return _largest_by_partition(scores, count)
    if fused.serves(scores, count) and scores.dtype == torch.float32:
        mask: Tensor = torch.ops.mixaug.largest(scores.detach(), count)
        return mask
    return _largest_by_sort(scores, count)


def _largest_by_sort(scores: Tensor, count: Tensor) -> Tensor:
    last = (count - 1).clamp(min=0)[:, None]
    threshold = scores.sort(dim=1, descending=True).values.gather(1, last)
    above, tied = scores > threshold, scores == threshold
    room = count[:, None] - above.sum(1, keepdim=True)
    return above | (tied & (tied.cumsum(1) <= room))


def _largest_by_partition(scores: Tensor, count: Tensor) -> Tensor:
    rows = scores.detach().numpy()
    mask = np.empty(rows.shape, dtype=bool)
    total = rows.shape[1]
    for row, own, k in zip(rows, mask, count.tolist(), strict=True):
        if k in (0, total):
            own[:] = k > 0
            continue
        threshold = np.partition(row, total - k)[total - k]
        np.greater_equal(row, threshold, out=own)
        surplus = np.count_nonzero(own) - k
        if surplus:
            own[np.flatnonzero(row == threshold)[-surplus:]] = False
    return torch.from_numpy(mask)


def _by_kernel(scores: Tensor, count: Tensor) -> Tensor:
    from mixaug.ops.fused import largest_kernel

    with fused.current(scores.device):
        return largest_kernel.largest(scores.contiguous(), count.expand(len(scores)).contiguous())


_kernel = torch.library.custom_op("mixaug::largest", _by_kernel, mutates_args=())


@_kernel.register_fake
def _(scores: Tensor, count: Tensor) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def _ramp(grey: Tensor, count: Tensor, lam: Tensor, max_soft: float) -> Tensor:
    """Rank by rank: 1, then 2m values from 1 down to 0 around rank ``count``, then 0."""
    lam = lam.to(wide_dtype(lam.device))
    softness = torch.minimum(lam, 1 - lam).clamp(max=max_soft)
    half = (grey.shape[1] * softness).long()[:, None]
    step = ranks(grey) - (count[:, None] - half)
    ramp = 1 - step.float() / (2 * half - 1).clamp(min=1)
    return torch.where(half > 0, ramp.clamp(0, 1), (step < 0).float())


def _check_spectrum(what: str, size: Sequence[int], spectrum: str, frequencies: int | None) -> None:
    check_choice(what, "spectrum", spectrum, SPECTRA)
    if len(size) not in (1, 2, 3) or min(size) < 1:
        raise ValueError(f"{what} expects one to three positive sides as size, got {tuple(size)}")
    if frequencies is not None:
        check_whole(what, "frequencies", frequencies)
    if spectrum == "reference":
        if frequencies is not None:
            raise ValueError(f"{what}: spectrum='reference' has few frequencies already; leave frequencies at None")
        if len(size) != 2 or size[0] < 2:
            raise ValueError(
                f"{what}: spectrum='reference' reads two rows of an (H, W) spectrum; size {tuple(size)} has none, "
                "use 'isotropic'"
            )


def _check_noise(what: str, noise: Tensor, size: tuple[int, ...], spectrum: Spectrum, frequencies: int | None) -> None:
    """Raise unless the noise is that of images of this size, before it is worked on in parts."""
    expected = fourier_noise_shape(size, spectrum=spectrum, frequencies=frequencies)
    shapes = [expected]
    if spectrum == "reference":
        shapes.append((1, 2, *expected[2:]))
    if noise.dtype not in (torch.float32, torch.float64) or tuple(noise.shape[1:]) not in shapes:
        raise ValueError(
            f"{what} expects noise (R, {', '.join(map(str, expected))}) float32 or float64 for size {size}, "
            f"spectrum={spectrum!r}, frequencies={frequencies}, got {tuple(noise.shape)} {noise.dtype}"
        )


def _grey(
    what: str, noise: Tensor, size: tuple[int, ...], decay: float, spectrum: Spectrum, frequencies: int | None
) -> Tensor:
    """(R, *size) low-frequency images of any scale: only their order matters to a mask."""
    decay = check_positive(what, "decay", decay)
    expected = fourier_noise_shape(size, spectrum=spectrum, frequencies=frequencies)
    axes = _axes(size, expected[1:-1], noise)
    amplitude = _amplitude(axes, size, decay)
    if spectrum == "reference":
        first = noise[:, 0, 0] * amplitude[0, :, None]
        second = noise[:, 0, 1] * amplitude[1, :, None]
        return torch.fft.irfftn(torch.complex(first, second), s=size, dim=(1, 2))
    # What the inverse transform reads once per pair of conjugate waves elsewhere, it reads once in all here.
    alone = [0] if size[-1] % 2 else [0, size[-1] // 2]
    columns = torch.arange(expected[-2], device=noise.device)
    once = columns == alone[0] if len(alone) == 1 else (columns == alone[0]) | (columns == alone[1])
    amplitude = torch.where(once, amplitude * math.sqrt(2), amplitude)
    spectrum_values = torch.view_as_complex(noise[:, 0].contiguous()) * amplitude
    if frequencies is None:
        # The leading axes come first and the half axis last: what the half spectrum lacks of symmetry is then dropped
        # in the same way on every device.
        leading = tuple(range(1, len(size)))
        if leading:
            spectrum_values = torch.fft.ifftn(spectrum_values, dim=leading)
        return torch.fft.irfft(spectrum_values, n=size[-1], dim=-1)
    return _synthesis(spectrum_values, axes, size)


def _axes(size: tuple[int, ...], counts: Sequence[int], noise: Tensor) -> list[Tensor]:
    """Frequencies in cycles per pixel of each axis of the noise, in the order 0, 1, ..., -2, -1 of the FFT."""
    axes = []
    for d, (side, count) in enumerate(zip(size, counts, strict=True)):
        line = torch.arange(count, device=noise.device, dtype=noise.dtype)
        if d < len(size) - 1:
            line = torch.where(line > (count - 1) // 2, line - count, line)
        else:
            line = torch.minimum(line, side - line)  # the reference's last column of an odd width is a negative one
        axes.append(line / side)
    return axes


def _amplitude(axes: list[Tensor], size: tuple[int, ...], decay: float) -> Tensor:
    squares: Tensor | None = None
    for d, line in enumerate(axes):
        square = (line * line).reshape([-1 if a == d else 1 for a in range(len(axes))])
        squares = square if squares is None else squares + square
    if squares is None:
        raise ValueError("a spectrum needs at least one axis")
    return squares.sqrt().clamp(min=1 / max(size)) ** -decay


def _synthesis(values: Tensor, axes: list[Tensor], size: tuple[int, ...]) -> Tensor:
    """The inverse transform of a few low frequencies: one matrix product for each axis."""
    # In half precision the waves are off by whole pixels, and torch has no complex product at all.
    with torch.autocast(values.device.type, enabled=False):
        for d, (line, side) in enumerate(zip(axes[:-1], size[:-1], strict=True)):
            angle = 2 * math.pi * torch.outer(torch.arange(side, device=line.device, dtype=line.dtype), line)
            waves = torch.polar(torch.ones_like(angle), angle)
            values = torch.movedim(torch.tensordot(values, waves, dims=([1 + d], [1])), -1, 1 + d)
        side = size[-1]
        angle = 2 * math.pi * torch.outer(axes[-1], torch.arange(side, device=values.device, dtype=axes[-1].dtype))
        # Every column but the ones without a conjugate stands for two waves.
        columns = torch.arange(axes[-1].shape[0], device=values.device)
        pair = torch.where((columns == 0) | (2 * columns == side), 1.0, 2.0).to(angle.dtype)[:, None]
        waves = torch.cat([angle.cos() * pair, -angle.sin() * pair])
        return torch.cat([values.real, values.imag], dim=-1) @ waves


def fmix(images: Tensor, partner: Tensor, mask: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
    """Mix every sample with its partner under a mask. Differentiable.

    A boolean mask copies pixels; a float mask blends, half precision and uint8 in float32, uint8 rounded half to
    even.

    Args:
        images: (B, C, H, W), or with one or three spatial axes; floating point or uint8.
        partner: (B,) int64.
        mask: (B, 1, *size), or (1, 1, *size) for all, bool or floating point in [0, 1]: share of the own image.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``.

    Raises:
        ValueError: shapes that do not fit, partners outside the batch.
        TypeError: another dtype.
    """
    check_images("fmix", images, (1, 2, 3))
    check_partner("fmix", partner, images.shape[0])
    check_out("fmix", images, out, inplace)
    size = tuple(images.shape[2:])
    if mask.ndim != images.ndim or mask.shape[0] not in (1, images.shape[0]) or tuple(mask.shape[1:]) != (1, *size):
        raise ValueError(f"fmix expects mask {(images.shape[0], 1, *size)} or one for all, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"fmix expects a bool or floating point mask, got {mask.dtype}")
    return blend_mask(images, partner, mask.squeeze(1), out=out, inplace=inplace)


@register("fmix", paper="FMix: Enhancing Mixed Sample Data Augmentation, 2020", arxiv="2002.12047", family="masks")
class FMix(Policy):
    """Copy irregular blobs of the partner into the sample; the label share is the drawn lam.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0 is the authors' value for all data sets.
        decay: slope of the amplitude over the frequency, positive; 3.0 is the authors' value.
        max_soft: share of the pixels, in [0, 0.5], on each side of a blob's edge that are blended; 0 copies.
        spectrum: ``"isotropic"``, as the paper means, or ``"reference"``, as the authors' code runs, for comparing
            with published numbers; that one is for images (B, C, H, W) with at least two rows.
        frequencies: keep only the lowest ones of every axis: cheaper masks, nearly the same blobs; None keeps all.
        sources: samples in each mixture, the sample itself among them, 2 to 64; from 3 on shares ~ Dirichlet(alpha)
            and the others come from the batch, so that ``max_soft`` and options about pairs are refused.
        ratio, pairing, labeling, per: see :class:`mixaug.Policy`; ``labeling="area"`` counts the own pixels.

    Raises:
        ValueError: an option out of range.
    """

    shared_defaults: ClassVar[SharedOptions] = {"labeling": "ratio"}

    def __init__(
        self,
        alpha: float = 1.0,
        decay: float = 3.0,
        max_soft: float = 0.0,
        spectrum: Spectrum = "isotropic",
        frequencies: int | None = None,
        sources: int = 2,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, **shared)
        if check_not_negative("FMix", "max_soft", max_soft) > 0.5:
            raise ValueError(f"FMix expects max_soft in [0, 0.5], got {max_soft!r}")
        _check_spectrum("FMix", (2, 2), spectrum, frequencies)
        self.decay = check_positive("FMix", "decay", decay)
        self.max_soft = float(max_soft)
        self.spectrum: Spectrum = spectrum
        self.frequencies = None if frequencies is None else int(frequencies)
        self.sources = check_sources(self, sources, shared)
        self.labels_as_drawn = shared.get("labeling", "ratio") == "ratio"
        if self.max_soft and self.sources > 2:
            raise ValueError(
                f"FMix blends the edge between two samples, max_soft={max_soft!r}: leave out sources={sources}"
            )

    def check(self, batch: Batch) -> None:
        super().check(batch)
        _check_spectrum("FMix", batch.size, self.spectrum, self.frequencies)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        size = batch.size
        if self.sources > 2:
            return self._several(batch, partner, draws)
        lam = self.ratio(draws)
        round_up = draws.uniform() < 0.5
        shape = fourier_noise_shape(size, spectrum=self.spectrum, frequencies=self.frequencies)
        if self.spectrum == "reference":
            shape = (1, 2, *shape[2:])  # the two rows that it reads
        mask = fourier_mask(
            draws.normal(shape),
            lam,
            size,
            decay=self.decay,
            round_up=round_up,
            max_soft=self.max_soft,
            spectrum=self.spectrum,
            frequencies=self.frequencies,
        )
        pixels = math.prod(size)
        share = (own_count(lam, pixels, round_up).to(lam.dtype) / pixels).float()
        return MaskBlend(partner=partner, lam=lam.float(), size=size, mask=mask.squeeze(1), share=share)

    def _several(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        size = batch.size
        rows = rows_of(self, self.sources, batch, partner, draws)
        drawn = draws.dirichlet(self.alpha, self.sources)
        shape = fourier_noise_shape(size, spectrum=self.spectrum, frequencies=self.frequencies)
        grey = fourier_image(
            draws.normal(shape), size, decay=self.decay, spectrum=self.spectrum, frequencies=self.frequencies
        )
        regions = level_sets(grey.flatten(1), drawn, draws.uniform()).reshape(-1, *size)
        shares = drawn.float() if self.labels_as_drawn else shares_of_regions(regions, self.sources)
        weights = shares.expand(len(batch), self.sources)
        return Regions(
            partner=partner, lam=drawn[:, 0].float(), weights=weights, size=size, rows_in=rows, regions=regions
        )
