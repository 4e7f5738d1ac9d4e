"""Run folders to numbers that can be trusted: collect runs, aggregate seeds, compare with published figures, render.

>>> from mixaug.leaderboard import aggregate, collect, write  # doctest: +SKIP
>>> write(aggregate(collect("runs/digits")), "runs/digits")  # doctest: +SKIP
"""

from mixaug.leaderboard.aggregate import Board, Leaderboard, Row, aggregate
from mixaug.leaderboard.collect import STATISTICS, Run, collect
from mixaug.leaderboard.page import to_html
from mixaug.leaderboard.render import FORMATS, to_csv, to_markdown, write

__all__ = [
    "FORMATS",
    "STATISTICS",
    "Board",
    "Leaderboard",
    "Row",
    "Run",
    "aggregate",
    "collect",
    "to_csv",
    "to_html",
    "to_markdown",
    "write",
]
