"""RecursiveMix (arXiv:2203.06844): the batch before, as it was mixed, is shrunk and pasted into this one.

    x~_t = paste(x_t, resize(x~_{t-1}), box),   y~_t = lam y_t + (1 - lam) y~_{t-1},   lam = kept share of the area

Row i of the batch before goes into row i, so that an image holds images that hold images, and its label all of theirs.
The pasted region is to be classified as the model classified the whole image one step earlier: its features, pooled
from the last feature map, go through a second linear head, and

    omega (1 - lam) CE(head(features in the box), softmax(f(x~_{t-1})))

joins the loss; the earlier outputs are stored, not computed anew. Departures from the authors' code: the history goes
on from epoch to epoch where they drop it, a box that is empty along one side pastes nothing where theirs fails, and
labels of batches further back than ``PreviousBatch.depth`` go to the oldest one kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import check_choice, check_flag, check_not_negative, check_positive_share
from mixaug.draws import Draws
from mixaug.ops.boxes import area_kept
from mixaug.ops.layout import single_precision
from mixaug.ops.regions import pooled_regions
from mixaug.partners import PartnersPlan, PreviousBatch
from mixaug.plan import Plan
from mixaug.policies.resizemix import INTERPOLATIONS, Interpolation, ResizePaste, resizemix_boxes
from mixaug.policy import Policy, no_change
from mixaug.registry import register
from mixaug.shared_options import SharedOptions
from mixaug.signals import MixedSignals, ModelSignals, backbone

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesPairing, TakesPartners, TakesPer

    class Offered(TakesPairing, TakesPer, TakesPartners, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["RecursiveMix"]


@register(
    "recursivemix",
    paper="RecursiveMix: Mixed Learning with History, NeurIPS 2022",
    arxiv="2203.06844",
    family="guided by the model",
)
class RecursiveMix(Policy):
    """Paste the whole mixed image of the batch before, shrunk, into each sample; labels of all of them go along.

    Args:
        alpha: largest share of the area that the box covers, in (0, 1]; the share is uniform in [0, alpha).
        omega: weight of the consistency of the pasted region, not negative; 0 leaves it out, and nothing is asked of
            the model. 0.5 on ImageNet, 0.1 on CIFAR-10.
        interpolation: ``"nearest"``, ``"bilinear"``, or ``"bilinear_corners"``, which the authors' code offers.
        share_head: classify the region with the model's own classifier in place of a second one.
        pairing: with partners of another source than the batch before: who mixes with whom, a name of
            :mod:`mixaug.pairing` or a Pairing.
        per: ``"sample"`` draws for each sample, ``"batch"`` once for all, ``"pair"``, with partners of the batch alone,
            once for two samples that mix with each other.
        partners: a :class:`mixaug.partners.PreviousBatch`, or its name ``"previous"``; another source with ``omega=0``.

    Raises:
        ValueError: an option out of range, another source of partners.
    """

    relocates = True
    needs = frozenset({"features"})
    reads = frozenset({"features", "outputs"})
    spatial = (2,)
    shared_defaults: ClassVar[SharedOptions] = {"per": "batch", "partners": "previous"}
    not_offered = ("ratio", "labeling")
    own_answers: ClassVar[Mapping[str, str]] = {
        "labeling": "The share of pixels that each source covers, also of those within the pasted image.",
    }

    def __init__(
        self,
        alpha: float = 0.5,
        omega: float = 0.5,
        interpolation: Interpolation = "nearest",
        share_head: bool = False,
        **shared: Unpack[Offered],
    ) -> None:
        super().__init__(**shared)
        self.alpha = check_positive_share("RecursiveMix", "alpha", alpha)
        self.omega = check_not_negative("RecursiveMix", "omega", omega)
        check_choice("RecursiveMix", "interpolation", interpolation, INTERPOLATIONS)
        self.interpolation: Interpolation = interpolation
        self.share_head = check_flag("RecursiveMix", "share_head", share_head)
        if self.omega and not isinstance(self.partners, PreviousBatch):
            raise ValueError(
                f"RecursiveMix(omega={self.omega:g}) compares with what the model said of the batch before, so it "
                f"expects partners='previous', got {self.partners}; set omega=0 for other partners"
            )
        if not self.omega:
            self.needs = self.needs - RecursiveMix.needs
            self.reads = self.reads - RecursiveMix.reads
        self.region_head: nn.Linear | None = None
        #: What the model put out for the batch before, and the number of that batch.
        self.outputs: Tensor | None = None
        self.outputs_of = -1
        self.before: Tensor | None = None
        self.before_of = -1

    def on_attach(self, signals: ModelSignals) -> None:
        if self.omega and not self.share_head:
            self.region_head = signals.like_classifier("RecursiveMix", self.region_head)

    def draw_boxes(self, draws: Draws, size: tuple[int, ...]) -> Tensor:
        """(R, 4) int64 boxes y0, x0, y1, x1, clipped."""
        area = draws.uniform(0.0, self.alpha)
        return resizemix_boxes(area.sqrt(), draws.pixels(size), size)

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        own = torch.arange(len(batch), device=batch.device)
        boxes = self.draw_boxes(draws, batch.size)
        if self.partners is not None:
            # Who has no image of the batch before is not to get its own.
            boxes = torch.where((partner == own)[:, None], torch.zeros_like(boxes), boxes)
        lam = area_kept(boxes, batch.size)
        return ResizePaste(partner=partner, lam=lam, size=batch.size, boxes=boxes, interpolation=self.interpolation)

    def auxiliary_loss(self, mixed: MixedBatch, seen: MixedSignals) -> dict[str, Tensor]:
        if not self.omega:
            return {}
        count = self._count()
        if self.outputs_of != count:
            # The first draw of a step; what came before stays known to its other draws.
            self.before, self.before_of = self.outputs, self.outputs_of
            self.outputs, self.outputs_of = seen.outputs().detach().clone(), count
        before = self.before if self.before_of == count - 1 else None
        head, plan = self.region_head, mixed.plan
        if before is None or not isinstance(plan, PartnersPlan) or not isinstance(plan.inner, ResizePaste):
            return {} if head is None else {"consistency": no_change(head.parameters())}
        rows = min(len(mixed), len(before))
        logits = single_precision(self._classified(plan.inner, len(mixed), seen)[:rows])
        each = F.cross_entropy(logits, single_precision(before[:rows].to(logits.device)).softmax(1), reduction="none")
        share = (1 - plan.area().expand(len(mixed)))[:rows]
        return {"consistency": self.omega * (share * each).sum() / len(mixed)}

    def _classified(self, plan: ResizePaste, count: int, seen: MixedSignals) -> Tensor:
        """(B, K) what a head says of the pasted regions."""
        height, width = plan.size
        features = seen.features(size=(height, width), grad=True)
        if seen.model is not None:
            features = backbone.head_norm(seen.model, features)
        head = self.region_head
        if head is None:
            if not self.share_head:
                raise ValueError(
                    "RecursiveMix has no head for the pasted region yet: train through mixaug.MixStep, call "
                    "policy.attach(model), or leave that loss out with omega=0"
                )
            classifier = seen.source.inner.get_submodule(seen.source.classifier())
            if not isinstance(classifier, nn.Linear):
                raise ValueError(f"RecursiveMix expects a linear classifier, got {type(classifier).__name__}")
            head = classifier
        if features.shape[1] != head.in_features:
            raise ValueError(
                f"RecursiveMix pools the last feature map, but it has {features.shape[1]} channels where the "
                f"classifier takes {head.in_features}: name the map, ModelSignals(model, features=...), or use omega=0"
            )
        pooled = pooled_regions(features, plan.boxes[:count], (height, width))
        result: Tensor = head(pooled.to(head.weight.dtype))
        return result

    def _count(self) -> int:
        return self.partners.count if isinstance(self.partners, PreviousBatch) else 0

    #: Each process keeps what it saw itself.
    keeps_state = True

    def get_extra_state(self) -> dict[str, Tensor]:
        """The outputs for the batch before, for a ``state_dict``."""
        if self.outputs is None:
            return {}
        return {"outputs": self.outputs.clone(), "outputs_of": torch.tensor(self.outputs_of)}

    def set_extra_state(self, state: Any) -> None:
        """Go on with what a ``state_dict`` holds."""
        self.outputs = state["outputs"].clone() if "outputs" in state else None
        self.outputs_of = int(state.get("outputs_of", -1))
