"""Floating-point operations of whatever runs, by torch's own formulas for matrix products, convolutions and attention.

torch's ``FlopCounterMode`` counts with the same formulas, but it follows modules through hooks on gradients, and a
policy that asks for the gradient of its images does not get past these.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Flops", "attention_by_products"]


def attention_by_products() -> AbstractContextManager[None]:
    """A context in which attention is made of plain products, which are counted; one fused operator on a CPU is not."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


class Flops(TorchDispatchMode):
    """Counts the operations of everything that runs inside of it, backward passes included.

    Elementwise operators, which read and write memory more than they compute, count nothing.

    Attributes:
        total: multiplications and additions so far.

    Example:
        >>> import torch
        >>> with Flops() as flops:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 5)
        >>> flops.total
        60
    """

    def __init__(self) -> None:
        # It brings triton where that is installed, which `import mixaug` is not to wait for.
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self.total = 0
        self._formulas = flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's question whether to keep its compiler out of the method below, for which it would import it: for some
        seconds, and for nothing where all that is counted runs eagerly."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **given, out_val=result))
        return result
