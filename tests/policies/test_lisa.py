"""LISA: the two kinds of pairs, by the throw of a coin."""

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import Batch

LABELS, DOMAIN = torch.tensor([0, 0, 0, 1, 1, 1, 0, 1]), torch.tensor([3, 3, 5, 5, 3, 5, 5, 3])
IMAGES = torch.arange(8.0)[:, None, None, None].expand(8, 3, 8, 8).clone()


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_either_the_class_or_the_domain_is_kept(mixing):
    policy, kinds = mixaug.create("lisa", same_label=0.3, mixing=mixing), []
    for seed in range(60):
        mixed = policy(Batch(IMAGES, LABELS, metadata={"domain": DOMAIN}), generator=seeded(seed))
        same = LABELS[mixed.partner] == LABELS
        assert same.unique().numel() == 1
        assert ((DOMAIN[mixed.partner] == DOMAIN) != same).all()
        kinds.append(bool(same[0]))
    assert 0.15 < sum(kinds) / len(kinds) < 0.45


def test_the_domain_must_be_there():
    with pytest.raises(ValueError, match=r"looks at 'place' of each sample, the batch has metadata \['domain'\]"):
        mixaug.create("lisa", group="place")(Batch(IMAGES, LABELS, metadata={"domain": DOMAIN}))
    for options, message in (
        ({"mixing": "fmix"}, "mixing"),
        ({"same_label": 2.0}, "same_label"),
        ({"alpha": 0}, "alpha"),
    ):
        with pytest.raises(ValueError, match=message):
            mixaug.create("lisa", **options)
