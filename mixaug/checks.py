"""Checks of what users hand in. Each error names the argument, what came and what was expected."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from mixaug.near import did_you_mean

IMAGE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)
SMALL_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64)
PER = ("sample", "batch", "pair")


def check_images(what: str, images: Tensor, spatial: Sequence[int] | None) -> None:
    """Raise unless ``images`` is a non-empty batch that a policy with these spatial axes can mix.

    Args:
        what: name of the caller, for the message.
        images: (B, ...) tensor.
        spatial: numbers of spatial axes that are fine; None for any shape.
    """
    check_dense(what, "images", images)
    if images.dtype not in IMAGE_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in IMAGE_DTYPES)
        raise TypeError(f"{what} expects images of dtype {names}, got {images.dtype}")
    if images.ndim < 2:
        raise ValueError(f"{what} expects a batch of images (B, ...), got shape {tuple(images.shape)}")
    if images.numel() == 0:
        raise ValueError(f"{what} got an empty batch of images, shape {tuple(images.shape)}")
    if spatial is not None and images.ndim - 2 not in spatial:
        shapes = " or ".join(_shape_with(axes) for axes in spatial)
        raise ValueError(f"{what} works on pixels: it expects images {shapes}, got shape {tuple(images.shape)}")


def check_dense(what: str, name: str, tensor: Any) -> None:
    """Raise a TypeError unless ``tensor`` is an ordinary tensor: not nested, sparse, quantized or something else."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} expects {name} as a torch.Tensor, got {type(tensor).__name__}{_nested_hint(tensor)}")
    if tensor.is_nested:
        kind, way_out = "a nested tensor", "pad it with .to_padded_tensor(0.0)"
        if name != "labels":
            way_out += " and mix the lengths, MixedBatch.extent"
    elif tensor.is_quantized:
        kind, way_out = "a quantized tensor", "pass .dequantize()"
    elif tensor.layout != torch.strided:
        kind, way_out = f"a tensor of layout {str(tensor.layout).removeprefix('torch.')}", "pass .to_dense()"
    else:
        return
    raise TypeError(f"{what} expects {name} as an ordinary dense tensor, got {kind}; {way_out}")


def _nested_hint(value: Any) -> str:
    if isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value)):
        return "; nested inputs are not supported: flatten the batch, so that every entry is one tensor"
    return ""


def check_labels(what: str, labels: Tensor | None, images: Tensor) -> None:
    """Raise unless ``labels`` is None, class ids (B,), dense float targets (B, K) or float (B,), beside the images."""
    batch_size = images.shape[0]
    if labels is None:
        return
    check_label_kind(what, labels)
    if labels.shape[0] != batch_size:
        raise ValueError(f"{what} got {batch_size} images but {labels.shape[0]} labels")
    if labels.device != images.device:
        raise ValueError(f"{what} got images on {images.device} but labels on {labels.device}")


def check_label_kind(what: str, labels: Any) -> None:
    """Raise unless ``labels`` are class ids (B,), dense float targets (B, K) or float (B,); says the way there."""
    check_dense(what, "labels", labels)
    if labels.ndim == 0:
        raise ValueError(
            f"{_wrong_labels(what, labels)}, the label of one sample: mix batches, after the samples are collated"
        )
    if labels.ndim not in (1, 2):
        single = labels.ndim > 2 and 1 in labels.shape[1:]
        axis = f"labels.squeeze({tuple(labels.shape).index(1, 1)}) takes the axis of one away; " if single else ""
        raise ValueError(f"{_wrong_labels(what, labels)}; {axis}replay label maps with MixedBatch.apply")
    if labels.is_complex():
        raise TypeError(_wrong_labels(what, labels))
    if labels.ndim == 1 and labels.dtype == torch.bool:
        raise TypeError(
            f"{_wrong_labels(what, labels)}; pass labels.long() as ids of two classes, or labels[:, None].float() for "
            "a model of one output"
        )
    if labels.ndim == 2 and not labels.is_floating_point():
        if labels.shape[1] == 1:
            ways = "pass class ids as labels.squeeze(1), or yes and no of a model of one output as labels.float()"
        else:
            ways = "pass one_hot and multi-hot rows as labels.float(), class ids as (B,)"
        raise TypeError(f"{_wrong_labels(what, labels)}; {ways}")


