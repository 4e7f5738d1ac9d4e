"""The page of a search: every rung, the final comparison and the budget, as Markdown, HTML and CSV."""

from __future__ import annotations

import csv
import html as html_module
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixaug.engine.tasks import Task
from mixaug.engine.writing import place
from mixaug.leaderboard import cells
from mixaug.leaderboard.aggregate import Board, Leaderboard, Row
from mixaug.leaderboard.page import STYLE
from mixaug.leaderboard.render import as_data, fence, literally
from mixaug.leaderboard.search.journal import Journal, Standing
from mixaug.leaderboard.search.plan import Cost
from mixaug.leaderboard.search.space import Space, Trial
from mixaug.leaderboard.statistics import paired_difference

__all__ = ["Report", "to_csv", "to_html", "to_markdown", "write_pages"]

#: Of the CSV.
COLUMNS = (
    *("rung", "epochs", "trial", "policy", "options", "measure"),
    *("validation", "seeds", "seconds", "goes_on", "failed"),
)


@dataclass(frozen=True)
class Report:
    """What a page is made of.

    Attributes:
        space, task, journal: of the search.
        figure: which number of a run counts.
        budget: in seconds.
        clock: what a second is, ``"wall"`` or ``"cpu"``.
        command: that repeats the search.
        costs: of the trials by their labels; empty before they are measured.
        grid_seconds: what all trials would have taken in full with one seed.
        winner: None before there is one.
        board: of the final comparison; None before there is one.
    """

    space: Space
    task: Task
    figure: str
    budget: float
    clock: str
    command: str
    journal: Journal
    costs: Mapping[str, Cost]
    grid_seconds: float
    winner: Trial | None
    board: Leaderboard | None

    @property
    def trials(self) -> dict[str, Trial]:
        """Trials by their labels."""
        return {trial.label: trial for trial in self.space.trials}

    @property
    def rungs(self) -> list[int]:
        """Numbers of the rungs that trials have been judged on."""
        return sorted({standing.rung for standing in self.journal.standings})


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    lines: Sequence[str]


Block = Heading | Paragraph | Table | Code


def blocks(report: Report) -> list[Block]:
    """The page's content, the same in every format; all texts are plain."""
    return [*_result(report), *_budget(report), *_rungs(report), *_again(report)]


# -- the result -------------------------------------------------------------------------------------------------------


def _result(report: Report) -> list[Block]:
    space, task = report.space, report.task
    config = space.config
    found: list[Block] = [
        Paragraph(
            f"{config.model.name} on {config.data.name}, {space.epochs} epochs, protocol {config.protocol.name}. "
            f"{len(space.trials)} trials of {len(space.settings.policies)} policies were tried, by successive halving: "
            f"all are trained a little, one of {space.settings.eta} goes on, rung by rung, exactly where it stopped. "
            f"The choice is made by {task.title} of the {task.title_of(report.figure, 'valid')} on the validation set; "
            "the search reads nothing of the test set before the final comparison."
        )
    ]
    if report.winner is None:
        return [*found, Paragraph("There is no winner yet.")]
    last = report.rungs[-1]
    standing = next(s for s in report.journal.on_rung(last) if s.trial == report.winner.label)
    count = len(standing.figures)
    found.append(
        Paragraph(
            f"The winner is {report.winner.label}. Its validation figure, {_number(task, standing.figure)} over "
            f"{count} seed{'s' if count != 1 else ''}, is the best of {len(space.trials)} and therefore optimistic; "
            "what it is worth the final comparison says."
        )
    )
    found.append(Heading("Final comparison on the test set"))
    if report.board is None or not report.board.boards:
        note = report.journal.final_note
        return [*found, Paragraph(f"There is none: {note}." if note else "It has not been made yet.")]
    return [*found, *_final(report, report.board)]


