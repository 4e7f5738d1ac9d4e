"""Manifold Mixup (arXiv:1806.05236): mixup of hidden features at a stage drawn anew for every batch.

    h' = lam * h + (1 - lam) * h[partner]   after stage k ~ Uniform(stages),   lam ~ Beta(alpha, alpha)

Acts inside the model, so train through :class:`mixaug.MixStep`; or make ``mixed = policy(images, labels,
signals=model)`` and call the model ``with policy.tap(model, mixed)``. Gradients flow through both halves. The stages
before k see clean data, those after it mixed data, normalisation statistics included, as in the authors' code.

With one stage nothing is drawn. The drawn stage is known to the host, so that the others cost nothing: read on a CPU,
on a GPU computed from the stream's seed and position. Where neither can be done (while ``torch.compile`` traces the
draw, on other devices), every stage is hooked and all but the drawn one mix with lam = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from mixaug.batch import Batch
from mixaug.draws import Draws
from mixaug.plan import Hidden, Plan
from mixaug.policies.stages import INPUT, StagePolicy, early_stages
from mixaug.policy import SharedOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ManifoldMix"]


def manifold_stages(model: nn.Module | None) -> tuple[str, ...]:
    """The input and two stages in the first half of a model: the default of :class:`ManifoldMix`.

    For ResNets the authors' choice. See :func:`mixaug.policies.stages.early_stages`.
    """
    return (INPUT, *early_stages("ManifoldMix", model, 2))


@register(
    "manifoldmix",
    paper="Manifold Mixup: Better Representations by Interpolating Hidden States, ICML 2019",
    arxiv="1806.05236",
    family="hidden features",
)
class ManifoldMix(StagePolicy):
    """Blend the hidden features of every sample with its partner's, after a random stage of the model.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 2.0 is the paper's value for CIFAR, 0.2 for Tiny-ImageNet.
        stages: where to mix, one of them drawn per batch: names of the model's modules, as in
            ``model.named_modules()``; numbers of stages in timm's counting, -1 the last; ``"input"``. None takes the
            input and two stages in the model's first half, see :func:`manifold_stages`; for ResNets the authors'
            choice. Outputs that are lists, tuples or dicts of tensors (B, ...) are mixed entry by entry.
        ratio, pairing, labeling: see :class:`mixaug.Policy`.
        per: how often lam is drawn; the authors draw one per batch.

    Raises:
        ValueError: an option out of range; when drawing, a model without a stage of that number, or two names of one
            stage; when training, a model without a module of that name.
    """

    shared_defaults: ClassVar[SharedOptions] = {"per": "batch"}

    def __init__(
        self,
        alpha: float = 2.0,
        stages: Sequence[int | str] | None = None,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(alpha=alpha, stages=stages, **shared)

    def default_stages(self, model: nn.Module | None) -> tuple[str, ...]:
        return manifold_stages(model)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        stage, eligible = self.draw_stage(batch, draws)
        lam = self.ratio(draws).float()
        return Hidden(partner=partner, lam=lam, stage=stage, eligible=eligible)
