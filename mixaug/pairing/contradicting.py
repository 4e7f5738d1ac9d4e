"""Partners that contradict what a biased network goes by: SelecMix (arXiv:2211.02291)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixaug.batch import Batch
from mixaug.checks import check_callable, check_choice, check_dense, check_labels
from mixaug.draws import Draws
from mixaug.pairing.selective import classes_of

Kind = Literal["same_label", "other_label"]
Mode = Literal["random", "same_label", "other_label"]


def contradicting_partners(similarity: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The least similar sample of the own class, or the most similar one of the other classes.

    Args:
        similarity: (B, B) floating, row i how much sample i resembles each sample.
        labels: (B,) class ids, or (B, K) shares, of which the largest counts.
        kind: ``"same_label"`` or ``"other_label"``.

    Returns:
        (B,) int64 rows; the sample's own where it has no such partner. Of equals the first.

    Raises:
        ValueError: an unknown kind, a matrix of another shape.
    """
    check_choice("contradicting_partners", "kind", kind, get_args(Kind))
    check_dense("contradicting_partners", "similarity", similarity)
    classes = classes_of(labels)
    count = len(classes)
    if similarity.shape != (count, count):
        raise ValueError(
            f"contradicting_partners expects similarity ({count}, {count}), one row for each label, got "
            f"{tuple(similarity.shape)}"
        )
    own = torch.arange(count, device=similarity.device)
    same = classes[:, None] == classes
    # What is not allowed is infinitely far from being chosen: a zero in its place could win.
    if kind == "same_label":
        allowed = same & (own[:, None] != own)
        chosen = similarity.masked_fill(~allowed, torch.inf).argmin(1)
    else:
        allowed = ~same
        chosen = similarity.masked_fill(~allowed, -torch.inf).argmax(1)
    return torch.where(allowed.any(1), chosen, own)


class Contradicting:
    """A dissimilar partner of the same class, or a similar one of another class, as a network sees them.

    Where the network goes by something that only goes along with the class in most of the data, such pairs break the
    tie: what samples of one class share and what tells look-alikes of two classes apart is the class itself. Similarity
    is the cosine of what the network puts out for the unmixed batch, in evaluation mode and without gradients.

    Args:
        network: name of a network beside the model, which :class:`mixaug.MixStep` hands over; or a module, or a
            function of the inputs, to (B, D) floating.
        mode: ``"same_label"`` or ``"other_label"`` partners, or ``"random"``, a fair coin for every batch.

    Raises:
        TypeError: a network that is none of these.
        ValueError: an unknown mode; when pairing, a network that nobody brought, outputs that are no rows.
    """

    involution = False
    needs_labels = True

    def __init__(self, network: str | Callable[[Tensor], Tensor] = "biased", mode: Mode = "random") -> None:
        if not isinstance(network, str):
            check_callable("Contradicting", "network", network, ["inputs"], "module or a function")
        check_choice("Contradicting", "mode", mode, get_args(Mode))
        self.mode: Mode = mode
        #: Networks beside the model that it looks at, by name.
        self.networks: tuple[str, ...] = (network,) if isinstance(network, str) else ()
        self.network: Callable[[Tensor], Tensor] | None = None if isinstance(network, str) else network

    def attach_networks(self, networks: Mapping[str, nn.Module]) -> None:
        """Take the network of this name, as :class:`mixaug.MixStep` does when it is made."""
        for name in self.networks:
            self.network = networks[name]

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        check_labels("Contradicting", batch.labels, batch.images)
        labels = classes_of(batch.labels)
        similarity = self.similarity(batch.images)
        if self.mode != "random":
            return contradicting_partners(similarity, labels, self.mode)
        near, far = (contradicting_partners(similarity, labels, kind) for kind in ("other_label", "same_label"))
        return torch.where(draws.uniform(per="batch") < 0.5, near, far)

    @torch.no_grad()
    def similarity(self, images: Tensor) -> Tensor:
        """(B, B) float32 cosines of what the network makes of images (B, ...)."""
        if self.network is None:
            raise ValueError(
                f"Contradicting looks at the network {self.networks[0]!r} beside the model, which nobody brought: "
                f"train through MixStep(..., networks={{{self.networks[0]!r}: ...}})"
            )
        training = [part for part in _modules(self.network) if part.training]
        for part in training:
            part.training = False
        try:
            found = self.network(images)
        finally:
            for part in training:
                part.training = True
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"Contradicting expects its network to give ({len(images)}, D), got {came}")
        rows = F.normalize(found.float(), dim=1)
        return rows @ rows.T

    def __repr__(self) -> str:
        network = self.networks[0] if self.networks else type(self.network).__name__
        return f"Contradicting({network!r}, mode={self.mode!r})"


def _modules(network: Callable[[Tensor], Tensor]) -> list[nn.Module]:
    return list(network.modules()) if isinstance(network, nn.Module) else []
