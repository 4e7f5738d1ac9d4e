"""MixPro (arXiv:2304.12043): MaskMix, with labels that trust the attention as far as the model predicts well.

    x' = x in own cells, x[partner] elsewhere,   lam' = rho s + (1 - rho) area

s is the share of the class token's attention that falls on own tokens, rho the cosine of the area's target, smoothed,
and the predicted probabilities: early in training rho is small and the area decides. Everything but the drawing comes
from the pass that trains on the mixed images. The pure functions are :func:`mixaug.functional.maskmix`,
``progressive_factor`` and ``progressive_lam``.

The authors' repository has neither mixing nor labels; OpenMixup's code is the reference. Departures: it takes the
attention from the unmixed own images, in one more pass (``attention="own"``), where the paper reads as TransMix does,
from the mixed ones, the default; its area counts mask cells before they are cut off at the border, here pixels. Its
smoothed target is right only if the batch has one sample or as many as there are classes, and its head applies the
weights to the batch's mean loss; both are not copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from mixaug.checks import check_choice, check_probability
from mixaug.labeling import Progressive
from mixaug.policies.maskmix import MaskMix
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesPairing, TakesPartners, TakesPer, TakesRatio

    class Offered(TakesRatio, TakesPairing, TakesPer, TakesPartners, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["MixPro"]


@register(
    "mixpro",
    paper="MixPro: Data Augmentation with MaskMix and Progressive Attention Labeling for Vision Transformer, ICLR 2023",
    arxiv="2304.12043",
    family="guided by the model",
)
class MixPro(MaskMix):
    """Show the partner in random cells of a few tokens each; labels go from area to attention as predictions improve.

    Its labeling alone is ``create(name, labeling="progressive")``, for any method with a mask. Until the model has seen
    the mixed images (:class:`mixaug.MixStep`, ``relabel``) the weights are the area's.

    Args:
        alpha, patch_size: see :class:`mixaug.policies.MaskMix`: cells of a quarter of the image's side by default.
        attention: ``"mixed"``, of the mixed images, or ``"own"``, of the unmixed ones in a pass of its own.
        label_smoothing: of the target that the prediction is compared with, in [0, 1]; 0.1 in OpenMixup. That of the
            loss belongs to the objective.
        ratio, pairing, per: see :class:`mixaug.Policy`.

    Raises:
        ValueError: an option out of range.
    """

    needs = Progressive.needs
    spatial = (2,)
    not_offered = ("reference_labels", "labeling")
    own_answers: ClassVar[Mapping[str, str]] = {
        "labeling": "From the area to the share of the attention, as predictions improve.",
    }

    def __init__(
        self,
        alpha: float = 1.0,
        patch_size: int | Sequence[int] | None = None,
        attention: Literal["mixed", "own"] = "mixed",
        label_smoothing: float = 0.1,
        **shared: Unpack[Offered],
    ) -> None:
        check_choice("MixPro", "attention", attention, ("mixed", "own"))
        label_smoothing = check_probability("MixPro", "label_smoothing", label_smoothing)
        super().__init__(alpha, patch_size, labeling=Progressive(attention, label_smoothing), **shared)
        self.attention = attention
        self.label_smoothing = label_smoothing