def _wrong_labels(what: str, labels: Tensor) -> str:
    return (
        f"{what} expects labels as integer class ids (B,) or float targets (B, K), got shape {tuple(labels.shape)} of "
        f"{labels.dtype}"
    )


def whole_ids(labels: Tensor | None) -> Tensor | None:
    """Labels to compute with: class ids of every integer dtype as int64, which neither wraps nor lacks kernels."""
    if not isinstance(labels, Tensor) or labels.dtype not in SMALL_INTEGERS or labels.ndim != 1:
        return labels
    return labels.long()


def check_class_ids(what: str, labels: Tensor, classes: int, ignored: int | None = None) -> None:
    """Raise when class ids lie outside [0, classes), but for the one that a loss ignores (values read on a CPU only).

    On a GPU torch's own device assertion fires instead.
    """
    if labels.is_floating_point() or not labels.numel() or not _readable(labels):
        return
    # In a small dtype the number of classes itself would overflow.
    labels = labels.long()
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= classes:
        outside = labels[(labels < 0) | (labels >= classes)]
        if ignored is not None:
            outside = outside[outside != ignored]
        if outside.numel():
            raise ValueError(f"{what} expects labels as class ids in [0, {classes}), got values from {low} to {high}")


def check_rows_named(what: str, sources: Tensor, rows: int) -> None:
    """Raise when ``sources`` names rows outside [0, rows) (values read on a CPU only)."""
    if not sources.numel() or not _readable(sources):
        return
    low, high = (int(value) for value in sources.aminmax())
    if low < 0 or high >= rows:
        raise ValueError(f"{what} expects sources in [0, {rows}), the rows of labels, got values from {low} to {high}")


def check_partner(what: str, partner: Tensor, batch_size: int) -> None:
    """Raise unless ``partner`` is (B,) int64 with rows of the batch (values read on a CPU only)."""
    _check_tensor(what, "partner", partner)
    if partner.dtype != torch.int64 or tuple(partner.shape) != (batch_size,):
        raise ValueError(f"{what} expects partner ({batch_size},) int64, got {tuple(partner.shape)} {partner.dtype}")
    if _readable(partner):
        low, high = partner.aminmax()
        if low < 0 or high >= batch_size:
            raise ValueError(f"{what} expects partner in [0, {batch_size}), got {int(low)} to {int(high)}")


def check_share(what: str, name: str, values: Tensor, batch_size: int) -> None:
    """Raise unless ``values`` is (B,) or (1,) float in [0, 1] (values read on a CPU only)."""
    _check_tensor(what, name, values)
    if not values.is_floating_point() or values.ndim != 1 or values.shape[0] not in (1, batch_size):
        raise ValueError(
            f"{what} expects {name} ({batch_size},) or (1,) floating point, got {tuple(values.shape)} {values.dtype}"
        )
    # The comparison is written so that a NaN fails as well.
    if _readable(values) and not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"{what} expects {name} in [0, 1], got {values.tolist()}")


