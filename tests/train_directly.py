"""A run in a process of its own, for tests of what processes do to each other, without Hydra's command line.

`tools/train.py` composes a config four times before a run begins, which takes it longer than the run of a test;
test_sweep.py, test_cli.py and test_packaging.py start that.
"""

import sys

from mixaug.engine import config
from mixaug.engine.train import train
from quick_compose import quick

config._hydra_compose = quick
train(config.compose(sys.argv[1:]))
