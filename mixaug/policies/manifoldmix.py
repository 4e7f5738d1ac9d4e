"""Manifold Mixup (arXiv:1806.05236): mixup of hidden features at a stage drawn anew for every batch.

    h' = lam * h + (1 - lam) * h[partner]   after stage k ~ Uniform(stages),   lam ~ Beta(alpha, alpha)

Acts inside the model, so train through :class:`mixaug.MixStep`; or make ``mixed = policy(images, labels,
signals=model)`` and call the model ``with policy.tap(model, mixed)``. Gradients flow through both halves. The stages
before k see clean data, those after it mixed data, normalisation statistics included, as in the authors' code.

With one stage nothing is drawn. With several, the drawn stage is read on a CPU; elsewhere, where reading would wait
for the device, every stage is hooked and all but the drawn one mix with lam = 1. :class:`mixaug.Pooled` reads it
everywhere: rows are dropped where they are mixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixaug.batch import Batch
from mixaug.draws import Draws, Per
from mixaug.labeling import Labeling
from mixaug.pairing import Pairing
from mixaug.plan import Hidden, Plan
from mixaug.policy import Policy
from mixaug.ratio import Ratio
from mixaug.registry import register


@register(
    "manifoldmix",
    paper="Manifold Mixup: Better Representations by Interpolating Hidden States, ICML 2019",
    arxiv="1806.05236",
)
class ManifoldMix(Policy):
    """Blend the hidden features of every sample with its partner's, after a random stage of the model.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 2.0 is the paper's value for CIFAR, 0.2 for Tiny-ImageNet.
        stages: names of the model's modules whose output is mixed, as in ``model.named_modules()``, and
            ``"input"``; one is drawn per batch. The default fits ResNets of torchvision, timm and mixaug and is the
            authors' choice for them: the input and the first two stages. Outputs that are lists, tuples or dicts of
            tensors (B, ...) are mixed entry by entry.
        ratio, pairing, labeling: see :class:`mixaug.Policy`.
        per: how often lam is drawn; the authors draw one per batch.

    Raises:
        ValueError: an option out of range; when training, a model without a module of that name.
    """

    needs = frozenset({"hidden"})
    spatial = None

    def __init__(
        self,
        alpha: float = 2.0,
        stages: Sequence[str] = ("input", "layer1", "layer2"),
        *,
        ratio: str | float | Ratio = "beta",
        pairing: str | Pairing | None = None,
        labeling: str | Labeling = "area",
        per: Per = "batch",
    ) -> None:
        super().__init__(alpha=alpha, ratio=ratio, pairing=pairing, labeling=labeling, per=per)
        if isinstance(stages, str) or not len(stages) or not all(isinstance(name, str) and name for name in stages):
            raise ValueError(f"ManifoldMix expects stages as a sequence of module names, got {stages!r}")
        if len(set(stages)) != len(stages):
            raise ValueError(f"ManifoldMix expects each stage once, got {list(stages)}")
        self.stages = tuple(stages)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        if len(self.stages) == 1:
            stage = torch.zeros(1, dtype=torch.int64, device=batch.device)
        else:
            stage = draws.integers(0, len(self.stages), per="batch")
        lam = self.ratio(draws).float()
        return Hidden(partner=partner, lam=lam, stage=stage, eligible=self.stages)
