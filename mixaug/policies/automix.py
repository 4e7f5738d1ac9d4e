"""AutoMix (arXiv:2103.13027): masks made by a small attention block that learns from the classification loss itself.

The block sees features of both images, taken from a momentum copy of the model, and says for every cell how much of the
partner shows there. It learns through that frozen copy: the mixed image must be classified as both of its classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mixaug.checks import check_flag
from mixaug.policies.learned.blocks import Upsampling, attended, start_small, tokens, with_channel
from mixaug.policies.learned.pairs import PairMixer, PairOptions
from mixaug.registry import register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AutoMix"]


class MixBlock(nn.Module):
    """AutoMix's block: cross attention from the own cells to the partner's.

    One 1x1 convolution makes queries of the own map and keys of the partner's, another the values of the partner's.

    Args:
        channels: C of the features.
        lam_channel: append lam to the own map and 1 - lam to the partner's as one more channel. Without it the mask
            does not depend on lam.
        reduction: C divided by the channels of queries and keys.
    """

    def __init__(self, channels: int, lam_channel: bool = True, reduction: int = 2) -> None:
        super().__init__()
        self.lam_channel = bool(lam_channel)
        self.query = nn.Conv2d(channels + self.lam_channel, max(channels // reduction, 1), 1)
        self.value = nn.Conv2d(channels + self.lam_channel, 1, 1)
        start_small(self)

    def forward(self, own: Tensor, other: Tensor, lam: Tensor) -> Tensor:
        """Logits (B, h, w) of the partner's share.

        Args:
            own, other: (B, C, h, w) float32 features of the sample and of its partner.
            lam: (B,) or (1,) own share.
        """
        if self.lam_channel:
            own, other = with_channel(own, lam), with_channel(other, 1 - lam)
        query, key = tokens(self.query(own)), tokens(self.query(other))
        return attended(query, key, tokens(self.value(other))).reshape(len(own), *own.shape[2:])


@register(
    "automix",
    paper="AutoMix: Unveiling the Power of Mixup for Stronger Classifiers, ECCV 2022",
    arxiv="2103.13027",
    family="learned",
)
class AutoMix(PairMixer):
    """Masks from a mixing block that learns beside the classifier. Train through MixStep.

    Labels keep the drawn share; ``labeling="area"`` takes the mask's.

    Args:
        alpha: of Beta(alpha, alpha). Two lambdas and two pairings are drawn, one for the classifier, one for the block.
        lam_channel: let the mask depend on lam, see :class:`MixBlock`; off in the published CIFAR settings.
        **shared: mask_weight, mask_weight_end, mask_margin, mask_adjust, reference: see :class:`PairMixer`; all others:
            see :class:`mixaug.policies.learned.base.LearnedMixer`.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        *,
        lam_channel: bool = True,
        upsampling: Upsampling = "nearest",
        mask_adjust: float = 0.0,
        **shared: Unpack[PairOptions],
    ) -> None:
        super().__init__(alpha=alpha, upsampling=upsampling, mask_adjust=mask_adjust, **shared)
        self.lam_channel = check_flag("AutoMix", "lam_channel", lam_channel)
        self.make_known_block()

    def make_block(self, channels: int) -> nn.Module:
        return MixBlock(channels, self.lam_channel)

    def block_settings(self) -> dict[str, Any]:
        return {"lam_channel": self.lam_channel}
