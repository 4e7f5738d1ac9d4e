"""A leaderboard as Markdown, CSV and one self-contained HTML page."""

from __future__ import annotations

import csv
import html as html_module
import io
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixaug.engine.tasks import TASKS
from mixaug.leaderboard import plots
from mixaug.leaderboard.aggregate import BASELINE, Board, Leaderboard, Row

if TYPE_CHECKING:
    from rich.console import Console

    from mixaug.engine.tasks import Detail
    from mixaug.leaderboard.published import Rerun

__all__ = ["FORMATS", "print_tables", "terminal", "to_csv", "to_html", "to_markdown", "write"]


# -- the cells, shared by all formats -----------------------------------------------------------------------------


COSTS = ("step_ms", "peak_memory_mb")
"""Numbers of result.json that vary with the machine's other work: told as medians."""


def score(row: Row) -> str:
    """``"93.20 ± 0.31"``; without the spread for one seed."""
    digits = row.task.digits
    return f"{row.score.mean:.{digits}f}" + (f" ± {row.score.std:.{digits}f}" if row.score.std is not None else "")


def difference(row: Row) -> str:
    """``"+1.25 [+0.60, +1.90]"``; without the interval for one common seed."""
    if row.difference is None:
        return "–"
    digits = row.task.digits
    text = f"{row.difference.mean:+.{digits}f}"
    if row.difference.low is not None:
        text += f" [{row.difference.low:+.{digits}f}, {row.difference.high:+.{digits}f}]"
    return text


def ratio(value: float | None) -> str:
    """``"1.08×"`` or a dash."""
    return "–" if value is None else f"{value:.2f}×"


def published(row: Row) -> str:
    """The published figure and how it is known, or the mark that says why there is none."""
    figure = row.published.figure
    if figure is None:
        return row.published.mark or "–"
    return figure_text(row) + (f" ({figure.status})" if figure.status else "")


def figure_text(row: Row) -> str:
    """The published number with as many digits as it was published with."""
    figure = row.published.figure
    if figure is None:
        return ""
    return f"{figure.value:.2f}" if row.task.unit == "%" else f"{figure.value:g}"


def rerun(row: Row) -> str:
    """``"2.8020 ± 0.2157, agrees"``: what the authors' code gave here, and whether we agree within the spread."""
    found = row.published.rerun
    if found is None:
        return "–"
    digits = row.task.digits
    told = f"{statistics.fmean(found.values):.{digits}f} ± {statistics.stdev(found.values):.{digits}f}"
    agreement = agrees(row)
    return told if agreement is None else f"{told}, {'agrees' if agreement else 'differs'}"


def agrees(row: Row) -> bool | None:
    """Whether our mean lies within 2.5 standard errors of the rerun's; None where that cannot be told."""
    found = row.published.rerun
    if found is None or row.score.std is None or row.statistic != row.task.figure:
        return None
    away = abs(row.score.mean - statistics.fmean(found.values))
    return away <= found.allowed(row.score.std, row.score.n)


def number(row: Row, key: str, digits: int = 2) -> str:
    """One number of result.json over the seeds, or a dash: the mean, of costs the median."""
    value = _central(row, key)
    return "–" if value is None else f"{value:.{digits}f}"


def _rerun_remark(row: Row, found: Rerun) -> str:
    told = f"rerun of the authors' code, {len(found.values)} seeds ({found.name})"
    if agrees(row) is not None and row.score.std is not None:
        away, allowed = row.score.mean - statistics.fmean(found.values), found.allowed(row.score.std, row.score.n)
        told += f": ours is {away:+.4f} away, 2.5 standard errors are {allowed:.4f}"
    if len(found.worst_group) > 1:
        mean, std = statistics.fmean(found.worst_group), statistics.stdev(found.worst_group)
        told += f"; its worst group {mean:.4f} ± {std:.4f}"
    return told


