"""Trained mixers in files and checkpoints."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixaug.policies.learned.momentum import MomentumNetwork
from mixaug.signals import backbone

#: Size that the settings of a mixer may have in a state.
BYTES = 1024


def _read_mixer(what: str, path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and settings of the one mixer in a file."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise ValueError(f"{what} cannot read {path} as a mixer: {type(error).__name__}") from error
    stored = stored.get("policy", stored) if isinstance(stored, dict) else {}
    end = "_extra_state"
    # Inside another policy the names of a mixer's parts start with those of the policy.
    states = {name.removesuffix(end): of_bytes(value) for name, value in stored.items() if str(name).endswith(end)}
    starts = [start for start, value in states.items() if value is not None and "settings" in value]
    if len(starts) != 1:
        raise ValueError(
            f"{what} found {len(starts) or 'no'} mixer{'s' if len(starts) > 1 else ''} in {path}: expected a file of "
            "save_mixer or a checkpoint of a run with one"
        )
    (start,) = starts
    return {name.removeprefix(start): value for name, value in stored.items()}, (states[start] or {})["settings"]


def as_bytes(values: dict[str, Any]) -> Tensor:
    """(1024,) uint8: a dict of plain values as JSON, padded, so that every state of a policy has the same shape.

    Raises:
        ValueError: more than 1024 bytes.
    """
    text = json.dumps(values).encode()
    if len(text) > BYTES:
        raise ValueError(f"the settings of a mixer take {len(text)} bytes, more than {BYTES}")
    return torch.frombuffer(bytearray(text.ljust(BYTES)), dtype=torch.uint8).clone()


def of_bytes(state: Any) -> dict[str, Any] | None:
    """What :func:`as_bytes` was given; None for anything else."""
    if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.ndim != 1:
        return None
    try:
        values = json.loads(bytes(state.tolist()))
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def mixer_state(network: MomentumNetwork, block: nn.Module) -> dict[str, Tensor]:
    """Weights of a trained mixer: the block, and the network that it looks through without its classifier."""
    every = {**_named("network.model", network.model), **_named("block", block)}
    try:
        head = backbone.classifier_name(network.model)
    except ValueError:
        return every
    classifier = {f"network.model.{head}.weight", f"network.model.{head}.bias"}
    return {name: value for name, value in every.items() if name not in classifier}


def load_mixer_state(what: str, path: str | Path, state: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Copy a trained mixer into the tensors of ``state``.

    Args:
        what: name of the policy, for messages.
        path: a file of ``save_mixer`` or a checkpoint of the engine.
        state: from :func:`mixer_state`.
        settings: that the mixer in the file must have been trained with.

    Raises:
        ValueError: the file holds no mixer, or one of another kind, stage or size; nothing has been changed.
        FileNotFoundError: no such file.
    """
    stored, stored_settings = _read_mixer(what, path)
    for name, setting in settings.items():
        if stored_settings.get(name) != setting:
            raise ValueError(
                f"{what} has {name}={setting!r}, but the mixer in {path} was trained with {name}="
                f"{stored_settings.get(name)!r}"
            )
    missing = [name for name in state if name not in stored]
    if missing:
        raise ValueError(
            f"{what} found in {path} a mixer of another kind or of another network: it lacks {missing[:3]}; the "
            "network that it was trained with can be given as encoder="
        )
    for name, value in state.items():
        if stored[name].shape != value.shape:
            raise ValueError(
                f"{what} has {name} of {tuple(value.shape)}, but the mixer in {path} of "
                f"{tuple(stored[name].shape)}: it was trained at a stage of another width"
            )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(stored[name])
