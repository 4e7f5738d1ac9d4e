"""The command that regenerates a leaderboard row, derived from the configs that its run folders keep."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Container, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from mixaug.leaderboard.collect import Run
from mixaug.leaderboard.published import LOCATIONS

__all__ = [
    "CommandError",
    "brought_by",
    "departures",
    "flatten",
    "literal",
    "objective_defaults",
    "overrides_of",
    "processes_of",
    "regenerate",
    "settings_of",
]

PROGRAM = "mixaug benchmark"
PROGRAM_OF_PROCESSES = "torchrun --nproc-per-node={} -m mixaug train"
# These groups are shown even when they are the defaults, so that a command reads without the config files at hand.
SPELLED_OUT = ("policy", "model", "data", "protocol")
# These keys name a row or its board, or are derived by the engine itself.
NOT_SETTINGS = (
    "policy",
    "pool",
    "mixer",
    "data",
    "seed",
    "epochs",
    "choices",
    "protocol",
    "model.name",
    "device",
    "measure",
)
# What a run brings for its objective or its policy beside the batch.
BROUGHT = ("networks", "streams", "views")
# These keys may differ from a protocol's file without leaving the protocol: they are compared on their own (policy,
# data, model, length) or say how a machine does the work.
WITHIN_PROTOCOL = frozenset(
    {
        *SPELLED_OUT,
        "pool",
        "epochs",
        "eval_batch_size",
        "evaluate_every",
        "device",
        "threads",
        "channels_last",
        "compile",
    }
    | {f"data.{option}" for option in LOCATIONS}
)
_CHOICE = re.compile(r"\w[\w\-]*(\.\w[\w\-]*|/\w[\w\-]*)*", re.ASCII)
_KEY = re.compile(r"\w[\w.\-]*", re.ASCII)
_BARE = re.compile(r"[A-Za-z0-9_./:@%+\-]+")


class CommandError(ValueError):
    """No overrides compose the config of a run any more."""


def regenerate(members: Sequence[Run], *, hide_paths: bool = False) -> str:
    """One command for all seeds of a row, of several processes a loop over them.

    Where there is none, a line that starts with ``#`` and says why.
    """
    if not members[0].config:
        return "# the run folder has no readable config.yaml"
    try:
        overrides, config_dir = _made_of(members[0])
    except (CommandError, ImportError) as error:
        return "# " + " ".join(str(error).split())
    if hide_paths:
        overrides = [_hidden(override) for override in overrides]
    own = [] if config_dir is None else ["--config-dir", "<folder>" if hide_paths else str(config_dir)]
    seeds = [str(run.identity["seed"]) for run in members]
    told, processes = [*map(shlex.quote, [*own, *overrides])], processes_of(members[0].config)
    if processes == 1:
        command = " ".join([PROGRAM, *told, f"seed={','.join(seeds)}"])
    else:
        # A benchmark gives every run one process.
        program = PROGRAM_OF_PROCESSES.format(processes)
        command = " ".join([program, *told, f"seed={seeds[0]}" if len(seeds) == 1 else "seed=$seed"])
        command = command if len(seeds) == 1 else f"for seed in {' '.join(seeds)}; do {command}; done"
    return command if command.isprintable() else "# the config has line ends in it: no command on one line gives it"


def departures(run: Run) -> list[str] | None:
    """Overrides in which a run departs from its protocol, policy and data apart; None if that cannot be told.

    Settings of a learned mixer count as the policy's. A batch is that of all processes together: four processes of 25
    samples keep to a batch of 100, with or without batch statistics over all of it.
    """
    try:
        overrides, config_dir = _made_of(run)
        batch = None if processes_of(run.config) == 1 else _departure_of_batch(run, overrides, config_dir)
    except (CommandError, ImportError):
        return None
    shared = () if batch is None else ("batch_size", "sync_batchnorm")
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    departing = [
        override
        for override, key in zip(overrides, keys, strict=True)
        if key not in WITHIN_PROTOCOL and key not in shared and not _below(key, ("policy", "mixer"))
    ]
    return departing + ([batch] if batch else [])


def _departure_of_batch(run: Run, overrides: Sequence[str], config_dir: Path | None) -> str:
    """How the batch of several processes departs from the protocol's, or nothing."""
    from mixaug.engine.config import with_config_dir

    others = [override for override in overrides if not override.startswith("batch_size=")]
    usual = _composed((*with_config_dir((), config_dir), *others, "world_size=1"))[1]["batch_size"]
    own, processes = run.config["batch_size"], processes_of(run.config)
    return "" if own * processes == usual else f"batch_size={own} on {processes} processes"


