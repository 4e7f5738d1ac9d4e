"""What a run was to be, said by its config alone: the same keys as in result.json.

A run that ended without a result is known by it, and a result that was copied from another run's folder is told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mixaug.engine.reading import is_text
from mixaug.engine.tasks import task_named
from mixaug.registry import describe, list_policies

__all__ = ["CONFIG", "digest_of", "fault_of_belonging", "identity_of", "objective_of"]

CONFIG = "config"
"""This key of a result holds the `digest_of` the config that it is the result of."""

#: What is compared by its value, the first ones as a message names them.
TOLD = ("policy", "model", "data", "protocol", "seed", "epochs")
COMPARED = (*TOLD, "policy_options", "data_options")
#: These settings are places, which whoever moves a run's folder or its data may write anew.
PLACES = ("root", "networks", "streams", "init_from")


def identity_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of its run.

    Args:
        config: content of a run's config.yaml, of anybody.

    Returns:
        ``policy``, ``policy_options``, ``model``, ``data``, ``data_options``, ``protocol``, ``seed``, ``epochs`` and
        ``task`` as a result has them, or nothing where the config does not say them.
    """
    sections: dict[str, Any] = {key: config.get(key) for key in ("policy", "model", "data", "protocol", "choices")}
    if not all(isinstance(section, dict) for section in sections.values()):
        return {}
    policy = sections["choices"].get("policy")
    names = {"policy": policy, **{key: sections[key].get("name") for key in ("model", "data", "protocol")}}
    counts = {"seed": config.get("seed"), "epochs": config.get("epochs")}
    if not all(map(is_text, names.values())):
        return {}
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts.values()):
        return {}
    task, measure = task_named(names["data"]), config.get("measure")
    pool = {"pool": config["pool"]} if config.get("pool") is not None and _has_partners(policy) else {}
    return {
        **names,
        **counts,
        "policy_options": {**_options(sections["policy"]), **pool, **_mixer_settings(config.get("mixer"))},
        "data_options": _options(sections["data"]),
        "task": task.name,
        **({} if measure not in (task.measure, *task.measures) else {"measure": measure}),
    }


def digest_of(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits over what a config.yaml says of its run, but for places and what changes no number.

    Args:
        config: content of a run's config.yaml, as `read_config` gives it.
    """
    from mixaug.engine.config import NEUTRAL_KEYS

    # Keys that are numbers become texts first: those of several types cannot be sorted.
    plain = json.loads(json.dumps(config))
    content = {key: value for key, value in plain.items() if key not in (*NEUTRAL_KEYS, *PLACES)}
    for section, left_out in (("data", "root"), ("protocol", "applied"), ("choices", "experiment")):
        if isinstance(content.get(section), dict):
            content[section] = {key: value for key, value in content[section].items() if key != left_out}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def fault_of_belonging(result: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What shows that a result is that of another run than the config beside it; empty where nothing does.

    Args:
        result: content of a result.json, of a finished run.
        config: content of the config.yaml beside it; empty where there is none.
    """
    of_config = identity_of(config)
    digest = result.get(CONFIG)
    if digest is not None and (not of_config or digest == digest_of(config)):
        # Every setting is in the digest, so that nothing else needs to be compared.
        return ""
    expected = {key: value for key, value in of_config.items() if key in COMPARED and key in result}
    other = [key for key, value in expected.items() if _compared(result[key]) != _compared(value)]
    names = [key for key in other if key in TOLD]
    if names:
        there, here = (", ".join(f"{key}={told[key]}" for key in names) for told in (result, expected))
        return f"it is the result of another run, {there}, and the config.yaml beside it has {here}"
    if other:
        return f"it is the result of another run, whose {other[0]} are not those of the config.yaml beside it"
    if digest is not None:
        return "it is the result of another run, whose settings are not those of the config.yaml beside it"
    return ""


def _compared(value: Any) -> Any:
    """A value without the options that say nothing of whose result it is.

    ``root`` is a place. ``pool`` is no option of the policy: a result has it where the policy took partners from it,
    which the config alone does not say of a policy that is registered nowhere.
    """
    if not isinstance(value, dict):
        return value
    return {key: option for key, option in value.items() if key not in ("root", "pool")}


def objective_of(config: Mapping[str, Any]) -> str:
    """Name of the file that the objective was made from; empty where the config does not say it."""
    choices = config.get("choices")
    name = choices.get("objective") if isinstance(choices, dict) else None
    return str(name) if is_text(name) else ""


def _options(section: Mapping[str, Any]) -> dict[str, Any]:
    from mixaug.engine.build import options

    # As a result has them, whose keys are texts.
    return dict(json.loads(json.dumps(options(section))))


def _mixer_settings(mixer: object) -> dict[str, Any]:
    from mixaug.engine.config import told_of_mixer

    if not isinstance(mixer, dict) or not isinstance(mixer.get("schedule") or {}, dict):
        return {}
    return told_of_mixer(mixer)


def _has_partners(policy: str) -> bool:
    """Whether a registered policy draws partners; taken for granted of one that is not installed here."""
    if policy not in list_policies():
        return True
    target = describe(policy).target
    return bool(getattr(target, "has_partners", True))
