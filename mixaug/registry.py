"""Policies by name: ours, and those of packages that declare the entry-point group ``mixaug.policies``."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import importlib
import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from mixaug.checks import shown
from mixaug.near import did_you_mean, near
from mixaug.options import current_options, options_of, renamed_of, unknown_option
from mixaug.policy import Policy

ENTRY_POINT_GROUP = "mixaug.policies"
#: The package whose import registers the policies of mixaug itself.
OWN_POLICIES = "mixaug.policies"

#: Families of methods, in the order in which lists show them, and what is common to the members of each.
FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "baseline": "What every method is compared with.",
        "blends": "Every pixel is a weighted mean of both images.",
        "cut and paste": "One rectangle shows the partner.",
        "masks": "A mask of another shape decides, pixel by pixel, which image shows.",
        "guided by the model": "Saliency, class activation or attention decides what shows, or what the labels say.",
        "hidden features": "Features inside the model are mixed, instead of or beside its input.",
        "learned": "A network that learns beside the classifier decides how to mix.",
        "regression": "Partners are near ones, in their labels or in their inputs.",
        "combinations": "One of several methods, drawn for every batch.",
    }
)
#: What other tools call a probability to mix, which no policy has as an option.
PROBABILITY = ("p", "prob", "probability", "mix_prob", "mixup_prob", "cutmix_prob")

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
        family: one of ``mixaug.registry.FAMILIES``; None where the policy does not say.
    """

    name: str
    target: Callable[..., Policy]
    paper: str
    arxiv: str | None
    defaults: Mapping[str, Any]
    needs: frozenset[str]
    summary: str
    family: str | None = None


_registered: dict[str, PolicyInfo] = {}
_entry_points_loaded = False


def register(
    name: str,
    *,
    paper: str,
    arxiv: str | None = None,
    needs: Iterable[str] | None = None,
    family: str | None = None,
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
        family: one of :data:`FAMILIES`, under which lists show it.

    Raises:
        ValueError: the name is taken by something else, the family is unknown, or an option has no default.
    """
    _check_family("register", family)

    def decorate(target: FactoryT) -> FactoryT:
        if not target.__module__.startswith(f"{OWN_POLICIES}."):
            _load_own()
        known = _registered.get(name)
        if known is not None and _identity(known.target) != _identity(target):
            raise ValueError(f"policy name {name!r} is already taken by {_identity(known.target)}")
        made = target if isinstance(target, type) else _in_the_name_of(name, target)
        _registered[name] = PolicyInfo(
            name=name,
            target=made,
            paper=paper,
            arxiv=arxiv,
            defaults=MappingProxyType(_defaults(name, target)),
            needs=frozenset(getattr(target, "needs", ()) if needs is None else needs),
            summary=(inspect.getdoc(target) or "").split("\n", 1)[0],
            family=family,
        )
        return made

    return decorate


def _in_the_name_of(name: str, target: Any) -> Any:
    """A function that builds a preset, whose errors about options name the preset and not the class that it makes."""

    @functools.wraps(target)
    def preset(*positional: Any, **options: Any) -> Policy:
        try:
            made: Policy = target(*positional, **options)
        except (TypeError, ValueError) as error:
            first, _, rest = str(error).partition(" ")
            if first in _classes(target):
                error.args = (f"{name} {rest}",)
            raise
        return made

    return preset


def _classes(target: Any) -> set[str]:
    """Names of the classes that speak where a preset is built: policies, and what its own module uses of others."""
    found = {value.__name__ for value in target.__globals__.values() if inspect.isclass(value)}
    policies = [Policy]
    for policy in policies:
        policies += policy.__subclasses__()
    return found | {policy.__name__ for policy in policies}


def create(name: str, **options: Any) -> Policy:
    """Build a policy by name.

    Args:
        name: one of :func:`list_policies`.
        **options: its options, see ``describe(name).defaults``.

    Raises:
        ValueError: unknown name (with the closest ones), or an option's value out of range.
        TypeError: a name that is no text, an unknown option (with the existing ones), or one under both its old and its
            present name.

    >>> create("cutmix", alpha=0.5)
    CutMix(alpha=0.5)
    """
    info = describe(name)
    options = current_options(f"policy {name!r}", options, renamed_of(info.target))
    unknown = [option for option in options if option not in info.defaults]
    if unknown and unknown[0] in PROBABILITY and "probability" not in info.defaults:
        raise TypeError(
            f"policy {name!r} has no option {unknown[0]!r}, it mixes every batch; to mix with a probability: "
            f"mixaug.Sometimes({name!r}, {options[unknown[0]]!r}), or with a policy in place of its name"
        )
    if unknown:
        raise TypeError(unknown_option(f"policy {name!r}", unknown[0], info.defaults))
    return info.target(**options)


def list_policies(pattern: str = "*", needs: str | Iterable[str] | None = None, family: str | None = None) -> list[str]:
    """Names of all policies, sorted.

    Args:
        pattern: shell-style pattern, such as ``"*mix"``.
        needs: keep policies that need at least these signals; ``()`` keeps the model-free ones;
            None keeps all.
        family: keep policies of this one of ``mixaug.registry.FAMILIES``; None keeps all.

    Raises:
        ValueError: unknown family.
    """
    _check_family("list_policies", family)
    _load_own()
    _load_entry_points()
    names = fnmatch.filter(sorted(_registered), pattern)
    if family is not None:
        names = [name for name in names if _registered[name].family == family]
    if needs is None:
        return names
    wanted = frozenset([needs] if isinstance(needs, str) else needs)
    if not wanted:
        return [name for name in names if not _registered[name].needs]
    return [name for name in names if wanted <= _registered[name].needs]


def describe(name: str) -> PolicyInfo:
    """Paper, family, defaults and needs of a policy.

    Raises:
        ValueError: unknown name, with the closest ones.
        TypeError: a name that is no text.

    >>> describe("mixup").arxiv
    '1710.09412'
    """
    if not isinstance(name, str):
        raise TypeError(f"a policy's name is a text such as 'mixup', got {shown(name)}")
    if name not in _registered:
        _load_own()
    if name not in _registered:
        _load_entry_points()
    if name not in _registered:
        close = close_names(name)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"unknown policy {name!r}.{hint} All policies: {', '.join(sorted(_registered))}")
    return _registered[name]


def close_names(name: str) -> list[str]:
    """Policies that a name which is none was probably meant for, at most three.

    >>> close_names("cutmx"), close_names("manifold_mixup")[0]
    (['cutmix'], 'manifoldmix')
    """
    known = list_policies()
    return near(str(name), known, words=False) or difflib.get_close_matches(str(name), known, n=3, cutoff=0.7)


def _identity(target: Callable[..., Any]) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def _check_family(what: str, family: str | None) -> None:
    if family is not None and (not isinstance(family, str) or family not in FAMILIES):
        raise ValueError(
            f"{what} expects family as one of {list(FAMILIES)} or None, got {family!r}{did_you_mean(family, FAMILIES)}"
        )


def _defaults(name: str, target: Callable[..., Any]) -> dict[str, Any]:
    defaults = options_of(target)
    for option, value in defaults.items():
        if value is inspect.Parameter.empty:
            raise ValueError(f"policy {name!r}: option {option!r} needs a default value")
    return defaults


def _load_own() -> None:
    """Import mixaug's own policies, which register themselves; whoever imports this module alone has not."""
    importlib.import_module(OWN_POLICIES)


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
