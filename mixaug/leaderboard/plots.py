"""The three plots of a board, as matplotlib figures made without pyplot: nothing global is touched."""

from __future__ import annotations

import base64
import functools
import io
import math
import statistics
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mixaug.engine.reading import is_number
from mixaug.leaderboard.aggregate import BASELINE, Board, Row
from mixaug.leaderboard.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["colours", "cost_plot", "curves_plot", "data_uri", "names", "new_figure", "score_plot", "styled"]

P = ParamSpec("P")
R = TypeVar("R")

# Distinguishable with the common kinds of colour blindness, dark enough on white.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#b8860b",
    "#56b4e9",
    "#7a4fbf",
    "#8c564b",
    "#3b5b1a",
    "#c2185b",
)
BASELINE_COLOUR = "#6b6f76"
INK, FAINT, GRID = "#24292f", "#8b949e", "#e4e7eb"
BETTER, WORSE = "#1a7f37", "#b42318"
WIDTH = 11.0
STYLE: Any = {
    "font.size": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.parse_math": False,  # a name with a dollar sign is a name
    "svg.hashsalt": "mixaug",  # the same runs give the same page, byte for byte
}


def colours(board: Board) -> dict[str, str]:
    """A colour per row label, the same in every plot of a board whatever the order of the rows."""
    others = sorted(row.label for row in board.rows if not row.is_baseline)
    chosen = {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(others)}
    return {row.label: chosen.get(row.label, BASELINE_COLOUR) for row in board.rows}


def names(board: Board) -> dict[str, str]:
    """Policy and objective where one row alone has these, else the label with its options, cut to fit."""
    carried = Counter(row.name for row in board.rows)
    return {row.label: _cut(row.name if carried[row.name] == 1 else row.label) for row in board.rows}


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:38].rstrip() + " …"


