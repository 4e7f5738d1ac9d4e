"""The page of what the suite found: a table and a picture for each family, and every number as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from mixaug.engine.writing import place
from mixaug.leaderboard.aggregate import Leaderboard
from mixaug.leaderboard.evaluation_plots import FIGURES
from mixaug.leaderboard.evaluations import Cell, Evaluation, Measure, evaluation_of
from mixaug.leaderboard.render import as_data, literally
from mixaug.leaderboard.statistics import summarise

__all__ = ["write_evaluations"]

HEADINGS = {
    "calibration": "Calibration",
    "temperature": "Calibration after temperature scaling, fitted on the validation split",
    "outliers": "Outliers (FPR95: outliers accepted where 95 % of the test images are)",
    "attack": "Attacks within 8/255 (FGSM; PGD of ten steps of 2/255 from a random start)",
    "occlusion": "Occlusion (area: mean top-1 over shares of 0 to 0.9)",
    "corruption": "Corruptions of CIFAR-C",
    "geometry": "Geometry of the last features",
    "activation": "Class activation on the object and on the own half of an image (an even map: 50 % of a half)",
}


def write_evaluations(leaderboard: Leaderboard, folder: Path | str) -> list[Path]:
    """Write ``evaluation.md``, ``evaluation.csv`` and a picture for each family; nothing where nothing was evaluated.

    Returns:
        The files that were written.
    """
    folder = Path(folder)
    found = [evaluation for board in leaderboard.boards if (evaluation := evaluation_of(board, leaderboard.confidence))]
    if not found:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    lines = ["# What mixing does beside accuracy", "", *_how(leaderboard.confidence)]
    for number, evaluation in enumerate(found):
        lines += ["", f"## {literally(evaluation.board.setting.title)}", ""]
        lines += [
            f"{evaluation.comparisons} comparisons with `none`; the stars hold for all of them together (Holm).",
            *(f"- {literally(problem)}" for problem in evaluation.problems),
        ]
        for family, heading in HEADINGS.items():
            measures = [measure for measure in evaluation.measures if measure.family == family]
            if not measures:
                continue
            lines += ["", f"### {heading}", "", *_table(evaluation, measures)]
            lines += [f"- {literally(note)}" for note in _notes(evaluation, family)]
            figure = FIGURES[family](evaluation) if family in FIGURES else None
            if figure is not None:
                path = folder / (
                    f"evaluation_{family}.png" if len(found) == 1 else f"evaluation_{family}_{number + 1}.png"
                )
                picture = BytesIO()
                figure.savefig(picture, format="png", dpi=110)
                place(path, picture.getvalue())
                written.append(path)
                lines += ["", f"![{heading}]({path.name})"]
    page, numbers = folder / "evaluation.md", folder / "evaluation.csv"
    place(page, "\n".join(lines) + "\n")
    place(numbers, _as_csv(found))
    return [page, numbers, *written]


def _how(confidence: float) -> list[str]:
    return [
        "Mean and standard deviation over seeds; below it the paired difference to `none` over common seeds with its "
        f"{confidence:.0%} interval. **Bold**: the interval excludes zero. A star: the difference is significant at "
        f"{1 - confidence:.2g} when all comparisons of its board are taken together. Measures without a difference are "
        "descriptions: neither direction is better."
    ]


def _table(evaluation: Evaluation, measures: list[Measure]) -> list[str]:
    heads = ["policy", "seeds", *(measure.title + _arrow(measure) for measure in measures)]
    rows = []
    for row in evaluation.rows:
        cells = evaluation.cells[row.label]
        seeds = {len(cells[measure].values) for measure in measures if measure in cells}
        if seeds:
            texts = [_text(cells.get(measure), measure) for measure in measures]
            rows.append([literally(row.label), "-".join(map(str, sorted(seeds))), *texts])
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _arrow(measure: Measure) -> str:
    return "" if measure.higher_is_better is None else " ↑" if measure.higher_is_better else " ↓"


def _text(cell: Cell | None, measure: Measure) -> str:
    if cell is None:
        return ""
    summary, digits = summarise(list(cell.values.values())), measure.digits
    shown = f"{summary.mean:.{digits}f}" + ("" if summary.std is None else f" ± {summary.std:.{digits}f}")
    difference = cell.difference
    if difference is None:
        return shown
    told = f"{difference.mean:+.{digits}f}"
    if difference.low is not None and difference.high is not None:
        told += f" [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"
    star = "*" if cell.p_value is not None and cell.p_value <= 1 - difference.confidence else ""
    told = f"**{told}**" if difference.verdict != "unclear" else told
    return f"{shown}<br>{told}{star and ' ' + star}"


def _notes(evaluation: Evaluation, family: str) -> Iterator[str]:
    for row in evaluation.rows:
        notes: dict[str, list[int]] = {}
        for seed, found in sorted(evaluation.results[row.label].items()):
            for note in found[family].notes if family in found else ():
                notes.setdefault(note, []).append(seed)
        for note, seeds in notes.items():
            yield f"{row.label}, seed {', '.join(map(str, seeds))}: {note}"


def _as_csv(found: list[Evaluation]) -> str:
    """One number a line, so that nothing is lost in the tables' rounding."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["setting", "policy", "seed", "family", "measure", "value"])
    for evaluation in found:
        title = evaluation.board.setting.title
        for row in evaluation.rows:
            for seed, families in sorted(evaluation.results[row.label].items()):
                for family, result in families.items():
                    for key, value in result.numbers.items():
                        writer.writerow([*map(as_data, (title, row.label)), seed, family, as_data(key), repr(value)])
    return file.getvalue()
