"""Hooks that mix hidden features while a model runs, and again where activation checkpointing runs parts of it anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixaug.batch import map_tensors
from mixaug.plan import Plan

__all__ = ["tapping"]


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
    missed = [stage for stage in tapped.modules if stage not in tapped.called]
    if tapped.ran and missed:
        raise ValueError(
            f"{what} mixes the output of module {missed[0]!r}, but the model ran without calling it, so nothing "
            "was mixed (activation checkpointing may call the blocks of a stage one by one: name the last of them)"
        )


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
