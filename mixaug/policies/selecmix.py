"""SelecMix (arXiv:2211.02291): mixtures of contradicting pairs, which undo what goes along with the class by accident.

    x' = lam x + (1 - lam) x[partner],   lam ~ U(0, 1/2),   y' = y[partner]

The partner is a sample of the same class that a biased network finds dissimilar, or one of another class that it finds
similar; a coin for each batch decides between the two. The partner has the larger share, and its label alone counts.
The objective of the same name trains the biased network. Where the bias of each sample is known no network is needed.

Departures from the authors' code: a pair that is not allowed cannot win (there a masked similarity of 0 beats negative
ones, and 1 stands for the lone member of a class); the network is asked in evaluation mode, there in training mode;
where the bias is known partners are drawn among all that fit, there the first one is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from torch import Tensor

from mixaug.checks import check_callable, check_choice, check_per, shown
from mixaug.draws import Per
from mixaug.pairing import Contradicting, Pairing, Selective
from mixaug.pairing.contradicting import Mode
from mixaug.policies.combinations import OneOf
from mixaug.policies.mixup import Mixup
from mixaug.policy import Policy
from mixaug.ratio import Uniform
from mixaug.registry import register

__all__ = ["selecmix"]


@register(
    "selecmix",
    paper="SelecMix: Debiased Learning by Contradicting-pair Sampling, NeurIPS 2022",
    arxiv="2211.02291",
    family="blends",
)
def selecmix(
    mode: Mode = "random",
    network: str | Callable[[Tensor], Tensor] = "biased",
    group: str | None = None,
    per: Per = "sample",
) -> Policy:
    """Mix with what contradicts a bias; the label of the partner, which has the larger share, counts alone.

    Args:
        mode: ``"same_label"`` pairs dissimilar samples of a class, ``"other_label"`` similar ones of two classes,
            ``"random"`` throws a coin for every batch.
        network: that similarity is seen by: name of a network beside the model, or a module, see
            :class:`mixaug.pairing.Contradicting`.
        group: metadata of the batch with the known bias of each sample, integers (B,): then another bias within the
            class, or the same bias in another class, takes the place of similarity, and no network is asked.
        per: how often lam is drawn: ``"sample"`` or ``"batch"``.

    Raises:
        ValueError: an option out of range.
        TypeError: an option of another type.
    """
    check_choice("selecmix", "mode", mode, get_args(Mode))
    check_per("selecmix", per)
    if not isinstance(network, str):
        check_callable("selecmix", "network", network, ["inputs"], "module or a function")
    if group is None:
        return _halved(Contradicting(network, mode), per)
    if not isinstance(group, str):
        raise TypeError(f"selecmix expects group as the name of metadata of the batch, got {shown(group)}")
    pairs = {"same_label": Selective("same", (group, "other")), "other_label": Selective("other", (group, "same"))}
    if mode != "random":
        return _halved(pairs[mode], per)
    return OneOf([_halved(pairing, per) for pairing in pairs.values()])


def _halved(pairing: Pairing, per: Per) -> Mixup:
    return Mixup(ratio=Uniform(0.0, 0.5), pairing=pairing, labeling="partner", per=per)
