"""`SaliencyPolicy`: the base of policies that mix by the gradient of the loss and may keep the loss of that pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_not_negative
from mixaug.partners import PartnerSource
from mixaug.policy import Policy
from mixaug.signals import MixedSignals

__all__ = ["SaliencyPolicy"]


class SaliencyPolicy(Policy):
    """A policy that asks for saliency.

    A subclass sets ``clean_weight``, the weight of the clean batch's loss in the step. With 0 the saliency is taken in
    evaluation mode and its gradients are dropped; above 0 the pass is one of training and the loss is kept.
    """

    needs = frozenset({"saliency"})
    spatial = (2,)
    renamed: ClassVar[Mapping[str, str]] = {"clean_lam": "clean_weight"}
    clean_weight: float = 0.0

    def keep_clean(self, clean_weight: float) -> None:
        """Set ``clean_weight``.

        Raises:
            ValueError: negative or not finite.
        """
        self.clean_weight = check_not_negative(type(self).__name__, "clean_weight", clean_weight)
        # The policy is bound to its partners before it knows this option.
        self.bind_partners(self.pairing)

    def check_partners(self, source: PartnerSource) -> None:
        super().check_partners(source)
        if self.clean_weight > 0:
            raise ValueError(
                f"{type(self).__name__}(clean_weight={self.clean_weight:g}) adds the loss of the batch alone, but with "
                "partners from outside the saliency is that of the batch and its partners: set clean_weight=0"
            )

    def saliency_of(self, batch: Batch) -> Tensor:
        """(B, H, W) float32 on the images' device, without gradient; the loss is kept where a model can give it.

        Raises:
            ValueError: no signals, or saliency of another size than the images.
        """
        signals = batch.ask(type(self).__name__)
        keeps = self.clean_weight > 0 and signals.model is not None
        found = signals.saliency(mode="train", keep_loss=True) if keeps else signals.saliency()
        if tuple(found.shape) != (len(batch), *batch.size):
            raise ValueError(
                f"{type(self).__name__} expects saliency {(len(batch), *batch.size)}, a value per pixel, got "
                f"{tuple(found.shape)}"
            )
        return found.detach().to(batch.device)

    def auxiliary_loss(self, mixed: MixedBatch, seen: MixedSignals) -> dict[str, Tensor]:
        if self.clean_weight == 0 or mixed.plan is None or not mixed.plan.mixes:
            return {}
        if seen.clean is None or seen.clean.model is None:
            raise ValueError(
                f"{type(self).__name__}(clean_weight={self.clean_weight:g}) adds the loss of the clean batch, "
                "which comes with a saliency taken from a model: train through mixaug.MixStep, hand the signals to "
                "policy.tap, or set clean_weight=0"
            )
        return {"clean_loss": self.clean_weight * seen.clean.clean_loss()}
