"""Rows, verdicts and profiles as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from speed.goals import Verdict
from speed.profiles import Profile
from speed.sections import PLAIN, Row
from speed.timing import Ratio

#: The column `regime` keeps the name that it has in the files written so far; it holds the setting.
COLUMNS = (
    *("section", "regime", "job", "per", "library", "output", "ms"),
    *("x_floor", "x_floor_low", "x_floor_high", "best_peer", "x_best_peer", "x_fresh_lerp", "x_memory", "note"),
)


def markdown(
    environment: Mapping[str, str],
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    profiles: Sequence[Profile] = (),
) -> str:
    """One table for every section and setting, a line per job of mixing alone, goals reached and missed, profiles."""
    lines = [", ".join(f"{key} {value}" for key, value in environment.items()), ""]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.section, row.setting), []).append(row)
    for (section, setting), members in groups.items():
        lines += [f"### {section}: {setting}", ""]
        lines.append("| job | per | library | output | ms | x floor (low to high) | x best peer | |")
        lines.append("|---|---|---|---|--:|--:|--:|---|")
        for row in members:
            peer = "" if row.against_best_peer is None else f"{row.against_best_peer.median:.2f} of {row.best_peer}"
            lines.append(
                f"| {row.job} | {row.per} | {row.library} | {row.output} | {row.milliseconds:.3f} | "
                f"{_shown(row.floor)} | {peer} | {row.note} |"
            )
        lines.append("")
    lines += summary([row for row in rows if row.section == "mixing"])
    if verdicts:
        lines += ["### goals", "", "| section | setting | job | per | output | goal | measured | |"]
        lines.append("|---|---|---|---|---|--:|--:|---|")
        for verdict in verdicts:
            state = "reached" if verdict.reached else "**missed**" if verdict.missed else "within the spread"
            row = verdict.row
            goal = f"{verdict.goal:g} {verdict.what}"
            what = f"{row.goal_section} | {row.setting} | {row.job} | {row.per} | {row.output}"
            lines.append(f"| {what} | {goal} | {verdict.got:.2f} | {state} |")
        lines.append("")
    if profiles:
        lines += ["Profiles are taken eagerly; the profiler adds some microseconds to every call.", ""]
    for entry in profiles:
        lines += [f"### profile of {entry.job}, per {entry.per}, into `out=`: {entry.setting}", ""]
        lines += ["| operator | calls a step | own time, us a step | share |", "|---|--:|--:|--:|"]
        lines += [
            f"| {operator.name} | {operator.calls:g} | {operator.microseconds:.1f} | {operator.share:.1%} |"
            for operator in entry.operators
        ]
        lines.append("")
    return "\n".join(lines)


def summary(rows: Sequence[Row], level: int = 3) -> list[str]:
    """Medians alone, a line for every job: our outputs beside a fresh lerp, and every other library.

    Args:
        rows: of the section mixing.
        level: of the headings, one for each setting.
    """
    titles = {"fresh": "fresh", "out": "`out=`", "inplace": "in place", "compiled": "compiled"}
    outputs = [name for name in titles if name != "compiled" or any(row.output == name for row in rows)]
    lines: list[str] = []
    for setting in dict.fromkeys(row.setting for row in rows):
        lines += [f"{'#' * level} mixing in short, x floor: {setting}", ""]
        shown = " | ".join(titles[name] for name in outputs)
        lines.append(f"| job | per | ms, best | {shown} | fresh lerp | other libraries |")
        lines.append(f"|---|---|--:|{'--:|' * len(outputs)}--:|---|")
        for job, per in dict.fromkeys((row.job, row.per) for row in rows if row.setting == setting):
            members = [row for row in rows if (row.setting, row.job, row.per) == (setting, job, per)]
            ours = {row.output: row for row in members if row.library == PLAIN}
            floors = {row.library: row.floor.median for row in members}
            cells = [f"{ours[output].floor.median:.2f}" if output in ours else "" for output in outputs]
            cells.append(f"{floors['lerp']:.2f}" if "lerp" in floors else "")
            others = {name: cost for name, cost in floors.items() if name not in (PLAIN, "floor", "lerp")}
            cells.append(", ".join(f"{name} {others[name]:.2f}" for name in sorted(others, key=others.__getitem__)))
            best = min(row.milliseconds for row in ours.values())
            lines.append(f"| {job} | {per} | {best:.2f} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def table(rows: Sequence[Row]) -> str:
    """All rows as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        ratio = row.against_best_peer
        figures = [f"{value:.4f}" for value in (row.floor.median, row.floor.low, row.floor.high)]
        peer = [row.best_peer, "" if ratio is None else f"{ratio.median:.4f}"]
        further = [None if row.fresh_lerp is None else row.fresh_lerp.median, row.memory]
        shown = ["" if value is None else f"{value:.4f}" for value in further]
        where = [row.section, row.setting, row.job, row.per, row.library, row.output]
        writer.writerow([*where, f"{row.milliseconds:.5f}", *figures, *peer, *shown, row.note])
    return file.getvalue()


def _shown(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