def processes_of(config: Mapping[str, Any]) -> int:
    """How many processes a run was made by.

    Raises:
        CommandError: the config has something else there.
    """
    count = config.get("world_size", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise CommandError(f"config.yaml has world_size={count!r}, which is no number of processes")
    return count


def _made_of(run: Run) -> tuple[list[str], Path | None]:
    """The overrides of a run, and the folder of the reader's own config files where they need it."""
    # Its row asks for the command and for the departures: the text of a config is the key under which both find them.
    config = json.dumps(run.config)
    try:
        return _overrides_of_text(config), None
    except CommandError:
        if run.config_dir is None:
            raise
        return _overrides_of_text(config, run.config_dir), run.config_dir


@lru_cache(maxsize=64)
def _overrides_of_text(config: str, config_dir: Path | None = None) -> list[str]:
    return overrides_of(json.loads(config), config_dir)


def overrides_of(config: Mapping[str, Any], config_dir: Path | None = None) -> list[str]:
    """The shortest readable overrides that compose ``config``, without seed, root, processes and an experiment's name.

    The group files named in ``config["choices"]`` come first, then each value in which the config differs from what
    these files give. The result is composed again and must have the hash of the original.

    Args:
        config: the content of a run's config.yaml.
        config_dir: folder of config files of one's own, beside the shipped ones.

    Raises:
        CommandError: if the config names no choices, or cannot be composed by this version.
    """
    from mixaug.engine.config import GROUPS, LATER, LATER_OF_DATA, NEUTRAL_KEYS, config_folder, with_config_dir
    from mixaug.engine.errors import ConfigError

    choices = config.get("choices")
    if not isinstance(choices, Mapping):
        raise CommandError("config.yaml does not say which config files it was made from")
    for group, choice in choices.items():
        # A choice becomes part of a path to a file and of a command that people run.
        if choice is not None and not (isinstance(choice, str) and _CHOICE.fullmatch(choice)):
            raise CommandError(f"config.yaml names {choice!r} for {group}, which is no name of a config file")
    for section in GROUPS:
        if not isinstance(config.get(section) or {}, Mapping):
            raise CommandError(f"config.yaml has no mapping for {section}")
    try:
        folders = [config_folder(), *([] if config_dir is None else [config_dir])]
        beside = with_config_dir((), config_dir)
        spelled = [f"{group}={choices[group]}" for group in SPELLED_OUT if choices.get(group) is not None]
        # A protocol brings its own optimizer, schedule and objective.
        usual = _composed((*beside, *spelled, *_mandatory(spelled, config, folders)))[1]["choices"]
        groups = spelled + [
            f"{group}={choices[group]}"
            for group in GROUPS
            if group not in (*SPELLED_OUT, "experiment")
            and choices.get(group) is not None
            and choices[group] != usual[group]
        ]
        groups += _mandatory(groups, config, folders)
        base = _composed((*beside, *groups))[1]
        # Where one config has a mapping and the other a value, the whole of it is set.
        target, base = flatten(config, whole=_values(base)), flatten(base, whole=_values(config))
        skipped = (*NEUTRAL_KEYS, "seed", "choices", "protocol.applied", "world_size")
        later = ("mixer", *LATER, *(f"data.{option}" for option in LATER_OF_DATA))
        changed = []
        for key in [*target, *(key for key in base if key not in target)]:
            if _below(key, skipped):
                continue
            if not _KEY.fullmatch(key):
                raise CommandError(f"config.yaml has the key {key!r}, which no command line can set")
            if key not in target:
                # Runs from before there were learned mixers lack the section, which is as good as its nulls; so are
                # settings that came later, at values that change nothing.
                changed += [] if _below(key, later) else [f"~{key}"]
            elif key not in base:
                changed.append(f"+{key}={literal(target[key])}")
            elif base[key] != target[key]:
                changed.append(f"{key}={literal(target[key])}")
        overrides = groups + changed
        given = (f"seed={config.get('seed', 0)}", f"world_size={processes_of(config)}")
        again = _composed((*beside, *overrides, *given))[0]
    except ConfigError as error:
        first = str(error).splitlines()[0]
        raise CommandError(f"this version cannot compose the config of the run: {first}") from error
    if again != _hash(config):
        raise CommandError("this version composes another config from the same choices")
    return overrides


def _hidden(override: str) -> str:
    key = override.partition("=")[0]
    return f"{key}=<{key.rpartition('.')[2]}>" if is_location(key.lstrip("+~")) else override


def is_location(key: str) -> bool:
    """Whether a setting by its dotted key says where something lies: data, also a stream's, or a run with weights."""
    group, _, inner = key.partition(".")
    is_data = group in ("data", "streams") and inner.rpartition(".")[2] in LOCATIONS
    return is_data or key == "init_from" or (group == "networks" and inner != "" and "." not in inner)


def _mandatory(groups: Sequence[str], config: Mapping[str, Any], folders: Sequence[Path]) -> list[str]:
    """Overrides for the values that the chosen files leave to the user (``???``), without which nothing composes."""
    needed = []
    for group, _, choice in (entry.partition("=") for entry in groups):
        for path in (folder / group / f"{choice}.yaml" for folder in folders):
            if not path.is_file() or group == "protocol":
                continue
            values = flatten(config.get(group) or {})
            open_keys = _open_keys(path, path.stat().st_mtime_ns)
            needed += [f"{group}.{key}={literal(values.get(key))}" for key in open_keys]
    return needed


@lru_cache(maxsize=1024)
def _open_keys(path: Path, changed: int) -> tuple[str, ...]:
    """Dotted keys that a config file leaves to the user, read once for each time at which it was changed."""
    from omegaconf import OmegaConf

    return tuple(sorted(OmegaConf.missing_keys(OmegaConf.load(path))))


def settings_of(run: Run) -> dict[str, Any]:
    """Flat settings of a run beyond policy, data, model, protocol, epochs and seed: optimizer, augmentation, ...

    The objective's are among them. A single process is not told.
    """
    from mixaug.engine.config import LATER, NEUTRAL_KEYS

    skipped = (*NOT_SETTINGS, *NEUTRAL_KEYS, *BROUGHT)
    # Runs from before there was a setting lack it, which is as good as the value that changes nothing.
    untold = {"world_size": 1, **LATER}
    return {
        key: value
        for key, value in flatten(run.config).items()
        if not _below(key, skipped) and not (key in untold and untold[key] == value)
    }


@cache
def objective_defaults(objective: str) -> Mapping[str, Any]:
    """Every option in the shipped file of an objective by its dotted key; empty for an objective without one."""
    from omegaconf import OmegaConf

    from mixaug.engine.config import config_folder, list_choices

    if objective not in list_choices("objective"):
        return {}
    section = OmegaConf.to_container(OmegaConf.load(config_folder() / "objective" / f"{objective}.yaml"))
    return flatten({"objective": section})


def brought_by(run: Run) -> dict[str, Any]:
    """Networks, streams and views of a run by dotted keys, without where the data of a stream lie."""
    return {
        key: value
        for key, value in flatten({section: run.config.get(section) or None for section in BROUGHT}).items()
        if value is not None and not (is_location(key) and key.startswith("streams."))
    }


def flatten(config: Mapping[str, Any], prefix: str = "", *, whole: Container[str] = ()) -> dict[str, Any]:
    """Nested mappings to one level with dotted keys; lists, empty mappings and those at ``whole`` keys stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value and f"{prefix}{key}" not in whole:
            flat.update(flatten(value, f"{prefix}{key}.", whole=whole))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _values(config: Mapping[str, Any]) -> set[str]:
    """Dotted keys of what is no mapping."""
    return {key for key, value in flatten(config).items() if not isinstance(value, Mapping)}


def literal(value: object) -> str:
    """A value as Hydra's override grammar reads it."""
    if value is None:
        return "null"
    if isinstance(value, str) and _BARE.fullmatch(value) and not _reads_otherwise(value):
        return value
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _reads_otherwise(text: str) -> bool:
    """Whether the grammar would take the bare text for a number, a boolean or null."""
    if text.lower() in ("null", "true", "false", "nan", "inf", "+inf", "-inf"):
        return True
    try:
        float(text.replace("_", ""))
    except ValueError:
        return False
    return True


def _below(key: str, prefixes: Sequence[str]) -> bool:
    """Whether the key is one of the prefixes or lies below it."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


@lru_cache(maxsize=4096)
def _composed(overrides: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    from mixaug.engine.config import compose, config_hash, plain

    config = compose(overrides)
    return config_hash(config), plain(config)


def _hash(config: Mapping[str, Any]) -> str:
    from omegaconf import OmegaConf

    from mixaug.engine.config import config_hash

    return config_hash(OmegaConf.create(dict(config)))
