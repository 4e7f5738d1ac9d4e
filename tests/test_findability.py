"""One name finds a method's code, config, card, picture and test, and every list names it."""

import inspect
import re
from pathlib import Path

import pytest

import mixaug
from catalogue import derived
from catalogue.methods import families, read_methods, read_modules
from helpers import ours
from mixaug import registry

OURS = ours()


PLACES = (
    "mixaug/policies/{}.py",
    "configs/policy/{}.yaml",
    "docs/policies/{}.md",
    "docs/images/policies/{}.png",
    "tests/policies/test_{}.py",
)


def test_every_policy_is_where_it_belongs(root):
    assert OURS
    files = [place.format(name) for name in OURS for place in PLACES]
    assert [file for file in files if not (root / file).is_file()] == []


@pytest.mark.parametrize("name", OURS)
def test_card_names_every_option_and_the_source(root, name):
    info, card = mixaug.describe(name), (root / f"docs/policies/{name}.md").read_text()
    assert card.startswith(f"# {name}\n\n![")
    assert f"](../images/policies/{name}.png)" in card
    assert info.arxiv is None or info.arxiv in card
    for option in info.defaults:
        assert f"`{option}" in card, option


@pytest.mark.parametrize("name", OURS)
def test_policy_can_be_imported_by_its_own_name(name):
    target = mixaug.describe(name).target
    assert getattr(mixaug.policies, target.__name__) is target
    assert target.__name__ in mixaug.policies.__all__
    assert inspect.getdoc(inspect.getmodule(target))


def test_every_list_is_up_to_date(root):
    assert derived.stale(root) == [], "make policies"


def test_what_is_read_of_a_file_is_what_it_registers(root):
    read = {method.name: method for method in read_methods(root)}
    assert sorted(read) == OURS
    for name, method in read.items():
        info = mixaug.describe(name)
        assert (method.paper, method.arxiv, method.family) == (info.paper, info.arxiv, info.family), name
        assert (method.target, method.summary) == (info.target.__name__, info.summary), name
    assert families(root) == dict(registry.FAMILIES)


def test_functional_holds_the_pure_functions_of_every_file(root):
    offered = {function for module in read_modules(root) for function in module.functions}
    assert offered <= set(mixaug.functional.__all__)
    for name in mixaug.functional.__all__:
        function = getattr(mixaug.functional, name)
        assert inspect.isfunction(function) and function.__name__ == name
        assert inspect.getdoc(function)


@pytest.mark.parametrize("name", OURS)
def test_a_family_says_whether_its_members_look_at_the_model(name):
    info = mixaug.describe(name)
    if info.needs:
        assert info.family in ("guided by the model", "hidden features", "learned")


OBJECTIVES = sorted(path.stem for path in (Path(__file__).parents[1] / "docs" / "objectives").glob("[a-z]*.md"))


def test_every_objective_of_several_passes_has_a_card():
    named = {name: getattr(mixaug.objectives, name) for name in mixaug.objectives.__all__}
    theirs = {name.lower() for name, it in named.items() if isinstance(it, type) and issubclass(it, mixaug.Objective)}
    assert len(theirs) > 10
    assert set(OBJECTIVES) >= theirs


@pytest.mark.parametrize("name", OBJECTIVES)
def test_card_of_an_objective_names_every_option_and_the_source(root, name):
    card, config = (
        (root / f"docs/objectives/{name}.md").read_text(),
        (root / f"configs/objective/{name}.yaml").read_text(),
    )
    (arxiv,) = re.findall(r"arXiv:(\d{4}\.\d{5})", config)
    assert arxiv in card
    for option in re.findall(r"^(\w+):", config, flags=re.MULTILINE):
        assert option == "_target_" or f"`{option}" in card, option
    assert f"({name}.md)" in (root / "docs/objectives/README.md").read_text()
