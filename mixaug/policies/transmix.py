"""TransMix (arXiv:2111.09833): CutMix whose labels follow the class token's attention.

    x' = x[partner] inside the box, x outside,   lam' = (area + s) / 2,   s = sum(m a) / sum(a)

a is the attention of the class token to the image tokens, in the last block, averaged over the heads, of the pass that
trains on the mixed images; m is 1 for tokens whose top-left pixel is own. Nothing is run twice, and the block keeps its
fused kernel: the one row of attention is computed again from its queries and keys. The pure functions are
:func:`mixaug.functional.attention_lam` and ``mask_at_tokens``.

The paper's formula is lam' = s, ``attention_share=1``; the authors' code always averages with the area, the default.
Departures: their code draws one box for the batch (``per="batch"``) and pairs it with itself reversed
(``pairing="reversed"``); here every sample has its own. Any grid of tokens will do, theirs is square. Their
configuration means to blend every fifth batch by Mixup instead, ``OneOf([create("mixup", alpha=0.8, per="batch"),
"transmix"], [0.2, 0.8])``; as released its key is not read, and the code blends every other batch, ``[0.5, 0.5]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from mixaug.checks import check_probability
from mixaug.labeling import Attention
from mixaug.policies.cutmix import CutMix
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesPairing, TakesPartners, TakesPer, TakesRatio

    class Offered(TakesRatio, TakesPairing, TakesPer, TakesPartners, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["TransMix"]


@register(
    "transmix",
    paper="TransMix: Attend to Mix for Vision Transformers, CVPR 2022",
    arxiv="2111.09833",
    family="guided by the model",
)
class TransMix(CutMix):
    """Paste one rectangle of the partner into the sample; the label share is half area, half attention.

    Its own rule is the labeling: ``create(name, labeling="attention")`` gives it to any method with a mask. Until the
    model has seen the mixed images (:class:`mixaug.MixStep`, ``relabel``) the weights are the area's.

    Args:
        alpha: lam ~ Beta(alpha, alpha); 1.0 is the authors' value.
        attention_share: weight of the attention's share beside the area's, in [0, 1]: 0.5 in the authors' code, 1 in
            their paper.
        ratio, pairing, per: see :class:`mixaug.Policy`.

    Raises:
        ValueError: an option out of range.
    """

    needs = Attention.needs
    spatial = (2,)
    not_offered = ("minmax", "sources", "labeling")
    own_answers: ClassVar[Mapping[str, str]] = {
        "labeling": "Half the area, half the attention that is seen of each.",
    }

    def __init__(
        self,
        alpha: float = 1.0,
        attention_share: float = 0.5,
        **shared: Unpack[Offered],
    ) -> None:
        attention_share = check_probability("TransMix", "attention_share", attention_share)
        super().__init__(alpha, labeling=Attention(attention_share), **shared)
        self.attention_share = attention_share