def check_boxes(what: str, boxes: Tensor, batch_size: int, size: Sequence[int], name: str = "boxes") -> None:
    """Raise unless ``boxes`` is (B, 2D) or (1, 2D) int64 within the image (values read on a CPU only)."""
    dims = len(size)
    _check_tensor(what, name, boxes)
    if boxes.dtype != torch.int64 or boxes.ndim != 2 or boxes.shape[1] != 2 * dims:
        raise ValueError(
            f"{what} expects {name} ({batch_size}, {2 * dims}) int64, got {tuple(boxes.shape)} {boxes.dtype}"
        )
    if boxes.shape[0] not in (1, batch_size):
        raise ValueError(f"{what} expects {batch_size} {name} or one, got {boxes.shape[0]}")
    if _readable(boxes):
        low, high = boxes[:, :dims], boxes[:, dims:]
        limit = torch.tensor(size)
        if bool((low < 0).any() or (high > limit).any() or (low > high).any()):
            raise ValueError(
                f"{what} expects {name} clipped to size {tuple(size)}, lower corner first, got {boxes.tolist()}"
            )


def check_out(what: str, images: Tensor, out: Tensor | None, inplace: bool) -> None:
    """Raise unless the result can be written where ``out`` or ``inplace`` asks for, if they ask at all."""
    if out is None and not inplace:
        return
    if out is not None and inplace:
        raise ValueError(f"{what}: pass out= or inplace=True, not both")
    if images.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{what}: no gradient flows through out= or inplace=True; leave them out, or detach the images"
        )
    target = images if out is None else out
    if any(stride == 0 and side > 1 for stride, side in zip(target.stride(), target.shape, strict=True)):
        name = "images" if out is None else "out"
        raise ValueError(f"{what}: rows of an expanded {name} share their memory; clone() it before writing to it")
    if out is None:
        return
    if (out.shape, out.dtype, out.device) != (images.shape, images.dtype, images.device):
        raise ValueError(
            f"{what} expects out of shape {tuple(images.shape)}, {images.dtype} on {images.device}, "
            f"got {tuple(out.shape)}, {out.dtype} on {out.device}"
        )
    if not torch.compiler.is_compiling() and _overlap(images, out):
        raise ValueError(f"{what}: out is the images' own memory; pass inplace=True instead")


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether the memory that two tensors span has bytes in common."""
    if first.device.type not in ("cpu", "cuda"):
        return False
    if first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr():
        return False
    (start, end), (other_start, other_end) = (_span(tensor) for tensor in (first, second))
    return start < other_end and other_start < end


def _span(tensor: Tensor) -> tuple[int, int]:
    reach = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start, start + int(reach) + 1


def check_generator(what: str, generator: Generator | None, device: torch.device) -> None:
    """Raise unless the generator is one, and lives where the images do."""
    if generator is not None and not hasattr(generator, "device"):
        raise TypeError(f"{what} expects generator as a torch.Generator, got {shown(generator)}")
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"{what} draws on the images' device {device}, but the generator is on {generator.device}; "
            f"make it with torch.Generator('{device.type}')"
        )


def check_per(what: str, per: str, *, mutual: bool = True) -> None:
    """Raise unless ``per`` is one of ``PER``; without ``mutual`` partners there are no pairs to draw for."""
    check_choice(what, "per", per, PER if mutual else [one for one in PER if one != "pair"])


#: Bounds of the positive numbers that options may be: float32 computes with them and their quotients, though not with
#: their squares. The share of a Beta(a, a) draw in float32 is NaN for a below some 5e-38.
SMALLEST, LARGEST = 1e-37, 1e37
#: Whole numbers that options may be where nothing else bounds them.
MOST = 2**31 - 1


def check_positive(what: str, name: str, value: Any, least: float = SMALLEST, most: float = LARGEST) -> float:
    """``value`` as a positive float that float32 can compute with, or within other bounds, or a ValueError."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{what} expects {name} as a positive finite number, got {shown(value)}")
    return _in_reach(what, name, value, least, most)


