"""No mixing."""

import torch

import mixaug


def test_nothing_changes_and_nothing_is_drawn():
    images, labels = torch.rand(3, 2, 4, 4), torch.tensor([2, 0, 1])
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    mixed = mixaug.create("none")(images, labels, generator=generator)
    assert mixed.inputs is images
    assert torch.equal(generator.get_state(), state)
    assert mixed.lam.tolist() == [1, 1, 1]
    assert torch.equal(mixed.targets(3), torch.eye(3)[labels])
    out = torch.empty_like(images)
    assert torch.equal(mixaug.create("none")(images, out=out).inputs, images)
    assert mixaug.create("none")(torch.rand(4, 7)).inputs.shape == (4, 7)
