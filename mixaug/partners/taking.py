"""`TakesPartners`: the part of a policy that deals with where partners come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Generator, Tensor, nn

from mixaug.axes import Form, channels_first, check_layout, check_place_of_channels
from mixaug.batch import Batch
from mixaug.checks import check_dense, check_generator, whole_ids
from mixaug.draws import Per
from mixaug.labeling import Labeling
from mixaug.ops.precision import full_precision
from mixaug.pairing import Pairing
from mixaug.partners.base import PartnerSource
from mixaug.partners.joining import Drawn, askable, draw_with, resolved
from mixaug.plan import Plan


class TakesPartners:
    """Base of :class:`mixaug.Policy`: draws a plan for a batch together with its partners."""

    needs: frozenset[str]
    per: Per
    labeling: Labeling
    #: Whether the policy weighs labels anew once the model has seen the mixed batch (``relabel``).
    relabels: ClassVar[bool] = False
    #: Whether the pairing that chooses is known only behind ``Policy.__init__``, and the class binds the source itself.
    binds_late: ClassVar[bool] = False
    pairing: Pairing
    partners: PartnerSource | None
    spatial: ClassVar[tuple[int, ...] | None]

    @property
    def needs_labels(self) -> bool:
        """Whether the policy looks at labels to choose partners, so that ``labels=None`` is an error."""
        return self._pairs_by_labels()

    def _pairs_by_labels(self) -> bool:
        # Beside the property: not every torch traces `super().needs_labels` of a class that adds to it.
        source = self.partners
        return bool(getattr(self.pairing, "needs_labels", False)) or (source is not None and source.needs_labels)

    @property
    def needs_rows(self) -> bool:
        """Whether ``forward`` has to be told which rows of a training set the samples are."""
        return self.partners is not None and self.partners.needs_rows

    @property
    def members(self) -> tuple[TakesPartners, ...]:
        """The policies that this one is made of; none for most policies."""
        return ()

    @property
    def wants_metadata(self) -> tuple[str, ...]:
        """Names of the per-sample tensors that pairing and labeling look at, of the policies inside too."""
        return tuple(dict.fromkeys(name for rule in self._rules() for name in getattr(rule, "metadata", ())))

    @property
    def wants_networks(self) -> tuple[str, ...]:
        """Names of the networks beside the model that pairing and labeling look at, of the policies inside too."""
        return tuple(dict.fromkeys(name for rule in self._rules() for name in getattr(rule, "networks", ())))

    def attach_networks(self, networks: Mapping[str, nn.Module]) -> None:
        """Hand over the networks beside the model, by name, to the pairings and labelings that look at them.

        Raises:
            ValueError: one of :attr:`wants_networks` is missing.
        """
        for name in self.wants_networks:
            if name not in networks:
                raise ValueError(
                    f"{type(self).__name__} looks at the network {name!r} beside the model, there are "
                    f"{sorted(networks)}: pass MixStep(..., networks={{{name!r}: ...}})"
                )
        for rule in self._rules():
            if getattr(rule, "networks", ()):
                rule.attach_networks(networks)

    def _rules(self) -> list[Any]:
        """Pairings and labelings, of the policies inside too."""
        rules: list[Any] = [rule for part in _parts(self) for rule in (part.pairing, part.labeling)]
        if self.members and getattr(self, "shares_partner", False):
            rules.append(self.pairing)
        return rules

    def check(self, batch: Batch) -> None:
        """Raise a clear error for a batch that this policy cannot mix."""
        raise NotImplementedError

    def plan(self, batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
        """A plan for a checked batch, with given partners where the caller chose them."""
        raise NotImplementedError

    def check_partners(self, source: PartnerSource) -> None:
        """Raise a ValueError for a source of partners that the policy, as it was made, cannot take."""
        what = type(self).__name__
        if self.per == "pair":
            raise ValueError(
                f'{what}: per="pair" shares draws between two samples of the batch that mix with each other, and '
                f'partners of {type(source).__name__} come from elsewhere: take per="sample" or "batch"'
            )
        asks = sorted((self.needs & {"saliency", "cam"}) | getattr(self.labeling, "reads", frozenset()))
        if asks and not source.labels_own:
            raise ValueError(
                f"{what} asks the model for {asks}, which goes by the label of each sample; partners of "
                f"{type(source).__name__} have none of their own"
            )
        relabels = self.relabels or bool(getattr(self.labeling, "reads", ()))
        if relabels and not source.labels_plain:
            raise ValueError(
                f"{what} weighs the labels of pairs after the mixed pass, which does not go with partners of "
                f"{type(source).__name__} here: their labels are no single ones, or count in part"
            )
        if "hidden" in self.needs and not source.works_inside:
            raise ValueError(
                f"{what} mixes inside the model, but partners of {type(source).__name__} are images as they were mixed"
            )

    def bind_partners(self, pairing: Pairing) -> None:
        """Tell the source of partners, if there is one, which pairing chooses.

        Raises:
            ValueError: they do not go together.
        """
        if self.partners is None:
            return
        self.check_partners(self.partners)
        self.choosing = pairing
        self.partners.bind(type(self).__name__, pairing)

    def _channels_first(self, images: Tensor, layout: str | None) -> Tensor:
        """The images as (B, C, *size), a view; raises where they look like something else and nobody said so."""
        what = type(self).__name__
        check_dense(what, "images", images)
        check_layout(what, layout)
        first = channels_first(what, images, layout, is_image=True)
        if layout is None and any(part.spatial is not None for part in _parts(self)):
            check_place_of_channels(what, images.shape)
        if layout is not None and layout.index("C") != 1 and self.needs - {"hidden"}:
            raise ValueError(
                f"{what} looks at the model, which takes images (B, C, *size): bring them there before, got "
                f"layout={layout!r}"
            )
        return first

    def drawn(self, batch: Batch, signals: Any, generator: Generator | None, layout: str | None = None) -> Drawn:
        """A plan for a batch and its partners, everything checked.

        Args:
            batch: as it came.
            signals: as a user passed them; None takes those of the batch.
            generator: of all draws.
            layout: of the images, see :meth:`mixaug.Policy.forward`.

        Raises:
            ValueError: see :meth:`mixaug.Policy.forward`; partners from outside for images with the channels elsewhere.
        """
        what, source = type(self).__name__, self.partners
        first = self._channels_first(batch.inputs, layout)
        form = Form(tuple(first.shape[1:]), first.dtype, layout)
        labels = whole_ids(batch.labels)
        # Making a batch anew takes longer than many a policy's draws.
        if first is not batch.inputs or labels is not batch.labels:
            batch = dataclasses.replace(batch, inputs=first, labels=labels)
        if source is not None and layout is not None and layout.index("C") != 1:
            raise ValueError(f"{what} expects inputs with the channels second, like 'NCHW', got layout={layout!r}")
        drawn = self._drawn(batch, signals, generator)
        return drawn._replace(plan=dataclasses.replace(drawn.plan, form=form))

    def _drawn(self, batch: Batch, signals: Any, generator: Generator | None) -> Drawn:
        what, source = type(self).__name__, self.partners
        signals = batch.signals if signals is None else signals
        if source is not None:
            signals = askable(what, signals, self.needs)
        batch = resolved(what, batch, signals, self.needs)
        self.check(batch)
        check_generator(what, generator, batch.device)
        with full_precision(batch.device):
            if source is None:
                return Drawn(self.plan(batch, generator), batch)
            return draw_with(
                what,
                source,
                self.choosing,
                batch,
                generator,
                lambda whole: resolved(what, whole, signals, self.needs),
                lambda whole, partner: self.plan(whole, generator, partner),
            )


def _parts(policy: TakesPartners) -> Iterator[TakesPartners]:
    """The policies that mix: the members of the members, or the policy itself where it has none."""
    if not policy.members:
        yield policy
    for member in policy.members:
        yield from _parts(member)
