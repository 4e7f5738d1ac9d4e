"""CoT's minority attribute augmentation (arXiv:2308.04016): virtual pairs of an object and an attribute between two.

For compositional zero-shot learning a class is a pair (attribute a, object o), and a network g makes an embedding of
the words of both. With v the model's embedding of an image, and a partner of the same object with another attribute a':

    v' = lam v + (1 - lam) v_partner,   g' = g(lam w_a + (1 - lam) w_a', w_o)
    L_MAA = CE over cos(v', g') and cos(v', g_p) of all pairs p, over T, with g' as the true one
    L = c CE(cos(v, g) / T, pair) + m L_MAA

Partners have rare attributes more often: among the attributes a' != a seen with the object by 1 / their number of
images, :func:`minority_pairs`. Embeddings are mixed where the model puts them out, by a policy such as ``manifoldmix``.
The losses of the authors' attribute and object experts, which are parts of their model, are not part of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixaug.batch import MixedBatch
from mixaug.checks import check_class_ids, check_not_negative, check_positive
from mixaug.networks import network_in
from mixaug.ops.precision import full_precision
from mixaug.passes import Objective, Passes, Wants


def minority_pairs(pairs: Tensor, counts: Tensor) -> Tensor:
    """How often a pair's partner is of each pair: of the same object, and of rare attributes more often.

    For :class:`mixaug.pairing.ClassPairs`, best over a :class:`mixaug.partners.TrainingSet`.

    Args:
        pairs: (P, 2) int64, attribute and object of each class.
        counts: (P,) number of training images of each class, not negative.

    Returns:
        (P, P) float32, row the own class; rows sum to 1. An object with a single attribute goes with itself.

    Raises:
        ValueError: other shapes, a negative count.
    """
    pairs, counts = torch.as_tensor(pairs), torch.as_tensor(counts)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or counts.shape != pairs.shape[:1]:
        raise ValueError(
            f"minority_pairs expects pairs (P, 2) and counts (P,), got {tuple(pairs.shape)} and {tuple(counts.shape)}"
        )
    if not bool((counts >= 0).all()):
        raise ValueError("minority_pairs expects counts that are not negative")
    own = torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
    fits = (pairs[:, None, 1] == pairs[:, 1]) & ~own & (counts > 0)
    shares = torch.where(fits, 1 / counts.clamp(min=1).float(), 0.0)
    shares = torch.where(fits.any(1, keepdim=True), shares, own.float())
    return shares / shares.sum(1, keepdim=True)


def virtual_logits(mixed: Tensor, virtual: Tensor, concepts: Tensor) -> Tensor:
    """Cosines of mixed embeddings with their virtual pair, first, and with all pairs.

    Args:
        mixed: (B, D) embeddings.
        virtual: (B, D), the composition for each.
        concepts: (P, D) compositions of all pairs.

    Returns:
        (B, 1 + P) in [-1, 1].
    """
    with full_precision(mixed.device):
        rows, own, table = (F.normalize(values.float(), dim=1) for values in (mixed, virtual, concepts))
        return torch.cat([(rows * own).sum(1, keepdim=True), rows @ table.T], 1)


class Composition(nn.Module):
    """Words of attributes and objects, and a network that makes an embedding of one of each.

    Args:
        pairs: (P, 2) attribute and object of each class, integers.
        attribute_words, object_words: (A, E) and (O, E) floating word vectors, which are trained.
        network: maps (N, 2E), object first, to (N, D), the width of the model's embeddings.

    Raises:
        ValueError: other shapes, a pair of an attribute or an object that has no word.
    """

    pairs: Tensor

    def __init__(
        self, pairs: Sequence[Sequence[int]] | Tensor, attribute_words: Tensor, object_words: Tensor, network: nn.Module
    ) -> None:
        super().__init__()
        table = torch.as_tensor(pairs)
        if table.ndim != 2 or table.shape[1] != 2 or table.is_floating_point():
            raise ValueError(f"Composition expects pairs (P, 2) as integers, got {tuple(table.shape)} {table.dtype}")
        if attribute_words.ndim != 2 or object_words.ndim != 2 or attribute_words.shape[1] != object_words.shape[1]:
            raise ValueError(
                f"Composition expects words (A, E) and (O, E), got {tuple(attribute_words.shape)} and "
                f"{tuple(object_words.shape)}"
            )
        check_class_ids("Composition: attributes", table[:, 0], len(attribute_words))
        check_class_ids("Composition: objects", table[:, 1], len(object_words))
        self.register_buffer("pairs", table.long(), persistent=False)
        self.attribute_words = nn.Parameter(attribute_words.detach().clone())
        self.object_words = nn.Parameter(object_words.detach().clone())
        self.network = network

    def forward(self, attributes: Tensor, objects: Tensor) -> Tensor:
        """(N, D) compositions of words (N, E) of attributes and of objects."""
        composed: Tensor = self.network(torch.cat([objects, attributes], 1))
        return composed

    def concepts(self) -> Tensor:
        """(P, D) compositions of all pairs."""
        return self(self.attribute_words[self.pairs[:, 0]], self.object_words[self.pairs[:, 1]])

    def virtual(self, batch: MixedBatch) -> Tensor:
        """(B, D) compositions of the words of each mixed sample's sources, by their shares of its label."""
        labels: Tensor = batch.labels  # type: ignore[assignment]  # the objective has looked at them
        pairs = self.pairs[labels[batch.sources]]
        weights = batch.weights[..., None].to(self.attribute_words.dtype)
        words = (self.attribute_words[pairs[..., 0]], self.object_words[pairs[..., 1]])
        return self(*((weights * each).sum(1) for each in words))


