"""What the config of a run folder may build when somebody opens the folder.

``config.yaml`` names classes and functions by ``_target_``, and Hydra calls whatever is named: a shell as readily as a
policy. In the config that a user composes that is the point of it. A folder may come from anybody, so `open_config`
lets it name only what a run of mixaug itself is made of, and decides before anything is imported or called:

- classes of mixaug, apart from those parts of it that write, train or plot;
- registered policies, those of installed packages among them;
- the functions in `FACTORIES`, without the options that read weights or settings from a place that the folder names.

Everything else needs the reader's word, name by name: ``allow_targets``, on the command line ``--trust``. Hydra's own
list of dangerous functions stays in force on top, as does ``weights_only=True`` for checkpoints.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mixaug.engine.errors import ConfigError
from mixaug.engine.reading import DamagedFile, read_config

__all__ = ["FACTORIES", "check_targets", "foreign_targets", "open_config"]

FACTORIES = frozenset(
    {
        "mixaug.data.load",
        "mixaug.models.create",
        "timm.create_model",
        "timm.optim.create_optimizer_v2",
        "timm.scheduler.create_scheduler_v2",
    }
)
"""These functions are called by the shipped configs, beside registered policies."""

_MODELS = frozenset({"mixaug.models.create", "timm.create_model"})
# Each of them makes timm read a file or a repository of the folder's choice.
_ELSEWHERE = frozenset({"_args_", "cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"})

# These write files, start processes or train; nothing in a config is made of them.
_CLOSED = ("engine", "gallery", "integrations", "leaderboard", "speed")

# Evaluation and pictures ask a config for these keys. Later versions may add keys, so that older folders still open.
_SECTIONS = ("data", "model", "policy", "objective", "optimizer", "augment", "protocol", "choices")
_COUNTS = ("seed", "epochs", "batch_size", "eval_batch_size")

_NAME = re.compile(r"mixaug(\.[A-Za-z][A-Za-z0-9_]*)+")


def open_config(folder: Path, allow_targets: Collection[str] = ()) -> DictConfig:
    """The config of a run folder, after a look at everything in it that could be called.

    Args:
        folder: the run folder.
        allow_targets: full names that the config may call beside those of mixaug, as ``"my_package.MyPolicy"``.

    Raises:
        FileNotFoundError: there is no ``config.yaml``.
        DamagedFile: it cannot be read, or holds an interpolation.
        ConfigError: it names something that is not allowed, or lacks what every run has; nothing has been imported or
            called.
    """
    if isinstance(allow_targets, str):
        raise TypeError(f"allow_targets expects a collection of full names, got the single text {allow_targets!r}")
    path = Path(folder) / "config.yaml"
    try:
        content = read_config(path)
    except DamagedFile as error:
        raise DamagedFile(f"{path.parent}: {error}") from error
    check_targets(content, path, allow_targets)
    for section in _SECTIONS:
        if not isinstance(content.get(section), dict):
            raise ConfigError(f"{path}: {section} must be a section of a run's config, got {content.get(section)!r}")
    for key in _COUNTS:
        if not isinstance(content.get(key), int) or isinstance(content[key], bool) or content[key] < (key != "seed"):
            raise ConfigError(f"{path}: {key} must be a number of a run's config, got {content.get(key)!r}")
    return OmegaConf.create(
        {**dict.fromkeys(("pool", "sync_batchnorm")), "precision": "float32", "views": [], **content}
    )


def check_targets(config: Mapping[str, Any], path: Path | str, allow_targets: Collection[str] = ()) -> None:
    """Refuse a config that names something else than a run of mixaug is made of.

    Args:
        config: plain values, nothing left to be interpolated.
        path: where it was read, for the message.
        allow_targets: names that are allowed beside those.

    Raises:
        ConfigError: lists every such name with its place, and says how to allow it.
    """
    refused = [(where, name, why) for where, name, why in _refused(config, "") if name not in allow_targets]
    if not refused:
        return
    listed = "; ".join(f"{where}: {name} ({why})" for where, name, why in refused)
    # A name is the folder's own text, and this line is one that people copy into a shell.
    names = " ".join(f"--trust {shlex.quote(name)}" for name in dict.fromkeys(name for _, name, _ in refused))
    raise ConfigError(
        f"{path} would run code that is not mixaug's own: {listed}. Nothing was run. If you know what this is and "
        f"where the folder comes from, allow it by name: {names} on the command line, allow_targets=[...] in Python"
    )


def foreign_targets(config: Mapping[str, Any]) -> list[str]:
    """Names in a config that `open_config` would refuse, each once, sorted."""
    return sorted({name for _, name, _ in _refused(config, "")})


def _refused(value: Any, where: str) -> Iterator[tuple[str, str, str]]:
    """Place, name and reason of every target that is not mixaug's own, at any depth."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            why = _objection(value)
            if why:
                yield where or "config", str(value["_target_"]), why
        for key, item in value.items():
            yield from _refused(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _refused(item, f"{where}[{number}]")


def _objection(call: Mapping[str, Any]) -> str:
    """Why this call is not allowed; empty where it is."""
    name = call["_target_"]
    if not isinstance(name, str):
        return "a target must be a full name"
    if name in _MODELS:
        given = sorted(key for key in _ELSEWHERE & set(call) if call[key] is not None)
        if given:
            return f"{', '.join(given)} may name weights or settings from elsewhere"
        # Both are looked at: the one that the function does not take would hide the one that it does.
        for model in (call.get("name"), call.get("model_name")):
            if isinstance(model, str) and (":" in model or "/" in model):
                return f"the model {model!r} is read from elsewhere"
    if name in FACTORIES or _is_policy(name):
        return ""
    if not _NAME.fullmatch(name):
        return "neither of mixaug nor one of its factories"
    return "" if _is_class_of_mixaug(name) else "no class that a run of mixaug is made of"


def _is_policy(name: str) -> bool:
    """Whether a registered policy is defined under this name; nothing is imported by it."""
    import mixaug

    targets = (mixaug.describe(policy).target for policy in mixaug.list_policies())
    return any(f"{target.__module__}.{target.__qualname__}" == name for target in targets)


def _is_class_of_mixaug(name: str) -> bool:
    """Whether a dotted name leads through modules of mixaug alone to a class or registered policy defined in one.

    The path alone says little: ``mixaug.losses.torch.load`` begins with mixaug too. Each step but the last must be one
    of our modules, and what is found must have been defined in one.
    """
    import mixaug

    *path, last = name.split(".")
    if path[1:2] and path[1] in _CLOSED:
        return False
    module: ModuleType = mixaug
    for depth in range(2, len(path) + 1):
        inner = ".".join(path[:depth])
        try:
            if importlib.util.find_spec(inner) is None:
                return False
        except ModuleNotFoundError:  # the step before is a module without modules of its own
            return False
        module = importlib.import_module(inner)
    found = vars(module).get(last)
    if any(found is mixaug.describe(policy).target for policy in mixaug.list_policies()):
        return True
    home = str(getattr(found, "__module__", "")).split(".")
    return isinstance(found, type) and home[0] == "mixaug" and home[1:2] != [] and home[1] not in _CLOSED