def remarks(row: Row) -> list[str]:
    """Everything a reader must know before comparing this row."""
    said = list(row.notes)
    figure, found = row.published.figure, row.published.rerun
    if found is not None:
        said.append(_rerun_remark(row, found))
    if figure is not None:
        said.append(f"published: {figure.citation}")
        taken = "median of last 10 epochs" in figure.note
        usual = "median10" if taken else row.task.figure
        if row.statistic != usual:
            said.append(f"this column is the {row.task.figures[row.statistic]}")
    elif row.published.detail:
        said.append(f"{row.published.mark}: {row.published.detail}")
    return said


def seeds(row: Row) -> str:
    """``"5 (0–4)"`` or ``"3 (0, 2, 7)"``."""
    listed = row.seeds
    run = len(listed) > 2 and listed == tuple(range(listed[0], listed[0] + len(listed)))
    return f"{len(listed)} ({f'{listed[0]}–{listed[-1]}' if run else ', '.join(map(str, listed))})"


def how(leaderboard: Leaderboard) -> str:
    """One paragraph: how the numbers of this page are made."""
    taken = dict.fromkeys(
        f"{board.task.title} is that of the {board.statistic_title}"
        + (", in percent" if board.task.unit == "%" else ", on the test set, in label units")
        for board in leaderboard.boards
    )
    return (
        f"{'. '.join(taken) or 'Numbers are'}, as mean ± standard deviation over seeds. "
        f"The difference to {BASELINE} is paired by seed, with a {leaderboard.confidence:.0%} Student-t interval; "
        "intervals are per row, not corrected for the number of rows. "
        f"Time per step and peak memory are ratios of medians to {BASELINE} over the same seeds. "
        "A published figure is shown only where data, backbone, epochs, protocol and method agree."
    )


# -- CSV ----------------------------------------------------------------------------------------------------------

