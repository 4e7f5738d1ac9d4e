"""What the fork server of a benchmark imports once for all its runs. Imports only: nothing here may touch a GPU.

The engine imports its heavy dependencies where it uses them, which is inside a run; importing them here takes them
out of every run. One that is not installed is left to the run that needs it, with that run's own error.
"""

import contextlib
import importlib

__all__: list[str] = []

OWN = ("mixaug.functional", "mixaug.policies", "mixaug.engine.train")
OTHERS = ("timm", "torchvision", "torchmetrics.classification", "sklearn.datasets", "PIL.Image", "rich.progress")
for name in (*OWN, *OTHERS):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
