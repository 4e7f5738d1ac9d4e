"""Where things are in a model: stages, the classifier and what it pools, the blocks of attention.

Knows the conventions of timm, of torchvision and of Hugging Face's image classifiers, and looks for a row of modules
(:mod:`mixaug.signals.rows`) in other models; names given by the user come first.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.ops.attention import square_grid
from mixaug.signals.rows import keeps_size, row_of, stages_in_row

__all__ = [
    "ModelParts",
    "as_map",
    "attention_blocks",
    "channels_last",
    "classifier_name",
    "has_class_token",
    "head_norm",
    "is_compiled",
    "is_plain",
    "last_map",
    "middle_stage",
    "prefix_tokens",
    "stage_channels",
    "stage_name",
    "stage_number",
    "stages_of",
    "token_grid",
]


AnswerT = TypeVar("AnswerT")

_answers: weakref.WeakKeyDictionary[nn.Module, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _once_per_model(ask: Callable[..., AnswerT]) -> Callable[..., AnswerT]:
    """Remember names found in a model: to look for them takes milliseconds, and a step asks several times."""

    @functools.wraps(ask)
    def remembered(model: nn.Module, *arguments: Any) -> AnswerT:
        known = _answers.setdefault(model, {})
        key = (ask.__name__, *arguments)
        if key not in known:
            known[key] = ask(model, *arguments)
        answer: AnswerT = known[key]
        return answer

    return remembered


def bare(model: nn.Module) -> nn.Module:
    """The model that torch.compile(model) wraps; any other model itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def is_compiled(model: nn.Module) -> bool:
    """Whether calls of the model go through torch.compile."""
    return getattr(model, "_compiled_call_impl", None) is not None or bare(model) is not model


@_once_per_model
def stages_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules behind which the stages of a model end: of timm's ``feature_info``, else found in a row.

    Empty for a model in which none are found.
    """
    info = getattr(model, "feature_info", None)
    if info:
        entries = info.info if hasattr(info, "info") else info
        return tuple(_module_of_timm(model, index, str(entry["module"])) for index, entry in enumerate(entries))
    return tuple(stages_in_row(model, row_of(model, _classifier_or_none(model))))


@_once_per_model
def is_plain(model: nn.Module) -> bool:
    """Whether all stages put out features of one size, as the blocks of a plain transformer do."""
    info = getattr(model, "feature_info", None)
    if info:
        entries = info.info if hasattr(info, "info") else info
        return len({(entry["num_chs"], entry["reduction"]) for entry in entries}) == 1
    return keeps_size(model, row_of(model, _classifier_or_none(model)))


@_once_per_model
def stage_name(model: nn.Module, stage: int | str) -> str:
    """Name of the module behind which a stage of the model ends.

    Args:
        model: any module; for a number one whose stages are told or found.
        stage: a module's name, as in ``model.named_modules()``; or a number of :func:`stages_of`: 0 is the stem of most
            convolutional models in timm's counting, -1 the last stage.

    Raises:
        ValueError: no such module or stage; the message lists those there are.
    """
    if isinstance(stage, str):
        known = dict(model.named_modules())
        if stage in known and stage:
            return stage
        short = [name for name in known if name and name.count(".") < 2]
        raise ValueError(f"the model has no module {stage!r}; its modules include {short}")
    found = stages_of(model)
    if not found:
        raise ValueError(
            f"stage {stage} counts the stages of {type(model).__name__}, in which none were found; name a module, "
            f"one of {[name for name, _ in model.named_children()]}"
        )
    if not -len(found) <= stage < len(found):
        raise ValueError(f"stage {stage} does not exist; the model has {len(found)} stages: {list(found)}")
    return found[stage]


def _module_of_timm(model: nn.Module, stage: int, name: str) -> str:
    known = dict(model.named_modules())
    # timm may name the activation inside a fused norm, which is no module of its own.
    for found in (name, name.rpartition(".")[0]):
        if found and found in known:
            return found
    raise ValueError(
        f"timm says that stage {stage} of {type(model).__name__} ends at {name!r}, which is no module of it; name one "
        f"yourself, of {[child for child, _ in model.named_children()]}"
    )


@_once_per_model
def stage_number(model: nn.Module, name: str) -> int | None:
    """Number of the stage that ends behind a module, for a model that can run as far as a stage; None for any other."""
    info = getattr(model, "feature_info", None)
    if not info or not callable(getattr(model, "forward_intermediates", None)):
        return None
    entries = info.info if hasattr(info, "info") else info
    return next((index for index in range(len(entries)) if stage_name(model, index) == name), None)


@_once_per_model
def middle_stage(model: nn.Module) -> str:
    """Name of the module behind the last stage but one; of a plain transformer, behind the middle one of its blocks.

    Raises:
        ValueError: a model that does not tell its stages.
    """
    stages = stages_of(model)
    if len(stages) > 1:
        return stages[(len(stages) - 1) // 2 if is_plain(model) else -2]
    raise ValueError(
        f"{type(model).__name__} does not tell its stages: name the module whose features are to be read, "
        f"stage=..., one of {[name for name, _ in model.named_children()]}"
    )


@_once_per_model
def stage_channels(model: nn.Module, name: str) -> int | None:
    """Channels that a module puts out, from what the model says or from the module's last layer; None where unknown."""
    info = getattr(model, "feature_info", None) or []
    for index, entry in enumerate(info.info if hasattr(info, "info") else info):
        if stage_name(model, index) == name:
            return int(entry["num_chs"])
    row = row_of(model, _classifier_or_none(model))
    # The norm that comes next has the right number where a stage puts out more than its last layer (DenseNet).
    after = row[row.index(name) + 1 :][:1] if name in row else []
    leaves = [layer for place in after for layer in model.get_submodule(place).modules() if not any(layer.children())]
    if leaves and isinstance(leaves[0], nn.BatchNorm2d):
        return leaves[0].num_features
    # An activation at the end of a stage puts out what the layer before it does.
    behind = row[row.index(name) :: -1] if name in row else [name]
    for place in behind:
        for layer in reversed(list(model.get_submodule(place).modules())):
            for attribute in ("num_features", "out_channels", "out_features"):
                if isinstance(count := getattr(layer, attribute, None), int):
                    return count
    return None


