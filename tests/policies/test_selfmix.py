"""SelfMix: partners are crops of the same image, from the batch or from a view."""

import pytest
import torch

import mixaug
from helpers import index_images, seeded
from mixaug import Batch

IMAGES = index_images(8, 3, 6, 6)
IMAGE_ID = torch.tensor([7, 7, 7, 4, 4, 9, 7, 4])


def test_partners_are_of_the_same_image_and_a_lone_crop_stays():
    soft = torch.rand(8, 5, generator=seeded(0)).softmax(1)
    policy, kinds = mixaug.create("selfmix"), set()
    for seed in range(12):
        mixed = policy(Batch(IMAGES, soft, metadata={"image_id": IMAGE_ID}), generator=seeded(seed))
        assert torch.equal(IMAGE_ID[mixed.partner], IMAGE_ID)
        alone = mixed.partner == torch.arange(8)
        assert torch.equal(alone, IMAGE_ID == 9)
        torch.testing.assert_close(mixed.inputs[5], IMAGES[5])
        # The number of an image is its value: its mean tells the shares of both.
        shown = mixed.inputs.mean((1, 2, 3))
        torch.testing.assert_close(shown, (mixed.weights * mixed.sources).sum(1), rtol=0, atol=1e-4)
        torch.testing.assert_close(mixed.targets(), (mixed.weights[..., None] * soft[mixed.sources]).sum(1))
        kinds.add(type(mixed.plan).__name__)
    assert len(kinds) == 2


def test_a_view_brings_the_other_crop():
    policy = mixaug.create("selfmix", view="second", switch_prob=0.0)
    mixed = policy(Batch(IMAGES, torch.arange(8), views={"second": IMAGES + 100}), generator=seeded(1))
    assert torch.equal(mixed.partner, torch.arange(8) + 8)
    torch.testing.assert_close(mixed.inputs, IMAGES + 100 * (1 - mixed.lam)[:, None, None, None])
    assert torch.equal(mixed.labels, torch.arange(8).repeat(2))


@pytest.mark.parametrize(("options", "message"), [
    ({"mixup_alpha": 0}, "mixup_alpha"), ({"switch_prob": 2}, "switch_prob"), ({"group": None}, "group"),
    ({"view": 3}, "view"), ({"per": "pair"}, "expects per 'sample' or 'batch'"),
])  # fmt: skip
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=f"selfmix.*{message}"):
        mixaug.create("selfmix", **options)