class CoT(Objective):
    """The loss of virtual pairs, and that of the true ones, over embeddings of a model.

    Needs a network ``"composition"`` beside the model, an :class:`mixaug.networks.Auxiliary` of a
    :class:`Composition`. Labels are class ids of pairs. The model puts out embeddings (B, D), which the policy mixes:
    ``create("manifoldmix", stages=[name of its last module], alpha=1.0, pairing=ClassPairs(minority_pairs(...)))``.

    Args:
        temperature: of both losses, positive; 0.1.
        clean: c, weight of the loss of the unmixed batch, not negative; 1.
        mixed: m, weight of the loss of virtual pairs, not negative; 1.

    Raises:
        ValueError: an option out of range; in a step, labels that are no ids of pairs.
        TypeError: when the step is made, a network that is no :class:`Composition`.
    """

    wants = Wants(networks=("composition",))
    usual_policy = ("manifoldmix", {"alpha": 1.0})

    def __init__(self, temperature: float = 0.1, clean: float = 1.0, mixed: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_positive("CoT", "temperature", temperature)
        self.clean = check_not_negative("CoT", "clean", clean)
        self.mixed = check_not_negative("CoT", "mixed", mixed)

    def attach(self, step: Any) -> None:
        network = network_in(step.networks["composition"])
        if not isinstance(network, Composition):
            raise TypeError(
                "CoT expects networks={'composition': Auxiliary(mixaug.objectives.Composition(...))}, got "
                f"{type(network).__name__}"
            )

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        composition: Any = network_in(passes.network("composition"))
        concepts = composition.concepts()
        mixed = passes.run(passes.mixed)
        labels = mixed.batch.labels
        if labels is None or labels.is_floating_point() or labels.ndim != 1:
            raise ValueError("CoT expects labels as class ids (B,) of pairs")
        check_class_ids("CoT", labels, len(concepts))
        logits = virtual_logits(mixed.outputs, composition.virtual(mixed.batch), concepts)
        first = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        terms = {"mixed": self.mixed * F.cross_entropy(logits / self.temperature, first)}
        if self.clean:
            clean = passes.run(passes.clean)
            # The first column is that of the virtual pairs, of which there are none here.
            own = virtual_logits(clean.outputs, clean.outputs, concepts)[:, 1:]
            terms["clean"] = self.clean * self.loss(own / self.temperature, clean.batch)
        return terms

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}, clean={self.clean:g}, mixed={self.mixed:g}"
