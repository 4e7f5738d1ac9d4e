"""What a model says of a batch: saliency, class activation, attention, features.

:class:`Signals` are given tensors; :class:`ModelSignals` takes them from a model, lazily and each at most once per
batch; :class:`Seen` is what the mixed pass itself showed, through hooks. A policy asks all of them the same questions.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug import backbone
from mixaug.ops import attention as attentions
from mixaug.ops.activation import class_activation_map
from mixaug.ops.layout import single_precision
from mixaug.ops.precision import callers_precision

if TYPE_CHECKING:
    from mixaug.batch import MixedBatch

__all__ = ["BlockAttention", "ModelSignals", "PassSignals", "Recorder", "Seen", "Signals", "resolve", "taken_now"]

#: Of a loss times its factor during a backward pass in half precision.
LARGEST_SCALED = 2.0**15
#: How the model stands during a pass over the clean batch: its statistics and dropout as in training, or not.
Mode = Literal["eval", "train"]
Loss = Callable[[Any, Tensor], Tensor]

HELP = {
    "saliency": "(B, H, W) gradient magnitudes",
    "cam": "(B, h, w) class activation maps",
    "attention": "(B, h, w) attention of the class token",
    "features": "(B, C, h, w) feature maps, or a dict of them by stage",
    "outputs": "(B, K) outputs for the unmixed images",
    "pooled": "(B, D) input of the classifier for the unmixed images",
}


class Signals:
    """Signals as tensors: computed elsewhere, stored from another run, or made up for a test.

    Args:
        saliency: (B, H, W) >= 0, one value per pixel; its scale does not matter.
        cam: (B, h, w) >= 0, class activation of the true label; rescaled to the image.
        attention: (B, h, w) or (B, N), attention of the class token to each image token.
        features: (B, C, h, w) of the stage that the policy asks for, or a dict by stage.
        outputs: (B, K) what the model puts out for the unmixed images.
        pooled: (B, D) what its classifier takes in for them.

    Raises:
        TypeError: something that is no tensor.
        ValueError: tensors of different batch sizes.

    Example:
        >>> Signals(saliency=torch.rand(8, 32, 32)).saliency().shape
        torch.Size([8, 32, 32])
    """

    def __init__(
        self,
        *,
        saliency: Tensor | None = None,
        cam: Tensor | None = None,
        attention: Tensor | None = None,
        features: Tensor | Mapping[int | str, Tensor] | None = None,
        outputs: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> None:
        self._values: dict[str, Any] = {
            "saliency": saliency,
            "cam": cam,
            "attention": attention,
            "features": features,
            "outputs": outputs,
            "pooled": pooled,
        }
        sizes: set[int] = set()
        for name, value in self._values.items():
            for tensor in value.values() if isinstance(value, Mapping) else [value]:
                if tensor is None:
                    continue
                if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                    came = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                    raise TypeError(f"Signals expects {name} as {HELP[name]}, floating point, got {came}")
                sizes.add(tensor.shape[0])
        if len(sizes) > 1:
            raise ValueError(f"Signals expects tensors of one batch, got batch sizes {sorted(sizes)}")

    #: The model behind the signals, where there is one.
    model: nn.Module | None = None

    def saliency(self, *, mode: Mode = "eval", keep_loss: bool = False) -> Tensor:
        """(B, H, W) float32: root mean square over the channels of the loss's gradient with respect to the images.

        Args:
            mode: ``"eval"`` leaves batch statistics alone and dropout off; ``"train"`` does neither.
            keep_loss: keep the clean loss as a part of the step, see :meth:`clean_loss`.
        """
        if keep_loss:
            raise ValueError("the loss of the clean batch is kept by ModelSignals only; given Signals have none")
        return single_precision(self._given("saliency"))

    def clean_loss(self) -> Tensor:
        """Mean loss of the clean batch, whose gradient was computed with the saliency and is handed on by backward."""
        raise ValueError("the loss of the clean batch is kept by ModelSignals only; given Signals have none")

    def cam(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        """(B, H, W) float32 class activation of the true labels, each with the sum 1; NaN where constant."""
        from mixaug.ops.activation import normalised_map

        return normalised_map(single_precision(self._given("cam")), size)

    def attention(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        """(B, h, w) float32 attention to the image tokens, in the last block, averaged over its heads.

        Of the class token; for models without one the mean over all image tokens; for models without global
        attention whose queries and keys can be read (CNNs, windows) the mean square of the last feature map
        (arXiv:1612.03928), each map divided by its sum.

        Args:
            size: (H, W) of the images, for models that do not say how their tokens lie.
        """
        return as_grid(single_precision(self._given("attention")), size)

    def received(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        """(B, h, w) float32 attention that each image token receives from all image tokens, on average."""
        return self.attention(size, mode=mode)

    def features(
        self, stage: int | str | None = None, *, size: tuple[int, int], mode: Mode = "eval", grad: bool = False
    ) -> Tensor:
        """(B, C, h, w) features behind a stage; None stands for the last ones, which the classifier pools.

        Args:
            stage: name of a module, or number of a stage in timm's counting.
            size: (H, W) of the images.
            grad: hand gradients on to the model.
        """
        value = self._given("features")
        if isinstance(value, Mapping):
            if stage not in value:
                raise ValueError(f"Signals has features of {list(value)}, but stage {stage!r} is asked for")
            value = value[stage]
        return backbone.as_map(self.model, value, size)

    def outputs(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        """(B, K) what the model puts out for the unmixed images."""
        return self._given("outputs")

    def pooled(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        """(B, D) what the classifier takes in for the unmixed images."""
        return self._given("pooled")

    def _given(self, name: str) -> Any:
        value = self._values[name]
        if value is None:
            raise ValueError(
                f"the policy asks for {name}, which these Signals lack: pass Signals({name}=...), {HELP[name]}, or "
                "signals=model"
            )
        return value


class ModelSignals:
    """Takes signals from a model: any of timm, and others whose parts it finds or is told.

    The model stays as it is: hooks are removed after every pass, also after an error, and every module returns to the
    mode it was in.

    Args:
        model: takes images (B, C, H, W), returns logits (B, K).
        loss: (outputs, labels) to a scalar, whose gradient is the saliency; None takes the cross-entropy with class
            ids (B,) or shares (B, K).
        features: name of the module that puts out the last feature map; None finds it.
        classifier: name of the linear layer that makes the logits; None finds it.
        block: which of the blocks of attention; -1 is the last.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> signals = ModelSignals(model).of(images, labels)  # doctest: +SKIP
        >>> mixed = policy(images, labels, signals=signals)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss | None = None,
        features: str | None = None,
        classifier: str | None = None,
        block: int = -1,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"ModelSignals expects model as a torch.nn.Module, got {type(model).__name__}")
        self.model = model
        self.loss = loss or clean_cross_entropy
        self.feature_module = features
        self.classifier_module = classifier
        self.block = block

    #: The loss of the step, (outputs, MixedBatch) to a scalar, where :class:`mixaug.MixStep` asks.
    objective: Callable[[Any, MixedBatch], Tensor] | None = None

    def step_objective(self) -> Callable[[Any, MixedBatch], Tensor]:
        """:attr:`objective`, and outside of a step cross-entropy."""
        from mixaug.losses import MixedCrossEntropy

        return MixedCrossEntropy() if self.objective is None else self.objective

    def places(self) -> dict[str, Any]:
        """The options that say what to ask and where: ``ModelSignals(other, **signals.places())``."""
        loss = None if self.loss is clean_cross_entropy else self.loss
        return {
            "loss": loss,
            "features": self.feature_module,
            "classifier": self.classifier_module,
            "block": self.block,
        }

    @property
    def inner(self) -> nn.Module:
        """The model without torch.compile's wrapper."""
        return backbone.bare(self.model)

    def of(self, images: Tensor, labels: Tensor | None = None, needs: frozenset[str] = frozenset()) -> PassSignals:
        """Signals for one batch; nothing is computed before it is asked for.

        Args:
            images: (B, C, H, W) floating point, as the model takes them.
            labels: (B,) class ids or (B, K) shares; needed for saliency and class activation.
            needs: what will be asked, so that one pass gives all of it.
        """
        return PassSignals(self, images, labels, needs)

    def like_classifier(self, what: str, known: nn.Linear | None = None) -> nn.Linear:
        """A linear layer of the classifier's sizes, dtype and device, freshly drawn; or ``known``, where it is one.

        Args:
            what: name of the policy that wants it, for messages.
            known: what an earlier call gave: a second step around the same policy goes on with what it has learned.

        Raises:
            ValueError: a classifier that is not linear, or of other sizes than ``known``.
        """
        classifier = self.inner.get_submodule(self.classifier())
        if not isinstance(classifier, nn.Linear):
            raise ValueError(f"{what} expects a linear classifier, got {type(classifier).__name__}")
        sizes = classifier.in_features, classifier.out_features
        if known is None:
            return nn.Linear(*sizes, device=classifier.weight.device, dtype=classifier.weight.dtype)
        if (known.in_features, known.out_features) != sizes:
            raise ValueError(
                f"{what} is attached to a model of {known.in_features} features and {known.out_features} classes, this "
                f"one has {sizes[0]} and {sizes[1]}: make one policy for each model"
            )
        return known

    def last_map(self) -> tuple[str, bool]:
        """Module of the last feature map, and whether it is the module's input."""
        if self.feature_module is None:
            return backbone.last_map(self.inner)
        return backbone.stage_name(self.inner, self.feature_module), False

    def classifier(self) -> str:
        """Name of the linear classifier."""
        if self.classifier_module is None:
            return backbone.classifier_name(self.inner)
        return backbone.stage_name(self.inner, self.classifier_module)

    def attention_block(self) -> str | None:
        """Name of the block of attention; None where there is none that can be read."""
        blocks = backbone.attention_blocks(self.inner)
        if not blocks:
            return None
        if not -len(blocks) <= self.block < len(blocks):
            raise ValueError(f"ModelSignals: block {self.block} does not exist; there are {len(blocks)}: {blocks}")
        return blocks[self.block]


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