def styled(plot: Callable[P, R]) -> Callable[P, R]:
    """Draw in the style of all plots."""

    @functools.wraps(plot)
    def within(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return within


@styled
def score_plot(board: Board, confidence: float) -> Figure:
    """The measure per policy with the interval of its mean and a dot per seed; beside it the paired difference."""
    rows = [row for row in reversed(board.rows) if row.score]
    paired = any(row.difference for row in rows)
    figure, axes = new_figure(1 + paired, height=1.15 + 0.36 * len(rows), share_y=True)
    chosen, called = colours(board), names(board)
    left = axes[0]
    for y, row in enumerate(rows):
        colour = chosen[row.label]
        values = row.values_of_statistic()
        left.plot(values, [y - 0.24] * len(values), "o", color=colour, alpha=0.5, markersize=4, markeredgewidth=0)
        interval = mean_interval(values, confidence)
        if interval is not None:
            left.plot(interval, [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
        left.plot([statistics.fmean(values)], [y], "o", color=colour, markersize=7, markeredgecolor="white")
    left.set_yticks(range(len(rows)), [called[row.label] for row in rows])
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.set_title(f"{board.task.heading}: seeds, mean, {confidence:.0%} interval")
    if paired:
        right = axes[1]
        right.axvline(0, color=BASELINE_COLOUR, linewidth=1)
        for y, row in enumerate(rows):
            difference = row.difference
            if difference is None:
                continue
            colour = {"better": BETTER, "worse": WORSE}.get(row.verdict, FAINT)
            if difference.low is not None and difference.high is not None:
                right.plot(
                    [difference.low, difference.high],
                    [y, y],
                    color=colour,
                    linewidth=2.2,
                    solid_capstyle="round",
                )
            right.plot([difference.mean], [y], "o", color=colour, markersize=7, markeredgecolor="white")
        unit = " (points)" if board.task.unit == "%" else ""
        right.set_title(f"Paired difference to {BASELINE}{unit}, {confidence:.0%} interval")
        right.tick_params(left=False)
    for axis in axes:
        axis.grid(axis="x", color=GRID, linewidth=0.8)
        axis.margins(x=0.06)
    return figure


@styled
def curves_plot(board: Board) -> Figure | None:
    """The test set's measure per epoch, mean over seeds with a band of one standard deviation; None without epochs."""
    curves = {row.label: _curve(row) for row in board.rows}
    if not any(len(curve) > 1 for curve in curves.values()):
        return None
    figure, [axis] = new_figure(1, height=3.9)
    chosen, called = colours(board), names(board)
    floor, ceiling = math.inf, -math.inf
    for row in board.rows:
        curve = curves[row.label]
        if not curve:
            continue
        epochs = [epoch for epoch, _, _ in curve]
        means = [mean for _, mean, _ in curve]
        colour = chosen[row.label]
        style = "--" if row.is_baseline else "-"
        axis.plot(epochs, means, style, color=colour, linewidth=1.7, label=called[row.label])
        low = [mean - std for _, mean, std in curve]
        high = [mean + std for _, mean, std in curve]
        axis.fill_between(epochs, low, high, color=colour, alpha=0.13, linewidth=0)
        # The climb from chance would flatten what is worth comparing.
        settled = slice(2 * len(curve) // 5, None)
        floor, ceiling = min(floor, *low[settled]), max(ceiling, *high[settled])
    span = max(ceiling - floor, 1e-3)
    top = ceiling + 0.05 * span
    axis.set_ylim(floor - 0.05 * span, min(top, 100.0) if board.task.unit == "%" else top)
    shown = [epoch for curve in curves.values() for epoch, mean, _ in curve if floor <= mean <= ceiling]
    axis.set_xlim(min(shown), max(shown))
    axis.set_xlabel("epoch")
    axis.set_title(f"Test {board.task.heading} per epoch, mean over seeds, band of one standard deviation")
    axis.grid(color=GRID, linewidth=0.8)
    figure.legend(loc="outside right center", frameon=False)
    return figure


@styled
def cost_plot(board: Board) -> Figure | None:
    """Median time of a training step against the measure; None without times."""
    timed = [row for row in board.rows if row.summary("step_ms")]
    if not timed:
        return None
    figure, [axis] = new_figure(1, height=3.7)
    chosen, called = colours(board), names(board)
    ratios = [row.time_ratio for row in timed if row.time_ratio is not None]
    relative = len(ratios) == len(timed)
    costs = ratios if relative else [statistics.median(row.values("step_ms")) for row in timed]
    for row, x in zip(timed, costs, strict=True):
        colour = chosen[row.label]
        axis.errorbar(
            [x],
            [statistics.fmean(row.values_of_statistic())],
            yerr=[row.score.std or 0.0 if row.score else 0.0],
            fmt="o",
            color=colour,
            markersize=8,
            markeredgecolor="white",
            linewidth=1.6,
            label=called[row.label],
        )
    if relative:
        axis.axvline(1.0, color=FAINT, linewidth=1, linestyle=":")
        axis.set_xlabel(f"time per training step, relative to {BASELINE}")
    else:
        axis.set_xlabel("time per training step (ms, median)")
    axis.set_title(f"Cost against {board.task.heading}, bars of one standard deviation")
    axis.margins(x=0.12, y=0.12)
    axis.grid(color=GRID, linewidth=0.8)
    figure.legend(loc="outside right center", frameon=False)
    return figure


@styled
def data_uri(figure: Figure) -> str:
    """The figure as an SVG data URI, self-contained."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def new_figure(columns: int, *, height: float, share_y: bool = False, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of the pages' width with panels side by side, row by row; ``height`` of a row in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        axis.tick_params(length=3)
    return figure, axes


def _curve(row: Row) -> list[tuple[int, float, float]]:
    """(epoch, mean, std) for the epochs that every seed has."""
    key = f"test_{row.task.measure}"
    per_run = [{int(e["epoch"]): float(e[key]) for e in run.epochs if is_number(e.get(key))} for run in row.runs]
    common = set.intersection(*(set(curve) for curve in per_run)) if per_run else set()
    points = []
    for epoch in sorted(common):
        values = [curve[epoch] for curve in per_run]
        points.append((epoch, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0))
    return points
