"""Signals from a model: taken lazily, each at most once per batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.checks import check_class_ids, whole_ids
from mixaug.ops.activation import class_activation_map
from mixaug.ops.layout import single_precision
from mixaug.ops.nested import logits_of
from mixaug.ops.precision import callers_precision
from mixaug.signals import backbone
from mixaug.signals.backbone import ModelParts, is_compiled
from mixaug.signals.gradients import KnownGradient, half_scale
from mixaug.signals.hooks import hooked
from mixaug.signals.recorder import Recorder
from mixaug.signals.tensors import Mode, Signals

Loss = Callable[[Any, Tensor], Tensor]


class ModelSignals(ModelParts):
    """Takes signals from a model: any of timm, and others whose parts it finds or is told.

    The model stays as it is: hooks are removed after every pass, also after an error, and every module returns to the
    mode it was in.

    Args:
        model: takes images (B, C, H, W), returns logits (B, K), or an object that has them as ``logits``.
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
        super().__init__(model, features, classifier, block)
        self.loss = loss or clean_cross_entropy

    #: The loss of the step, (outputs, MixedBatch) to a scalar, where :class:`mixaug.MixStep` asks.
    objective: Callable[[Any, Any], Tensor] | None = None

    def places(self) -> dict[str, Any]:
        """The options that say what to ask and where: ``ModelSignals(other, **signals.places())``."""
        loss = None if self.loss is clean_cross_entropy else self.loss
        return {
            "loss": loss,
            "features": self.feature_module,
            "classifier": self.classifier_module,
            "block": self.block,
        }

    def of(self, images: Tensor, labels: Tensor | None = None, needs: frozenset[str] = frozenset()) -> CleanSignals:
        """Signals for one batch; nothing is computed before it is asked for.

        Args:
            images: (B, C, H, W) floating point, as the model takes them.
            labels: (B,) class ids or (B, K) shares; needed for saliency and class activation.
            needs: what will be asked, so that one pass gives all of it.
        """
        return CleanSignals(self, images, whole_ids(labels), needs)

    def like_classifier(self, what: str, existing: nn.Linear | None = None) -> nn.Linear:
        """A linear layer of the classifier's sizes, dtype and device, freshly drawn; or ``existing``, where it is one.

        Args:
            what: name of the policy that wants it, for messages.
            existing: what an earlier call gave: a second step around the same policy goes on with what it has learned.

        Raises:
            ValueError: a classifier that is not linear, or of other sizes than ``existing``.
        """
        classifier = self.inner.get_submodule(self.classifier())
        if not isinstance(classifier, nn.Linear):
            raise ValueError(f"{what} expects a linear classifier, got {type(classifier).__name__}")
        sizes = classifier.in_features, classifier.out_features
        if existing is None:
            return nn.Linear(*sizes, device=classifier.weight.device, dtype=classifier.weight.dtype)
        if (existing.in_features, existing.out_features) != sizes:
            raise ValueError(
                f"{what} is attached to a model of {existing.in_features} features and "
                f"{existing.out_features} classes, this one has {sizes[0]} and {sizes[1]}: make one "
                "policy for each model"
            )
        return existing


