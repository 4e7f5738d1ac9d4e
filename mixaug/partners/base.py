"""Where partners come from: what a source is, and the batch itself as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.checks import whole_ids
from mixaug.draws import Draws
from mixaug.frozen import BriefRepr
from mixaug.pairing import Pairing, Permutation, RandomPairs
from mixaug.partners.plan import PartnersPlan


@dataclass(frozen=True)
class Partners(BriefRepr):
    """What a source answers.

    Attributes:
        further: R rows that join the batch as rows B, ..., B + R - 1, inputs and labels; None for none. Their labels
            may be weighted lists of sources, as those of any mixed batch.
        index: (B,) int64, the partner of each sample among the joined rows, -1 where none was found; or (B + R,), a
            partner for every joined row; or None: nothing is mixed.
        rows: (R,) int64 rows of the training set that the further samples are, where they come from there.
    """

    further: MixedBatch | None
    index: Tensor | None
    rows: Tensor | None = None


class PartnerSource(nn.Module):
    """Brings the samples that a batch is mixed with.

    Rows from outside join the batch behind its own B rows, are mixed with them, and only the results of the own rows
    are kept. A subclass defines :meth:`partners`. It is a module, so that what it holds moves and is saved with the
    policy.
    """

    #: Whether partners are rows of the batch, so that nothing joins it.
    within_batch = False
    #: Whether the mixed partners are kept too: 2B results.
    both = False
    #: Whether a choice of partners, or the joining of labels, needs the batch's labels.
    needs_labels = False
    #: Whether every partner is a sample with a label of its own, which saliency and class activation ask for.
    labels_own = True
    #: Whether nothing more is to be said of the partners' labels than one for each, of which all counts.
    labels_plain = True
    #: Whether its samples can be mixed inside a model; False where what was mixed becomes a partner later.
    works_inside = True
    #: Whether the policy's pairing chooses among its samples; False where row i goes to sample i, or it chooses itself.
    asks_pairing = True
    #: Whether it keeps samples from one batch to the next.
    keeps_state = False
    #: Set while a step draws, perhaps several times: it remembers its first draw when it is done.
    paused = False
    #: Views and streams of the batch that it reads.
    views: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()

    @property
    def needs_rows(self) -> bool:
        """Whether it must be told which rows of a training set the samples are, see :attr:`mixaug.Batch.rows`."""
        return False

    def bind(self, what: str, pairing: Pairing) -> None:
        """Called when the policy named ``what`` is made, with the pairing that will choose among the partners.

        Raises:
            ValueError: a pairing that cannot choose among this source's samples.
        """
        # These two are what a policy has where nobody chose.
        if not self.asks_pairing and not isinstance(pairing, Permutation | RandomPairs):
            raise ValueError(
                f"{what}: partners of {type(self).__name__} are not chosen by a pairing, so "
                f"pairing={type(pairing).__name__} has no effect: leave it out"
            )

    def check(self, what: str, batch: Batch) -> None:
        """Raise a ValueError for a batch that this source has no partners for, before anything is drawn."""

    def partners(self, batch: Batch, pairing: Pairing, draws: Draws) -> Partners:
        """The partners of a batch.

        Args:
            batch: of B samples.
            pairing: chooses.
            draws: the only source of randomness.

        Returns:
            Further rows that join the batch, and the partner of each sample.
        """
        raise TypeError(f"{type(self).__name__} does not define partners(batch, pairing, draws)")

    def inputs_again(self, plan: PartnersPlan, like: Tensor) -> Tensor | None:
        """The partners' inputs of an earlier draw, (R, ...) as ``like``; None where the source cannot bring them again.

        What is None here is kept in the plans that ``Policy.draw`` returns.
        """
        return None

    def remember(self, batch: Batch, mixed: MixedBatch) -> None:
        """Called after a batch was mixed, for sources that keep samples. Does nothing by default."""


class InBatch(PartnerSource):
    """Partners are samples of the same batch: the default of all policies."""

    within_batch = True

    def partners(self, batch: Batch, pairing: Pairing, draws: Draws) -> Partners:
        return Partners(None, pairing(batch, draws))


def joined(what: str, batch: Batch, further: MixedBatch) -> Batch:
    """The batch with further rows behind its own, as a policy draws for it.

    Raises:
        ValueError: further inputs or labels of another shape, dtype or device.
    """
    inputs = _joined_inputs(what, batch.inputs, further.inputs)
    labels = batch.labels
    if labels is not None:
        # Of a mixture the label of its first source: labels of all sources follow in the MixedBatch.
        first = further.sources[:, 0]
        known = whole_ids(further.labels)
        theirs = labels.new_zeros(len(further), *labels.shape[1:]) if known is None else known[first]
        if theirs.shape[1:] != labels.shape[1:] or theirs.dtype != labels.dtype:
            raise ValueError(
                f"{what}: partners have labels {tuple(theirs.shape)} {theirs.dtype}, the batch {tuple(labels.shape)} "
                f"{labels.dtype}"
            )
        labels = torch.cat([labels, theirs.to(labels.device)])
    metadata = {
        name: torch.cat([batch.metadata[name], further.metadata[name][further.sources[:, 0]]])
        for name in batch.metadata
        if name in further.metadata
    }
    return Batch(inputs, labels, metadata=metadata)


def _joined_inputs(what: str, own: Any, further: Any) -> Tensor:
    if not isinstance(further, Tensor) or not isinstance(own, Tensor):
        came = type(own).__name__ if isinstance(further, Tensor) else type(further).__name__
        raise TypeError(f"{what} joins the batch with partners from outside, which takes tensors, got {came}")
    if further.shape[1:] != own.shape[1:] or further.dtype != own.dtype:
        raise ValueError(
            f"{what}: partners are inputs {tuple(further.shape)} {further.dtype}, the batch is {tuple(own.shape)} "
            f"{own.dtype}"
        )
    return torch.cat([own, further.to(own.device, non_blocking=True)])
