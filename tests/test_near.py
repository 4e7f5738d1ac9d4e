"""What was probably meant by a name that is none: misspelt ones, and those of other libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mixaug
from mixaug.checks import PER
from mixaug.near import SYNONYMS, did_you_mean, near
from mixaug.options import options_of
from mixaug.pairing.named import NAMED


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("alhpa", ["alpha", "eta"], ["alpha"]),
        ("Permutation", ["permutation"], ["permutation"]),
        # What another library calls an option goes before a misspelling, and both before what begins alike.
        ("lam", ["cam", "ratio"], ["ratio"]),
        ("lam", ["cam"], ["cam"]),
        ("p", ["per", "probability"], ["probability"]),
        ("random", ["random_pairs", "permutation"], ["permutation"]),
        ("mode", ["per", "interpolation"], ["per", "interpolation"]),
        ("pairs", ["pairing"], ["pairing"]),
        ("weights", ["probability"], []),
        # What is called so elsewhere, and is not offered here.
        ("p", ["per", "alpha"], []),
        ("weights", ["alpha"], []),
        ("", ["alpha"], []),
    ],
)
def test_the_names_that_are_near(name: str, known: list[str], meant: list[str]) -> None:
    assert near(name, known) == meant


def test_a_misspelling_alone_is_asked_for_without_words() -> None:
    assert near("prob", ["probability"], words=False) == []
    assert near("alhpa", ["alpha"], words=False) == ["alpha"]


def test_no_string_is_near_to_nothing() -> None:
    for value in (None, 0.5, ["alpha"], torch.ones(2)):
        assert did_you_mean(value, ["alpha"]) == "", value


def test_every_synonym_leads_to_a_name_that_there_is_and_is_none_itself() -> None:
    targets = [mixaug.OneOf, mixaug.Sometimes, *(mixaug.describe(name).target for name in mixaug.list_policies())]
    data = {path.stem for path in (Path(__file__).parents[1] / "configs" / "data").glob("*.yaml")}
    there = {*NAMED, *PER, *data}.union(*(options_of(target) for target in targets))
    assert {meant for group in SYNONYMS.values() for meant in group} - there == set()
    assert set(SYNONYMS) & {*NAMED, *PER, *options_of(mixaug.OneOf), *options_of(mixaug.Sometimes)} == set()


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: mixaug.Sometimes("cutmix", p=0.5), "'p'; did you mean 'probability'"),
        (lambda: mixaug.Sometimes("cutmix", prob=0.5), "'prob'; did you mean 'probability'"),
        (lambda: mixaug.OneOf(["cutmix", "mixup"], weights=[1, 2]), "'weights'; did you mean 'probabilities'"),
        (lambda: mixaug.OneOf(["cutmix", "mixup"], p=[1, 2]), "'p'; did you mean 'probabilities'"),
        (lambda: mixaug.OneOf(transforms=["cutmix", "mixup"]), "'transforms'; did you mean 'policies'"),
        (lambda: mixaug.create("mixup", mixup_alpha=0.2), "'mixup_alpha'; did you mean 'alpha'"),
        (lambda: mixaug.create("mixup", mode="elem"), "'mode'; did you mean 'per'"),
        (lambda: mixaug.create("mixup", per="elem"), "got 'elem'; did you mean 'sample'"),
        (lambda: mixaug.create("mixup", per="samples"), "got 'samples'; did you mean 'sample'"),
        (lambda: mixaug.create("mixup", pairing="flip"), "Pairing object; did you mean 'reversed'"),
        (lambda: mixaug.OneOf(["mixup"], pairing="shfit"), "Pairing object; did you mean 'shift'"),
        (lambda: mixaug.create("mixup", ratio="unifrm"), "Ratio object; did you mean 'uniform'"),
        (lambda: mixaug.create("cutmix", labeling="atention"), "Labeling object; did you mean 'attention'"),
        (lambda: mixaug.create("cutmix", partners="previus"), "mixaug.partners; did you mean 'previous'"),
        (lambda: mixaug.create("resizemix", rule="unifrom"), "did you mean 'uniform'"),
        (lambda: mixaug.create("resizemix", mode="bilinear"), "'mode'; did you mean 'per' or 'interpolation'"),
        (lambda: mixaug.create("mixstyle", p=0.5), "'p'; did you mean 'probability'"),
        (lambda: mixaug.create("cutmix", labeling="lam"), "did you mean 'ratio'"),
        (lambda: mixaug.list_policies(family="maks"), "or None, got 'maks'; did you mean 'masks'"),
        (lambda: mixaug.list_policies(task="clasification"), "or None, got 'clasification'; did you mean 'classif"),
    ],
)
def test_a_misspelt_option_or_choice_names_the_one_that_was_meant(make, meant: str) -> None:
    with pytest.raises((TypeError, ValueError), match=meant):
        make()


def test_a_value_that_is_like_no_choice_is_told_without_a_question() -> None:
    with pytest.raises(ValueError, match=r"expects per in \['sample', 'batch', 'pair'\], got 3$"):
        mixaug.create("mixup", per=3)
    with pytest.raises(ValueError, match=r"or a Pairing object$"):
        mixaug.create("mixup", pairing="something else")