def _final(report: Report, leaderboard: Leaderboard) -> list[Block]:
    found: list[Block] = []
    for board in leaderboard.boards:
        details = cells.extra_columns(board)
        failures = ["failed"] if cells.has_failures(board) else []
        heads = ["policy", board.task.heading, "vs none", "seeds", *failures, *(d.title for d, _ in details)]
        rows = [
            [
                row.label + _role(report, row),
                cells.score(row),
                cells.difference(row),
                cells.seeds(row),
                *([cells.failed(row)] if failures else []),
                *(cells.number(row, key, detail.digits) for detail, key in details),
                cells.ratio(row.time_ratio),
            ]
            for row in board.rows
        ]
        found.append(Table([*heads, "time/step"], rows))
        found.append(Paragraph(_said_of(report, leaderboard, board)))
        found.append(Paragraph(cells.subtitle(board)))
    if report.journal.final_note:
        found.append(Paragraph(f"Fewer seeds than asked for: {report.journal.final_note}."))
    return found


def _is(trial: Trial, row: Row) -> bool:
    """Whether a row is that of a trial."""
    own = {key: value for key, value in trial.config.policy.items() if key != "_target_"}
    return row.policy == trial.policy and all(_same(row.policy_options.get(str(key)), own[key]) for key in own)


def _same(one: object, other: object) -> bool:
    return json.dumps(one, default=list) == json.dumps(other, default=list)


def _role(report: Report, row: Row) -> str:
    assert report.winner is not None
    roles = {"winner": report.winner, "usual": report.space.usual}
    told = [role for role, trial in roles.items() if _is(trial, row)]
    return f" ({', '.join(told)})" if told else ""


def _said_of(report: Report, leaderboard: Leaderboard, board: Board) -> str:
    """How to read the table, and the winner against the usual policy."""
    assert report.winner is not None
    text = (
        "Mean ± standard deviation over fresh seeds, which no run of the search had; differences are paired by seed, "
        f"with a {leaderboard.confidence:.0%} Student-t interval of each row alone. A star: significant among all rows "
        "of the table (Holm)."
    )
    winner = next((row for row in board.rows if _is(report.winner, row)), None)
    usual = next((row for row in board.rows if _is(report.space.usual, row)), None)
    if winner is None or usual is None or winner is usual:
        return text
    key = board.task.result_key(board.statistic)
    ours, theirs = (
        {int(run.result["seed"]): float(run.result[key]) for run in row.runs if run.result.get(key) is not None}
        for row in (winner, usual)
    )
    difference = paired_difference(ours, theirs, leaderboard.confidence, higher_is_better=board.task.higher_is_better)
    if difference is None:
        return text
    digits = board.task.digits
    told = f"{difference.mean:+.{digits}f}"
    if difference.low is not None and difference.high is not None:
        told += f" [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"
    return f"{text} The winner against {usual.label}: {told}, this interval not corrected for anything."


# -- the budget -------------------------------------------------------------------------------------------------------


def _budget(report: Report) -> list[Block]:
    journal = report.journal
    stages = list(dict.fromkeys(job.stage for job in journal.jobs))
    rows = [
        [
            stage,
            str(len({(job.trial, job.seed) for job in journal.jobs if job.stage == stage})),
            str(journal.epochs(stage)),
            f"{journal.spent(stage):.0f}",
        ]
        for stage in stages
    ]
    spent = journal.spent()
    epochs = sum(map(journal.epochs, stages))
    rows.append(["all", str(len({(job.trial, job.seed) for job in journal.jobs})), str(epochs), f"{spent:.0f}"])
    # Of the seconds as they are told, so that the three figures add up.
    left = round(report.budget) - round(spent)
    second = {
        "wall": "A second is one of a run's command: starting, training, scoring, and waiting for a busy machine",
        "cpu": "A second is one that a run's process computes, starting and scoring included, waiting left out",
    }[report.clock]
    found: list[Block] = [
        Heading("Budget"),
        Table(["stage", "runs", "epochs", "seconds"], rows),
        Paragraph(
            f"Of a budget of {report.budget:.0f} s, {spent:.0f} s were spent and "
            f"{f'{left} s are left' if left >= 0 else f'the last runs took {-left} s more'}. {second}; two "
            "runs at a time spend two."
        ),
    ]
    if report.grid_seconds:
        found.append(Paragraph(_grid(report)))
    plan = journal.plan
    if plan is not None:
        lengths = (
            "every trial in full" if plan.ratio == 1 else f"rungs {plan.ratio:.2f} times as long as the one before"
        )
        found.append(
            Paragraph(
                f"Planned after the probe: {lengths}, {plan.rung_seconds:.0f} s for "
                f"the rungs and {plan.final_seconds:.0f} s for {plan.final_seeds} seeds of the final comparison."
            )
        )
    return found


