"""Two boards beside each other: runs of equally many epochs, and runs that cost equally much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mixaug.leaderboard.aggregate import BASELINE, Board, Leaderboard, Row
from mixaug.leaderboard.cells import difference, score

__all__ = ["Pair", "pairs_of"]


@dataclass(frozen=True)
class Pair:
    """The two boards of one setting."""

    equal_epochs: Board
    equal_cost: Board

    @property
    def title(self) -> str:
        """Heading of the table."""
        return f"{self.equal_epochs.setting.title}: equal epochs and equal cost"

    @property
    def about(self) -> str:
        """What the two halves are."""
        epochs = self.equal_epochs.setting.epochs
        return (
            f"On the left every run has {epochs} epochs, on the right as many as cost what {epochs} cost without "
            "mixing. Cost is the number of floating-point operations of a training step, as a multiple of that of a "
            "step without mixing. "
            f"Each half is compared with its own {BASELINE} and corrected for its own comparisons."
        )

    @property
    def heads(self) -> tuple[str, ...]:
        """Titles of the columns."""
        measure = self.equal_epochs.task.heading
        half = (measure, f"vs {BASELINE}")
        return ("policy", "cost", *half, "epochs at equal cost", *half)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The cells of each row, ranked as at equal epochs; rows that are there at equal cost alone come last."""
        right = {row.key: row for row in self.equal_cost.rows}
        for row in self.equal_epochs.rows:
            yield _cells(row, right.pop(row.key, None))
        for left_over in right.values():
            yield _cells(None, left_over)


def pairs_of(leaderboard: Leaderboard) -> list[Pair]:
    """Every board at equal cost that has its counterpart at equal epochs, with that."""
    by_setting = {board.setting: board for board in leaderboard.boards}
    found = []
    for setting, board in by_setting.items():
        other = by_setting.get(replace(setting, at_equal_cost=False))
        if setting.at_equal_cost and other is not None:
            found.append(Pair(other, board))
    return found


def _cells(left: Row | None, right: Row | None) -> tuple[str, ...]:
    one = left or right
    assert one is not None  # a row is on at least one of the boards
    cost = next((row.cost for row in (right, left) if row is not None and row.cost is not None), None)
    return (
        one.label,
        "–" if cost is None else f"{cost:.2f}×",
        *_half(left),
        "–" if right is None else _epochs([int(run.identity["epochs"]) for run in (*right.runs, *right.failed)]),
        *_half(right),
    )


def _half(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "–", "–"
    return score(row), "" if row.is_baseline else difference(row)


def _epochs(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low}–{high}"
