"""Selective mixup: what it pairs, and what the pairs do to the frequencies of classes."""

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug.partners import TrainingSet

LABELS = (torch.arange(400) % 5 == 0).long()
INPUTS = torch.arange(400.0)[:, None]


def test_partners_of_the_other_class_make_two_classes_equally_frequent():
    policy = mixaug.create("selective_mixup", partners=TrainingSet(INPUTS, LABELS))
    mixed = policy(INPUTS, LABELS, generator=seeded(0))
    partner = mixed.labels[mixed.partner]
    assert torch.equal(partner, 1 - LABELS)
    # A fifth of the samples is of the second class; with their partners it is a half.
    assert torch.cat([LABELS, partner]).float().mean() == 0.5
    # Partners come from the whole set, whoever the samples are.
    assert len(mixed.plan.pool_rows[LABELS == 1].unique()) > 40


def test_partners_of_the_same_class_change_no_frequency():
    mixed = mixaug.create("selective_mixup", label="same", mixing="mixup")(INPUTS, LABELS, generator=seeded(1))
    assert torch.equal(LABELS[mixed.partner], LABELS)
    assert (mixed.partner != torch.arange(400)).all()


def test_the_control_takes_the_same_partners_and_mixes_nothing():
    """A coin takes the sample or its partner, whole: both classes are as frequent as selective mixup makes them."""
    control = mixaug.create("selective_mixup", ratio="bernoulli")(INPUTS, LABELS, generator=seeded(4))
    own = control.inputs[:, 0] == INPUTS[:, 0]
    assert torch.equal(control.inputs, torch.where(own[:, None], INPUTS, INPUTS[control.partner]))
    assert torch.equal(control.weights[:, 0], own.float())
    # A fair coin: 200 of 400, standard deviation 10.
    assert 150 < int(own.sum()) < 250
    assert control.targets(2).argmax(1).float().mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("options", "message"), [
    ({"label": "near"}, "label"), ({"relation": "other"}, "but no group to look at"), ({"mixing": "fmix"}, "mixing"),
    ({"group": "domain", "relation": "near"}, "relation"),
])  # fmt: skip
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("selective_mixup", **options)
