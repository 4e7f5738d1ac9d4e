"""Policies and objectives that look at a whole set again and again, and policies that say which samples are drawn."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from mixaug.engine.batches import Batches
from mixaug.engine.distributed import World, gather_objects
from mixaug.engine.errors import ConfigError
from mixaug.engine.evaluate import autocast
from mixaug.policy import Policy
from mixaug.preparation import Inspection
from mixaug.refreshing import asking, classifier_of, every, look
from mixaug.step import MixStep

__all__ = ["Refreshes"]

#: Word of ``refresh_split`` for the training set.
TRAIN = "train"


class Refreshes:
    """Shows the policies of a step, and its objective, what the model says of a set, as often as each asks for it.

    Args:
        config: the run's config.
        step: of the run.
        batches: of the run; where a policy says how often samples are to be drawn, its batches follow that.
        world: this process among all.

    Raises:
        ConfigError: a policy asks for a set, or for draws, or the objective for a set, and the data cannot give them.
    """

    def __init__(self, config: DictConfig, step: MixStep, batches: Batches, world: World) -> None:
        self.step, self.batches, self.world, self.precision = step, batches, world, config.precision
        #: Optimizer steps of an epoch.
        self.epoch = -(-len(batches) // config.accumulate)
        policies = [part for part in step.policy.modules() if isinstance(part, Policy)]
        self.asking = asking(step)
        for part in self.asking:
            self._check(config, "policy" if isinstance(part, Policy) else "objective", part)
        draws = [policy for policy in policies if type(policy).sampling is not Policy.sampling]
        if len(draws) > 1:
            raise ConfigError(
                f"policy={config.choices.policy} is made of several policies that say which samples are drawn: "
                f"{', '.join(type(policy).__name__ for policy in draws)}"
            )
        if draws and config.sampling is not None:
            raise ConfigError(
                f"policy={config.choices.policy} says which samples are drawn, and so does sampling={config.sampling}: "
                "leave one of them out"
            )
        for policy in draws:
            batches.draw_by(policy.sampling)

    def before(self, update: int) -> None:
        """Show what is due before an optimizer step; the first one is 0. Every process must ask."""
        due = [part for part in self.asking if update % every(part, self.epoch) == 0]
        for split in sorted({part.refresh_split for part in due}):
            inspection = self._inspect(split)
            for part in due:
                if part.refresh_split == split:
                    part.on_refresh(inspection)

    def _check(self, config: DictConfig, section: str, part: Any) -> None:
        """Raise a ConfigError where the data cannot give what a policy or an objective looks at."""
        data, split = self.batches.data, part.refresh_split
        who = f"{section}={config.choices[section]}"
        samples = getattr(data, split, None)
        if samples is None:
            raise ConfigError(
                f"{who} looks at a validation set, but data={config.choices.data} has none: "
                "data.valid_share=0.1 takes it from the training set"
            )
        if split == TRAIN and not data.in_memory:
            raise ConfigError(
                f"{who} looks at the whole training set as it is, but data={config.choices.data} is read file by file"
            )
        if len(samples) < self.batches.world.size:
            raise ConfigError(
                f"{who} looks at the {split} set on every process, but its {len(samples)} samples are fewer than the "
                f"{self.batches.world.size} processes"
            )
        labels = getattr(samples, "labels", None)
        if isinstance(labels, Tensor) and (labels.ndim != 1 or labels.is_floating_point()):
            raise ConfigError(f"{who} looks at classes, but data={config.choices.data} has numbers as labels")

    def _inspect(self, split: str) -> Inspection:
        source = self.step.signals()
        try:
            classifier = classifier_of(source)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        seen = []
        with torch.no_grad(), autocast(self.world.device, self.precision):
            for inputs, some in self.batches.held_out(split):
                seen.append((*look(source, inputs, some), some))
        outputs, pooled, labels = (self._of_all(list(parts)) for parts in zip(*seen, strict=True))
        bias = classifier.bias
        return Inspection(
            split=split,
            outputs=outputs,
            pooled=pooled,
            labels=labels,
            weight=classifier.weight.detach(),
            bias=None if bias is None else bias.detach(),
        )

    def _of_all(self, parts: list[Tensor]) -> Tensor:
        """The rows of all processes, in the order of the set: process r of n has rows r, r + n, r + 2 n, ..."""
        own = torch.cat(parts)
        if self.world.size == 1:
            return own
        shares = gather_objects(own.cpu(), self.world)
        whole = own.new_empty(sum(map(len, shares)), *own.shape[1:], device="cpu")
        for rank, share in enumerate(shares):
            whole[rank :: self.world.size] = share
        return whole.to(self.world.device)