def check_not_negative(what: str, name: str, value: Any) -> float:
    """``value`` as a float that is not negative, or a ValueError."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{what} expects {name} as a number that is not negative, got {shown(value)}")
    return _in_reach(what, name, value, least=0)


def check_probability(what: str, name: str, value: Any) -> float:
    """``value`` as a float in [0, 1], or a ValueError."""
    if not _is_number(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{what} expects {name} in [0, 1], got {shown(value)}")
    return float(value)


def check_numbers(what: str, name: str, values: Any) -> list[float]:
    """Several numbers that are not negative, each as a float, or a ValueError."""
    if not _is_sequence(values):
        raise ValueError(f"{what} expects {name} as a sequence of numbers that are not negative, got {shown(values)}")
    return [check_not_negative(what, f"each of {name}", one) for one in values]


def check_positive_share(what: str, name: str, value: Any, hint: str = "") -> float:
    """``value`` as a float in (0, 1], or a ValueError that ends in the hint."""
    if not _is_number(value) or not 0.0 < value <= 1.0:
        raise ValueError(f"{what} expects {name} in (0, 1], got {shown(value)}{hint and '; ' + hint}")
    return float(value)


def check_whole(what: str, name: str, value: Any, least: int = 1, most: int = MOST, reason: str = "") -> int:
    """``value`` as an int in [least, most], or a ValueError.

    Args:
        what, name, value: who asks, for which option, and what came.
        least, most: bounds, both allowed.
        reason: why no more than ``most``.
    """
    if not _is_whole(value) or not least <= value:
        raise ValueError(f"{what} expects {name} as an integer >= {least}, got {shown(value)}")
    if value > most:
        raise ValueError(f"{what} expects {name} of at most {most}, got {shown(value)}{reason and ': ' + reason}")
    return int(value)


def check_whole_numbers(
    what: str, name: str, value: Any, least: int = 1, most: int = MOST, reason: str = ""
) -> tuple[int, ...]:
    """One whole number or several, each as :func:`check_whole` has it, as a tuple of at least one."""
    if not _is_sequence(value):
        return (check_whole(what, name, value, least, most, reason),)
    if not len(value):
        raise ValueError(f"{what} expects {name} as an integer >= {least} or several, got {shown(value)}")
    return tuple(check_whole(what, f"each of {name}", one, least, most, reason) for one in value)


def check_choice(what: str, name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        names = list(choices)
        wanted = f"{names[0]!r} or {names[1]!r}" if len(names) == 2 else f"in {names}"
        raise ValueError(f"{what} expects {name} {wanted}, got {shown(value)}{did_you_mean(value, names)}")


def check_flag(what: str, name: str, value: Any) -> bool:
    """``value`` as a bool, or a ValueError: a text such as "false" would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{what} expects {name} as True or False, got {shown(value)}")
    return bool(value)


def check_range(
    what: str,
    name: str,
    value: Any,
    low: float = 0,
    high: float = math.inf,
    *,
    positive: bool = False,
    strict: bool = False,
) -> tuple[float, float]:
    """``value`` as two floats in order, or a ValueError.

    Args:
        what, name, value: who asks, for which option, and what came.
        low, high: bounds of both; with ``positive`` the lower bound itself is not allowed.
        positive: whether ``low`` is left out.
        strict: whether the two must differ.
    """
    pair = list(value) if _is_sequence(value) and len(value) == 2 else None
    fits = pair is not None and all(_is_number(end) for end in pair)
    if fits and pair is not None:
        first, last = pair
        fits = (low < first if positive else low <= first) and (first < last if strict else first <= last)
        fits = fits and last <= high and last < math.inf
    if not fits or pair is None:
        lower, between = "<" if positive else "<=", "<" if strict else "<="
        upper = f" <= {high:g}" if high < math.inf else ""
        raise ValueError(
            f"{what} expects {name} as (low, high), {low:g} {lower} low {between} high{upper}, got {shown(value)}"
        )
    return tuple(_in_reach(what, name, end, least=SMALLEST if positive else 0) for end in pair)  # type: ignore[return-value]


