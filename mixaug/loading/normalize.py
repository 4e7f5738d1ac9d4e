"""From uint8 pixels to normalised floats, on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from mixaug.checks import check_dense, shown
from mixaug.loading.crops import check_windows, crop_and_flip
from mixaug.ops import fused
from mixaug.ops.layout import carries_gradient, channels_last_format, reads_freely
from mixaug.ops.parts import parts_of

__all__ = ["Normalize"]

#: Dtypes that the kernel reads and, but for the first, writes.
KERNEL_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
#: Axes of the tensors that some memory formats are for.
_AXES = {torch.channels_last: 4, torch.channels_last_3d: 5}


class Normalize:
    """``(image / 255 - mean) / std`` for uint8 images, ``(image - mean) / std`` for floating ones.

    Computed in float32 (float64 for float64 images), then cast.

    Args:
        mean, std: one number for each channel, or one for all, in units of 0..1; 0 and 1 where None.
        dtype: dtype of the result. None gives float32 for normalised uint8 images and otherwise the images' own
            dtype; with no mean, std and dtype uint8 images stay uint8.
        memory_format: memory format of the result; None keeps the images'.

    Raises:
        ValueError: std not positive, mean or std not finite, or of another length than the images' channels, a mean
            above 1 for uint8 images, a memory format of other images.
        TypeError: a memory format that is none, a dtype that is not floating (uint8 is fine without mean and std), or
            images that are neither uint8 nor floating.
    """

    def __init__(
        self,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        self.scales = mean is not None or std is not None
        self.mean = _numbers("mean", 0.0 if mean is None else mean)
        self.std = _numbers("std", 1.0 if std is None else std)
        if min(self.std) <= 0:
            raise ValueError(f"std expects positive numbers, got {self.std}")
        if len({len(self.mean), len(self.std)} - {1}) > 1:
            raise ValueError(f"mean has {len(self.mean)} numbers, but std has {len(self.std)}")
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype expects a torch.dtype, got {shown(dtype)}")
        if dtype is not None and not dtype.is_floating_point and (self.scales or dtype != torch.uint8):
            raise TypeError(f"dtype expects a floating type, or uint8 without mean and std, got {dtype}")
        if memory_format is not None and not isinstance(memory_format, torch.memory_format):
            raise TypeError(f"memory_format expects one of torch, such as torch.channels_last, got {memory_format!r}")
        self.dtype = dtype
        self.memory_format = memory_format
        self._made: dict[tuple[torch.device, torch.dtype, int, bool], tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images (B, C, ...). The argument is left as it is."""
        self._check(images)
        result = self._result_dtype(images)
        if result is None:
            return self._laid_out(images.to(self.dtype or images.dtype))
        # Two bodies give one result: on a CUDA device one kernel, which reads every value once and writes it once.
        if self._by_kernel(images, result):
            return self._windows(images, result)
        wide = torch.promote_types(images.dtype, torch.float32)
        offset, scale = self._constants(images, wide)
        if reads_freely(images):
            return self._some_at_once(images, wide, result, offset, scale)
        # The first step copies, the next two work in the copy.
        values = images.to(wide, copy=True)
        if self.scales:
            values.sub_(offset)
        # The layout comes last: arithmetic with one number per channel is slow on channels_last in a CPU.
        return self._laid_out(values.mul_(scale).to(result))

    def cropped(
        self,
        images: Tensor,
        rows: Tensor,
        offsets: Tensor | None = None,
        flips: Tensor | None = None,
        *,
        padding: int = 0,
        padding_mode: str = "zeros",
    ) -> Tensor:
        """Normalise what :func:`mixaug.loading.crop_and_flip` makes of its arguments; padding is black before that.

        Args:
            images: (N, C, H, W) uint8 or floating; (N, C, ...) where nothing is cropped or flipped.
            rows, offsets, flips, padding, padding_mode: see :func:`mixaug.loading.crop_and_flip`.

        Returns:
            (B, C, ...), a copy.

        Raises:
            ValueError, TypeError: as the two raise them.
        """
        self._check(images)
        moves = offsets is not None or flips is not None
        if moves:
            check_windows(images, rows, offsets, flips, padding, padding_mode)
        result = self._result_dtype(images)
        if result is not None and images.is_contiguous() and len(rows) and self._by_kernel(images, result):
            return self._windows(images, result, rows, offsets, flips, padding, padding_mode == "reflect")
        if not moves:
            return self(images.index_select(0, rows))
        return self(crop_and_flip(images, rows, offsets, flips, padding=padding, padding_mode=padding_mode))

    def _check(self, images: Tensor) -> None:
        check_dense("Normalize", "images", images)
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images expect uint8 or a floating type, got {images.dtype}")
        if self.dtype == torch.uint8 and images.dtype != torch.uint8:
            raise TypeError(f"dtype=torch.uint8 keeps uint8 images, but these are {images.dtype}")
        if images.dtype == torch.uint8 and max(map(abs, self.mean)) > 1:
            raise ValueError(
                f"mean and std of uint8 images are in units of 0..1, got mean={self.mean}, std={self.std}: divide both "
                "by 255"
            )
        axes = None if self.memory_format is None else _AXES.get(self.memory_format)
        if axes is not None and images.ndim != axes:
            raise ValueError(
                f"memory_format={self.memory_format} is one of inputs with {axes} axes, got shape {tuple(images.shape)}"
            )

    def _result_dtype(self, images: Tensor) -> torch.dtype | None:
        """Dtype of normalised images; None where nothing is computed."""
        to_unit = images.dtype == torch.uint8 and self.dtype != torch.uint8 and (self.scales or self.dtype is not None)
        if not self.scales and not to_unit:
            return None
        return self.dtype or (torch.float32 if images.dtype == torch.uint8 else images.dtype)

    def _by_kernel(self, images: Tensor, result: torch.dtype) -> bool:
        known = images.ndim == 4 and images.dtype in KERNEL_DTYPES and result in KERNEL_DTYPES[1:]
        layouts = (torch.contiguous_format, torch.channels_last)
        lies = images.is_contiguous() or channels_last_format(images) is not None
        fits = self.memory_format in layouts or (lies and self.memory_format in (None, torch.preserve_format))
        # A compiler makes one kernel of the torch operators as well.
        free = not torch.compiler.is_compiling() and not carries_gradient(images)
        return known and fits and free and images.numel() > 0 and fused.serves(images)

    def _windows(
        self,
        images: Tensor,
        result: torch.dtype,
        rows: Tensor | None = None,
        corners: Tensor | None = None,
        flips: Tensor | None = None,
        padding: int = 0,
        reflects: bool = False,
    ) -> Tensor:
        offset, scale = self._constants(images, torch.float32)
        last = self.memory_format == torch.channels_last
        if self.memory_format in (None, torch.preserve_format):
            last = not images.is_contiguous()
        normalised: Tensor = torch.ops.mixaug.normalize(
            images.detach(), rows, corners, flips, padding, reflects, offset, scale, result, last
        )
        return normalised

    def _some_at_once(
        self, images: Tensor, wide: torch.dtype, dtype: torch.dtype, offset: Tensor, scale: Tensor
    ) -> Tensor:
        """The same steps on a CPU, for so many images at a time that the cache holds what is between them."""
        form = torch.preserve_format if self.memory_format is None else self.memory_format
        result = torch.empty_like(images, dtype=dtype, memory_format=form)
        # Arithmetic with one number per channel is slow on channels_last, so it is done in the layout of the images.
        direct = dtype == wide and (form == torch.preserve_format or result.stride() == images.stride())
        bytes_per_row = images[:1].numel() * scale.element_size()
        for part in parts_of(len(images), bytes_per_row):
            values = result[part].copy_(images[part]) if direct else images[part].to(wide, copy=True)
            if self.scales:
                values.sub_(offset)
            values.mul_(scale)
            if not direct:
                # One copy that changes dtype and layout takes twice the time of two.
                result[part] = values.to(dtype)
        return result

    def _laid_out(self, images: Tensor) -> Tensor:
        if self.memory_format in (None, torch.preserve_format):
            return images
        return images.contiguous(memory_format=self.memory_format)

    def _constants(self, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """255 mean and 1 / (255 std), rounded once, shaped for these images; 255 only where they are uint8."""
        key = (images.device, dtype, images.ndim, images.dtype == torch.uint8)
        if key not in self._made:
            full = 255.0 if images.dtype == torch.uint8 else 1.0
            offset = [full * value for value in self.mean]
            scale = [1.0 / (full * value) for value in self.std]
            shape = (-1, *[1] * (images.ndim - 2))
            self._made[key] = (
                torch.tensor(offset, dtype=dtype, device=images.device).view(shape),
                torch.tensor(scale, dtype=dtype, device=images.device).view(shape),
            )
        count = max(len(self.mean), len(self.std))
        if images.ndim < 2 or count not in (1, images.shape[1]):
            raise ValueError(f"mean and std have {count} numbers, but the images have shape {tuple(images.shape)}")
        return self._made[key]

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std}, dtype={self.dtype})"


