"""Figures as a file, as a table on the screen, and in docs/speed.md."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from gpu.setting import Row

COLUMNS = (*Row._fields, "device", "versions")
BEGIN, END = "<!-- figures of tools/gpu_day.py -->", "<!-- end of figures -->"


def write_rows(path: Path, rows: Sequence[Row], device: str, versions: str) -> None:
    """All rows as CSV, each with device and versions."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([*row, device, versions] for row in rows)


def read_rows(path: Path) -> tuple[list[Row], str]:
    """Rows of a file, and the device and versions of the first.

    Raises:
        ValueError: a file of something else.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        found = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path} is no file of figures of tools/gpu_day.py: it has the columns {reader.fieldnames}")
    rows = [Row(**{name: line[name] for name in Row._fields}) for line in found]
    return rows, f"{found[0]['device']}, {found[0]['versions']}" if found else ""


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line for each figure; what is right everywhere is one line."""
    lines = ["| section | what | variant | value | | note |", "|---|---|---|--:|---|---|"]
    for section in dict.fromkeys(row.section for row in rows):
        members = [row for row in rows if row.section == section]
        works = [row for row in members if row.unit == "works"]
        fine = [row for row in works if float(row.value or 0) == 1]
        if works:
            lines.append(f"| {section} | works | | {len(fine)} of {len(works)} | | |")
        lines += [
            f"| {row.section} | {row.what} | {row.variant} | {_shown(row.value)} | {row.unit} | {row.note} |"
            for row in members
            if row not in fine
        ]
    return "\n".join(lines)


def _shown(value: float | str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return ""


def fill_page(page: Path, figures: Path) -> None:
    """Replace what stands between the marks of the page by the table of a file of figures.

    Raises:
        ValueError: the page lacks the marks, or the file has no figures.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise ValueError(
            f"{page} has no place for the figures: it needs the lines {BEGIN} and {END}, once each and in this order"
        )
    rows, where = read_rows(figures)
    if not rows:
        raise ValueError(f"{figures} has no figures, and those of {page} would be lost")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{where}.\n\n{table(rows)}\n\n{END}{after}")
