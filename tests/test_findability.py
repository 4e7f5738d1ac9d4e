"""Whoever knows a method's name finds its code, config, card, picture and test by that name alone."""

import inspect

import pytest

import mixaug

OURS = [n for n in mixaug.list_policies() if mixaug.describe(n).target.__module__.startswith("mixaug.")]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "place",
    [
        "mixaug/policies/{}.py",
        "configs/policy/{}.yaml",
        "docs/policies/{}.md",
        "docs/images/policies/{}.png",
        "tests/policies/test_{}.py",
    ],
)
def test_every_policy_is_where_it_belongs(root, name, place):
    assert (root / place.format(name)).is_file()


@pytest.mark.parametrize("name", OURS)
def test_card_names_every_option_and_the_source(root, name):
    info, card = mixaug.describe(name), (root / f"docs/policies/{name}.md").read_text()
    assert info.arxiv is None or info.arxiv in card
    for option in info.defaults:
        assert f"`{option}" in card, option


@pytest.mark.parametrize("name", OURS)
def test_policy_can_be_imported_by_its_own_name(name):
    target = mixaug.describe(name).target
    assert getattr(mixaug.policies, target.__name__) is target
    assert inspect.getdoc(inspect.getmodule(target))


def test_index_of_cards_is_complete(root):
    index = (root / "docs/policies/README.md").read_text()
    for name in OURS:
        assert f"({name}.md)" in index
