"""DualMix (arXiv:2303.07864): replay for classes that come one after the other, with two kinds of mixtures.

    L = l(clean) + e l(EnMix) + a l(AdpMix)          clean: the batch of the stream, and as many samples of a memory

EnMix mixes strongly augmented samples of the batch and the memory, inputs and labels by the same share: the step's
policy draws it. AdpMix mixes sample i of the stream with sample i of the memory, x' = lam x + (1 - lam) x_old, lam ~
Beta(alpha, alpha), while the label's share is moved towards the rarer class, so that the border moves into the classes
that are frequent now:

    share = (lam / n) / (lam / n + (1 - lam) / n_old)          n: samples of the class among those of the step

No code was published, and no more than the idea could be verified: the function of the share is an option, this default
is the package's own, as are the number of replayed samples (one for each of the batch) and what the share goes by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from mixaug import ratio as ratios
from mixaug.batch import Batch, MixedBatch, unmixed
from mixaug.checks import check_callable, check_not_negative, check_positive
from mixaug.draws import Draws
from mixaug.pairing import Own
from mixaug.partners import Memory
from mixaug.passes import Objective, Passes

#: From the share of the stream's sample, and how frequent its class and that of the memory's sample are, (B,) each, to
#: the share of its label, (B,).
Share = Callable[[Tensor, Tensor, Tensor], Tensor]
#: From inputs (N, ...) and a generator to inputs like them.
Augment = Callable[[Tensor, Generator | None], Tensor]
#: Metadata of a joined batch: (N,) bool, which of its samples are from the memory.
REPLAYED = "replayed"


def balanced_share(lam: Tensor, count: Tensor, other_count: Tensor) -> Tensor:
    """The share of a label, moved towards the rarer of two classes; lam where both are as frequent.

    Args:
        lam: (B,) share of the input, in [0, 1].
        count, other_count: (B,) how frequent the own and the other class are, positive.

    Returns:
        (B,) in [0, 1].
    """
    own, other = lam / count, (1 - lam) / other_count
    return own / (own + other)


class DualMix(Objective):
    """Replay from a memory, and the losses of EnMix and AdpMix. The step's policy draws EnMix: ``mixup`` in the paper.

    A batch of the stream joins the memory after its step.

    Args:
        size: samples that the memory holds, a uniform sample of all that came; at least 1.
        alpha: of AdpMix, positive.
        enmix, adpmix: weights of the two mixed losses, not negative.
        share: of the own label in AdpMix, a function of (lam, count, other_count), (B,) each; None takes
            :func:`balanced_share`.
        augment: of the inputs of EnMix, a function of (inputs, generator); None takes them as the loader augments them.
        loss: (outputs, MixedBatch) to a scalar; None takes the cross-entropy.

    Raises:
        ValueError: an option out of range; when the step is made, a policy that takes partners or metadata from
            outside the batch; in a step, labels that are no class ids.
        TypeError: a function that cannot be called so.
    """

    usual_policy = ("mixup", {})

    def __init__(
        self,
        size: int = 1000,
        alpha: float = 1.0,
        enmix: float = 1.0,
        adpmix: float = 1.0,
        share: Share | None = None,
        augment: Augment | None = None,
        loss: Callable[[Any, MixedBatch], Tensor] | None = None,
    ) -> None:
        super().__init__(loss)
        self.memory = Memory(size)
        self.ratio = ratios.Beta(check_positive("DualMix", "alpha", alpha))
        self.enmix = check_not_negative("DualMix", "enmix", enmix)
        self.adpmix = check_not_negative("DualMix", "adpmix", adpmix)
        if share is not None:
            check_callable("DualMix", "share", share, ["lam", "count", "other_count"], "function")
        if augment is not None:
            check_callable("DualMix", "augment", augment, ["inputs", "generator"], "function")
        self.share: Share = balanced_share if share is None else share
        self.augment = augment

    def attach(self, step: Any) -> None:
        policy = step.policy
        if policy.partners is not None or policy.wants_metadata:
            raise ValueError(
                "DualMix joins the batch with samples of a memory, which have neither partners nor metadata beside "
                f"them: choose a policy that mixes within the batch, got {type(policy).__name__}"
            )
        if self.augment is not None and policy.needs:
            raise ValueError(
                f"DualMix replays the draw of EnMix on augmented inputs, but {type(policy).__name__} looks at the "
                "model: leave augment out, or choose a policy that does not"
            )

    def prepare_batch(self, batch: Batch, generator: Generator | None = None) -> Batch:
        """The samples of the stream, and behind them as many of the memory."""
        if not isinstance(batch.inputs, Tensor) or batch.labels is None or batch.labels.ndim != 1:
            raise ValueError("DualMix expects inputs as one tensor, and labels as class ids (B,)")
        self.memory.check("DualMix", batch)
        replayed = self.memory.partners(batch, Own(), Draws(len(batch), batch.device, generator)).further
        if replayed is None:
            return Batch(batch.inputs, batch.labels)
        assert replayed.labels is not None  # those of a batch that has some
        is_replayed = torch.arange(2 * len(batch), device=batch.device) >= len(batch)
        return Batch(
            torch.cat([batch.inputs, replayed.inputs]),
            torch.cat([batch.labels, replayed.labels]),
            metadata={REPLAYED: is_replayed},
        )

    def forward(self, passes: Passes) -> Mapping[str, Tensor]:
        clean = passes.run(passes.clean)
        terms = {"clean": self.loss(clean.outputs, clean.batch)}
        if self.enmix:
            mixed = passes.mixed
            if self.augment is not None:
                augmented = self.augment(passes.batch.inputs, passes.generator)
                mixed = dataclasses.replace(mixed, inputs=mixed.apply(augmented))
            outcome = passes.run(mixed)
            terms["enmix"] = self.enmix * self.loss(outcome.outputs, outcome.batch)
        batch, count = passes.batch, len(passes.batch)
        if REPLAYED in batch.metadata:
            count //= 2
        if self.adpmix and count < len(batch):
            adaptive = passes.run(self.adaptive(batch, passes.generator))
            terms["adpmix"] = self.adpmix * self.loss(adaptive.outputs, adaptive.batch)
        labels: Tensor = batch.labels  # type: ignore[assignment]  # checked when the batch was joined
        new = Batch(batch.inputs[:count], labels[:count])
        self.memory.remember(new, unmixed(new.inputs, new.labels))
        return terms

    def adaptive(self, batch: Batch, generator: Generator | None) -> MixedBatch:
        """AdpMix of 2B joined samples: B mixtures, with shares of labels apart from those of inputs."""
        count = len(batch) // 2
        lam = self.ratio(Draws(count, batch.device, generator)).float()
        new, old = batch.inputs[:count], batch.inputs[count:]
        inputs = torch.lerp(old, new, lam.to(new.dtype).reshape(-1, *[1] * (new.ndim - 1)))
        labels: Tensor = batch.labels  # type: ignore[assignment]  # checked when the batch was joined
        frequent = (labels[:, None] == labels).sum(1).to(lam.dtype)
        own = self.share(lam, frequent[:count], frequent[count:]).clamp(0, 1)
        rows = torch.arange(count, device=batch.device)
        return MixedBatch(inputs, labels, torch.stack([rows, rows + count], 1), torch.stack([own, 1 - own], 1))

    def extra_repr(self) -> str:
        return f"ratio={self.ratio!r}, enmix={self.enmix:g}, adpmix={self.adpmix:g}"
