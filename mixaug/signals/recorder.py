"""What a pass of a model showed at the places that signals come from."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from mixaug.ops import attention as attentions
from mixaug.ops.layout import single_precision
from mixaug.ops.nested import logits_of
from mixaug.signals import backbone
from mixaug.signals.backbone import ModelParts
from mixaug.signals.hooks import Place


def check_parts(what: str, parts: ModelParts, needs: frozenset[str], reads: frozenset[str]) -> None:
    """Raise a ValueError where a model lacks the parts that a policy is going to look at in every step.

    Args:
        what: name of the policy, for messages.
        parts: the model.
        needs, reads: see :class:`mixaug.Policy`.
    """
    try:
        if reads:
            Recorder(parts, reads).places()
        if "attentions" in reads and not backbone.attention_blocks(parts.inner):
            raise ValueError(_no_attention(parts))
        if "cam" in needs:
            parts.classifier()
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _no_attention(parts: ModelParts) -> str:
    return (
        f"{type(parts.inner).__name__} has no global attention whose queries and keys can be read (layers qkv, or q "
        "and k, without rotary or relative positions)"
    )


class BlockAttention:
    """Queries and keys of one block of attention, during one pass.

    Attributes:
        query, key: (B, heads, N, D) detached.
        scale: factor of the products before the softmax.
        prefix: number of tokens before the image tokens.
    """

    def __init__(self, query: Tensor, key: Tensor, scale: float, prefix: int) -> None:
        self.query, self.key, self.scale, self.prefix = query.detach(), key.detach(), scale, prefix

    def of_class_token(self) -> Tensor:
        """(B, N - prefix) float32: see :func:`mixaug.ops.attention.class_attention`."""
        return attentions.class_attention(self.query, self.key, self.scale, self.prefix)

    def received(self) -> Tensor:
        """(B, N - prefix) float32: see :func:`mixaug.ops.attention.received_attention`.

        In a block where only the class token asks (CaiT), what it gives.
        """
        if self.query.shape[2] <= self.prefix:
            return self.of_class_token()
        return attentions.received_attention(self.query, self.key, self.scale, self.prefix)

    def times(self, values: Tensor) -> Tensor:
        """(B, N) to (B, N): head-mean attention times values, see :func:`mixaug.ops.attention.attended`."""
        return attentions.attended(self.query, self.key, self.scale, values)


class Recorder:
    """What hooks (:mod:`mixaug.signals.hooks`) recorded at the parts of a model that the wanted signals come from."""

    def __init__(self, parts: ModelParts, wanted: frozenset[str]) -> None:
        self.parts = parts
        self.wanted = wanted
        self.shown: dict[str, Any] = {}

    def places(self) -> list[Place]:
        """Where to record: (name of a module, ``"input"`` or ``"output"``, key to record under)."""
        model = self.parts.inner
        found = [("", "output", "outputs")]
        for name in self._attention_blocks():
            block = model.get_submodule(name)
            if isinstance(block, nn.MultiheadAttention):
                found.append((name, "input", f"attention:{name}:input"))
                continue
            for part in itertools.chain(*backbone.PROJECTIONS):
                if isinstance(getattr(block, part, None), nn.Linear):
                    found.append((f"{name}.{part}", "output", f"attention:{name}:{part}"))
        # Attention needs features too: a block may turn out to see windows, which then gives way to the substitute.
        if self.wanted & {"features", "cam", "attention"}:
            try:
                name, at_input = self.parts.last_map()
                found.append((name, "input" if at_input else "output", "features"))
            except ValueError:
                if self.wanted & {"features", "cam"} or self.parts.attention_block() is None:
                    raise
        if "pooled" in self.wanted:
            found.append((self.parts.classifier(), "input", "pooled"))
        names = sorted(key.removeprefix("features:") for key in self.wanted if key.startswith("features:"))
        return found + [(name, "output", f"features:{name}") for name in names]

    def record(self, key: str, value: Any) -> None:
        """Keep what a module took in or put out."""
        self.shown[key] = value

    def detach(self) -> None:
        self.shown = {key: value.detach() if isinstance(value, Tensor) else value for key, value in self.shown.items()}

    def attention(self, size: tuple[int, int]) -> Tensor:
        with torch.no_grad():
            block = self._last_block()
            if block is None:
                return self._substitute(size)
            if backbone.has_class_token(self.parts.inner):
                return self._on_grid(block.of_class_token(), size)
            return self._on_grid(block.received(), size)

    def received(self, size: tuple[int, int]) -> Tensor:
        with torch.no_grad():
            block = self._last_block()
            return self._substitute(size) if block is None else self._on_grid(block.received(), size)

    def every_attention(self) -> list[BlockAttention]:
        blocks = self._attention_blocks()
        if not blocks:
            raise ValueError(_no_attention(self.parts))
        with torch.no_grad():
            found = [self._block(name) for name in blocks]
        for name, block in zip(blocks, found, strict=True):
            if not self._is_global(block):
                raise ValueError(
                    f"block {name!r} of {type(self.parts.inner).__name__} does not see the whole image: "
                    f"{tuple(block.key.shape)} keys for {len(self._recorded('outputs'))} images"
                )
        return found

    def features(self, stage: int | str | None, size: tuple[int, int], grad: bool) -> Tensor:
        value = self.raw_features(stage)
        return backbone.as_map(
            self.parts.inner,
            value if grad else value.detach(),
            size,
            None if stage is not None else self._pooled_width(),
        )

    def raw_features(self, stage: int | str | None) -> Tensor:
        key = "features" if stage is None else f"features:{backbone.stage_name(self.parts.inner, stage)}"
        return self._recorded(key)

    def mixed_shape(self, stage: str) -> tuple[int, ...]:
        shape = self.shown.get(f"mixed:{stage}")
        if shape is None:
            raise ValueError(
                f"nothing was mixed behind module {stage!r} in this pass of {type(self.parts.inner).__name__}"
            )
        return tuple(shape)

    def outputs(self, grad: bool) -> Tensor:
        value = self._recorded("outputs")
        return value if grad else value.detach()

    def returned(self) -> Any:
        """What the model returned; of a tuple or list the first item."""
        value = self.shown.get("outputs")
        return value[0] if isinstance(value, (list, tuple)) else value

    def pooled(self, grad: bool) -> Tensor:
        value = self._recorded("pooled")
        return value if grad else value.detach()

    def _recorded(self, key: str) -> Tensor:
        value = self.shown.get(key)
        if key == "outputs":
            value = logits_of(value)
        if isinstance(value, (list, tuple)):
            value = value[0]
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{type(self.parts.inner).__name__} showed no {key}: "
                + ("the model has not run yet" if key not in self.shown else f"got {type(value).__name__}")
            )
        return value

    def _pooled_width(self) -> int | None:
        """Channels of the last map, as the classifier takes them; None where it is not found."""
        try:
            return getattr(self.parts.inner.get_submodule(self.parts.classifier()), "in_features", None)
        except ValueError:
            return None

    def _attention_blocks(self) -> list[str]:
        if "attentions" in self.wanted:
            return backbone.attention_blocks(self.parts.inner)
        if "attention" in self.wanted:
            name = self.parts.attention_block()
            return [] if name is None else [name]
        return []

    def _block(self, name: str) -> BlockAttention:
        start = f"attention:{name}:"
        projected = {key.removeprefix(start): value for key, value in self.shown.items() if key.startswith(start)}
        if not projected:
            raise ValueError(
                f"{type(self.parts.inner).__name__} ran without calling its block {name!r}, or a part of it was "
                "compiled on its own: compile the whole model"
            )
        query, key, scale = backbone.queries_and_keys(self.parts.inner.get_submodule(name), projected)
        return BlockAttention(query, key, scale, backbone.prefix_tokens(self.parts.inner))

    def _last_block(self) -> BlockAttention | None:
        blocks = self._attention_blocks()
        block = self._block(blocks[-1]) if blocks else None
        return block if block is not None and self._is_global(block) else None

    def _is_global(self, block: BlockAttention) -> bool:
        return len(block.key) == len(self._recorded("outputs"))

    def _on_grid(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        return rows.unflatten(1, backbone.token_grid(self.parts.inner, rows.shape[1], size))

    def _substitute(self, size: tuple[int, int]) -> Tensor:
        energy = single_precision(self.features(None, size, False)).square().mean(1)
        return energy / energy.sum((1, 2), keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)
