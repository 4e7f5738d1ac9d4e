"""What a run was to be, said by its config alone: the same keys as in result.json, for runs that ended without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixaug.engine.reading import is_text
from mixaug.engine.tasks import task_named
from mixaug.registry import describe, list_policies

__all__ = ["identity_of", "objective_of"]


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


def objective_of(config: Mapping[str, Any]) -> str:
    """Name of the file that the objective was made from; empty where the config does not say it."""
    choices = config.get("choices")
    name = choices.get("objective") if isinstance(choices, dict) else None
    return str(name) if is_text(name) else ""


def _options(section: Mapping[str, Any]) -> dict[str, Any]:
    from mixaug.engine.build import options

    return options(section)


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
