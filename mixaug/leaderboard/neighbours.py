"""The boards of a grid, with the rows that earlier commands trained in the same folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mixaug.leaderboard.aggregate import Leaderboard, aggregate
from mixaug.leaderboard.collect import Run
from mixaug.leaderboard.grouping import row_and_seed, split_by_setting

__all__ = ["with_neighbours"]


def with_neighbours(
    runs: Iterable[Run], others: Iterable[Run], *, statistic: str | None = None
) -> tuple[Leaderboard, int, str]:
    """Aggregate the runs of a grid, and show the runs of the same setting that lie beside them on the same boards.

    A row of the grid keeps its runs: what another command trained with the same options and seed does not count. No
    board is added. Where the others would take a row's comparison away, or cannot be scored as the grid is, the grid
    stands alone.

    Args:
        runs: those of the grid.
        others: finished and failed runs beside them; those among ``runs`` do not count.
        statistic: as in :func:`mixaug.leaderboard.aggregate`.

    Returns:
        The leaderboard, how many other runs are on it, and why none are, empty where there is nothing to say.
    """
    runs = list(runs)
    own = aggregate(runs, statistic=statistic)
    boards = split_by_setting(runs)
    taken = {(setting, *row_and_seed(run)) for setting, members in boards.items() for run in members}
    folders = {run.folder.resolve() for run in runs}
    others = [run for run in others if run.folder.resolve() not in folders]
    ids = set(map(id, others))
    found = {
        id(run): run
        for setting, members in split_by_setting([*runs, *others]).items()
        for run in members
        if setting in boards and id(run) in ids and (setting, *row_and_seed(run)) not in taken
    }
    if not found:
        return own, 0, ""
    try:
        whole = aggregate([*runs, *found.values()], statistic=statistic)
    except ValueError as error:
        return own, 0, f"runs beside these are not shown: {error}"
    beside = {board.setting: board for board in whole.boards}
    for board in own.boards:
        differences = {row.key: row.difference for row in beside[board.setting].rows}
        lost = [row.label for row in board.rows if row.difference is not None and differences.get(row.key) is None]
        if lost or beside[board.setting].statistic != board.statistic:
            said = f"{lost[0]} would lose its baseline" if lost else "they have another figure"
            return own, 0, f"runs beside these are not shown: {said}"
    joined = tuple(beside[board.setting] for board in own.boards)
    shown = {id(run) for board in joined for row in board.rows for run in row.runs}
    # What is left out or noticed is told of the grid alone.
    return replace(own, boards=joined), len(shown & set(found)), ""
