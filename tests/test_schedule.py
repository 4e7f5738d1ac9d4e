"""Options that change over training."""

import copy

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import OneOf, Sometimes
from mixaug.schedule import Cosine, Linear, Steps

IMAGES, LABELS = torch.rand(400, 3, 4, 4, generator=seeded(0)), torch.arange(400) % 5


def test_values_on_the_way():
    assert [Linear(1.0, 0.0)(done) for done in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    assert [round(Cosine(1.0, 0.2)(done), 6) for done in (0.0, 0.5, 1.0)] == [1.0, 0.6, 0.2]
    assert len({Linear(0.0, 1.0, steps=4)(step / 1000) for step in range(1001)}) == 5
    assert Steps({"0": 1.0, "0.5": 0.2})(0.7) == Steps([(0.0, 1.0), (0.5, 0.2)])(0.7) == 0.2
    assert [Steps({0: 1.0, 0.5: 0.2})(done) for done in (0.0, 0.49, 0.5, 1.0)] == [1.0, 1.0, 0.2, 0.2]


def test_alpha_follows_its_schedule():
    policy = mixaug.create("mixup", alpha=Linear(0.1, 8.0))
    with pytest.raises(RuntimeError, match="Mixup follows a schedule of alpha, but does not know how far"):
        policy(IMAGES, LABELS)
    spread = []
    for done in (0.0, 1.0):
        policy.set_progress(done)
        spread.append(float(policy(IMAGES, LABELS, generator=seeded(1)).lam.var()))
    for alpha, variance in zip((0.1, 8.0), spread, strict=True):
        assert variance == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)
    plain = mixaug.create("mixup", alpha=8.0)(IMAGES, LABELS, generator=seeded(1))
    assert torch.equal(plain.lam, policy(IMAGES, LABELS, generator=seeded(1)).lam)
    assert copy.deepcopy(policy).alpha == 8.0


def test_members_follow_theirs():
    policy = OneOf([mixaug.create("cutmix", alpha=Linear(1.0, 2.0)), "mixup"], per="sample")
    with pytest.raises(RuntimeError, match="CutMix follows a schedule of alpha"):
        policy(IMAGES, LABELS)
    policy.set_progress(0.5)
    assert (policy.policies[0].alpha, policy.policies[1].alpha) == (1.5, 1.0)
    policy(IMAGES, LABELS)


def test_a_probability_follows_its_schedule():
    policy = Sometimes("mixup", Linear(0.0, 0.8), per="sample")
    with pytest.raises(RuntimeError, match="Sometimes follows a schedule of its probability"):
        policy(IMAGES, LABELS)
    for done, wanted in ((0.0, 0.0), (0.5, 0.4), (1.0, 0.8)):
        policy.set_progress(done)
        mixed = policy(IMAGES, LABELS, generator=seeded(2))
        assert float((mixed.lam < 1).float().mean()) == pytest.approx(wanted, abs=0.08)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: mixaug.create("mixup", alpha=Linear(1.0, -1.0)), r"Mixup expects alpha at 50% of training"),
    (lambda: Sometimes("mixup", Linear(0.5, 1.5)), "probability at 51% of training"),
    (lambda: mixaug.create("mixup", alpha=lambda: 1.0), "alpha as a name or a number or a schedule"),
    (lambda: Linear(0.0, float("nan")), "Linear expects end as a finite number"),
    (lambda: Linear(0.0, 1.0, steps=0), "steps"),
    (lambda: Steps({0.5: 1.0}), "the first from 0 on"),
    (lambda: Steps({}), "the first from 0 on"),
    (lambda: Steps([0.0, 1.0]), "Steps expects values as a mapping"),
    (lambda: Steps({0: "x"}), "Steps expects values as a mapping"),
    (lambda: Steps(None), "Steps expects values as a mapping"),
    (lambda: Steps({0: float("nan")}), "Steps expects values of finite numbers"),
])  # fmt: skip
def test_what_cannot_work_is_refused_when_the_policy_is_made(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
