"""A leaderboard as Markdown, CSV and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from mixaug.engine.tasks import TASKS
from mixaug.engine.writing import place
from mixaug.leaderboard import plots
from mixaug.leaderboard.aggregate import BASELINE, Board, Leaderboard, Row
from mixaug.leaderboard.cells import (
    Footnotes,
    agrees,
    cost,
    difference,
    exact,
    extra_columns,
    failed,
    has_failures,
    has_reruns,
    how,
    number,
    published,
    ratio,
    remarks,
    rerun,
    score,
    seeds,
    subtitle,
    visible_gap,
)
from mixaug.leaderboard.page import to_html
from mixaug.leaderboard.side_by_side import pairs_of

_EVERY_TASK = [variant for task in TASKS.values() for variant in task.variants]

_CSV: dict[str, Callable[[Row, Board, Leaderboard], object]] = {
    "model": lambda row, board, _: board.setting.model,
    "data": lambda row, board, _: board.setting.data,
    "data_options": lambda row, board, _: board.setting.data_options,
    "protocol": lambda row, board, _: board.setting.protocol,
    "epochs": lambda row, board, _: board.setting.epochs,
    "at_equal_cost": lambda row, board, _: "yes" if board.setting.at_equal_cost else "",
    "step_cost": lambda row, board, _: exact(row.cost),
    "policy": lambda row, board, _: row.policy,
    "policy_options": lambda row, board, _: json.dumps(dict(row.policy_options), sort_keys=True),
    "objective": lambda row, board, _: row.runs[0].objective if row.runs else row.failed[0].objective,
    "objective_options": lambda row, board, _: json.dumps(dict(row.objective_options), sort_keys=True),
    "settings": lambda row, board, _: json.dumps(dict(row.settings), sort_keys=True),
    "task": lambda row, board, _: board.task.name,
    "measure": lambda row, board, _: board.task.measure,
    "statistic": lambda row, board, _: board.statistic,
    "selected_on": lambda row, board, _: board.selected_on,
    "n": lambda row, board, _: len(row.runs),
    "seeds": lambda row, board, _: " ".join(map(str, row.seeds)),
    "failed": lambda row, board, _: len(row.failed),
    "failed_seeds": lambda row, board, _: " ".join(map(str, row.failed_seeds)),
    "mean": lambda row, board, _: exact(getattr(row.score, "mean", None)),
    "std": lambda row, board, _: exact(getattr(row.score, "std", None)),
    "difference": lambda row, board, _: exact(getattr(row.difference, "mean", None)),
    "low": lambda row, board, _: exact(getattr(row.difference, "low", None)),
    "high": lambda row, board, _: exact(getattr(row.difference, "high", None)),
    "confidence": lambda row, board, lb: lb.confidence,
    "p_value": lambda row, board, _: exact(row.p_value),
    "adjusted_p_value": lambda row, board, _: exact(row.adjusted_p_value),
    "verdict": lambda row, board, _: row.verdict if row.difference else "",
    "pairs": lambda row, board, _: row.difference.n if row.difference else 0,
    **{
        f"{key}_mean": lambda row, board, _, key=key: cost(row, key)  # type: ignore[misc]
        for key in dict.fromkeys(
            [task.result_key(figure) for task in _EVERY_TASK for figure in task.figures]
            + [task.detail_key(detail, f) for task in _EVERY_TASK for detail in task.details for f in task.figures]
            + ["top5_last"]
        )
    },
    "step_ms_median": lambda row, board, _: cost(row, "step_ms"),
    "time_ratio": lambda row, board, _: exact(row.time_ratio),
    "peak_memory_mb_median": lambda row, board, _: cost(row, "peak_memory_mb"),
    "memory_ratio": lambda row, board, _: exact(row.memory_ratio),
    "train_seconds_mean": lambda row, board, _: cost(row, "train_seconds"),
    "published": lambda row, board, _: row.published.figure.value if row.published.figure else "",
    "published_source": lambda row, board, _: row.published.figure.source if row.published.figure else "",
    "published_table": lambda row, board, _: row.published.figure.table if row.published.figure else "",
    "published_status": lambda row, board, _: row.published.figure.status if row.published.figure else "",
    "rerun_mean": lambda row, board, _: (
        exact(statistics.fmean(row.published.rerun.values)) if row.published.rerun else ""
    ),
    "rerun_std": lambda row, board, _: (
        exact(statistics.stdev(row.published.rerun.values)) if row.published.rerun else ""
    ),
    "rerun_n": lambda row, board, _: len(row.published.rerun.values) if row.published.rerun else "",
    "rerun_agrees": lambda row, board, _: {None: "", True: "yes", False: "no"}[agrees(row)],
    "rerun_visible_gap": lambda row, board, _: exact(visible_gap(row)),
    "published_note": lambda row, board, _: row.published.figure.note if row.published.figure else "",
    "mark": lambda row, board, _: row.published.mark,
    "mark_detail": lambda row, board, _: row.published.detail,
    "notes": lambda row, board, _: "; ".join(row.notes),
    "command": lambda row, board, _: row.command,
}


def to_csv(leaderboard: Leaderboard) -> str:
    """One line per row of every board, numbers unrounded to six decimals."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV)
    for board in leaderboard.boards:
        for row in board.rows:
            writer.writerow([as_data(cell(row, board, leaderboard)) for cell in _CSV.values()])
    return buffer.getvalue()