def _grid(report: Report) -> str:
    """What the whole grid would have cost, or that it was run."""
    searched = report.journal.spent() - report.journal.spent("final")
    mean = statistics.fmean(cost.epoch for cost in report.costs.values())
    seeds, count, grid = report.space.settings.last_seeds, len(report.costs), report.grid_seconds
    plan = report.journal.plan
    is_grid = plan is not None and plan.rungs[0].epochs == report.space.epochs
    run = "The first rung is the whole grid with one seed" if is_grid else "The whole grid was not run"
    return (
        f"{run}. Computed from the measured times, {mean:.2f} s an epoch on average, each of the {count} trials once "
        f"in full takes {grid:.0f} s, with {seeds} seeds each {seeds * grid:.0f} s; the search without its final "
        f"comparison took {searched:.0f} s."
    )


# -- the rungs --------------------------------------------------------------------------------------------------------


def _rungs(report: Report) -> list[Block]:
    found: list[Block] = []
    plan = report.journal.plan
    for rung in report.rungs:
        epochs = plan.rungs[rung].epochs if plan is not None and rung < len(plan.rungs) else 0
        found.append(Heading(f"Rung {rung + 1}: to epoch {epochs} of {report.space.epochs}"))
        heads = ["", "trial", f"validation {report.task.heading}", "seeds", "s/epoch", "seconds so far", ""]
        ordered = sorted(report.journal.on_rung(rung), key=lambda standing: _order(report, standing))
        rows = [
            [
                str(place) if standing.figure is not None else "",
                standing.trial,
                _number(report.task, standing.figure),
                str(len(standing.figures) or ""),
                f"{report.costs[standing.trial].epoch:.2f}" if standing.trial in report.costs else "",
                f"{_seconds(report, rung, standing.trial):.0f}",
                _outcome(report, standing),
            ]
            for place, standing in enumerate(ordered, start=1)
        ]
        found.append(Table(heads, rows))
        ended = report.journal.end_of(rung)
        if ended is not None and ended.note:
            found.append(Paragraph(f"Here {ended.note}."))
    lost = sorted({(job.trial, job.reason) for job in report.journal.jobs if job.stage == "probe" and job.reason})
    if lost:
        found += [Heading("Failed before the first rung"), Table(["trial", "reason"], [list(pair) for pair in lost])]
    return found


def _order(report: Report, standing: Standing) -> tuple[bool, float, float]:
    sign = -1 if report.task.higher_is_better else 1
    cost = report.costs.get(standing.trial)
    return standing.figure is None, sign * (standing.figure or 0.0), 0.0 if cost is None else cost.epoch


def _outcome(report: Report, standing: Standing) -> str:
    if standing.failed:
        return f"failed: {standing.failed}"
    ended = report.journal.end_of(standing.rung)
    if ended is None:
        return ""
    if report.winner is not None and standing.rung == report.rungs[-1]:
        return "winner" if standing.trial == report.winner.label else ""
    return "goes on" if standing.trial in ended.kept else ""


def _seconds(report: Report, rung: int, trial: str) -> float:
    """Seconds of a trial's commands up to a rung."""
    stages = {"probe", *(f"rung {number + 1}" for number in range(rung + 1))}
    return sum(job.seconds for job in report.journal.jobs if job.trial == trial and job.stage in stages)


