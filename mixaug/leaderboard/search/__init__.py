"""Which policy, with which options, serves some data and a model best within a budget of training time?

:func:`run_search` halves a space of trials successively (Jamieson and Talwalkar, arXiv:1502.07943): all are trained a
little, the best go on, rung by rung, each exactly where it stopped. The choice is made on the validation set; the test
set is looked at once, in a comparison with fresh seeds.
"""

from mixaug.leaderboard.search.halving import run_search
from mixaug.leaderboard.search.plan import BudgetTooSmall

__all__ = ["BudgetTooSmall", "run_search"]
