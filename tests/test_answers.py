"""Every method as its answers to five questions, and the page that is made of them."""

from __future__ import annotations

import pytest

import mixaug
from catalogue import answers as page
from helpers import ours
from mixaug.answers import OWN_RULE, answers_of, answers_of_objective, objective_names


def lines(root):
    text = (root / page.PAGE).read_text(encoding="utf-8")
    return {line[3 : line.index("]")]: line for line in text.splitlines() if line.startswith("| [")}


def test_answers_come_from_the_parts_of_a_policy():
    mixup, comixup, deit = map(answers_of, ("mixup", "comixup", "deit"))
    assert mixup.who.startswith("A uniformly random permutation")
    assert (mixup.how_much, mixup.needs, mixup.passes, mixup.cost) == ("Beta(1, 1)", (), 1.0, 1.0)
    assert mixup.labels == "The share of pixels that each source really covers."
    assert (comixup.who, comixup.needs) == ("All samples of a part of the batch, chosen jointly.", ("saliency",))
    assert comixup.run == "the mixed batch, with saliency of the model"
    assert deit.labels == "as Mixup or CutMix"


def test_answers_of_an_objective():
    regmixup, mixkd = map(answers_of_objective, ("RegMixup", "MixKD"))
    assert regmixup.who == "as the policy, in its source create('mixup', alpha=10.0, per='batch')"
    assert (regmixup.passes, regmixup.cost) == (2.0, pytest.approx(2.0))
    assert mixkd.needs == ("networks: teacher",)
    assert mixkd.passes == 2.0 and 1.3 < mixkd.cost < 1.4


def test_looks_at_a_whole_set_count():
    selmix, cowa = answers_of("selmix"), answers_of_objective("CoWA")
    # 5,000 images every 50 steps of 128, and 50,000 an epoch of as many; a pass alone is what a teacher's is.
    passes = 5000 / 50 / (50_000 / 391)
    alone = answers_of_objective("MixKD").cost - 1
    assert selmix.passes == pytest.approx(1 + passes) and selmix.tasks == ("classification",)
    assert selmix.cost == pytest.approx(1 + passes * alone, rel=1e-3)
    assert cowa.passes == 2.0 and 1 + alone < cowa.cost < 1.02 + alone


def test_the_page_has_every_method_and_no_other(root):
    assert set(lines(root)) == {*ours(), *objective_names()}


def test_rows_of_the_page_are_what_the_code_says(root):
    shown = lines(root)
    for name in ("mixup", "puzzlemix", "cmixup", "none"):
        assert shown[name] == page.row(answers_of(name), f"policies/{name}.md")
    assert shown["RegMixup"] == page.row(answers_of_objective("RegMixup"), "objectives/regmixup.md")


def test_no_method_leaves_a_question_open(root):
    assert [name for name, line in lines(root).items() if OWN_RULE in line] == []


def test_a_preset_that_chooses_between_two_pairings_of_one_policy_says_which():
    lisa = answers_of("lisa")
    assert lisa.who.startswith("A partner of the same or of another class")
    assert lisa.how_much == "Beta(2, 2)"


def test_a_source_that_chooses_itself_answers_who():
    assert answers_of("recursivemix").who.startswith("Row i of the batch before")


@pytest.mark.slow
def test_the_whole_page_is_up_to_date(root):
    text = (root / page.PAGE).read_text(encoding="utf-8")
    assert page.render(root, text) == text, "make policies"


def test_a_filter_by_cost_and_the_card_agree():
    assert "puzzlemix" not in mixaug.list_policies("p*mix", cost=1.5)
    assert "puzzlemix" in mixaug.list_policies("p*mix", cost=2)