def _again(report: Report) -> list[Block]:
    return [
        Heading("Again"),
        Code([report.command]),
        Paragraph(
            "In another root the command repeats the search; lengths of rungs follow from measured times and may "
            "differ. In this one it finds what is finished."
        ),
    ]


def _number(task: Task, value: float | None) -> str:
    return "–" if value is None else f"{value:.{task.digits}f}"


# -- formats ----------------------------------------------------------------------------------------------------------


def to_markdown(report: Report) -> str:
    """The page as Markdown."""
    lines = ["# Search", ""]
    for block in blocks(report):
        if isinstance(block, Heading):
            lines += [f"## {literally(block.text)}", ""]
        elif isinstance(block, Paragraph):
            lines += [literally(block.text), ""]
        elif isinstance(block, Code):
            lines += [*fence(block.lines), ""]
        else:
            lines.append(f"| {' | '.join(map(literally, block.heads))} |")
            lines.append("|" + "".join("---|" if _is_text(block, k) else "--:|" for k in range(len(block.heads))))
            lines += [f"| {' | '.join(map(literally, row))} |" for row in block.rows]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def to_html(report: Report) -> str:
    """The page as HTML that loads nothing from anywhere."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Search</title><style>{STYLE}</style></head><body><h1>Search</h1>",
    ]
    for block in blocks(report):
        if isinstance(block, Heading):
            parts.append(f"<h2>{_escape(block.text)}</h2>")
        elif isinstance(block, Paragraph):
            parts.append(f"<p>{_escape(block.text)}</p>")
        elif isinstance(block, Code):
            parts.append(f"<pre>{_escape(chr(10).join(block.lines))}</pre>")
        else:
            parts.append('<div class="scroll"><table><thead><tr>')
            kinds = [' class="text"' if _is_text(block, k) else "" for k in range(len(block.heads))]
            parts += [f"<th{kind}>{_escape(head)}</th>" for kind, head in zip(kinds, block.heads, strict=True)]
            parts.append("</tr></thead><tbody>")
            for row in block.rows:
                marked = ' class="baseline"' if row[-1] in ("goes on", "winner") else ""
                told = "".join(f"<td{kind}>{_escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
                parts.append(f"<tr{marked}>{told}</tr>")
            parts.append("</tbody></table></div>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _is_text(table: Table, column: int) -> bool:
    return table.heads[column] in ("policy", "trial", "stage", "reason") or (not table.heads[column] and column > 0)


def _escape(text: str) -> str:
    return html_module.escape(text, quote=True)


def to_csv(report: Report) -> str:
    """A line for each trial on each rung, numbers unrounded to six decimals."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    plan = report.journal.plan
    for standing in report.journal.standings:
        trial, ended = report.trials.get(standing.trial), report.journal.end_of(standing.rung)
        rungs = plan.rungs if plan is not None else ()
        row: Iterable[object] = (
            standing.rung + 1,
            rungs[standing.rung].epochs if standing.rung < len(rungs) else "",
            standing.trial,
            trial.policy if trial is not None else "",
            json.dumps(dict(trial.options), sort_keys=True) if trial is not None else "",
            f"valid_{report.task.measure}_{report.figure}",
            cells.exact(standing.figure),
            len(standing.figures),
            cells.exact(_seconds(report, standing.rung, standing.trial)),
            "yes" if ended is not None and standing.trial in ended.kept else "no",
            standing.failed,
        )
        writer.writerow([as_data(cell) for cell in row])
    return buffer.getvalue()


def write_pages(report: Report, folder: Path) -> list[Path]:
    """Write ``search.md``, ``search.html`` and ``search.csv`` into a folder, each by rename.

    Raises:
        OSError: the folder cannot be written.
    """
    written = []
    for name, render in (("search.md", to_markdown), ("search.html", to_html), ("search.csv", to_csv)):
        path = folder / name
        place(path, render(report))
        written.append(path)
    return written
