"""The measured tables of docs/speed.md: which command each is taken by, and how it is written.

A table stands between two marks of its name. ``python tools/speed.py --page NAME`` measures it and writes it there,
with machine, versions and day, so that no figure of the page is copied by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from speed.goals import Verdict
from speed.report import summary
from speed.sections import PLAIN, Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "speed.md"


@dataclass(frozen=True)
class Measured:
    """A part of the page: the arguments of tools/speed.py that measure it, and what writes it."""

    arguments: str
    write: Callable[[Sequence[Row], Sequence[Verdict]], list[str]]


def _mixing(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    return [*summary([row for row in rows if row.section == "mixing"], level=4), *_missed(verdicts)]


def _missed(verdicts: Sequence[Verdict]) -> list[str]:
    reached, missed = sum(v.reached for v in verdicts), [v for v in verdicts if v.missed]
    lines = [
        f"Goals: {len(verdicts)}. Reached: {reached}. Within the spread of the run: "
        f"{len(verdicts) - reached - len(missed)}. Missed: {len(missed)}.",
        "",
        *_table("shape", "job", "per", "goal", "measured", numbers=2),
    ]
    lines += [_line(_shape(v.row), v.row.job, v.row.per, _goal(v), f"{v.got:.2f}") for v in missed]
    return [*lines, ""]


def _goal(verdict: Verdict) -> str:
    return "1 floor" if (verdict.goal, verdict.what) == (1, "floors") else f"{verdict.goal:g} {verdict.what}"


def _forms(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    """The better of ``out=`` and in place in every dtype and layout, and the best other library."""
    del verdicts
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if row.library == PLAIN and row.output in ("out", "inplace"):
            place = (row.job, row.per, row.setting.partition(" ")[2])
            if place not in best or row.floor.median < best[place].floor.median:
                best[place] = row
    forms = list(dict.fromkeys(form for _, _, form in best))
    lines = _table("job", "per", *forms, numbers=len(forms))
    for job, per in dict.fromkeys((job, per) for job, per, _ in best):
        lines.append(_line(job, per, *(_beside_peer(best[job, per, form]) for form in forms)))
    return [*lines, ""]


def _beside_peer(row: Row) -> str:
    peer = row.against_best_peer
    own = f"{row.floor.median:.2f}"
    return own if peer is None else f"{own} ({row.best_peer} {row.floor.median / peer.median:.2f})"


def _compiled(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    del verdicts
    shapes = list(dict.fromkeys(_shape(row) for row in rows))
    lines = _table(
        "job",
        "per",
        *(f"{shape}, {kind}" for shape in shapes for kind in ("compiled", "fresh")),
        numbers=2 * len(shapes),
    )
    found = {(row.job, row.per, _shape(row), row.output): row.floor.median for row in rows if row.library == PLAIN}
    for job, per in dict.fromkeys((job, per) for job, per, _, _ in found):
        cells = [f"{found[job, per, shape, kind]:.2f}" for shape in shapes for kind in ("compiled", "fresh")]
        lines.append(_line(job, per, *cells))
    return [*lines, ""]


def _loss(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    del verdicts
    mine = [row for row in rows if row.section.startswith("loss")]
    outputs = list(dict.fromkeys(row.output for row in mine if row.library != "floor"))
    found = {(row.setting, row.output): row.floor.median for row in mine}
    lines = _table("logits", *outputs, numbers=len(outputs))
    for setting in dict.fromkeys(row.setting for row in mine):
        lines.append(_line(setting, *(f"{found[setting, output]:.2f}" for output in outputs)))
    return [*lines, ""]


def _loaders(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    del verdicts
    outputs = list(dict.fromkeys((row.library, row.output) for row in rows))
    found = {}
    for row in rows:
        figure = row.note.partition(" ")[0]
        # Of the others also how many times ours they take.
        shown = figure if row.library == PLAIN else f"{figure}; x {_spread(row)}"
        found[row.setting, row.per, row.library, row.output] = shown
    lines = _table("batch", "per", *(f"{library}, {output}" for library, output in outputs), numbers=len(outputs))
    for setting, per in dict.fromkeys((row.setting, row.per) for row in rows):
        cells = [found.get((setting, per, *output), "") for output in outputs]
        lines.append(_line(setting.partition(" ")[0], per, *cells))
    return [*lines, ""]


def _resident(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    del verdicts
    lines = _table("policy", "images/s", "x steps on one batch (low to high)", numbers=2)
    lines += [_line(row.job, row.note.partition(" ")[0], _spread(row)) for row in rows if row.library == PLAIN]
    return [*lines, ""]


def _steps(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    goals = {(v.row.where, v.row.job, v.what): v.goal for v in verdicts}
    lines = _table(
        "backbone, batch", "job", "x step of none (low to high)", "goal of it", "x peak memory", "goal of it", numbers=4
    )
    for row in rows:
        if row.job == "none":
            continue
        time = goals.get((row.where, row.job, "steps of none"))
        memory = goals.get((row.where, row.job, "of the memory of none"))
        where = f"{row.where}, {_shape(row)}"
        held = "" if row.memory is None else f"{row.memory:.2f}"
        shown = ["" if goal is None else f"{goal:g}" for goal in (time, memory)]
        lines.append(_line(where, row.job, _spread(row), shown[0], held, shown[1]))
    return [*lines, ""]


def _puzzlemix(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[str]:
    del verdicts
    lines = _table("images", "blocks", "ms", "x mixup into kept memory (low to high)", "the authors' own", numbers=3)
    lines += [
        _line(row.setting, row.job, f"{row.milliseconds:.2f}", _spread(row), row.note.removeprefix("authors: "))
        for row in rows
        if row.note.startswith("authors")
    ]
    lines += ["", *_table("labels, blocks", "solver", "x time of the exact cut", "above the exact minimum", numbers=2)]
    lines += [
        _line(row.job, row.output, f"{row.floor.median:.2f}", row.note)
        for row in rows
        if row.note.startswith("gap") and row.library == PLAIN
    ]
    return [*lines, ""]


#: Both cores of the machine that the page was measured on.
_TWO = "--threads 2 --rounds"
TABLES: Mapping[str, Measured] = {
    "mixing": Measured(f"--sections mixing {_TWO} 15", _mixing),
    "forms": Measured(
        f"--sections mixing --dtypes float32 bfloat16 uint8 --layouts contiguous channels_last --shapes 64,3,224,224 "
        f"--jobs mixup cutmix fmix gridmix smoothmix resizemix {_TWO} 5",
        _forms,
    ),
    "compiled": Measured(
        f"--sections mixing --compiled --jobs mixup cutmix gridmix smoothmix resizemix {_TWO} 5", _compiled
    ),
    "loss": Measured(f"--sections loss --jobs mixup --shapes 128,3,32,32 {_TWO} 15", _loss),
    "loaders": Measured(f"--sections loader --shapes 128,3,32,32 64,3,224,224 {_TWO} 22", _loaders),
    "resident": Measured(f"--sections resident --eager --model cifar_resnet8 --shapes 128,3,32,32 {_TWO} 7", _resident),
    "guided": Measured(f"--sections guided {_TWO} 7", _steps),
    "learned": Measured(f"--sections learned {_TWO} 7", _steps),
    "objectives": Measured(f"--sections objectives {_TWO} 11", _steps),
    "puzzlemix": Measured("--sections puzzlemix --threads 1 --rounds 5", _puzzlemix),
}


def fill(
    page: Path, name: str, rows: Sequence[Row], verdicts: Sequence[Verdict], conditions: Mapping[str, str]
) -> None:
    """Replace a table of the page by the figures of a run.

    Raises:
        ValueError: the page lacks the marks of the table.
    """
    measured = TABLES[name]
    where = ", ".join(value if key == "device" else f"{key} {value}" for key, value in conditions.items())
    command = f"`python tools/speed.py {measured.arguments}`"
    first = f"{command}; {where}; {date.today().isoformat()}."
    write_between(page, name, [first, "", *measured.write(rows, verdicts)])


def write_between(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between the marks of a name.

    Raises:
        ValueError: the page lacks the marks.
    """
    before, after = around(page, name)
    begin, end = marks(name)
    body = "\n".join(lines).rstrip()
    page.write_text(f"{before}{begin}\n\n{body}\n\n{end}{after}")


def around(page: Path, name: str) -> tuple[str, str]:
    """What stands before and after the marks of a name.

    Raises:
        ValueError: the page lacks the marks, has one twice, or the end before the beginning.
    """
    text, (begin, end) = page.read_text(), marks(name)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ValueError(
            f"{page} has no place for the table {name!r}: it needs the lines {begin} and {end}, once each and in this "
            "order"
        )
    return text.split(begin)[0], text.split(end)[1]


def marks(name: str) -> tuple[str, str]:
    """The lines of the page that a table stands between."""
    return f"<!-- measured: {name} -->", f"<!-- end of {name} -->"


def _shape(row: Row) -> str:
    return row.setting.partition(" ")[0]


def _spread(row: Row) -> str:
    return f"{row.floor.median:.2f} ({row.floor.low:.2f} to {row.floor.high:.2f})"


def _table(*titles: str, numbers: int) -> list[str]:
    """The head of a table, whose last ``numbers`` columns are set flush right."""
    words = len(titles) - numbers
    return [_line(*titles), "|" + "---|" * words + "--:|" * numbers]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