def _result(images: Tensor, rows: Tensor | None, dtype: torch.dtype, last: bool) -> Tensor:
    shape = (len(images) if rows is None else len(rows), *images.shape[1:])
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=layout)


def _normalized(
    images: Tensor,
    rows: Tensor | None,
    corners: Tensor | None,
    flips: Tensor | None,
    padding: int,
    reflects: bool,
    offset: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    last: bool,
) -> Tensor:
    """Windows (B, C, H, W) of images, less ``offset``, times ``scale``, by one kernel."""
    from mixaug.ops.fused import pixels_kernels

    rows, corners, flips = (None if given is None else given.contiguous() for given in (rows, corners, flips))
    out = _result(images, rows, dtype, last)
    with fused.current(images.device):
        pixels_kernels.normalize(images, rows, corners, flips, padding, reflects, offset, scale, out)
    return out


_operator = torch.library.custom_op("mixaug::normalize", _normalized, mutates_args=())


@_operator.register_fake
def _(images: Tensor, rows: Tensor | None, *others: Any) -> Tensor:
    dtype, last = others[-2:]
    return _result(images, rows, dtype, last)


def _numbers(name: str, values: float | Sequence[float] | Tensor) -> list[float]:
    try:
        # Arrays, tensors and the lists of a config all have numbers of a kind of their own.
        found = values.tolist() if hasattr(values, "tolist") else values
        several = (
            list(found) if isinstance(found, Iterable) and not isinstance(found, (str, bytes, Mapping)) else [found]
        )
        numbers = [float(value) for value in several if isinstance(value, Real) and not isinstance(value, bool)]
    except (TypeError, ValueError):
        numbers, several = [], []
    if len(numbers) < len(several) or not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} expects finite numbers, one or one for each channel, got {shown(values)}")
    return numbers