class Seen(Signals):
    """What the mixed pass showed: the same questions, answered for the mixed images by the pass itself.

    A context manager's value: ``with policy.tap(model, mixed) as seen: logits = model(mixed.inputs)``. Values are
    detached, except with ``grad=True``.

    Attributes:
        clean: signals of the unmixed images, where the policy asked for any.
        size: spatial size of the mixed images.
    """

    def __init__(self, source: ModelSignals, wanted: frozenset[str], clean: Signals | None = None) -> None:
        super().__init__()
        self.source = source
        self.model = source.inner
        self.clean = clean
        self.recorder = Recorder(source, wanted)

    def attention(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        return self.recorder.attention(size)

    def received(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        return self.recorder.received(size)

    def every_attention(self) -> list[BlockAttention]:
        """All blocks of attention in their order.

        Raises:
            ValueError: a model without blocks whose queries and keys can be read.
        """
        return self.recorder.every_attention()

    def features(
        self, stage: int | str | None = None, *, size: tuple[int, int], mode: Mode = "eval", grad: bool = False
    ) -> Tensor:
        return self.recorder.features(stage, size, grad)

    def outputs(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        return self.recorder.outputs(grad)

    def pooled(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        return self.recorder.pooled(grad)


class PassSignals(Signals):
    """Signals of one clean batch, from as few passes of the model as they need: made by :meth:`ModelSignals.of`."""

    def __init__(self, source: ModelSignals, images: Tensor, labels: Tensor | None, needs: frozenset[str]) -> None:
        super().__init__()
        self.source = source
        self.model = source.inner
        self.images = images
        self.labels = labels
        # Class activation comes from the last features.
        self.wanted = set(needs) | ({"features"} if "cam" in needs else set())
        self._passes: dict[Mode, _Pass] = {}
        self._saliency: dict[Mode, Tensor] = {}
        self._clean_loss: Tensor | None = None

    def saliency(self, *, mode: Mode = "eval", keep_loss: bool = False) -> Tensor:
        if mode not in self._saliency or (keep_loss and self._clean_loss is None):
            self._take_saliency(mode, keep_loss, self.wanted)
        return self._saliency[mode]

    def clean_loss(self) -> Tensor:
        if self._clean_loss is None:
            raise ValueError("no clean loss was kept: ask for saliency(keep_loss=True) first")
        return self._clean_loss

    def gradient_at(self, images: Tensor, *, mode: Mode = "eval") -> Tensor:
        """(B, C, H, W) gradient of the loss of the batch's labels with respect to other images of the same shape."""
        labels = self._labels("a gradient")
        with self._standing(mode), torch.enable_grad():
            images = self._checked(images.detach()).requires_grad_()
            scale = half_scale(images)
            loss = self.source.loss(self.source.model(images), labels)
            (gradient,) = torch.autograd.grad(loss * scale, images)
        return gradient / scale

    def cam(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        labels = self._labels("class activation")
        classifier = self.source.inner.get_submodule(self.source.classifier())
        weight = classifier.weight
        assert isinstance(weight, Tensor)
        found = self._pass(mode, {"features"}).recorder.raw_features(None)
        maps = backbone.as_map(self.source.inner, found, size, weight.shape[1])
        if maps.shape[1] != weight.shape[1]:
            raise ValueError(
                f"the classifier of {type(self.source.inner).__name__} takes {weight.shape[1]} channels, but its last "
                f"feature map has {maps.shape[1]}: name the map, ModelSignals(model, features=...), or pass "
                "Signals(cam=...)"
            )
        with torch.no_grad():
            maps = backbone.head_norm(self.source.inner, maps)
            return class_activation_map(maps, weight.detach(), labels, size, rectify=False)

    def attention(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        return self._pass(mode, {"attention"}).recorder.attention(size)

    def received(self, size: tuple[int, int], *, mode: Mode = "eval") -> Tensor:
        return self._pass(mode, {"attention"}).recorder.received(size)

    def features(
        self, stage: int | str | None = None, *, size: tuple[int, int], mode: Mode = "eval", grad: bool = False
    ) -> Tensor:
        wanted = {"features"} if stage is None else {f"features:{backbone.stage_name(self.source.inner, stage)}"}
        return self._pass(mode, wanted, grad).recorder.features(stage, size, grad)

    def outputs(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        return self._pass(mode, set(), grad).recorder.outputs(grad)

    def pooled(self, *, mode: Mode = "eval", grad: bool = False) -> Tensor:
        return self._pass(mode, {"pooled"}, grad).recorder.pooled(grad)

    def _pass(self, mode: Mode, wanted: set[str], grad: bool = False) -> _Pass:
        """The pass in this mode that recorded ``wanted``, run now where there is none."""
        known = self._passes.get(mode)
        if known is not None and wanted <= known.wanted and (known.has_graph or not grad):
            return known
        wanted = self.wanted | wanted
        if "saliency" in wanted and not grad and not self._saliency and self.labels is not None:
            # One pass for both. Its mode is the one that the first question names.
            return self._take_saliency(mode, False, wanted)
        with self._standing(mode), torch.set_grad_enabled(grad):
            found = _Pass(self.source, frozenset(wanted), self._checked(self.images.detach()), grad)
        self._passes[mode], self.wanted = found, wanted
        return found

    def _take_saliency(self, mode: Mode, keep_loss: bool, wanted: set[str]) -> _Pass:
        labels = self._labels("saliency")
        parameters = [p for p in self.source.model.parameters() if p.requires_grad] if keep_loss else []
        with self._standing(mode), torch.enable_grad():
            images = self._checked(self.images.detach()).requires_grad_()
            found = _Pass(self.source, frozenset(wanted), images, True)
            loss = self.source.loss(found.recorder.outputs(True), labels)
            scale = half_scale(images)
            gradient, *others = torch.autograd.grad(loss * scale, [images, *parameters], allow_unused=True)
        found.close()
        self._passes[mode], self.wanted = found, wanted
        gradient = torch.zeros_like(images) if gradient is None else gradient
        self._saliency[mode] = _magnitude(gradient.detach()) / scale
        if keep_loss:
            kept = [None if gradient is None else gradient / scale for gradient in others]
            self._clean_loss = _HandOn.apply(loss.detach(), kept, *parameters)
        return found

    def _labels(self, signal: str) -> Tensor:
        if torch.is_inference_mode_enabled() and signal != "class activation":
            raise RuntimeError(f"{signal} needs gradients, which torch.inference_mode() forbids; use torch.no_grad()")
        if self.labels is None:
            raise ValueError(f"{signal} is that of the true labels: pass labels with the images")
        return self.labels

    def _checked(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise TypeError(
                f"signals need a pass of the model, which does not take images of {images.dtype}: normalise them "
                "before mixing (DeviceLoader does), or pass finished Signals"
            )
        return images

    @contextlib.contextmanager
    def _standing(self, mode: Mode) -> Iterator[None]:
        """The model in a mode; every module back in its own afterwards."""
        # As in training is as the user left it: a frozen batch norm stays frozen.
        changed = [module for module in self.source.model.modules() if module.training] if mode == "eval" else []
        for module in changed:
            module.training = False
        try:
            with callers_precision(self.images.device):
                yield
        finally:
            for module in changed:
                module.training = True


class _Pass:
    """One run of the model with hooks that record what is wanted."""

    def __init__(self, source: ModelSignals, wanted: frozenset[str], images: Tensor, has_graph: bool) -> None:
        self.wanted = set(wanted)
        self.has_graph = has_graph
        self.recorder = Recorder(source, wanted)
        # Code compiled before the hooks were there would not see them.
        hooked = is_compiled(source.model) and len(self.recorder.places()) > 1
        eager = torch.compiler.set_stance("force_eager") if hooked else contextlib.nullcontext()
        with self.recorder.watching(), eager:
            self.recorder.record("outputs", source.model(images))

    def close(self) -> None:
        """Let go of the graph, which a backward pass has used up."""
        self.has_graph = False
        self.recorder.detach()


class Recorder:
    """Hooks on the parts of a model that the wanted signals come from, and what they recorded."""

    def __init__(self, source: ModelSignals, wanted: frozenset[str]) -> None:
        self.source = source
        self.wanted = wanted
        self.found: dict[str, Any] = {}

    def places(self) -> list[tuple[str, str, str]]:
        """Where to record: (name of a module, ``"input"`` or ``"output"``, key to record under)."""
        model = self.source.inner
        found = [("", "output", "outputs")]
        for name in self._attention_blocks():
            block = model.get_submodule(name)
            if isinstance(block, nn.MultiheadAttention):
                found.append((name, "input", f"attention:{name}:input"))
                continue
            for part in itertools.chain(*backbone.PROJECTIONS):
                if isinstance(getattr(block, part, None), nn.Linear):
                    found.append((f"{name}.{part}", "output", f"attention:{name}:{part}"))
        # Beside attention too: a block may turn out to see windows, which then gives way to the substitute.
        if self.wanted & {"features", "cam", "attention"}:
            try:
                name, at_input = self.source.last_map()
                found.append((name, "input" if at_input else "output", "features"))
            except ValueError:
                if self.wanted & {"features", "cam"} or self.source.attention_block() is None:
                    raise
        if "pooled" in self.wanted:
            found.append((self.source.classifier(), "input", "pooled"))
        names = sorted(key.removeprefix("features:") for key in self.wanted if key.startswith("features:"))
        return found + [(name, "output", f"features:{name}") for name in names]

    def record(self, key: str, value: Any) -> None:
        """Keep what a module took in or put out."""
        self.found[key] = value

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record during this context."""
        with contextlib.ExitStack() as hooks:
            for name, side, key in self.places():
                module = self.source.inner.get_submodule(name) if name else self.source.inner
                if side == "input":
                    hook = module.register_forward_pre_hook(self._recording_input(key))
                else:
                    hook = module.register_forward_hook(self._recording_output(key))
                hooks.callback(hook.remove)
            yield

    def _recording_input(self, key: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: self.record(key, inputs[0])

    def _recording_output(self, key: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: self.record(key, output)

    def detach(self) -> None:
        self.found = {key: value.detach() if isinstance(value, Tensor) else value for key, value in self.found.items()}

    def attention(self, size: tuple[int, int]) -> Tensor:
        with torch.no_grad():
            block = self._last_block()
            if block is None:
                return self._substitute(size)
            if backbone.has_class_token(self.source.inner):
                return self._on_grid(block.of_class_token(), size)
            return self._on_grid(block.received(), size)

    def received(self, size: tuple[int, int]) -> Tensor:
        with torch.no_grad():
            block = self._last_block()
            return self._substitute(size) if block is None else self._on_grid(block.received(), size)

    def every_attention(self) -> list[BlockAttention]:
        blocks = self._attention_blocks()
        if not blocks:
            raise ValueError(
                f"{type(self.source.inner).__name__} has no global attention whose queries and keys can be read "
                "(layers qkv, or q and k, without rotary or relative positions)"
            )
        with torch.no_grad():
            found = [self._block(name) for name in blocks]
        for name, block in zip(blocks, found, strict=True):
            if not self._is_global(block):
                raise ValueError(
                    f"block {name!r} of {type(self.source.inner).__name__} does not see the whole image: "
                    f"{tuple(block.key.shape)} keys for {len(self._recorded('outputs'))} images"
                )
        return found

    def features(self, stage: int | str | None, size: tuple[int, int], grad: bool) -> Tensor:
        value = self.raw_features(stage)
        return backbone.as_map(self.source.inner, value if grad else value.detach(), size)

    def raw_features(self, stage: int | str | None) -> Tensor:
        key = "features" if stage is None else f"features:{backbone.stage_name(self.source.inner, stage)}"
        return self._recorded(key)

    def outputs(self, grad: bool) -> Tensor:
        value = self._recorded("outputs")
        return value if grad else value.detach()

    def pooled(self, grad: bool) -> Tensor:
        value = self._recorded("pooled")
        return value if grad else value.detach()

    def _recorded(self, key: str) -> Tensor:
        value = self.found.get(key)
        if isinstance(value, (list, tuple)):
            value = value[0]
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{type(self.source.inner).__name__} showed no {key}: "
                + (
                    "the model has not run yet, or ran compiled before its first step with mixaug"
                    if key not in self.found
                    else f"got {type(value).__name__}"
                )
            )
        return value

    def _attention_blocks(self) -> list[str]:
        if "attentions" in self.wanted:
            return backbone.attention_blocks(self.source.inner)
        if "attention" in self.wanted:
            name = self.source.attention_block()
            return [] if name is None else [name]
        return []

    def _block(self, name: str) -> BlockAttention:
        start = f"attention:{name}:"
        seen = {key.removeprefix(start): value for key, value in self.found.items() if key.startswith(start)}
        if not seen:
            raise ValueError(
                f"{type(self.source.inner).__name__} ran without calling its block {name!r}, or a part of it was "
                "compiled on its own or before its first step with mixaug: compile the whole model"
            )
        query, key, scale = backbone.queries_and_keys(self.source.inner.get_submodule(name), seen)
        return BlockAttention(query, key, scale, backbone.prefix_tokens(self.source.inner))

    def _last_block(self) -> BlockAttention | None:
        blocks = self._attention_blocks()
        block = self._block(blocks[-1]) if blocks else None
        return block if block is not None and self._is_global(block) else None

    def _is_global(self, block: BlockAttention) -> bool:
        return len(block.key) == len(self._recorded("outputs"))

    def _on_grid(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        return rows.unflatten(1, backbone.token_grid(self.source.inner, rows.shape[1], size))

    def _substitute(self, size: tuple[int, int]) -> Tensor:
        energy = single_precision(self.features(None, size, False)).square().mean(1)
        return energy / energy.sum((1, 2), keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)


class _HandOn(torch.autograd.Function):
    """A loss whose gradient is already known: the value forward, the kept gradients backward.

    So one ``backward`` still does everything, while the graph of the clean pass is gone before the mixed pass begins.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (factor,) = grads
        scaled = [None if g is None else g * factor.to(g.dtype) for g in ctx.gradients]
        return (None, None, *scaled)


def taken_now(loss: Tensor, parameters: Iterable[Tensor], scale: float = 1.0) -> Tensor:
    """A part of the loss whose gradient is computed at once, so that nothing else has to be kept for it.

    Adding it to the loss of the step gives every parameter the gradient that ``loss`` itself would have given.

    Args:
        loss: scalar with a graph.
        parameters: all that shall learn from it; others get nothing.
        scale: largest factor during the backward pass, see :func:`half_scale`.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if not loss.requires_grad or not learning:
        return loss.detach()
    if scale == 1.0:
        kept = list(torch.autograd.grad(loss, learning, allow_unused=True))
    else:
        # A large loss brings large gradients of its own: with the whole factor they would overflow, for ever.
        factor = (LARGEST_SCALED / loss.detach().float().abs().clamp(min=1e-3)).clamp(max=scale)
        found = torch.autograd.grad(loss.float() * factor, learning, allow_unused=True)
        # In float32: the factor itself may be too large for half precision.
        kept = [None if gradient is None else (gradient.float() / factor).to(gradient.dtype) for gradient in found]
    handed: Tensor = _HandOn.apply(loss.detach(), kept, *learning)
    return handed


def half_scale(images: Tensor) -> float:
    """Factor that keeps gradients of a mean over the batch above the smallest number where the model runs in fp16."""
    return len(images) * 2.0**9 if _in_half(images) else 1.0


def clean_cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    """Mean cross-entropy in float32, for class ids (B,) or shares of classes (B, K)."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"saliency expects logits (B, K) of the model, got {came}; pass ModelSignals(model, loss=...)")
    if labels.is_floating_point() and (labels.shape != outputs.shape or outputs.shape[1] == 1):
        raise ValueError(
            f"saliency of labels {tuple(labels.shape)} {labels.dtype} beside outputs {tuple(outputs.shape)} needs a "
            "loss: pass ModelSignals(model, loss=...)"
        )
    target = labels.to(outputs.device) if labels.is_floating_point() else labels.long()
    logits = single_precision(outputs)
    return F.cross_entropy(logits, target.to(logits.dtype) if target.is_floating_point() else target)


def resolve(what: str, signals: Any, images: Any, labels: Tensor | None, needs: frozenset[str]) -> Signals | None:
    """Signals of a batch from whatever a user passed as ``signals``.

    Raises:
        TypeError: neither Signals, nor ModelSignals, nor a model, nor None.
        ValueError: signals of another batch size.
    """
    if signals is None or not needs:
        return None
    if isinstance(signals, nn.Module):
        signals = ModelSignals(signals)
    if isinstance(signals, ModelSignals):
        return signals.of(images, labels, needs)
    if not isinstance(signals, Signals):
        raise TypeError(
            f"{what} expects signals as mixaug.Signals, mixaug.ModelSignals or a model, got {type(signals).__name__}"
        )
    for name, value in signals._values.items():
        for tensor in value.values() if isinstance(value, Mapping) else [value]:
            if tensor is not None and tensor.shape[0] != images.shape[0]:
                raise ValueError(f"{what} got {images.shape[0]} images but {name} of {tensor.shape[0]} samples")
    return signals


def as_grid(attention: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N) as (B, h, w) of the image's proportions; (B, h, w) as it is."""
    if attention.ndim == 2:
        return attention.unflatten(1, backbone.token_grid(None, attention.shape[1], size))
    if attention.ndim != 3:
        raise ValueError(f"attention expects (B, h, w) or (B, N), got {tuple(attention.shape)}")
    return attention


def _magnitude(gradient: Tensor) -> Tensor:
    """(B, C, *size) to (B, *size) float32. Scaled first, so that squares of half-precision gradients stay finite."""
    gradient = single_precision(gradient)
    largest = gradient.abs().flatten(1).amax(1).clamp(min=torch.finfo(gradient.dtype).tiny)
    scale = largest.reshape(-1, *([1] * (gradient.ndim - 1)))
    # A gradient that overflowed says nothing of its sample: no saliency, which policies take as even.
    scaled = torch.where(scale.isfinite(), gradient / scale, torch.zeros_like(gradient))
    return scaled.square().mean(1).sqrt() * torch.where(scale.isfinite(), scale, torch.zeros_like(scale))[:, 0]


def is_compiled(model: nn.Module) -> bool:
    """Whether calls of the model go through torch.compile."""
    return getattr(model, "_compiled_call_impl", None) is not None or backbone.bare(model) is not model


def _in_half(images: Tensor) -> bool:
    device = images.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return images.dtype == torch.float16 or autocast
