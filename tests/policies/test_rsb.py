"""The switch of the RSB recipes."""

import mixaug


def test_members_have_the_recipes_alphas():
    policy = mixaug.create("rsb")
    mixup, cutmix = policy.policies
    assert (mixup.alpha, cutmix.alpha) == (0.1, 1.0)
    assert policy.probabilities == [0.5, 0.5]
    assert (policy.per, mixup.per, cutmix.per) == ("batch", "batch", "batch")