class CleanSignals(Signals):
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
            self._run_for_saliency(mode, keep_loss, self.wanted)
        return self._saliency[mode]

    def clean_loss(self) -> Tensor:
        if self._clean_loss is None:
            raise ValueError("no clean loss was kept: ask for saliency(keep_loss=True) first")
        return self._clean_loss

    def gradient_at(self, images: Tensor, *, mode: Mode = "eval") -> Tensor:
        """(B, C, H, W) gradient of the loss of the batch's labels with respect to other images of the same shape."""
        labels = self._labels("a gradient")
        with callers_precision(self.images.device), in_mode(self.source.model, mode), torch.enable_grad():
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

    @property
    def shares_passes(self) -> bool:
        """Whether :meth:`shared_pass` gives what a plain pass of the images would."""
        images = self.images
        plain = isinstance(images, Tensor) and images.is_floating_point() and not images.requires_grad
        # A compiled model that is looked at runs piece by piece, which a plain pass shall not.
        return plain and not is_compiled(self.source.model)

    def shared_pass(self, mode: Mode, reads: frozenset[str], grad: bool, saliency: bool) -> Recorder:
        """What a pass of the clean batch showed: one that was run for a signal before, or one run now for both.

        A pass that saliency has used up keeps no graph, so it serves questions without gradient alone.

        Args:
            mode: of the model.
            reads: what else to record.
            grad: whether the pass must keep a graph.
            saliency: whether a pass without a graph may take the saliency along, which will be asked for.
        """
        known = self._passes.get(mode)
        if known is None or not reads <= known.wanted or (grad and not known.has_graph):
            if saliency and not grad and not self._saliency and self.labels is not None:
                known = self._run_for_saliency(mode, False, self.wanted | reads)
            else:
                wanted = frozenset((self.wanted | reads) - {"saliency"})
                model = self.source.model
                with callers_precision(self.images.device), in_mode(model, mode), torch.set_grad_enabled(grad):
                    known = _Pass(self.source, wanted, self._checked(self.images.detach()), grad)
                self._passes[mode] = known
        return known.recorder

    def _pass(self, mode: Mode, wanted: set[str], grad: bool = False) -> _Pass:
        """The pass in this mode that recorded ``wanted``, run now where there is none."""
        known = self._passes.get(mode)
        if known is not None and wanted <= known.wanted and (known.has_graph or not grad):
            return known
        wanted = self.wanted | wanted
        if "saliency" in wanted and not grad and not self._saliency and self.labels is not None:
            # One pass for both. Its mode is the one that the first question names.
            return self._run_for_saliency(mode, False, wanted)
        with callers_precision(self.images.device), in_mode(self.source.model, mode), torch.set_grad_enabled(grad):
            found = _Pass(self.source, frozenset(wanted), self._checked(self.images.detach()), grad)
        self._passes[mode], self.wanted = found, wanted
        return found

    def _run_for_saliency(self, mode: Mode, keep_loss: bool, wanted: set[str]) -> _Pass:
        labels = self._labels("saliency")
        parameters = [p for p in self.source.model.parameters() if p.requires_grad] if keep_loss else []
        with callers_precision(self.images.device), in_mode(self.source.model, mode), torch.enable_grad():
            images = self._checked(self.images.detach()).requires_grad_()
            found = _Pass(self.source, frozenset(wanted), images, True)
            loss = self.source.loss(found.recorder.returned(), labels)
            scale = half_scale(images)
            gradient, *others = torch.autograd.grad(loss * scale, [images, *parameters], allow_unused=True)
        found.close()
        self._passes[mode], self.wanted = found, wanted
        gradient = torch.zeros_like(images) if gradient is None else gradient
        self._saliency[mode] = _magnitude(gradient.detach()) / scale
        if keep_loss:
            kept = [None if gradient is None else gradient / scale for gradient in others]
            self._clean_loss = KnownGradient.apply(loss.detach(), kept, *parameters)
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
def in_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """The model in a mode; every module back in its own afterwards."""
    # Training mode is what the user left: a frozen batch norm stays frozen.
    changed = [module for module in model.modules() if module.training] if mode == "eval" else []
    for module in changed:
        module.training = False
    try:
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
        sees_hooks = not is_compiled(source.model) or len(self.recorder.places()) <= 1
        eager = contextlib.nullcontext() if sees_hooks else torch.compiler.set_stance("force_eager")
        with hooked(type(source.inner).__name__, source.inner, recorder=self.recorder), eager:
            self.recorder.record("outputs", source.model(images))

    def close(self) -> None:
        """Let go of the graph, which a backward pass has used up."""
        self.has_graph = False
        self.recorder.detach()


#: The class id that torch's cross-entropy leaves out.
IGNORED = -100


def clean_cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    """Mean cross-entropy in float32, for class ids (B,) or shares of classes (B, K)."""
    outputs = logits_of(outputs)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"saliency expects logits (B, K) of the model, got {came}; pass ModelSignals(model, loss=...)")
    if labels.is_floating_point() and (labels.shape != outputs.shape or outputs.shape[1] == 1):
        raise ValueError(
            f"saliency of labels {tuple(labels.shape)} {labels.dtype} beside outputs {tuple(outputs.shape)} needs a "
            "loss: pass ModelSignals(model, loss=...)"
        )
    check_class_ids("saliency", labels, outputs.shape[1], IGNORED)
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


def _magnitude(gradient: Tensor) -> Tensor:
    """(B, C, *size) to (B, *size) float32. Scaled first, so that squares of half-precision gradients stay finite."""
    gradient = single_precision(gradient)
    largest = gradient.abs().flatten(1).amax(1).clamp(min=torch.finfo(gradient.dtype).tiny)
    scale = largest.reshape(-1, *([1] * (gradient.ndim - 1)))
    # A gradient that overflowed says nothing of its sample: no saliency, which policies take as even.
    scaled = torch.where(scale.isfinite(), gradient / scale, torch.zeros_like(gradient))
    return scaled.square().mean(1).sqrt() * torch.where(scale.isfinite(), scale, torch.zeros_like(scale))[:, 0]


def model_of(signals: Signals | ModelSignals | None) -> nn.Module | None:
    """The model behind signals, without torch.compile's wrapper; None for given tensors."""
    return signals.inner if isinstance(signals, ModelSignals) else getattr(signals, "model", None)
