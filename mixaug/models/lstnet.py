"""LSTNet (arXiv:1703.07015): a forecast of several series from a window of all of them.

A convolution over time, all series at once; a GRU over its steps; a second GRU over every `skip`-th step; a linear
layer on both last states; plus an autoregression of the latest raw values with weights shared by the series, the
"highway", which keeps the forecast sensitive to the scale of the input.

Defaults are those of the authors' code for exchange rates, which C-Mixup (arXiv:2210.05775) uses too. Departs from
that code in one thing: the window is not fixed, any long enough one is accepted, batch by batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LSTNet", "LSTNetStem"]


class LSTNetStem(nn.Module):
    """What LSTNet computes before it reads a sample as a sequence, and where C-Mixup's "manifold" variant mixes.

    Gives features (B, hidden, steps - kernel + 1) after convolution, ReLU and dropout, and the latest raw values
    (B, series, highway). Both are outputs so that mixing this module's output also mixes what the highway reads, as
    in the authors' code; with the features alone, a mixed label would meet the highway of one unmixed sample.
    """

    def __init__(self, series: int, hidden: int, kernel: int, highway: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(series, hidden, kernel)
        self.act = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.highway = highway

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, series, steps) floats to features and latest values."""
        return self.dropout(self.act(self.conv(x))), x[..., x.shape[-1] - self.highway :]


class LSTNet(nn.Module):
    """LSTNet with skip connections over `skip` steps and an autoregressive highway.

    Args:
        num_classes: outputs D; with a highway it must be `in_chans`, one forecast per series.
        in_chans: series in the input, >= 1.
        hidden: channels of the convolution, >= 1.
        hidden_rnn: state of the GRU, >= 1.
        hidden_skip: state of the skip GRU, >= 1.
        kernel: steps that the convolution spans, >= 1.
        skip: period of the skip GRU in steps; 0 leaves it out.
        highway: latest steps that the autoregression reads; 0 leaves it out.
        dropout: after the convolution and both GRUs, in [0, 1).

    Raises:
        ValueError: a number out of range, or a highway with `num_classes` other than `in_chans`; in `forward`, inputs
            that are not (B, in_chans, steps) or have fewer than max(kernel + skip, highway) steps.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        hidden: int = 50,
        hidden_rnn: int = 50,
        hidden_skip: int = 5,
        kernel: int = 6,
        skip: int = 24,
        highway: int = 24,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        for argument, value, least in (
            ("num_classes", num_classes, 1),
            ("in_chans", in_chans, 1),
            ("hidden", hidden, 1),
            ("hidden_rnn", hidden_rnn, 1),
            ("hidden_skip", hidden_skip, 1),
            ("kernel", kernel, 1),
            ("skip", skip, 0),
            ("highway", highway, 0),
        ):
            if value < least:
                raise ValueError(f"lstnet expected {argument} >= {least}, got {value}")
        if not 0 <= dropout < 1:
            raise ValueError(f"lstnet expected dropout in [0, 1), got {dropout}")
        if highway and num_classes != in_chans:
            raise ValueError(
                "lstnet's highway forecasts every series: expected num_classes equal to in_chans, "
                f"got {num_classes} and {in_chans}; highway=0 leaves it out"
            )
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.skip = skip
        self.least_steps = max(kernel + skip, highway)
        self.layer1 = LSTNetStem(in_chans, hidden, kernel, highway, dropout)
        self.rnn = nn.GRU(hidden, hidden_rnn, batch_first=True)
        self.skip_rnn = nn.GRU(hidden, hidden_skip, batch_first=True) if skip else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_rnn + skip * hidden_skip, num_classes)
        self.highway = nn.Linear(highway, 1) if highway else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, steps) floats to (B, num_classes)."""
        if x.ndim != 3 or x.shape[1] != self.in_chans or x.shape[2] < self.least_steps:
            raise ValueError(
                f"lstnet expected inputs (B, {self.in_chans}, steps >= {self.least_steps}), got {tuple(x.shape)}"
            )
        features, latest = self.layer1(x)
        sequence = features.transpose(1, 2)
        states = [self.dropout(self.rnn(sequence)[1][0])]
        if self.skip_rnn is not None:
            batch, steps, hidden = sequence.shape
            # (steps - 1) // skip, as in the authors' code, drops one whole period where skip divides steps.
            periods = (steps - 1) // self.skip
            phases = sequence[:, steps - periods * self.skip :].reshape(batch, periods, self.skip, hidden)
            phases = phases.transpose(1, 2).reshape(batch * self.skip, periods, hidden)
            states.append(self.dropout(self.skip_rnn(phases)[1].reshape(batch, self.skip * self.skip_rnn.hidden_size)))
        forecast = self.head(torch.cat(states, dim=1))
        return forecast if self.highway is None else forecast + self.highway(latest).squeeze(-1)
