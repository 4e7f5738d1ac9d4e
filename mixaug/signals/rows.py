"""Stages of models that do not tell them: the row of modules that features pass one after the other.

Such a row is an ``nn.Sequential`` or ``nn.ModuleList`` with the weights of most of the model (torchvision's
``features`` and ``encoder.layers``, Hugging Face's ``encoder.stages`` and ``layers``), or the children of a model that
have rows inside (``layer1`` to ``layer4``) or none at all (a few convolutions). A stage ends before a module that makes
maps smaller.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["keeps_size", "row_of", "stages_in_row"]


def row_of(model: nn.Module, classifier: str | None) -> list[str]:
    """Names of the modules of the row, in the order in which they were registered; empty where there is none.

    Args:
        model: any module.
        classifier: name of the layer that makes the logits, which belongs to no row.
    """
    return list(_row("", model, classifier))


def keeps_size(model: nn.Module, row: list[str]) -> bool:
    """Whether no module of a row makes maps smaller."""
    return not any(_reduces(model.get_submodule(name)) for name in row)


def stages_in_row(model: nn.Module, row: list[str]) -> list[str]:
    """The modules of a row behind which a stage ends; all with weights where that would be one or no such place."""
    with_weights = [name for name in row if _has_weights(model.get_submodule(name))]
    if keeps_size(model, row):
        return with_weights
    found = [
        name
        for name, behind in zip(row, [*row[1:], None], strict=True)
        if behind is None or _reduces(model.get_submodule(behind)) or _reduces_last(model.get_submodule(name))
    ]
    return found if len(found) > 1 else with_weights


def _row(name: str, module: nn.Module, classifier: str | None) -> Iterator[str]:
    children = [(f"{name}.{child}" if name else child, part) for child, part in module.named_children()]
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        # What lies behind the last maps, pooling and classifier, is no part of the row.
        stop = next((at for at, (child, part) in enumerate(children) if _ends(child, part, classifier)), len(children))
        children = children[:stop]
        if sum(_has_weights(part) for _, part in children) > 1:
            yield from (child for child, _ in children)
            return
    children = [(child, part) for child, part in children if _has_weights(part) and not _holds(child, classifier)]
    with_rows = [(child, part) for child, part in children if any(_row(child, part, classifier))]
    if len(with_rows) == 1:
        yield from _row(*with_rows[0], classifier)
    elif len(with_rows) > 1 or not name:
        yield from (child for child, _ in children)


def _ends(name: str, module: nn.Module, classifier: str | None) -> bool:
    kinds = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool2d, nn.Flatten)
    return isinstance(module, kinds) or _holds(name, classifier)


def _holds(name: str, classifier: str | None) -> bool:
    return classifier is not None and (classifier == name or classifier.startswith(f"{name}."))


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _reduces_last(module: nn.Module) -> bool:
    """Whether the end of a module makes maps smaller, as the stages of Hugging Face's Swin do."""
    children = list(module.children())
    return bool(children) and "Merging" in type(children[-1]).__name__


def _reduces(module: nn.Module) -> bool:
    """Whether maps come out of a module smaller than they went in."""
    for layer in module.modules():
        stride = getattr(layer, "stride", None)
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool2d, nn.AvgPool2d)) and stride is not None:
            if max(stride if isinstance(stride, tuple) else (stride,)) > 1:
                return True
        elif "Merging" in type(layer).__name__:
            return True
    return False
