"""One figure for each family of the suite: all policies of a board, over their seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from mixaug.engine.evaluation.suite import FamilyResult
from mixaug.leaderboard.evaluations import Evaluation, Measure
from mixaug.leaderboard.plots import GRID, colours, names, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES"]


LEAST_SHARE = 0.005
"""Bins of the reliability diagram that hold a smaller share of the samples are left out: a few samples say nothing."""


@styled
def reliability_figure(evaluation: Evaluation) -> Figure | None:
    """Accuracy over confidence, samples of all seeds together; below the diagonal a model is too sure.

    The area of a dot is the share of the samples in its bin.
    """
    plain = _pooled(evaluation, "calibration")
    scaled = _pooled(evaluation, "temperature")
    if not plain:
        return None
    figure, axes = new_figure(2 if scaled else 1, height=4.4)
    chosen, called = colours(evaluation.board), names(evaluation.board)
    unmixed = {row.label for row in evaluation.board.rows if row.is_baseline}
    panels = [
        (axes[0], plain, "Reliability"),
        *([(axes[1], scaled, "Reliability, temperature fitted")] if scaled else []),
    ]
    for axis, pooled, title in panels:
        axis.plot([0, 1], [0, 1], color=GRID, linewidth=2, zorder=0)
        for label, points in pooled.items():
            style = "--" if label in unmixed else "-"
            sure, right, shares = zip(*points, strict=True)
            axis.plot(sure, right, style, color=chosen[label], label=called[label])
            axis.scatter(sure, right, [400 * share for share in shares], color=chosen[label], clip_on=False, zorder=3)
        axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.set_title(title)
    axes[0].legend(frameon=False, loc="upper left")
    return figure


@styled
def occlusion_figure(evaluation: Evaluation) -> Figure | None:
    """Top-1 over the share of covered cells, for both covers."""
    figure, axes = new_figure(2, height=3.9, share_y=True)
    titles = {"mean": "Covered by the mean colour", "foreign": "Covered by another image"}
    drawn = [_curves(evaluation, "occlusion", "shares", key, axis) for axis, key in zip(axes, titles, strict=True)]
    if not any(drawn):
        return None
    for axis, title in zip(axes, titles.values(), strict=True):
        axis.set_title(title)
        axis.set_xlabel("share of cells")
        axis.grid(color=GRID, linewidth=0.8)
    axes[0].set_ylabel("top-1 (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


@styled
def corruption_figure(evaluation: Evaluation) -> Figure | None:
    """Error of each corruption, mean over severities and seeds."""
    from mixaug.engine.evaluation.corruption import CORRUPTIONS

    figure, [axis] = new_figure(1, height=4.2)
    chosen, called = colours(evaluation.board), names(evaluation.board)
    drawn = False
    for row in evaluation.rows:
        found = _of(evaluation, row.label, "corruption")
        means = [
            [result.numbers[name] for name in CORRUPTIONS]
            for result in found
            if set(CORRUPTIONS) <= set(result.numbers)
        ]
        if means:
            drawn = True
            heights = [fmean(errors) for errors in zip(*means, strict=True)]
            style = "--" if row.is_baseline else "-"
            axis.plot(
                CORRUPTIONS, heights, style, marker="o", markersize=4, color=chosen[row.label], label=called[row.label]
            )
    axis.set_title("Error on corrupted images (%), mean over five severities")
    axis.tick_params(axis="x", rotation=40)
    for text in axis.get_xticklabels():
        text.set_horizontalalignment("right")
    axis.grid(color=GRID, linewidth=0.8)
    figure.legend(loc="outside right center", frameon=False)
    return figure if drawn else None


MOST_PANELS = 6
"""A row of the figure has room for so many measures."""


@styled
def dots_figure(evaluation: Evaluation, family: str) -> Figure | None:
    """A panel for each measure: a dot for each seed and a larger one for their mean."""
    measures = [measure for measure in evaluation.measures if measure.family == family]
    rows = [row for row in reversed(evaluation.rows) if _of(evaluation, row.label, family)]
    if not measures:
        return None
    lines = math.ceil(len(measures) / MOST_PANELS)
    columns = math.ceil(len(measures) / lines)
    figure, axes = new_figure(columns, height=1.2 + 0.4 * len(rows), share_y=True, rows=lines)
    chosen, called = colours(evaluation.board), names(evaluation.board)
    for axis in axes[len(measures) :]:
        axis.remove()
    for axis, measure in zip(axes, measures, strict=False):
        for y, row in enumerate(rows):
            values = _values(evaluation, row.label, measure)
            axis.plot(
                values, [y] * len(values), "o", color=chosen[row.label], alpha=0.4, markersize=4, markeredgewidth=0
            )
            if values:
                axis.plot([fmean(values)], [y], "o", color=chosen[row.label], markersize=8, markeredgecolor="white")
        axis.set_title(measure.title, fontsize=8.5)
        axis.grid(axis="x", color=GRID, linewidth=0.8)
        axis.margins(x=0.12)
        axis.locator_params(axis="x", nbins=3)
    for axis in axes[: len(measures) : columns]:
        axis.set_yticks(range(len(rows)), [called[row.label] for row in rows])
        axis.set_ylim(-0.6, len(rows) - 0.4)
    return figure


def _dots(family: str) -> Callable[[Evaluation], Figure | None]:
    def draw(evaluation: Evaluation) -> Figure | None:
        return dots_figure(evaluation, family)

    return draw


FIGURES: Mapping[str, Callable[[Evaluation], Figure | None]] = {
    "calibration": reliability_figure,
    "outliers": _dots("outliers"),
    "attack": _dots("attack"),
    "occlusion": occlusion_figure,
    "corruption": corruption_figure,
    "geometry": _dots("geometry"),
    "activation": _dots("activation"),
}
"""By family; the figure of calibration shows that after scaling too. None where there is nothing to draw."""


def _of(evaluation: Evaluation, label: str, family: str) -> list[FamilyResult]:
    return [found[family] for found in evaluation.results[label].values() if family in found]


def _values(evaluation: Evaluation, label: str, measure: Measure) -> list[float]:
    cell = evaluation.cells[label].get(measure)
    return [] if cell is None else list(cell.values.values())


def _pooled(evaluation: Evaluation, family: str) -> dict[str, list[tuple[float, float, float]]]:
    """(confidence, accuracy, share of the samples) of each bin, by label; samples of all seeds count the same."""
    found = {}
    for row in evaluation.rows:
        bins: dict[int, list[float]] = {}
        for result in _of(evaluation, row.label, family):
            curves = [result.curves.get(key, []) for key in ("count", "confidence", "accuracy")]
            if len({len(curve) for curve in curves}) != 1:
                continue
            for number, (count, confidence, accuracy) in enumerate(zip(*curves, strict=True)):
                own = bins.setdefault(number, [0.0, 0.0, 0.0])
                own[0] += count
                own[1] += count * confidence
                own[2] += count * accuracy
        total = sum(count for count, _, _ in bins.values())
        points = [
            (sure / count, right / count, count / total)
            for _, (count, sure, right) in sorted(bins.items())
            if count > 0 and count >= LEAST_SHARE * total
        ]
        if points:
            found[row.label] = points
    return found


def _curves(evaluation: Evaluation, family: str, across: str, key: str, axis: Axes) -> bool:
    """A line for each policy, the mean over its seeds; False where there is none."""
    chosen, called = colours(evaluation.board), names(evaluation.board)
    drawn = False
    for row in evaluation.rows:
        found = _of(evaluation, row.label, family)
        pairs = [(result.curves.get(across), result.curves.get(key)) for result in found]
        whole: Sequence[tuple[list[float], list[float]]] = [(x, y) for x, y in pairs if x and y and len(x) == len(y)]
        if whole and all(x == whole[0][0] for x, _ in whole):
            drawn = True
            heights = [fmean(values) for values in zip(*(y for _, y in whole), strict=True)]
            style = "--" if row.is_baseline else "-"
            axis.plot(whole[0][0], heights, style, color=chosen[row.label], linewidth=1.8, label=called[row.label])
    return drawn
