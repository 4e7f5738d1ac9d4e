"""Multilayer perceptron for rows of a table, as in C-Mixup (arXiv:2210.05775): three linear layers."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["MLP", "mlp"]


class MLP(nn.Module):
    """Linear, LeakyReLU(0.1), twice, and a linear head: no normalisation, no dropout, torch's initialisation.

    C-Mixup's "manifold" variant mixes after `layer1`.

    Args:
        num_classes: outputs D, >= 1: logits, or columns of a real-valued label.
        in_chans: columns F of the input, >= 1.
        hidden: width of both hidden layers, >= 1; 128 is the authors'.

    Raises:
        ValueError: a number out of range; in `forward`, inputs that are not (B, in_chans).
    """

    def __init__(self, num_classes: int, in_chans: int, hidden: int = 128) -> None:
        super().__init__()
        for argument, value in (("num_classes", num_classes), ("in_chans", in_chans), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"mlp expected {argument} >= 1, got {value}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.layer1 = nn.Sequential(nn.Linear(in_chans, hidden), nn.LeakyReLU(0.1))
        self.layer2 = nn.Sequential(nn.Linear(hidden, hidden), nn.LeakyReLU(0.1))
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans) floats to (B, num_classes)."""
        if x.ndim != 2 or x.shape[1] != self.in_chans:
            raise ValueError(f"mlp expected inputs (B, {self.in_chans}), got {tuple(x.shape)}")
        return self.head(self.layer2(self.layer1(x)))


def mlp(num_classes: int, in_chans: int, hidden: int = 128) -> MLP:
    """C-Mixup's three linear layers for tables; arguments as for `MLP`."""
    return MLP(num_classes, in_chans, hidden)