_CSV: dict[str, Callable[[Row, Board, Leaderboard], object]] = {
    "model": lambda row, board, _: board.setting.model,
    "data": lambda row, board, _: board.setting.data,
    "data_options": lambda row, board, _: board.setting.data_options,
    "protocol": lambda row, board, _: board.setting.protocol,
    "epochs": lambda row, board, _: board.setting.epochs,
    "policy": lambda row, board, _: row.policy,
    "policy_options": lambda row, board, _: json.dumps(dict(row.policy_options), sort_keys=True),
    "settings": lambda row, board, _: json.dumps(dict(row.settings), sort_keys=True),
    "task": lambda row, board, _: board.task.name,
    "measure": lambda row, board, _: board.task.measure,
    "statistic": lambda row, board, _: board.statistic,
    "n": lambda row, board, _: row.score.n,
    "seeds": lambda row, board, _: " ".join(map(str, row.seeds)),
    "mean": lambda row, board, _: _exact(row.score.mean),
    "std": lambda row, board, _: _exact(row.score.std),
    "difference": lambda row, board, _: _exact(getattr(row.difference, "mean", None)),
    "low": lambda row, board, _: _exact(getattr(row.difference, "low", None)),
    "high": lambda row, board, _: _exact(getattr(row.difference, "high", None)),
    "confidence": lambda row, board, lb: lb.confidence,
    "pairs": lambda row, board, _: row.difference.n if row.difference else 0,
    **{
        f"{key}_mean": lambda row, board, _, key=key: _told(row, key)  # type: ignore[misc]
        for key in dict.fromkeys(
            [task.result_key(figure) for task in TASKS.values() for figure in task.figures]
            + [detail.key.format(figure=f) for task in TASKS.values() for detail in task.details for f in task.figures]
            + ["top5_last"]
        )
    },
    "step_ms_median": lambda row, board, _: _told(row, "step_ms"),
    "time_ratio": lambda row, board, _: _exact(row.time_ratio),
    "peak_memory_mb_median": lambda row, board, _: _told(row, "peak_memory_mb"),
    "memory_ratio": lambda row, board, _: _exact(row.memory_ratio),
    "train_seconds_mean": lambda row, board, _: _told(row, "train_seconds"),
    "published": lambda row, board, _: row.published.figure.value if row.published.figure else "",
    "published_source": lambda row, board, _: row.published.figure.source if row.published.figure else "",
    "published_table": lambda row, board, _: row.published.figure.table if row.published.figure else "",
    "published_status": lambda row, board, _: row.published.figure.status if row.published.figure else "",
    "rerun_mean": lambda row, board, _: (
        _exact(statistics.fmean(row.published.rerun.values)) if row.published.rerun else ""
    ),
    "rerun_std": lambda row, board, _: (
        _exact(statistics.stdev(row.published.rerun.values)) if row.published.rerun else ""
    ),
    "rerun_n": lambda row, board, _: len(row.published.rerun.values) if row.published.rerun else "",
    "rerun_agrees": lambda row, board, _: {None: "", True: "yes", False: "no"}[agrees(row)],
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
            writer.writerow([_as_data(cell(row, board, leaderboard)) for cell in _CSV.values()])
    return buffer.getvalue()


# What spreadsheets take for the beginning of a formula, in both widths.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_PLAIN_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII)


def _as_data(value: object) -> object:
    """The cell, with a quotation mark before a text that a spreadsheet would calculate instead of showing it."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _PLAIN_NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _central(row: Row, key: str) -> float | None:
    """Mean over seeds; of costs the median, like the ratios beside them: one slow moment must not count."""
    summary = row.summary(key)
    if summary is None:
        return None
    return statistics.median(row.values(key)) if key in COSTS else summary.mean


def _told(row: Row, key: str) -> str:
    return _exact(_central(row, key))


# -- Markdown -----------------------------------------------------------------------------------------------------

_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|^>|^#(?=#*(\s|$))|^[+-](?=\s|$)")
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


def _literally(text: str) -> str:
    """A text on one line as Markdown that shows it as it is: no HTML, no links or pictures, no new cells."""
    text = _MARKS.sub(lambda mark: "\\" + mark.group(), " ".join(text.split()))
    text = _NUMBERED.sub(r"\1\\\2", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Addresses become links without any mark around them.
    return text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def _fence(lines: Iterable[str]) -> list[str]:
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
    for board in leaderboard.boards:
        lines += [f"## {_literally(board.setting.title)}", "", _literally(_subtitle(board)), ""]
        details, reruns = _details(board), _has_reruns(board)
        heads = ["policy", board.task.heading, f"vs {BASELINE}", "seeds", *(detail.title for detail, _ in details)]
        heads += ["time/step", "memory", "published", *(["authors' code rerun"] if reruns else [])]
        lines += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
        notes = _Footnotes()
        for row in board.rows:
            said = notes.numbers(remarks(row))
            cells = [
                _literally(row.label),
                score(row),
                difference(row),
                seeds(row),
                *(number(row, key, detail.digits) for detail, key in details),
                ratio(row.time_ratio),
                ratio(row.memory_ratio),
                _literally(published(row)) + (f" [{said}]" if said else ""),
                *([rerun(row)] if reruns else []),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
        lines += [f"[{number}] {_literally(note)}  " for number, note in enumerate(notes.texts, start=1)]
        lines += ["", "Each row again:", "", *_fence(row.command for row in board.rows), ""]
    lines += _markdown_left_out(leaderboard)
    return "\n".join(lines).rstrip() + "\n"


def _details(board: Board) -> list[tuple[Detail, str]]:
    """Further numbers of the task that some row of the board has, with their keys in a result."""
    keyed = [(detail, detail.key.format(figure=board.statistic)) for detail in board.task.details]
    return [(detail, key) for detail, key in keyed if any(row.values(key) for row in board.rows)]


def _has_reruns(board: Board) -> bool:
    return any(row.published.rerun for row in board.rows)


def _markdown_left_out(leaderboard: Leaderboard) -> list[str]:
    lines = []
    if leaderboard.left_out:
        lines += ["## Runs not in a table", "", "| run | state | reason |", "|---|---|---|"]
        for run in leaderboard.left_out:
            lines.append(f"| {_literally(run.name)} | {run.status} | {_literally(run.reason)} |")
        lines.append("")
    if leaderboard.problems:
        lines += ["## Noticed while reading", "", *(f"- {_literally(problem)}" for problem in leaderboard.problems), ""]
    return lines


def _subtitle(board: Board) -> str:
    environments = [run.environment for row in board.rows for run in row.runs]
    machines = sorted({_machine(environment) for environment in environments})
    versions = sorted({str((environment.get("versions") or {}).get("torch", "?")) for environment in environments})
    commits = sorted({str(environment["git_commit"]) for environment in environments if environment.get("git_commit")})
    epochs = board.setting.epochs
    parts = [
        f"Protocol {board.setting.protocol}, {epochs} epoch{'s' if epochs != 1 else ''}",
        " and ".join(machines),
        f"torch {', '.join(versions)}",
    ]
    if len(commits) == 1:
        parts.append("commit " + _short_commit(commits[0]))
    elif commits:
        parts.append(f"{len(commits)} commits: {', '.join(map(_short_commit, commits))}")
    return "; ".join(parts) + "."


def _machine(environment: Mapping[str, Any]) -> str:
    device, threads = environment.get("device"), environment.get("threads")
    if isinstance(device, Mapping):
        kind, name = str(device.get("type", "?")), str(device.get("name", ""))
        device = name if kind == "cuda" and name else f"{kind.upper()} {name}".strip()
    elif device is None:
        return "unknown device"
    return str(device) + (f" ({threads} thread{'s' if threads != 1 else ''})" if threads else "")


def _short_commit(commit: str) -> str:
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


class _Footnotes:
    """Numbered notes; a text said twice keeps its first number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1

    def numbers(self, texts: Iterable[str]) -> str:
        return ", ".join(str(number) for number in sorted({self.number(text) for text in texts}))


# -- HTML ---------------------------------------------------------------------------------------------------------

_STYLE = """
:root { --ink: #24292f; --soft: #57606a; --faint: #8b949e; --line: #e4e7eb; --wash: #f6f8fa;
  --better: #1a7f37; --worse: #b42318; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2.2rem 1.6rem 4rem; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .1rem; }
p { margin: .3rem 0 1rem; max-width: 62rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
  vertical-align: baseline; }
th { font-size: .82rem; font-weight: 600; color: var(--soft); border-bottom: 1.5px solid var(--faint); }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
table.sortable th { cursor: pointer; user-select: none; }
table.sortable th:hover, table.sortable th:focus-visible { color: var(--ink); }
th[aria-sort="ascending"]::after { content: " ↑"; } th[aria-sort="descending"]::after { content: " ↓"; }
tbody tr:hover { background: var(--wash); }
tr.baseline td { background: var(--wash); }
.policy { font-weight: 600; } .options, .spread, .interval, .mark { color: var(--faint); font-size: .86em; }
.options { white-space: normal; display: block; }
.better { color: var(--better); font-weight: 600; } .worse { color: var(--worse); font-weight: 600; }
.swatch { display: inline-block; width: .62em; height: .62em; border-radius: 50%; margin-right: .5em; }
.text { text-align: left; white-space: normal; }
figure { margin: 1.6rem 0 0; } figure img { max-width: 100%; height: auto; display: block; }
ol.notes { color: var(--soft); font-size: .88rem; margin: .7rem 0 0; padding-left: 1.4rem; }
details { margin-top: 1rem; } summary { cursor: pointer; color: var(--soft); }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem;
  overflow-x: auto; font: 12.5px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.failed, .corrupt { color: var(--worse); font-weight: 600; } sup { color: var(--faint); }
@media print { body { max-width: none; padding: 0; } details > * { display: block; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const sort = (head, column) => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0], value = row => row.cells[column].dataset.sort ?? "";
    [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    }).forEach(row => body.append(row));
  };
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head, column));
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(head, column); });
  });
}
"""


def to_html(leaderboard: Leaderboard) -> str:
    """One page that loads nothing from anywhere: styles, plots and the sorting script are inside."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Leaderboard</title><style>{_STYLE}</style></head><body>",
        f"<h1>Leaderboard</h1><p>{_escape(how(leaderboard))}</p>",
    ]
    if not leaderboard.boards:
        parts.append("<p>No finished run.</p>")
    parts += [_html_board(board, leaderboard) for board in leaderboard.boards]
    parts.append(_html_left_out(leaderboard))
    parts.append(f"<script>{_SCRIPT}</script></body></html>")
    return "\n".join(parts) + "\n"


def _html_board(board: Board, leaderboard: Leaderboard) -> str:
    chosen = plots.colours(board)
    details, reruns = _details(board), _has_reruns(board)
    heads = (
        "Policy",
        board.task.heading,
        f"vs {BASELINE}",
        "Seeds",
        *(detail.title for detail, _ in details),
        "Step (ms)",
        "Time",
        "Memory",
        "Published",
        *(["Authors' code rerun"] if reruns else []),
    )
    notes = _Footnotes()
    body = [_html_row(row, board, chosen[row.label], notes.numbers(remarks(row))) for row in board.rows]
    figures = (
        (f"{board.task.title} per policy and paired difference", plots.score_plot(board, leaderboard.confidence)),
        ("Learning curves", plots.curves_plot(board)),
        (f"Cost against {board.task.title}", plots.cost_plot(board)),
    )
    images = [
        f'<figure><img alt="{_escape(title)}" src="{plots.data_uri(figure)}"></figure>'
        for title, figure in figures
        if figure is not None
    ]
    commands = "\n".join(_escape(row.command) for row in board.rows)
    return "\n".join(
        [
            f"<section><h2>{_escape(board.setting.title)}</h2><p>{_escape(_subtitle(board))}</p>",
            '<div class="scroll"><table class="sortable"><thead><tr>',
            *(f'<th scope="col">{_escape(head)}</th>' for head in heads),
            "</tr></thead><tbody>",
            *body,
            "</tbody></table></div>",
            '<ol class="notes">' + "".join(f"<li>{_escape(note)}</li>" for note in notes.texts) + "</ol>",
            f"<details><summary>Commands that regenerate these rows</summary><pre>{commands}</pre></details>",
            *images,
            "</section>",
        ]
    )


def _html_row(row: Row, board: Board, colour: str, notes: str) -> str:
    digits = board.task.digits
    spread = f' <span class="spread">± {row.score.std:.{digits}f}</span>' if row.score.std is not None else ""
    versus = "–"
    if row.difference is not None:
        kind = row.difference.verdict
        interval = (
            f' <span class="interval">[{row.difference.low:+.{digits}f}, {row.difference.high:+.{digits}f}]</span>'
            if row.difference.low is not None
            else ""
        )
        versus = f'<span class="{kind}">{row.difference.mean:+.{digits}f}</span>{interval}'
    figure = row.published.figure
    told_published = (
        f'<span title="{_escape(figure.citation)}">{figure_text(row)} <span class="mark">'
        f"{_escape(figure.status or figure.source)}</span></span>"
        if figure is not None
        else f'<span class="mark">{_escape(row.published.mark)}</span>'
    )
    reference = f" <sup>{notes}</sup>" if notes else ""
    cells = [
        (
            row.label,
            f'<span class="swatch" style="background:{colour}"></span><span class="policy">{_escape(row.policy)}</span>'
            + (f'<span class="options">{_escape(row.options)}</span>' if row.options else ""),
        ),
        (row.score.mean, f"{row.score.mean:.{digits}f}{spread}"),
        (row.difference.mean if row.difference else "", versus),
        (row.score.n, _escape(seeds(row))),
        *((_sort_value(row, key), number(row, key, detail.digits)) for detail, key in _details(board)),
        (_sort_value(row, "step_ms"), number(row, "step_ms", 1)),
        (row.time_ratio if row.time_ratio is not None else "", ratio(row.time_ratio)),
        (row.memory_ratio if row.memory_ratio is not None else "", ratio(row.memory_ratio)),
        (figure.value if figure else "", told_published + reference),
        *([(rerun(row), _escape(rerun(row)))] if _has_reruns(board) else []),
    ]
    marked = ' class="baseline"' if row.policy == BASELINE else ""
    return f"<tr{marked}>" + "".join(f'<td data-sort="{_escape(key)}">{cell}</td>' for key, cell in cells) + "</tr>"


def _html_left_out(leaderboard: Leaderboard) -> str:
    parts = []
    if leaderboard.left_out:
        parts.append(
            '<section><h2>Runs not in a table</h2><div class="scroll"><table><thead><tr><th>Run</th><th class="text">'
            'State</th><th class="text">Reason</th></tr></thead><tbody>'
        )
        for run in leaderboard.left_out:
            parts.append(
                f'<tr><td>{_escape(run.name)}</td><td class="text {run.status}">{run.status}</td>'
                f'<td class="text">{_escape(run.reason)}</td></tr>'
            )
        parts.append("</tbody></table></div></section>")
    if leaderboard.problems:
        listed = "".join(f"<li>{_escape(problem)}</li>" for problem in leaderboard.problems)
        parts.append(f'<section><h2>Noticed while reading</h2><ul class="notes">{listed}</ul></section>')
    return "\n".join(parts)


def _sort_value(row: Row, key: str) -> object:
    value = _central(row, key)
    return "" if value is None else value


def _escape(value: object) -> str:
    return html_module.escape(str(value), quote=True)


# -- terminal -----------------------------------------------------------------------------------------------------


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
        reruns = _has_reruns(board)
        heads = ("policy", board.task.heading.lower(), f"vs {BASELINE}", "seeds", "time", "memory", "published")
        for head in (*heads, *(["rerun"] if reruns else [])):
            table.add_column(head, justify="left" if head == "policy" else "right", no_wrap=True)
        called = plots.names(board)
        for row in board.rows:
            verdict = row.difference.verdict if row.difference else "unclear"
            table.add_row(
                escape(called[row.label]),
                score(row),
                f"[{colours[verdict]}]{escape(difference(row))}[/]",
                str(row.score.n),
                ratio(row.time_ratio),
                ratio(row.memory_ratio),
                published(row) if row.published.mark != "no published figure" else "–",
                *([rerun(row)] if reruns else []),
            )
        console.print()
        console.print(board.setting.title, style="bold", markup=False, highlight=False, soft_wrap=True)
        about = f"{_subtitle(board)} {board.task.title}: {board.statistic_title}."
        console.print(about, style="dim", markup=False, highlight=False, soft_wrap=True)
        console.print(table, highlight=False)
    if not leaderboard.boards:
        console.print("No finished run.")
    said = [f"not in a table: {run.name}: {run.status}: {run.reason}" for run in leaderboard.left_out]
    for line in [*said, *(f"noticed: {problem}" for problem in leaderboard.problems)]:
        console.print(" ".join(line.split()), markup=False, highlight=False, soft_wrap=True)
    console.print()


# -- files --------------------------------------------------------------------------------------------------------

FORMATS: dict[str, tuple[str, Callable[[Leaderboard], str]]] = {
    "markdown": ("leaderboard.md", to_markdown),
    "csv": ("leaderboard.csv", to_csv),
    "html": ("leaderboard.html", to_html),
}


def write(leaderboard: Leaderboard, folder: str | Path, formats: Iterable[str] = tuple(FORMATS)) -> list[Path]:
    """Write the chosen formats into ``folder``, each by rename, and return the paths.

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
        beside = path.with_name(path.name + ".part")
        beside.write_text(render(leaderboard), encoding="utf-8")
        os.replace(beside, path)
        written.append(path)
    return written