@_once_per_model
def classifier_name(model: nn.Module) -> str:
    """Name of the linear layer that makes the logits.

    Raises:
        ValueError: not found, or not linear; says what to pass instead.
    """
    get = getattr(model, "get_classifier", None)
    found = get() if callable(get) else None
    if isinstance(found, (tuple, list)):
        # A distilled model has several heads: the first is that of the class token.
        found = found[0]
    if found is None:
        found = next(
            (m for m in (getattr(model, n, None) for n in ("fc", "head", "classifier")) if m is not None), None
        )
    if found is None and hasattr(model, "heads"):
        found = model.heads
    if found is None:
        # The last layer of an nn.Sequential, or what a model of one's own has at its end.
        last = [child for child in model.children() if next(child.parameters(), None) is not None][-1:]
        found = last[0] if last and isinstance(last[0], nn.Linear | nn.Sequential) else None
    if isinstance(found, nn.Sequential):
        found = next((layer for layer in reversed(found) if not isinstance(layer, nn.Identity | nn.Dropout)), found)
    if isinstance(found, nn.Linear):
        return next(name for name, module in model.named_modules() if module is found)
    raise ValueError(
        f"{type(model).__name__} has no linear classifier to be found"
        f"{'' if found is None else f' (its head is {type(found).__name__})'}: name it, "
        f"{_told('classifier', 'head.fc')}, or pass finished maps, Signals(cam=...)"
    )


def _classifier_or_none(model: nn.Module) -> str | None:
    try:
        return classifier_name(model)
    except ValueError:
        return None


@_once_per_model
def last_map(model: nn.Module) -> tuple[str, bool]:
    """Where the features come out that the classifier pools: a module's name, and whether they are its input.

    Raises:
        ValueError: not found; says what to pass instead.
    """
    modules = dict(model.named_modules())
    for name in ("global_pool", "head.global_pool", "avgpool"):
        pool = modules.get(name)
        if pool is not None and not isinstance(pool, nn.Identity):
            return name, True
    row = row_of(model, _classifier_or_none(model))
    inside = tuple(f"{name}." for name in row)
    # Pools inside a stage belong to its gates, and one before the last stage is not what the classifier sees.
    names = list(modules)
    behind = names[names.index(row[-1]) :] if row else []
    pools = [name for name in behind if isinstance(modules[name], nn.AdaptiveAvgPool2d) and name not in row]
    pools = [name for name in pools if not name.startswith(inside)]
    if row and pools:
        return pools[-1], True
    for name in ("norm", "norm_pre", "encoder.ln"):
        if name in modules:
            return name, False
    if row and not getattr(model, "feature_info", None):
        # A transformer's norm stands beside its blocks.
        beside = row[0].rpartition(".")[0].rpartition(".")[0]
        if beside and isinstance(modules.get(f"{beside}.layernorm"), nn.LayerNorm) and is_plain(model):
            return f"{beside}.layernorm", False
    if stages_of(model):
        return stage_name(model, -1), False
    raise ValueError(
        f"the last feature map of {type(model).__name__} was not found: name the module that puts it out, "
        f"{_told('features', 'layer4')}; it has {[name for name, _ in model.named_children()]}"
    )