# Spreadsheets take these characters for the beginning of a formula, in both widths.
# Spreadsheets differ in what they pass over before a formula, and in which wide or small forms they read as its mark.
_FORMULA = re.compile(r"[\t\r\n]|[\s\u200b\ufeff]*[=+\-@＝＋－＠﹢﹣﹦﹫]")


_PLAIN_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII)


def as_data(value: object) -> object:
    """The cell, with a quotation mark before a text that a spreadsheet would calculate instead of showing it."""
    if isinstance(value, str) and _FORMULA.match(value) and not _PLAIN_NUMBER.fullmatch(value):
        return f"'{value}"
    return value


_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|^>|^#(?=#*(\s|$))|^[+-](?=\s|$)")


_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


def literally(text: str) -> str:
    """A text on one line as Markdown that shows it as it is: no HTML, no links or pictures, no new cells."""
    text = _MARKS.sub(lambda mark: "\\" + mark.group(), " ".join(text.split()))
    text = _NUMBERED.sub(r"\1\\\2", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Addresses become links without any mark around them.
    return text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def fence(lines: Iterable[str]) -> list[str]:
    """A block of code whose fence none of its lines can close."""
    lines = list(lines)
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    mark = "`" * max(3, longest + 1)
    return [f"{mark}sh", *lines, mark]


def to_markdown(leaderboard: Leaderboard) -> str:
    """Tables with notes and the command of every row."""
    lines = ["# Leaderboard", "", how(leaderboard), ""]
    if not leaderboard.boards:
        lines += ["No finished run.", ""]
    for pair in pairs_of(leaderboard):
        lines += [f"## {literally(pair.title)}", "", pair.about, "", f"| {' | '.join(pair.heads)} |"]
        lines += ["|---|" + "---:|" * (len(pair.heads) - 1)]
        lines += [f"| {' | '.join([literally(first), *cells])} |" for first, *cells in pair.rows()]
        lines.append("")
    for board in leaderboard.boards:
        lines += [f"## {literally(board.setting.title)}", "", literally(subtitle(board)), ""]
        details, reruns = extra_columns(board), has_reruns(board)
        failures = ["failed"] if has_failures(board) else []
        heads = ["policy", board.task.heading, f"vs {BASELINE}", "seeds", *failures, *(d.title for d, _ in details)]
        heads += ["time/step", "memory", "published", *(["authors' code rerun"] if reruns else [])]
        lines += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
        notes = Footnotes()
        for row in board.rows:
            said = notes.numbers(remarks(row))
            cells = [
                literally(row.label),
                score(row),
                difference(row),
                seeds(row),
                *([failed(row)] if failures else []),
                *(number(row, key, detail.digits) for detail, key in details),
                ratio(row.time_ratio),
                ratio(row.memory_ratio),
                literally(published(row)) + (f" [{said}]" if said else ""),
                *([rerun(row)] if reruns else []),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
        lines += [f"[{number}] {literally(note)}  " for number, note in enumerate(notes.texts, start=1)]
        lines += ["", "Each row again:", "", *fence(row.command for row in board.rows), ""]
    lines += _markdown_left_out(leaderboard)
    return "\n".join(lines).rstrip() + "\n"


def _markdown_left_out(leaderboard: Leaderboard) -> list[str]:
    lines = []
    if leaderboard.left_out:
        lines += ["## Runs without a result", "", "| run | state | reason |", "|---|---|---|"]
        for run in leaderboard.left_out:
            lines.append(f"| {literally(run.name)} | {run.status} | {literally(run.reason)} |")
        lines.append("")
    if leaderboard.problems:
        lines += ["## Noticed while reading", "", *(f"- {literally(problem)}" for problem in leaderboard.problems), ""]
    return lines


def terminal() -> Console:
    """The standard output; wide enough for the tables where it is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 150)


def print_tables(leaderboard: Leaderboard, console: Console) -> None:
    """Every board as a table that fits a terminal; notes and commands are in the files."""
    from rich.markup import escape
    from rich.table import Table

    colours = {"better": "green", "worse": "red", "unclear": "none"}
    for board in leaderboard.boards:
        table = Table(box=None, header_style="dim", pad_edge=False)
        reruns, failures = has_reruns(board), has_failures(board)
        heads = ("policy", board.task.heading.lower(), f"vs {BASELINE}", "seeds", *(["failed"] if failures else []))
        for head in (*heads, "time", "memory", "published", *(["rerun"] if reruns else [])):
            table.add_column(head, justify="left" if head == "policy" else "right", no_wrap=True)
        called = plots.names(board)
        for row in board.rows:
            table.add_row(
                escape(called[row.label]),
                score(row),
                f"[{colours[row.verdict]}]{escape(difference(row))}[/]",
                str(len(row.runs)),
                *([failed(row)] if failures else []),
                ratio(row.time_ratio),
                ratio(row.memory_ratio),
                published(row) if row.published.mark != "no published figure" else "–",
                *([rerun(row)] if reruns else []),
            )
        console.print()
        console.print(board.setting.title, style="bold", markup=False, highlight=False, soft_wrap=True)
        about = f"{subtitle(board)} {board.task.title}: {board.statistic_title}."
        console.print(about, style="dim", markup=False, highlight=False, soft_wrap=True)
        console.print(table, highlight=False)
    for pair in pairs_of(leaderboard):
        table = Table(box=None, header_style="dim", pad_edge=False)
        for head in pair.heads:
            table.add_column(head, justify="left" if head == "policy" else "right", no_wrap=head != "policy")
        for cells in pair.rows():
            table.add_row(*map(escape, cells))
        console.print()
        console.print(pair.title, style="bold", markup=False, highlight=False, soft_wrap=True)
        console.print(pair.about, style="dim", markup=False, highlight=False, soft_wrap=True)
        console.print(table, highlight=False)
    if not leaderboard.boards:
        console.print("No finished run.")
    said = [f"without a result: {run.name}: {run.status}: {run.reason}" for run in leaderboard.left_out]
    for line in [*said, *(f"noticed: {problem}" for problem in leaderboard.problems)]:
        console.print(" ".join(line.split()), markup=False, highlight=False, soft_wrap=True)
    console.print()


FORMATS: dict[str, tuple[str, Callable[[Leaderboard], str]]] = {
    "markdown": ("leaderboard.md", to_markdown),
    "csv": ("leaderboard.csv", to_csv),
    "html": ("leaderboard.html", to_html),
}


def write(leaderboard: Leaderboard, folder: str | Path, formats: Iterable[str] = tuple(FORMATS)) -> list[Path]:
    """Write the chosen formats into ``folder``, each by rename, and return the paths.

    A page of another statistic than the protocols' own has it in its name, and leaves the usual page as it is.

    Raises:
        ValueError: for an unknown format.
        OSError: if the folder cannot be written.
    """
    formats = list(formats)
    unknown: Sequence[str] = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"formats: expected some of {', '.join(FORMATS)}, got {', '.join(unknown)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        file_name, render = FORMATS[name]
        path = folder / file_name
        if leaderboard.other_statistic:
            path = path.with_stem(f"{path.stem}_{leaderboard.other_statistic}")
        place(path, render(leaderboard))
        written.append(path)
    return written
