"""Texts of a leaderboard's cells, the same in every format."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from mixaug.engine.tasks import Detail
from mixaug.leaderboard.aggregate import BASELINE, Board, Leaderboard, Row
from mixaug.leaderboard.published import Rerun

COSTS = ("step_ms", "peak_memory_mb")


def score(row: Row) -> str:
    """``"93.20 ± 0.31"``; without the spread for one seed."""
    digits = row.task.digits
    if row.score is None:
        return "–"
    return f"{row.score.mean:.{digits}f}" + (f" ± {row.score.std:.{digits}f}" if row.score.std is not None else "")


def difference(row: Row) -> str:
    """``"+1.25 [+0.60, +1.90] *"``; without the interval for one common seed, without the star for no verdict."""
    if row.difference is None:
        return "–"
    digits = row.task.digits
    text = f"{row.difference.mean:+.{digits}f}"
    if row.difference.low is not None:
        text += f" [{row.difference.low:+.{digits}f}, {row.difference.high:+.{digits}f}]"
    return text + star(row)


def star(row: Row) -> str:
    """A star behind a difference that is significant among all of its board."""
    return " *" if row.verdict != "unclear" else ""


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
    """``"2.8020 ± 0.2157, agrees (gaps from 0.28 seen)"``: what the authors' code gave here, and whether we agree.

    Agreement is worth as much as the gap that would have been seen, `Rerun.visible`.
    """
    result = row.published.rerun
    if result is None:
        return "–"
    digits = row.task.digits
    text = f"{statistics.fmean(result.values):.{digits}f} ± {statistics.stdev(result.values):.{digits}f}"
    agreement, gap = agrees(row), visible_gap(row)
    if agreement is None:
        return text
    seen = f" (gaps from {gap:.2g} seen)" if agreement else ""
    return f"{text}, {'agrees' if agreement else 'differs'}{seen}"


def agrees(row: Row) -> bool | None:
    """Whether our mean lies within 2.5 standard errors of the rerun's; None where that cannot be told."""
    result = row.published.rerun
    if result is None or row.score is None or row.score.std is None or row.statistic != row.task.figure:
        return None
    away = abs(row.score.mean - statistics.fmean(result.values))
    return away <= result.allowed(row.score.std, row.score.n)


def visible_gap(row: Row) -> float | None:
    """The gap to the rerun that would have been seen, see `Rerun.visible`; None where nothing is compared."""
    result = row.published.rerun
    if result is None or agrees(row) is None or row.score is None or row.score.std is None:
        return None
    return result.visible(row.score.std, row.score.n)


def number(row: Row, key: str, digits: int = 2) -> str:
    """One number of result.json over the seeds, or a dash: the mean, of costs the median."""
    value = central(row, key)
    return "–" if value is None else f"{value:.{digits}f}"


def _rerun_remark(row: Row, result: Rerun) -> str:
    text = f"rerun of the authors' code, {len(result.values)} seeds ({result.name})"
    gap = visible_gap(row)
    if gap is not None and row.score is not None and row.score.std is not None:
        away, allowed = row.score.mean - statistics.fmean(result.values), result.allowed(row.score.std, row.score.n)
        text += f": ours is {away:+.4f} away, 2.5 standard errors are {allowed:.4f}; "
        text += f"a true gap of {gap:.4f} would be seen in four of five cases, a smaller one less often"
    if len(result.worst_group) > 1:
        mean, std = statistics.fmean(result.worst_group), statistics.stdev(result.worst_group)
        text += f"; its worst group {mean:.4f} ± {std:.4f}"
    return text


def remarks(row: Row) -> list[str]:
    """Everything a reader must know before comparing this row."""
    lines = list(row.notes)
    figure, result = row.published.figure, row.published.rerun
    if result is not None:
        lines.append(_rerun_remark(row, result))
    if figure is not None:
        lines.append(f"published: {figure.citation}")
        if row.runs and row.statistic != (figure.statistic or row.task.figure):
            lines.append(f"this column is the {row.task.title_of(row.statistic, row.runs[0].selected_on)}")
    elif row.published.detail:
        lines.append(f"{row.published.mark}: {row.published.detail}")
    return lines