def _told(option: str, example: str) -> str:
    """How a user names a part that was not found, as code to be copied."""
    told = f'mixaug.signals.ModelSignals(model, {option}="{example}")'
    return f"MixStep(model, policy, objective, signals={told})"


@_once_per_model
def attention_blocks(model: nn.Module) -> list[str]:
    """Names of the modules of global self-attention whose queries and keys can be read, in their order.

    These have one linear layer ``qkv``, or ``q`` and ``k`` (``q_proj``, ``k_proj``; ``query``, ``key``), and
    ``num_heads`` or ``num_attention_heads``; none that adds positions to queries, keys or scores, and none that sees
    windows.
    """
    modules = dict(model.named_modules())
    if getattr(model, "rope", None) is not None or any(name.split(".")[-1].startswith("rope") for name in modules):
        return []
    return [name for name, module in modules.items() if name and _is_plain_attention(module)]


_UNLIKE = (
    "relative_position_bias_table",
    "relative_position_bias",
    "rel_pos",
    "rel_pos_h",
    "rotate_half",
    "rope",
    "window_size",
    "sr_ratio",
    "proj_l",  # it mixes scores across the heads
    "temperature",  # such attention is between channels
    "crpe",
    "ws",
)


def _is_plain_attention(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return module.batch_first and module.in_proj_weight is not None
    if "Channel" in type(module).__name__ or _heads(module) is None:
        return False
    if any(getattr(module, name, None) is not None for name in _UNLIKE):
        return False
    return any(all(isinstance(getattr(module, name, None), nn.Linear) for name in names) for names in PROJECTIONS)


#: Names of the linear layers that make queries and keys.
PROJECTIONS = (("qkv",), ("q", "k"), ("q_proj", "k_proj"), ("query", "key"))


def _heads(module: nn.Module) -> int | None:
    return next((n for name in HEADS if isinstance(n := getattr(module, name, None), int)), None)


#: Names of the number of heads of a block of attention.
HEADS = ("num_heads", "num_attention_heads")


@_once_per_model
def prefix_tokens(model: nn.Module) -> int:
    """Number of class, distillation and register tokens before the image tokens."""
    count = getattr(model, "num_prefix_tokens", None)
    if count is not None:
        return int(count)
    return sum(parameter.shape[-2] for parameter in _prefix_parameters(model, PREFIXES))


@_once_per_model
def has_class_token(model: nn.Module) -> bool:
    """Whether the first token stands for the class."""
    if getattr(model, "has_class_token", None) is not None:
        return bool(model.has_class_token)
    return bool(_prefix_parameters(model, CLASS_TOKENS))


#: Names of the parameters that are tokens before the image tokens: of the class, of distillation, registers.
CLASS_TOKENS = ("cls_token", "class_token")
PREFIXES = (*CLASS_TOKENS, "distillation_token", "dist_token", "register_tokens", "reg_token")


def _prefix_parameters(model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    found = [parameter for name, parameter in model.named_parameters() if name.rpartition(".")[2] in names]
    return [parameter for parameter in found if parameter.ndim >= 2]


@_once_per_model
def channels_last(model: nn.Module) -> bool:
    """Whether the maps inside a model are (B, h, w, C): timm says so, torchvision permutes them behind its stages."""
    if getattr(model, "output_fmt", None) is not None:
        return bool(model.output_fmt == "NHWC")
    return any(getattr(child, "dims", None) == [0, 3, 1, 2] for child in model.children())


def token_grid(model: nn.Module | None, count: int, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of ``count`` image tokens of an image of ``size`` (H, W).

    Raises:
        ValueError: no grid of the image's proportions has that many cells, or the model drops patches.
    """
    if getattr(getattr(model, "patch_drop", None), "prob", 0) > 0:
        raise ValueError(
            f"{type(model).__name__} drops patches in training, so its tokens do not say where they lie: "
            "patch_drop_rate=0, or pass finished Signals"
        )
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is not None and math.prod(grid) == count:
        return int(grid[0]), int(grid[1])
    return square_grid(count, size)


def as_map(model: nn.Module | None, features: Tensor, size: Sequence[int], channels: int | None = None) -> Tensor:
    """Features as (B, C, h, w): of (B, C, h, w), of (B, h, w, C) or of tokens (B, N, C).

    Args:
        model: says how many tokens are no image tokens, and whether channels lie last.
        features: what a stage put out.
        size: (H, W) of the images.
        channels: C where it is known.

    Raises:
        ValueError: another shape.
    """
    if features.ndim == 3:
        prefix = 0 if model is None else prefix_tokens(model)
        tokens = features[:, prefix:]
        return tokens.transpose(1, 2).unflatten(2, token_grid(model, tokens.shape[1], size))
    if features.ndim != 4:
        raise ValueError(
            f"features expects (B, C, h, w), (B, h, w, C) or tokens (B, N, C), got {tuple(features.shape)}"
        )
    fits_first, fits_last = features.shape[1] == channels, features.shape[3] == channels
    unsure = channels is None or fits_first == fits_last
    last = (model is not None and channels_last(model)) if unsure else fits_last
    return features.permute(0, 3, 1, 2) if last else features


def queries_and_keys(block: nn.Module, projected: dict[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    """(B, heads, N, D) queries and keys, as they enter the softmax, and the scale.

    Args:
        block: from :func:`attention_blocks`.
        projected: what its projections put out, by their names; ``"input"`` of an ``nn.MultiheadAttention``.
    """
    heads = _heads(block)
    assert heads is not None  # attention_blocks has looked
    if isinstance(block, nn.MultiheadAttention):
        width = 2 * block.embed_dim
        bias = None if block.in_proj_bias is None else block.in_proj_bias[:width]
        packed = F.linear(projected["input"], block.in_proj_weight[:width].to(projected["input"].dtype), bias)
        query, key = packed.unflatten(-1, (2, heads, -1)).unbind(-3)
    elif "qkv" in projected:
        packed = projected["qkv"].unflatten(-1, (3, heads, -1))
        query, key = packed.select(-3, 0), packed.select(-3, 1)
    else:
        names = next(pair for pair in PROJECTIONS if pair[0] in projected)
        # Attention of the class token alone makes one query, without an axis of tokens.
        made = [projected[name].unsqueeze(1) if projected[name].ndim == 2 else projected[name] for name in names]
        query, key = (x.unflatten(-1, (heads, -1)) for x in made)
    query, key = query.transpose(1, 2), key.transpose(1, 2)
    norms: list[Any] = [getattr(block, name, None) for name in ("q_norm", "k_norm")]
    query, key = (x if norm is None else norm(x) for norm, x in zip(norms, (query, key), strict=True))
    scale = getattr(block, "scale", getattr(block, "scaling", None))
    return query, key, float(scale) if isinstance(scale, int | float) else query.shape[-1] ** -0.5


def head_norm(model: nn.Module, maps: Tensor) -> Tensor:
    """What the classifier's own norm, behind the pooling, makes of each cell of (B, C, h, w) maps; often nothing."""
    if isinstance(norm := getattr(model, "fc_norm", None), nn.LayerNorm):
        channels_last: Tensor = norm(maps.movedim(1, -1))
        return channels_last.movedim(-1, 1)
    head = getattr(model, "head", None)
    norm = getattr(head, "norm", None)
    if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity) and isinstance(head, nn.Module):
        normed: Tensor = norm(maps)
        return normed
    # torchvision's ConvNeXt has it in the Sequential of the classifier.
    behind, _, _ = (_classifier_or_none(model) or "").rpartition(".")
    for layer in model.get_submodule(behind).children() if behind else ():
        if isinstance(layer, nn.LayerNorm) and type(layer) is not nn.LayerNorm:
            maps = layer(maps)
    return maps


class ModelParts:
    """A model, and where its parts are: found by convention, or named.

    Args:
        model: any module.
        features: name of the module that puts out the last feature map; None finds it.
        classifier: name of the linear layer that makes the logits; None finds it.
        block: which of the blocks of attention; -1 is the last.
    """

    def __init__(
        self, model: nn.Module, features: str | None = None, classifier: str | None = None, block: int = -1
    ) -> None:
        self.model = model
        self.feature_module = features
        self.classifier_module = classifier
        self.block = block

    @property
    def inner(self) -> nn.Module:
        """The model without torch.compile's wrapper."""
        return bare(self.model)

    def last_map(self) -> tuple[str, bool]:
        """Module of the last feature map, and whether it is the module's input."""
        if self.feature_module is None:
            return last_map(self.inner)
        return stage_name(self.inner, self.feature_module), False

    def classifier(self) -> str:
        """Name of the linear classifier."""
        if self.classifier_module is None:
            return classifier_name(self.inner)
        return stage_name(self.inner, self.classifier_module)

    def attention_block(self) -> str | None:
        """Name of the block of attention; None where there is none that can be read."""
        blocks = attention_blocks(self.inner)
        if not blocks:
            return None
        if not -len(blocks) <= self.block < len(blocks):
            raise ValueError(f"block {self.block} does not exist; there are {len(blocks)}: {blocks}")
        return blocks[self.block]
