"""What a learned mixer needs of a training loop, and a reminder where the loop leaves it out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

#: Number of training steps without ``after_step`` after which a loop that never calls it is told so.
STEPS_WITHOUT_AFTER_STEP = 256
#: Number of steps in which no optimizer touches the mixer, after which the loop is told.
STEPS_WITHOUT_CHANGE = 16


class LoopWatch:
    """Sees which calls a training loop makes and warns once of one that is missing.

    Args:
        name: of the policy, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._batches_since_step = 0
        self._early_losses = 0
        self._version = -1
        self._unchanged_steps = 0
        self._asked_for_progress = False

    def early_loss(self) -> None:
        """``early_loss`` was called for a batch."""
        self._early_losses += 1

    def learning_batch(self) -> None:
        """A batch that the mixer learns from."""
        self._batches_since_step += 1
        if self._batches_since_step == STEPS_WITHOUT_AFTER_STEP:
            self._warn(
                f"has seen {STEPS_WITHOUT_AFTER_STEP} batches and its slow copy has not moved: call "
                "policy.after_step(model) after each optimizer step"
            )

    def auxiliary_loss(self, expected: bool) -> None:
        """``auxiliary_loss`` was called; ``expected`` says that ``early_loss`` should have been before."""
        if expected and not self._early_losses:
            self._warn(
                "learns from policy.early_loss(images, mixed, clean), which was not called: add its terms to the loss, "
                "or train through mixaug.MixStep"
            )
        # A step with several draws asks for all early losses first.
        self._early_losses = max(0, self._early_losses - 1)

    def after_step(self, parameters: Sequence[nn.Parameter]) -> None:
        """``after_step`` was called; ``parameters`` are those of the mixer, none where it is frozen."""
        version = sum(parameter._version for parameter in parameters)
        still = version == self._version and self._batches_since_step > 0
        self._unchanged_steps = self._unchanged_steps + 1 if still else 0
        self._version, self._batches_since_step = version, 0
        if parameters and self._unchanged_steps == STEPS_WITHOUT_CHANGE:
            self._warn(
                f"has a mixer that has not changed in {STEPS_WITHOUT_CHANGE} steps: give the optimizer the parameters "
                "of the policy too, as in step.parameters()"
            )

    def missing_progress(self, momentum: float) -> None:
        """The momentum should rise, but the loop has not said how far training is."""
        if not self._asked_for_progress:
            self._warn(
                f"does not know how far training is, so its momentum stays at {momentum}: call "
                "policy.set_progress(step / steps) before each step"
            )
        self._asked_for_progress = True

    def _warn(self, text: str) -> None:
        warnings.warn(f"{self.name} {text}", RuntimeWarning, stacklevel=4)
