"""Hooks that mix hidden features while a model runs, and again where activation checkpointing runs parts of it anew.

A compiled model sees only the hooks that were there when it was traced. On one, hooks therefore stay
(:class:`Standing`) and do nothing outside the context of a pass.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mixaug.batch import map_tensors
from mixaug.plan import Plan

if TYPE_CHECKING:
    from mixaug.signals import Recorder

__all__ = ["standing", "tapping"]


@contextlib.contextmanager
def tapping(what: str, model: nn.Module, plan: Plan) -> Iterator[None]:
    """Mix the outputs of the modules that a plan names, for calls of the model inside this context.

    Args:
        what: name of the caller, for messages.
        model: has modules of the names in ``plan.stages``.
        plan: whose ``mix_hidden`` is applied.

    Raises:
        ValueError: the model has no module of such a name, or ran without calling it.
    """
    tapped = _Tapped(plan, {stage: _module(what, model, stage) for stage in plan.stages})
    with contextlib.ExitStack() as hooks:
        for stage, module in tapped.modules.items():
            hooks.callback(module.register_forward_hook(tapped.mixing(stage)).remove)
        if not torch.compiler.is_compiling():
            hooks.callback(model.register_forward_hook(tapped.watch).remove)
        hooks.callback(tapped.close)
        yield
    tapped.check(what)


@contextlib.contextmanager
def standing(
    what: str, model: nn.Module, stages: Iterable[str], plan: Plan | None, recorder: Recorder | None
) -> Iterator[None]:
    """Like :func:`tapping` and ``recorder.watching()``, for calls of a compiled model inside this context.

    Args:
        what: name of the caller, for messages.
        model: the model itself, without the wrapper of ``torch.compile``.
        stages: every module whose output any plan of the policy may mix.
        plan: of this pass; None mixes nothing.
        recorder: of this pass; None records nothing.

    Raises:
        ValueError: the model has no module of such a name, or ran without calling it, or was compiled and run before
            the hooks were there.
    """
    hooks = _standing.setdefault(model, Standing())
    inside = () if plan is None else plan.stages
    hooks.install(what, model, (*stages, *inside), recorder)
    if inside and getattr(model, "grad_checkpointing", False):
        raise ValueError(
            f"{what} mixes inside the model, which is compiled and checkpoints its activations: what is computed again "
            "would not be mixed. Leave out one of the two"
        )
    tapped = None if plan is None else _Tapped(plan, {stage: _module(what, model, stage) for stage in inside})
    hooks.tapped, hooks.recorder = tapped, recorder
    try:
        yield
    finally:
        hooks.tapped = hooks.recorder = None
    if tapped is not None and tapped.modules:
        # The hook of the whole model is part of what was traced as well: missing calls show in the stages alone.
        tapped.ran = True
        tapped.check(what)


class Standing:
    """Hooks that stay on a model.

    Attributes:
        tapped, recorder: what the present pass mixes and records; None between passes.
    """

    def __init__(self) -> None:
        self.tapped: _Tapped | None = None
        self.recorder: Recorder | None = None
        self.mixed: set[str] = set()
        self.recorded: set[tuple[str, str, str]] = set()

    def install(self, what: str, model: nn.Module, stages: Iterable[str], recorder: Recorder | None) -> None:
        """Add the hooks that are not there yet."""
        # Mixing comes first: what is recorded is what the next module sees.
        for stage in stages:
            if stage not in self.mixed:
                _module(what, model, stage).register_forward_hook(self._mixing(stage))
                self.mixed.add(stage)
        for place in () if recorder is None else recorder.places():
            if place in self.recorded:
                continue
            module, side, key = model.get_submodule(place[0]), place[1], place[2]
            if side == "input":
                module.register_forward_pre_hook(self._recording_input(key))
            else:
                module.register_forward_hook(self._recording_output(key))
            self.recorded.add(place)

    def _mixing(self, stage: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            tapped = self.tapped
            if tapped is None or stage not in tapped.modules:
                return output
            tapped.called.add(stage)
            return map_tensors(output, lambda features: tapped.mixed(stage, features))

        return hook

    def _recording_output(self, key: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.recorder is not None:
                self.recorder.record(key, output)

        return hook

    def _recording_input(self, key: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if self.recorder is not None:
                self.recorder.record(key, inputs[0])

        return hook


_standing: weakref.WeakKeyDictionary[nn.Module, Standing] = weakref.WeakKeyDictionary()


def _module(what: str, model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = [child for child, _ in model.named_modules() if child.count(".") < 2 and child]
        raise ValueError(
            f"{what} mixes the output of module {name!r}, which the model does not have; its modules include {known}"
        ) from None


class _Tapped:
    """One pass of a model with modules whose outputs are mixed.

    The backward pass runs after the hooks of the forward one are gone. Activation checkpointing calls modules again
    there, so once a gradient reaches the model's outputs, hooks are set anew, until that backward pass ends.
    """

    #: Modules whose mix is to be replayed, for every backward pass now running.
    replayed: ClassVar[dict[int, list[nn.Module]]] = {}

    def __init__(self, plan: Plan, modules: dict[str, nn.Module]) -> None:
        self.plan = plan
        self.modules = modules
        self.called: set[str] = set()
        self.ran = False
        self.open = True
        self.passes: set[int] = set()

    def close(self) -> None:
        self.open = False

    def check(self, what: str) -> None:
        """Raise unless every module was called, if the model ran."""
        missed = [stage for stage in self.modules if stage not in self.called]
        if self.ran and missed:
            raise ValueError(
                f"{what} mixes the output of module {missed[0]!r}, but the model ran without calling it, so nothing "
                "was mixed (activation checkpointing may call the blocks of a stage one by one: name the last of "
                "them; a compiled model must not run before its first training step)"
            )

    def mixing(self, stage: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            self.called.add(stage)
            return map_tensors(output, lambda features: self.mixed(stage, features))

        return hook

    def mixed(self, stage: str, features: Tensor) -> Tensor:
        if features.ndim == 0 or features.shape[0] != self.plan.rows:
            raise ValueError(
                f"module {stage!r} puts out {tuple(features.shape)}; to be mixed its outputs must have the batch "
                f"first, ({self.plan.rows}, ...)"
            )
        return self.plan.mix_hidden(stage, features)

    def watch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.ran = True

        def await_gradient(values: Tensor) -> Tensor:
            if values.requires_grad:
                values.register_hook(self.replay)
            return values

        map_tensors(output, await_gradient)

    def replay(self, gradient: Tensor) -> None:
        current = torch._C._current_graph_task_id()
        if self.open or current in self.passes:
            return
        self.passes.add(current)
        self.replayed.setdefault(current, []).extend(self.modules.values())
        handles = [
            module.register_forward_hook(self.mixing_again(stage, current)) for stage, module in self.modules.items()
        ]

        def stop() -> None:
            self.passes.discard(current)
            self.replayed.pop(current, None)
            for handle in handles:
                handle.remove()

        torch.autograd.Variable._execution_engine.queue_callback(stop)

    def mixing_again(self, stage: str, backward: int) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            # After a backward pass that failed this hook is still there: it must not touch any other pass.
            if torch._C._current_graph_task_id() != backward:
                return output
            if sum(other is module for other in self.replayed[backward]) > 1:
                raise RuntimeError(
                    "one backward pass goes through two mixed passes of a model with activation checkpointing: which "
                    f"mix module {stage!r} is to replay is not known; call backward() for each loss"
                )
            return map_tensors(output, lambda features: self.mixed(stage, features))

        return hook
