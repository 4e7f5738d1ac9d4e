"""Policies by name: ours, and those of packages that declare the entry-point group ``mixaug.policies``."""

from __future__ import annotations

import difflib
import fnmatch
import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from mixaug.options import options_of
from mixaug.policy import Policy

ENTRY_POINT_GROUP = "mixaug.policies"

FactoryT = TypeVar("FactoryT", bound="Callable[..., Policy]")


@dataclass(frozen=True)
class PolicyInfo:
    """What is known of a policy without building it.

    Attributes:
        name: its name in the registry.
        target: the class, or the function that builds a preset; it can also be imported and called.
        paper: title and venue of the source.
        arxiv: arXiv id, None where there is no such paper.
        defaults: every option and its default.
        needs: the signals it asks of a model with these defaults; empty for a model-free policy.
        summary: first line of its documentation.
    """

    name: str
    target: Callable[..., Policy]
    paper: str
    arxiv: str | None
    defaults: Mapping[str, Any]
    needs: frozenset[str]
    summary: str


_registered: dict[str, PolicyInfo] = {}
_entry_points_loaded = False


def register(
    name: str, *, paper: str, arxiv: str | None = None, needs: Iterable[str] | None = None
) -> Callable[[FactoryT], FactoryT]:
    """Decorate a Policy class, or a function that returns a Policy, to make it known by ``name``.

    Options are the arguments of the function, or of the class's ``__init__``; where that one ends in ``**shared``, by
    this name, those of its base too: all of ``shared`` is handed on as it is, and what is handed on beside it is
    an argument.

    Args:
        name: lower case, as users will type it.
        paper: title and venue of the source.
        arxiv: arXiv id where there is one.
        needs: signals it asks of a model; None reads the class attribute ``needs``.

    Raises:
        ValueError: the name is taken by something else, or an option has no default.
    """

    def decorate(target: FactoryT) -> FactoryT:
        known = _registered.get(name)
        if known is not None and _identity(known.target) != _identity(target):
            raise ValueError(f"policy name {name!r} is already taken by {_identity(known.target)}")
        _registered[name] = PolicyInfo(
            name=name,
            target=target,
            paper=paper,
            arxiv=arxiv,
            defaults=MappingProxyType(_defaults(name, target)),
            needs=frozenset(getattr(target, "needs", ()) if needs is None else needs),
            summary=(inspect.getdoc(target) or "").split("\n", 1)[0],
        )
        return target

    return decorate


def create(name: str, **options: Any) -> Policy:
    """Build a policy by name.

    Args:
        name: one of :func:`list_policies`.
        **options: its options, see ``describe(name).defaults``.

    Raises:
        ValueError: unknown name (with the closest ones), or an option's value out of range.
        TypeError: unknown option (with the known ones).

    >>> create("cutmix", alpha=0.5)
    CutMix(alpha=0.5)
    """
    info = describe(name)
    unknown = [option for option in options if option not in info.defaults]
    if unknown:
        raise TypeError(f"policy {name!r} has no option {unknown[0]!r}; its options are {list(info.defaults)}")
    return info.target(**options)


def list_policies(pattern: str = "*", needs: str | Iterable[str] | None = None) -> list[str]:
    """Names of all policies, sorted.

    Args:
        pattern: shell-style pattern, such as ``"*mix"``.
        needs: keep policies that need at least these signals; ``()`` keeps the model-free ones;
            None keeps all.
    """
    _load_entry_points()
    names = fnmatch.filter(sorted(_registered), pattern)
    if needs is None:
        return names
    wanted = frozenset([needs] if isinstance(needs, str) else needs)
    if not wanted:
        return [name for name in names if not _registered[name].needs]
    return [name for name in names if wanted <= _registered[name].needs]


def describe(name: str) -> PolicyInfo:
    """Paper, defaults and needs of a policy.

    Raises:
        ValueError: unknown name, with the closest ones.
    """
    if name not in _registered:
        _load_entry_points()
    if name not in _registered:
        close = difflib.get_close_matches(str(name), _registered, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"unknown policy {name!r}.{hint} All policies: {', '.join(sorted(_registered))}")
    return _registered[name]


def _identity(target: Callable[..., Any]) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def _defaults(name: str, target: Callable[..., Any]) -> dict[str, Any]:
    defaults = options_of(target)
    for option, value in defaults.items():
        if value is inspect.Parameter.empty:
            raise ValueError(f"policy {name!r}: option {option!r} needs a default value")
    return defaults


def _load_entry_points() -> None:
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception as error:
            # One broken plug-in must not take the other policies away, and must not go unseen.
            warnings.warn(f"policy plug-in {entry.name!r} ({entry.value}) failed to load: {error!r}", stacklevel=3)
