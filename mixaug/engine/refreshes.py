"""Policies that look at a whole validation set again and again, and that say which samples are drawn."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mixaug.engine.batches import Batches
from mixaug.engine.distributed import World, gather_objects
from mixaug.engine.errors import ConfigError
from mixaug.engine.evaluate import autocast
from mixaug.policy import Policy
from mixaug.preparation import Inspection
from mixaug.step import MixStep

__all__ = ["Refreshes"]

#: What is looked at is held out from training and is not the test set.
SPLIT = "valid"


class Refreshes:
    """Shows the policies of a step what the model says of the validation set, as often as each asks for it.

    Args:
        config: the run's config.
        step: of the run.
        batches: of the run; where a policy says how often samples are to be drawn, its batches follow that.
        world: this process among all.

    Raises:
        ConfigError: a policy asks for a validation set, or for draws, and the data cannot give them.
    """

    def __init__(self, config: DictConfig, step: MixStep, batches: Batches, world: World) -> None:
        self.step, self.batches, self.world, self.precision = step, batches, world, config.precision
        policies = [part for part in step.policy.modules() if isinstance(part, Policy)]
        self.asking = [policy for policy in policies if policy.refresh_every]
        if self.asking and getattr(batches.data, SPLIT, None) is None:
            raise ConfigError(
                f"policy={config.choices.policy} looks at a validation set, but data={config.choices.data} has none: "
                "data.valid_share=0.1 takes it from the training set"
            )
        labels = getattr(getattr(batches.data, SPLIT, None), "labels", None)
        if self.asking and isinstance(labels, Tensor) and (labels.ndim != 1 or labels.is_floating_point()):
            raise ConfigError(
                f"policy={config.choices.policy} looks at classes, but data={config.choices.data} has numbers as labels"
            )
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
        due = [policy for policy in self.asking if policy.refresh_every and update % policy.refresh_every == 0]
        if due:
            inspection = self._inspect()
            for policy in due:
                policy.on_refresh(inspection)

    def _inspect(self) -> Inspection:
        source = self.step.signals()
        outputs, pooled, labels = [], [], []
        with torch.no_grad(), autocast(self.world.device, self.precision):
            for inputs, some in self.batches.held_out(SPLIT):
                signals = source.of(inputs, some, frozenset({"pooled", "outputs"}))
                pooled.append(signals.pooled().float())
                outputs.append(signals.outputs().float())
                labels.append(some)
        classifier = source.inner.get_submodule(source.classifier())
        if not isinstance(classifier, nn.Linear):
            raise ConfigError(f"the policy looks at a linear classifier, the model has {type(classifier).__name__}")
        bias = classifier.bias
        return Inspection(
            split=SPLIT,
            outputs=self._of_all(outputs),
            pooled=self._of_all(pooled),
            labels=self._of_all(labels),
            weight=classifier.weight.detach(),
            bias=None if bias is None else bias.detach(),
        )

    def _of_all(self, parts: list[Tensor]) -> Tensor:
        """The rows of all processes, in the order of the ranks."""
        own = torch.cat(parts)
        if self.world.size == 1:
            return own
        return torch.cat(gather_objects(own.cpu(), self.world)).to(self.world.device)
