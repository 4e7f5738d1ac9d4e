"""Hooks on a model for one pass: some mix what a module puts out, some record what it takes in or puts out.

On an ordinary model the hooks are there for the pass alone. A compiled model sees only the hooks that were there when
it was traced: on one of these they stay, and do nothing between passes. What was compiled before they came is dropped,
of all models in the process, for torch shares it between models of one class. Where activation checkpointing calls a
module again during the backward pass, the same draw is replayed.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from mixaug.ops.nested import map_tensors
from mixaug.plan import Plan

__all__ = ["check_stages", "end_of", "hooked"]

#: Place to record at: name of a module, ``"input"`` or ``"output"``, key to record under.
Place = tuple[str, str, str]


class Recording(Protocol):
    """What recording hooks write to."""

    def places(self) -> list[Place]:
        """Where to record."""

    def record(self, key: str, value: Any) -> None:
        """Keep what a module took in or put out."""


@contextlib.contextmanager
def hooked(
    what: str,
    model: nn.Module,
    *,
    plan: Plan | None = None,
    recorder: Recording | None = None,
    persistent: bool = False,
    stages: Iterable[str] = (),
) -> Iterator[None]:
    """Mix and record during calls of the model inside this context.

    Args:
        what: name of the caller, for messages.
        model: the model itself, without the wrapper of ``torch.compile``.
        plan: its ``mix_hidden`` changes the outputs of the modules in ``plan.stages``; None mixes nothing.
        recorder: gets what the modules at its places show; None records nothing.
        persistent: leave the hooks on the model, for one that is compiled.
        stages: with ``persistent``, every module whose output any later plan may mix.

    Raises:
        ValueError: the model has no module of such a name, or ran without calling it; persistent mixing in a model
            that checkpoints its activations.
    """
    names = () if plan is None else plan.stages
    if persistent and names and getattr(model, "grad_checkpointing", False):
        raise ValueError(
            f"{what} mixes inside the model, which is compiled and checkpoints its activations: what is computed again "
            "would not be mixed. Leave out one of the two"
        )
    hooks = _persistent.setdefault(model, ModelHooks()) if persistent else ModelHooks()
    mixing = (
        None if plan is None or not names else MixingPass(plan, {name: _module(what, model, name) for name in names})
    )
    with contextlib.ExitStack() as stack:
        if not persistent:
            stack.callback(hooks.remove)
        hooks.install(what, model, (*stages, *names), recorder, compiled=persistent)
        # The hook on the whole model would become part of what is traced: there missing calls show in the stages alone.
        if mixing is not None and not persistent and not torch.compiler.is_compiling():
            stack.callback(model.register_forward_hook(mixing.watch).remove)
        hooks.mixing, hooks.recorder = mixing, recorder
        try:
            yield
        finally:
            hooks.mixing = hooks.recorder = None
            if mixing is not None:
                mixing.is_open = False
    if mixing is not None:
        mixing.check(what, ran=persistent or mixing.ran)


def check_stages(what: str, model: nn.Module, stages: Iterable[str]) -> None:
    """Raise a ValueError where a model has no module of one of these names."""
    for stage in stages:
        _module(what, model, stage)


class ModelHooks:
    """The hooks of one model.

    Attributes:
        mixing, recorder: what the pass under way mixes and records; None between passes.
    """

    def __init__(self) -> None:
        self.mixing: MixingPass | None = None
        self.recorder: Recording | None = None
        self.handles: dict[str | Place, Any] = {}

    def install(
        self, what: str, model: nn.Module, stages: Iterable[str], recorder: Recording | None, *, compiled: bool = False
    ) -> None:
        """Add the hooks that are not there yet; drop what was compiled without them."""
        known = len(self.handles)
        # Mixing comes first: what is recorded is what the next module sees.
        for stage in stages:
            if stage not in self.handles:
                self.handles[stage] = _module(what, model, stage).register_forward_hook(self._mix_output(stage))
        for place in () if recorder is None else recorder.places():
            if place in self.handles:
                continue
            name, side, key = place
            module = model.get_submodule(name)
            if side == "input":
                self.handles[place] = module.register_forward_pre_hook(self._record_input(key))
            else:
                self.handles[place] = end_of(module).register_forward_hook(self._record_output(key))
        if compiled and len(self.handles) > known and not torch.compiler.is_compiling():
            # Else torch takes what it compiled for another model of the same class, whatever the hooks of either are.
            from torch._dynamo import config

            config.skip_nnmodule_hook_guards = False
            torch.compiler.reset()

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self.handles.values():
            handle.remove()
        self.handles.clear()

    def _mix_output(self, stage: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            mixing = self.mixing
            if mixing is None or stage not in mixing.modules:
                return output
            mixing.called.add(stage)
            recorder = self.recorder

            def mixed(features: Tensor) -> Tensor:
                if recorder is not None:
                    recorder.record(f"mixed:{stage}", tuple(features.shape[1:]))
                return mixing.mixed(stage, features)

            return map_tensors(output, mixed)

        return hook

    def _record_output(self, key: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.recorder is not None:
                self.recorder.record(key, output)

        return hook

    def _record_input(self, key: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if self.recorder is not None:
                self.recorder.record(key, inputs[0])

        return hook


_persistent: weakref.WeakKeyDictionary[nn.Module, ModelHooks] = weakref.WeakKeyDictionary()


def end_of(module: nn.Module) -> nn.Module:
    """The module that puts out what ``module`` does: of an ``nn.Sequential`` the last, which activation checkpointing
    calls by itself.
    """
    while type(module).forward is nn.Sequential.forward and len(module):  # type: ignore[arg-type]
        *_, module = module.children()
    return module


def _module(what: str, model: nn.Module, name: str) -> nn.Module:
    """The module whose hook sees what the module of this name puts out."""
    try:
        return end_of(model.get_submodule(name))
    except AttributeError:
        names = [child for child, _ in model.named_modules() if child.count(".") < 2 and child]
        raise ValueError(
            f"{what} mixes the output of module {name!r}, which the model does not have; its modules include {names}"
        ) from None


class MixingPass:
    """One pass of a model with modules whose outputs are mixed.

    The backward pass runs after the hooks of the forward one are gone. Activation checkpointing calls modules again
    there, so once a gradient reaches the model's outputs, hooks are set anew, until that backward pass ends.

    Attributes:
        called: names of the modules that ran.
        ran: whether the whole model did.
        is_open: whether the forward pass may still go on.
    """

    #: Modules whose mix is to be replayed, by the backward pass that is running.
    replayed: ClassVar[dict[int, list[nn.Module]]] = {}

    def __init__(self, plan: Plan, modules: dict[str, nn.Module]) -> None:
        self.plan = plan
        self.modules = modules
        self.called: set[str] = set()
        self.ran = False
        self.is_open = True
        self.passes: set[int] = set()

    def check(self, what: str, *, ran: bool) -> None:
        """Raise unless every module was called, if the model ran."""
        missed = [stage for stage in self.modules if stage not in self.called]
        if ran and missed:
            raise ValueError(
                f"{what} mixes the output of module {missed[0]!r}, but the model ran without calling it, so nothing "
                "was mixed (a model may call the parts of a module one by one: name the last of them)"
            )

    def mixed(self, stage: str, features: Tensor) -> Tensor:
        """The outputs of a stage after mixing."""
        if features.ndim == 0 or features.shape[0] != self.plan.rows:
            raise ValueError(
                f"module {stage!r} puts out {tuple(features.shape)}; to be mixed its outputs must have the batch "
                f"first, ({self.plan.rows}, ...)"
            )
        return self.plan.mix_hidden(stage, features)

    def watch(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook of the whole model: note that it ran, and wait for its gradient."""
        self.ran = True

        def await_gradient(values: Tensor) -> Tensor:
            if values.requires_grad:
                values.register_hook(self.replay)
            return values

        map_tensors(output, await_gradient)

    def replay(self, gradient: Tensor) -> None:
        """Hook of the outputs' gradient: set the hooks of this pass anew until the backward pass ends."""
        current = torch._C._current_graph_task_id()
        if self.is_open or current in self.passes:
            return
        self.passes.add(current)
        self.replayed.setdefault(current, []).extend(self.modules.values())
        handles = [
            module.register_forward_hook(self._mix_again(stage, current)) for stage, module in self.modules.items()
        ]

        def stop() -> None:
            self.passes.discard(current)
            self.replayed.pop(current, None)
            for handle in handles:
                handle.remove()

        torch.autograd.Variable._execution_engine.queue_callback(stop)

    def _mix_again(self, stage: str, backward: int) -> Callable[[nn.Module, Any, Any], Any]:
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
