"""Data sets that several runs share, each loaded once."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from mixaug.engine.build import data_settings, load_data
from mixaug.engine.evaluation.subject import outlier_images

__all__ = ["DataSets"]


class DataSets:
    """The last few data sets that were asked for, so that the runs of a grid do not load the same one again.

    Runs on the same data have equal settings, a split's seed included. Nothing here changes a set that was loaded.

    Args:
        most: so many are held; the one that was asked for longest ago goes first.
    """

    def __init__(self, most: int = 6) -> None:
        self.most = most
        self._held: OrderedDict[str, Any] = OrderedDict()

    def of_run(self, config: DictConfig) -> Any:
        """The data set of a run, as `mixaug.engine.build.load_data` gives it."""
        return self._get(["run", data_settings(config)], lambda: load_data(config))

    def outliers(self, spec: Mapping[str, Any], shape: tuple[int, ...], most: int, seed: int) -> Tensor:
        """Images of another data set, see `mixaug.engine.evaluation.subject.outlier_images`."""
        key = ["outliers", dict(spec), list(shape), most, seed]
        found: Tensor = self._get(key, lambda: outlier_images(spec, shape, most, seed))
        return found

    def _get(self, settings: list[Any], load: Callable[[], Any]) -> Any:
        key = json.dumps(settings, sort_keys=True, default=repr)
        if key not in self._held:
            self._held[key] = load()
        self._held.move_to_end(key)
        while len(self._held) > self.most:
            self._held.popitem(last=False)
        return self._held[key]
