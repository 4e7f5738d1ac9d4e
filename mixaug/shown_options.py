"""What the ``repr`` of a policy says of its options: those that differ from the defaults, and act."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from mixaug import labeling as labelings
from mixaug import pairing as pairings
from mixaug import ratio as ratios
from mixaug.options import options_of

#: Types of the options that a policy's ``repr`` shows.
PLAIN = (int, float, str, tuple)
#: The policy whose pairing serves those inside it, while its ``repr`` is written.
_SHARED_BY: ContextVar[object] = ContextVar("_SHARED_BY", default=None)


def chosen_options(policy: Any) -> list[str]:
    """``name=value`` of every option of a policy that differs from its default."""
    shown = []
    options = options_of(type(policy))
    for name, default in options.items():
        value = getattr(policy, name, default)
        if isinstance(value, PLAIN) and not (isinstance(default, PLAIN) and value == default):
            shown.append(f"{name}={value!r}")
    ratio, labeling = options.get("ratio"), options.get("labeling")
    if isinstance(ratio, str) and repr(policy.ratio) != repr(ratios.make(ratio, policy.alpha)):
        shown.append(f"ratio={policy.ratio!r}")
    if isinstance(labeling, str) and type(policy.labeling) is not type(labelings.make(labeling)):
        shown.append(f"labeling={_name_of(policy.labeling, labelings.NAMED)!r}")
    return [*shown, *chosen_pairing(policy)]


def chosen_pairing(policy: Any) -> list[str]:
    """``pairing=value`` where a policy pairs by another one than its default, and by its own."""
    default = pairings.make(options_of(type(policy)).get("pairing"), policy.per)
    is_default = type(policy.pairing) is type(default) and type(default).__repr__ is object.__repr__
    if is_default or (_is_replaced(policy) and not policy.pairs_again):
        return []
    return [f"pairing={_shown(policy.pairing)}"]


def shared_pairing(policy: Any) -> list[str]:
    """``pairing=value`` where the pairing of a policy serves those inside it."""
    return [] if _is_replaced(policy) or not policy.shares_partner else [f"pairing={_shown(policy.pairing)}"]


def _is_replaced(policy: Any) -> bool:
    return _SHARED_BY.get() not in (None, policy)


def _shown(pairing: object) -> str:
    """A pairing that was made with something says so; the others have names."""
    plain = type(pairing).__repr__ is object.__repr__
    return repr(_name_of(pairing, pairings.NAMED)) if plain else repr(pairing)


@contextlib.contextmanager
def pairing_shared_by(policy: Any) -> Iterator[None]:
    """Inside, policies other than this one, or one around it, do not show pairings that it replaces."""
    token = _SHARED_BY.set(_SHARED_BY.get() or policy)
    try:
        yield
    finally:
        _SHARED_BY.reset(token)


def _name_of(made: object, named: Mapping[str, Callable[[], object]]) -> str:
    return next((name for name, kind in named.items() if kind is type(made)), type(made).__name__)
