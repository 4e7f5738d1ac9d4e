"""Work on some rows of a batch at a time, where that spares a CPU's memory and its cache."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mixaug.ops.layout import reads_freely

#: Bytes of an intermediate result that is worked on at once: so few are in the cache when the next step reads them, and
#: the allocator has the memory at hand, which it asks the system for otherwise, page by page.
BYTES_AT_ONCE = 2**21


def in_parts(make: Callable[..., Tensor], *rows: Tensor, bytes_per_row: int) -> Tensor:
    """``make(*rows)``, on a CPU for some rows at a time, elsewhere for all of them at once.

    Args:
        make: takes as many rows of each tensor and gives a tensor of as many, each from its own rows alone.
        rows: tensors (R, ...).
        bytes_per_row: of the largest result that ``make`` has in between, for one row.

    Returns:
        (R, ...), whatever ``make`` gives, each row as that lies in memory.
    """
    if not reads_freely(*rows):
        return make(*rows)
    first, *others = parts_of(len(rows[0]), bytes_per_row)
    made = make(*(tensor[first] for tensor in rows))
    if not others:
        return made
    # The axes of a row in the order in which they lie in memory, with channels last perhaps.
    axes = sorted(range(1, made.ndim), key=made.stride, reverse=True)
    laid_out = made.new_empty(len(rows[0]), *(made.shape[axis] for axis in axes))
    result = laid_out.movedim(tuple(range(1, made.ndim)), axes)
    result[first] = made
    for part in others:
        result[part] = make(*(tensor[part] for tensor in rows))
    return result


def parts_of(count: int, bytes_per_row: int) -> list[slice]:
    """Slices of ``count`` rows, as many rows in each as are worked on at once; an empty one of no rows."""
    size = max(1, BYTES_AT_ONCE // max(1, bytes_per_row))
    return [slice(begin, min(begin + size, count)) for begin in range(0, max(count, 1), size)]
