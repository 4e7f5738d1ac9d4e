"""A leaderboard as one self-contained HTML page."""

from __future__ import annotations

import html as html_module

from mixaug.leaderboard import plots
from mixaug.leaderboard.aggregate import BASELINE, Board, Leaderboard, Row
from mixaug.leaderboard.cells import (
    Footnotes,
    central,
    extra_columns,
    failed,
    figure_text,
    has_failures,
    has_reruns,
    how,
    number,
    ratio,
    remarks,
    rerun,
    seeds,
    star,
    subtitle,
)
from mixaug.leaderboard.side_by_side import Pair, pairs_of

STYLE = """
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


SCRIPT = """
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
        f"<title>Leaderboard</title><style>{STYLE}</style></head><body>",
        f"<h1>Leaderboard</h1><p>{_escape(how(leaderboard))}</p>",
    ]
    if not leaderboard.boards:
        parts.append("<p>No finished run.</p>")
    parts += [_html_pair(pair) for pair in pairs_of(leaderboard)]
    parts += [_html_board(board, leaderboard) for board in leaderboard.boards]
    parts.append(_html_left_out(leaderboard))
    parts.append(f"<script>{SCRIPT}</script></body></html>")
    return "\n".join(parts) + "\n"


def _html_pair(pair: Pair) -> str:
    heads = "".join(f'<th scope="col">{_escape(head)}</th>' for head in pair.heads)
    body = ["<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in cells) + "</tr>" for cells in pair.rows()]
    return "\n".join(
        [
            f"<section><h2>{_escape(pair.title)}</h2><p>{_escape(pair.about)}</p>",
            f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>',
            *body,
            "</tbody></table></div></section>",
        ]
    )


def _html_board(board: Board, leaderboard: Leaderboard) -> str:
    chosen = plots.colours(board)
    details, reruns = extra_columns(board), has_reruns(board)
    heads = (
        "Policy",
        board.task.heading,
        f"vs {BASELINE}",
        "Seeds",
        *(["Failed"] if has_failures(board) else []),
        *(detail.title for detail, _ in details),
        "Step (ms)",
        "Time",
        "Memory",
        "Published",
        *(["Authors' code rerun"] if reruns else []),
    )
    notes = Footnotes()
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
            f"<section><h2>{_escape(board.setting.title)}</h2><p>{_escape(subtitle(board))}</p>",
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
    mean = f"{row.score.mean:.{digits}f}" if row.score is not None else "–"
    if row.score is not None and row.score.std is not None:
        mean += f' <span class="spread">± {row.score.std:.{digits}f}</span>'
    versus = "–"
    if row.difference is not None:
        kind = row.verdict
        interval = (
            f' <span class="interval">[{row.difference.low:+.{digits}f}, {row.difference.high:+.{digits}f}]</span>'
            if row.difference.low is not None
            else ""
        )
        versus = f'<span class="{kind}">{row.difference.mean:+.{digits}f}</span>{interval}{star(row)}'
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
            f'<span class="swatch" style="background:{colour}"></span><span class="policy">{_escape(row.name)}</span>'
            + (f'<span class="options">{_escape(row.options)}</span>' if row.options else ""),
        ),
        (row.score.mean if row.score else "", mean),
        (row.difference.mean if row.difference else "", versus),
        (len(row.runs), _escape(seeds(row))),
        *([(len(row.failed), failed(row))] if has_failures(board) else []),
        *((_sort_value(row, key), number(row, key, detail.digits)) for detail, key in extra_columns(board)),
        (_sort_value(row, "step_ms"), number(row, "step_ms", 1)),
        (row.time_ratio if row.time_ratio is not None else "", ratio(row.time_ratio)),
        (row.memory_ratio if row.memory_ratio is not None else "", ratio(row.memory_ratio)),
        (figure.value if figure else "", told_published + reference),
        *([(rerun(row), _escape(rerun(row)))] if has_reruns(board) else []),
    ]
    marked = ' class="baseline"' if row.is_baseline else ""
    return f"<tr{marked}>" + "".join(f'<td data-sort="{_escape(key)}">{cell}</td>' for key, cell in cells) + "</tr>"


def _html_left_out(leaderboard: Leaderboard) -> str:
    parts = []
    if leaderboard.left_out:
        parts.append(
            '<section><h2>Runs without a result</h2><div class="scroll"><table><thead><tr><th>Run</th><th class="text">'
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
    value = central(row, key)
    return "" if value is None else value


def _escape(value: object) -> str:
    return html_module.escape(str(value), quote=True)
