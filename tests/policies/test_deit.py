"""DeiT's switch between Mixup and CutMix."""

import math

import pytest
import torch

import mixaug
from helpers import seeded

IMAGES = torch.rand(4, 1, 16, 16, generator=seeded(0))


def test_each_batch_is_mixed_by_one_of_the_two_half_and_half():
    policy, generator, cut = mixaug.create("deit"), seeded(1), 0
    for _ in range(1000):
        mixed = policy(IMAGES, generator=generator)
        assert len(mixed.lam.unique()) == 1
        cut += mixed.mask is not None
    assert abs(cut / 1000 - 0.5) < 4 * math.sqrt(0.25 / 1000)


def test_members_have_the_recipes_alphas():
    mixup, cutmix = mixaug.create("deit", per="sample").policies
    assert (mixup.alpha, cutmix.alpha) == (0.8, 1.0)
    assert (mixup.per, cutmix.per) == ("sample", "sample")
    assert mixaug.create("deit", switch_prob=0.25).probabilities == [0.75, 0.25]


@pytest.mark.parametrize("value", [-0.1, 1.5, "half"])
def test_bad_switch(value):
    with pytest.raises(ValueError, match=r"switch_prob in \[0, 1\]"):
        mixaug.create("deit", switch_prob=value)