def seeds(row: Row) -> str:
    """``"5 (0–4)"`` or ``"3 (0, 2, 7)"``; ``"0"`` where all failed."""
    listed = row.seeds
    if not listed:
        return "0"
    run = len(listed) > 2 and listed == tuple(range(listed[0], listed[0] + len(listed)))
    return f"{len(listed)} ({f'{listed[0]}–{listed[-1]}' if run else ', '.join(map(str, listed))})"


def failed(row: Row) -> str:
    """How many runs of the row failed, or a dash."""
    return str(len(row.failed)) if row.failed else "–"


def how(leaderboard: Leaderboard) -> str:
    """One paragraph: how the numbers of this page are made."""
    sources = dict.fromkeys(
        f"{board.task.title} is that of the {board.statistic_title}"
        + (", in percent" if board.task.unit == "%" else ", in label units")
        + ", of the test set like all numbers but a column Validation"
        for board in leaderboard.boards
    )
    return (
        f"{'. '.join(sources) or 'Numbers are'}, as mean ± standard deviation over seeds. "
        f"The difference to {BASELINE} is paired by seed, with a {leaderboard.confidence:.0%} Student-t interval of "
        "each row alone; rows are ranked by it. A star and a colour: the difference is significant at "
        f"{1 - leaderboard.confidence:.2g} when all differences of its table are taken together (Holm), its spread is "
        "not zero, and the measure's steps are not coarser than it. Failed runs are counted and have no number. "
        f"Time per step and peak memory are ratios of medians to {BASELINE} over the same seeds. "
        "A published figure is shown only where data, backbone, epochs, protocol and method agree."
    )


def central(row: Row, key: str) -> float | None:
    """Mean over seeds; of costs the median, like the ratios beside them: one slow moment must not count."""
    summary = row.summary(key)
    if summary is None:
        return None
    return statistics.median(row.values(key)) if key in COSTS else summary.mean


def cost(row: Row, key: str) -> str:
    return exact(central(row, key))


def extra_columns(board: Board) -> list[tuple[Detail, str]]:
    """Further numbers of the task that some row of the board has, with their keys in a result."""
    keyed = [(detail, board.task.detail_key(detail, board.statistic)) for detail in board.task.details]
    return [(detail, key) for detail, key in keyed if any(row.values(key) for row in board.rows)]


def has_failures(board: Board) -> bool:
    return any(row.failed for row in board.rows)


def has_reruns(board: Board) -> bool:
    return any(row.published.rerun for row in board.rows)


def subtitle(board: Board) -> str:
    environments = [run.environment for row in board.rows for run in row.runs]
    machines = sorted({_machine(environment) for environment in environments})
    versions = sorted({str((environment.get("versions") or {}).get("torch", "?")) for environment in environments})
    commits = sorted({str(environment["git_commit"]) for environment in environments if environment.get("git_commit")})
    epochs = board.setting.epochs
    length = f"{epochs} epoch{'s' if epochs != 1 else ''}"
    if board.setting.at_equal_cost:
        length = f"at the cost of {length} without mixing"
    parts = [
        f"Protocol {board.setting.protocol}, {length}",
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
    count = environment.get("world_size") or 1
    processes = f", {count} processes" if count != 1 else ""
    return str(device) + (f" ({threads} thread{'s' if threads != 1 else ''}{processes})" if threads else processes)


def _short_commit(commit: str) -> str:
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


class Footnotes:
    """Numbered notes; a text said twice keeps its first number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1

    def numbers(self, texts: Iterable[str]) -> str:
        return ", ".join(str(number) for number in sorted({self.number(text) for text in texts}))


def exact(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
