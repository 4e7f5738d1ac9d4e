"""Networks beside the model of a step: frozen teachers, slow copies, and networks that are trained along with it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixaug.checks import check_choice, check_probability
from mixaug.signals.backbone import bare

__all__ = ["Auxiliary", "Frozen", "Momentum", "Network", "fingerprint"]


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and values of all parameters and buffers, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Network(nn.Module):
    """What stands for a network beside the model; :attr:`network` is the network itself."""

    @property
    def network(self) -> nn.Module:
        """The network without what is wrapped around it here."""
        raise TypeError(f"{type(self).__name__} does not define network")

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """What the network puts out."""
        return self.network(*inputs, **keywords)


def network_in(module: nn.Module) -> nn.Module:
    """The network behind a wrapper of this module or of ``torch.compile``; any other module itself."""
    return bare(module.network if isinstance(module, Network) else module)


def check_network(name: str, module: object) -> None:
    """Raise a TypeError unless a network beside the model is a module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"MixStep expects networks[{name!r}] as a torch.nn.Module, got {type(module).__name__}")


class Frozen(Network):
    """A network that only answers, such as a teacher: always in evaluation mode, without gradients to its weights.

    Its weights are in no optimizer and in no checkpoint. A ``state_dict`` holds their fingerprint and where they came
    from, and loading one that was made with other weights is an error.

    Args:
        network: the network. It is frozen in place; several modules may share one.
        source: where its weights came from, such as a path; for messages.

    Raises:
        TypeError: ``network`` is no module.
    """

    def __init__(self, network: nn.Module, source: str | Path | None = None) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"Frozen expects network as a torch.nn.Module, got {type(network).__name__}")
        self.source = None if source is None else str(source)
        network.eval().requires_grad_(False)
        # A tuple hides the network from torch: no checkpoint, optimizer or DistributedDataParallel has any use for it.
        self._held = (network,)
        super().train(False)

    @property
    def network(self) -> nn.Module:
        """The frozen network."""
        return self._held[0]

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        if self.network.training:
            # Another module that holds the network, too, has been put into training mode.
            self.network.eval()
        return super().forward(*inputs, **keywords)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode, whatever is asked."""
        return self

    def get_extra_state(self) -> Tensor:
        """Source and fingerprint as bytes: a tensor like all else in a ``state_dict``."""
        text = json.dumps({"source": self.source, "sha256": fingerprint(self.network)})
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()

    def set_extra_state(self, state: Any) -> None:
        """Compare fingerprints.

        Raises:
            ValueError: the state was made with other weights.
        """
        stored = json.loads(bytes(state.tolist()))
        if stored["sha256"] != fingerprint(self.network):
            raise ValueError(
                f"this run was made with a frozen network of other weights (from {stored['source']}, SHA-256 "
                f"{stored['sha256'][:12]}...); now it is from {self.source}, {fingerprint(self.network)[:12]}..."
            )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Frozen:
        super()._apply(fn, recurse)
        self.network._apply(fn)
        return self


class Momentum(Network):
    """A slow copy of the model: a mean teacher (arXiv:1703.01780) or momentum encoder (arXiv:1911.05722).

    The copy is made when the step is made. After every optimizer step ``k <- momentum * k + (1 - momentum) * q``.

    Args:
        momentum: in [0, 1].
        buffers: ``"copy"`` takes the model's buffers (batch statistics) after every step, ``"keep"`` leaves the copy
            to its own.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, momentum: float = 0.999, buffers: str = "copy") -> None:
        super().__init__()
        self.momentum = check_probability("Momentum", "momentum", momentum)
        check_choice("Momentum", "buffers", buffers, ("copy", "keep"))
        self.buffers_rule = buffers
        self.copied: nn.Module | None = None

    def attach(self, model: nn.Module) -> None:
        """Copy the model, once."""
        if self.copied is None:
            self.copied = copy.deepcopy(bare(model)).requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        """The copy.

        Raises:
            RuntimeError: it has not been made yet.
        """
        if self.copied is None:
            raise RuntimeError("Momentum has no copy yet: pass it to MixStep(networks=...), or call attach(model)")
        return self.copied

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Follow the model.

        Raises:
            ValueError: a model with other parameters.
        """
        if self.copied is None:
            return
        theirs, ours = dict(bare(model).named_parameters()), dict(self.copied.named_parameters())
        if theirs.keys() != ours.keys():
            different = sorted(theirs.keys() ^ ours.keys())[:3]
            raise ValueError(
                "Momentum follows the model that it was attached to, without wrappers such as DistributedDataParallel; "
                f"its parameters differ in {different}"
            )
        torch._foreach_lerp_(list(ours.values()), [theirs[name] for name in ours], 1 - self.momentum)
        if self.buffers_rule == "copy":
            for name, buffer in bare(model).named_buffers():
                self.copied.get_buffer(name).copy_(buffer)


class Auxiliary(Network):
    """A network that is trained beside the model, by a term of its own in the objective.

    Its parameters go to the optimizer and into checkpoints like those of the model.

    Args:
        network: the network.

    Raises:
        TypeError: ``network`` is no module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"Auxiliary expects network as a torch.nn.Module, got {type(network).__name__}")
        self.trained = network

    @property
    def network(self) -> nn.Module:
        """The trained network."""
        return self.trained