def check_keys(what: str, name: str, value: Any) -> tuple[Any, ...]:
    """``value`` as a tuple of the names of entries, or a TypeError: of a single text each letter would be one."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{what} expects {name} as a sequence of names of entries, got {shown(value)}")
    return tuple(value)


def check_stage(what: str, name: str, value: Any) -> int | str:
    """``value`` as the name of a module or the number of a stage, or a ValueError."""
    if isinstance(value, str) and value:
        return value
    if not _is_whole(value) or abs(value) > MOST:
        raise ValueError(f"{what} expects {name} as the name of a module or a number, got {shown(value)}")
    return int(value)


def check_callable(what: str, name: str, value: Any, arguments: Sequence[str], kind: str, attribute: str = "") -> None:
    """Raise a TypeError unless ``value`` can be called with these arguments.

    Args:
        what, name, value: who asks, for which option, and what came.
        arguments: names of the arguments, for the message; their number is what is asked for.
        kind: what such an object is called.
        attribute: name of an attribute that it must have.
    """
    call = f"called with ({', '.join(arguments)})"
    if inspect.isclass(value):
        raise TypeError(f"{what} expects {name} as an object, got the class {value.__name__}: make one of it")
    if not callable(value) or inspect.isbuiltin(value):
        raise TypeError(f"{what} expects {name} as a name or a {kind}, {call}, got {shown(value)}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            signature.bind(*arguments)
        except TypeError:
            raise TypeError(
                f"{what} expects {name} as a name or a {kind}, {call}, but {shown(value)} takes {signature}"
            ) from None
    if attribute and not hasattr(value, attribute):
        raise TypeError(f"{what} expects {name} as a name or a {kind}, but {shown(value)} has no {attribute!r}")


def shown(value: object) -> str:
    """A short ``repr``, for a message."""
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to write out whole numbers of thousands of digits.
        text = f"a whole number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= 100 else f"{text[:97]}..."


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_sequence(value: object) -> bool:
    if isinstance(value, (str, bytes)):
        return False
    return isinstance(value, Sequence) or (hasattr(value, "__len__") and getattr(value, "ndim", None) == 1)


def _numbers(values: Any) -> tuple[float, ...]:
    """One number or several as floats; none where they are no numbers."""
    if isinstance(values, (str, bytes)):
        return ()
    try:
        return (float(values),) if _is_number(values) else tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return ()


def _in_reach(what: str, name: str, value: Any, least: float = SMALLEST, most: float = LARGEST) -> float:
    if not least <= abs(value) <= most:
        reason = ", which float32 can compute with" if most == LARGEST else ""
        raise ValueError(f"{what} expects {name} between {least:g} and {most:g}{reason}, got {shown(value)}")
    return float(value)


def _check_tensor(what: str, name: str, value: object) -> None:
    check_dense(what, name, value)


def _readable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _shape_with(axes: int) -> str:
    return {1: "(B, C, L)", 2: "(B, C, H, W)", 3: "(B, C, D, H, W)"}[axes]


def check_statistics(
    what: str, mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of a normalisation as tuples, one number or one per channel; None without them."""
    if (mean is None) != (std is None):
        raise ValueError(f"{what} expects mean and std together, got mean={shown(mean)}, std={shown(std)}")
    if mean is None or std is None:
        return None
    means, stds = _numbers(mean), _numbers(std)
    fits = all(abs(value) <= LARGEST for value in means) and all(SMALLEST <= value <= LARGEST for value in stds)
    if not means or not stds or not fits or len({len(means), len(stds)} - {1}) > 1:
        raise ValueError(
            f"{what} expects one mean and one positive std, or one for each channel, got mean={shown(mean)}, "
            f"std={shown(std)}"
        )
    return means, stds


def per_channel(
    what: str, statistics: tuple[tuple[float, ...], tuple[float, ...]], count: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The same with a number for each of ``count`` channels."""
    means, stds = (values * count if len(values) == 1 else values for values in statistics)
    if len(means) != count or len(stds) != count:
        raise ValueError(f"{what} got mean and std of {max(len(means), len(stds))} channels for images of {count}")
    return means, stds
