"""SelecMix (arXiv:2211.02291): the loss of contradicting pairs, and the training of the network that finds them.

    L = b l(f(x), y) + a l(f(x'), y[partner]) + c L_GSC(g(x), y)

x' comes from the policy ``selecmix``. g is a network beside the model, the auxiliary one, whose rows of outputs are
made of length 1. Its generalised supervised contrastive loss multiplies log-probabilities by q p^q, which amplifies
what is easy, so that it learns the bias. Pairs are found before the step that trains it. The authors combine the mixed
loss with the re-weighting of LfF (arXiv:2007.02561) too, b = 1 and a = 0.1; that is not part of this objective.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixaug.batch import MixedBatch
from mixaug.checks import check_not_negative, check_positive, check_positive_share, check_probability
from mixaug.losses import supervised_contrastive_loss
from mixaug.passes import Objective, Passes, Wants


class SelecMix(Objective):
    """The mixed loss of contradicting pairs, and the contrastive loss of the network ``"biased"`` that finds them.

    Goes with ``policy=selecmix`` or another policy whose pairing is a :class:`mixaug.pairing.Contradicting`, and with
    a network beside the model that maps inputs to projections (B, D): ``networks={"biased": Auxiliary(network)}``.

    Args:
        clean: b, weight of the unmixed loss, not negative; 0 in the authors' plain form.
        mixed: a, weight of the mixed loss, not negative; 1.
        biased: c, weight of the contrastive loss, not negative; 1. The authors' auxiliary network has an optimizer of
            its own.
        temperature: of the contrastive loss, positive; 0.2.
        q: how much easy pairs are amplified, in (0, 1]; 0.7.
        alone: factor of the loss of samples that no partner was found for, in [0, 1]; they stay as they are. 1 in the
            authors' code.
        loss: (outputs, MixedBatch) to a scalar; None takes the cross-entropy.

    Raises:
        ValueError: an option out of range; when the step is made, a policy that does not look at the network.
    """

    wants = Wants(networks=("biased",), trained=("biased",))
    usual_policy = ("selecmix", {})

    def __init__(
        self,
        clean: float = 0.0,
        mixed: float = 1.0,
        biased: float = 1.0,
        temperature: float = 0.2,
        q: float = 0.7,
        alone: float = 1.0,
        loss: Callable[[Any, MixedBatch], Tensor] | None = None,
    ) -> None:
        super().__init__(loss)
        self.clean = check_not_negative("SelecMix", "clean", clean)
        self.mixed = check_not_negative("SelecMix", "mixed", mixed)
        self.biased = check_not_negative("SelecMix", "biased", biased)
        if not self.biased:
            # A network that has been trained before may then be frozen.
            self.wants = Wants(networks=("biased",))
        self.temperature = check_positive("SelecMix", "temperature", temperature)
        self.q = check_positive_share("SelecMix", "q", q)
        self.alone = check_probability("SelecMix", "alone", alone)

    def attach(self, step: Any) -> None:
        if "biased" not in step.policy.wants_networks:
            raise ValueError(
                "SelecMix trains the network 'biased' to find pairs, but the policy does not look at it: take "
                "policy=selecmix, or pairing=mixaug.pairing.Contradicting('biased')"
            )

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        mixed = passes.run(passes.mixed)
        projections = passes.run(passes.clean, network="biased").outputs
        ids = passes.clean.labels
        if ids is None or ids.ndim != 1 or ids.is_floating_point():
            raise ValueError("SelecMix trains its auxiliary network by class ids: pass labels (B,) of integers")
        contrast = supervised_contrastive_loss(F.normalize(projections.float(), dim=1), ids, self.temperature, self.q)
        terms = {
            "mixed": self.mixed * self.loss(mixed.outputs, self.weighed(mixed.batch)),
            "biased": self.biased * contrast,
        }
        if self.clean:
            clean = passes.run(passes.clean)
            terms["clean"] = self.clean * self.loss(clean.outputs, clean.batch)
        return terms

    def weighed(self, batch: MixedBatch) -> MixedBatch:
        """The batch with ``alone`` as the factor of samples that are their own partners."""
        if self.alone == 1:
            return batch
        alone = (batch.sources == batch.sources[:, :1]).all(1)
        factor = torch.where(alone, self.alone, 1.0)
        return dataclasses.replace(batch, importance=factor if batch.importance is None else factor * batch.importance)

    def extra_repr(self) -> str:
        return f"clean={self.clean:g}, mixed={self.mixed:g}, biased={self.biased:g}, q={self.q:g}"
