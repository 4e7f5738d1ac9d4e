"""`NetworkPolicy`: the base of policies that may ask a frozen network of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from mixaug.batch import Batch
from mixaug.policy import Policy
from mixaug.signals import ModelSignals

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NetworkPolicy"]


class NetworkPolicy(Policy):
    """A policy that asks a frozen network where it has one, and the model in training where it has none.

    The network is frozen in place and always runs in ``eval()`` mode; it moves with the policy, but is no part of its
    parameters, its ``state_dict`` or its submodules.
    """

    def hold_network(self, network: nn.Module | ModelSignals | None, answers: str) -> None:
        """Freeze and keep the network.

        Args:
            network: as the option of that name; None where there is none.
            answers: the signal that the model in training has to give where there is none.

        Raises:
            TypeError: ``network`` is no module.
        """
        what = type(self).__name__
        if network is not None and not isinstance(network, nn.Module | ModelSignals):
            raise TypeError(
                f"{what} expects network as a torch.nn.Module, got {type(network).__name__}; make one with "
                "timm.create_model(name, pretrained=True)"
            )
        places = network.places() if isinstance(network, ModelSignals) else {}
        held = network.model if isinstance(network, ModelSignals) else network
        if held is not None:
            held.eval().requires_grad_(False)
            self.needs = (self.needs - {answers}) | self.labeling.needs
        # A tuple hides the network from torch: no checkpoint, optimizer or DistributedDataParallel has any use for
        # it, and train() or an initialisation of the whole step must not reach it.
        self._held: tuple[nn.Module, ...] = () if held is None else (held,)
        self._places = places

    @property
    def network(self) -> nn.Module | None:
        """The frozen network."""
        return self._held[0] if self._held else None

    def network_signals(self) -> ModelSignals | None:
        """What may be asked of the network, where its parts were said to be."""
        return ModelSignals(self._held[0], **self._places) if self._held else None

    def on_attach(self, signals: ModelSignals) -> None:
        super().on_attach(signals)
        if self.network is None:
            return
        model = signals.inner
        own = {id(parameter) for parameter in self.network.parameters()}
        if self.network is model or any(id(parameter) in own for parameter in model.parameters()):
            raise ValueError(
                f"{type(self).__name__} has frozen its network, which must not share parameters with the model in "
                "training: pass a copy, or network=None to ask the model itself"
            )

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if self.network is None:
            return
        what = type(self).__name__
        if not batch.images.is_floating_point():
            raise TypeError(
                f"{what} shows the images to its network, which does not take {batch.images.dtype}: normalise "
                "them before mixing (DeviceLoader does)"
            )
        weight = next(self.network.parameters(), None)
        if weight is not None and weight.device != batch.device:
            raise ValueError(
                f"{what} holds its network on {weight.device}, the images are on {batch.device}: "
                f"policy.to({str(batch.device)!r})"
            )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for network in self._held:
            network._apply(fn)
        return self
