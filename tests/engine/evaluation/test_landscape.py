"""The plane of three images and the loss around the weights, where the answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

from helpers import seeded
from mixaug.engine import run
from mixaug.engine.evaluation import pictures
from mixaug.engine.evaluation.landscape import filter_normalised_direction, loss_surface, plane_through
from mixaug.engine.train import train


def test_the_plane_holds_the_three_images_and_keeps_distances() -> None:
    images = torch.rand(3, 2, 4, 5, generator=seeded(0), dtype=torch.float64)
    plane = plane_through(images, 5, margin=0.0)
    apart = torch.cdist(images.flatten(1), images.flatten(1))
    torch.testing.assert_close(torch.cdist(plane.corners, plane.corners), apart)
    # Without a margin the first image is the lower left corner and the second one the lower right.
    grid = plane.images.view(5, 5, 2, 4, 5)
    assert 0 < plane.corners[2, 0] < plane.corners[1, 0]
    torch.testing.assert_close(grid[0, 0], images[0])
    torch.testing.assert_close(grid[0, -1], images[1])
    step = (plane.up[1] - plane.up[0], plane.across[1] - plane.across[0])
    torch.testing.assert_close((grid[1, 2] - grid[0, 2]).norm(), step[0])
    torch.testing.assert_close((grid[1, 2] - grid[1, 1]).norm(), step[1])
    wider = plane_through(images, 5, margin=0.5)
    assert wider.across[0] == pytest.approx(-0.5 * plane.corners[1, 0].item())
    with pytest.raises(ValueError, match="not on one line"):
        plane_through(torch.stack([images[0], images[1], 2 * images[1] - images[0]]))
    with pytest.raises(ValueError, match=r"three images \(3, C, H, W\)"):
        plane_through(images[:2])


def test_filters_of_a_direction_are_as_long_as_the_networks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight[2] *= 100
        model[3].weight[1] = 0
    direction = filter_normalised_direction(model, seeded(0))
    for name in ("0.weight", "3.weight"):
        lengths = [each.detach().flatten(1).norm(dim=1) for each in (model.get_parameter(name), direction[name])]
        torch.testing.assert_close(*lengths)
    assert all(not direction[name].any() for name in ("0.bias", "1.weight", "1.bias", "3.bias"))
    again = filter_normalised_direction(model, seeded(0))
    assert all(torch.equal(direction[name], again[name]) for name in direction)


def test_the_surface_is_the_loss_of_a_network_with_other_weights() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    images, labels = torch.rand(10, 3, 2, 2, generator=seeded(1)), torch.arange(10) % 3
    first, second = (filter_normalised_direction(model, seeded(k)) for k in (2, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = [-0.5, 0.0, 1.0]
    surface = loss_surface(model, [first, second], steps, images, labels, batch_size=4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    for row, upward in enumerate(steps):
        for column, across in enumerate(steps):
            moved = weight + across * first["1.weight"] + upward * second["1.weight"]
            expected = F.cross_entropy(images.flatten(1) @ moved.T + bias, labels)
            assert surface[row, column].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match="two directions, got 1"):
        loss_surface(model, [first], steps, images, labels)


def test_pictures_of_a_run(tiny: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LANDSCAPE_IMAGES", 20)
    config = tiny("epochs=1")
    train(config)
    written = pictures.draw_pictures(run.run_folder(config), tmp_path / "out", device="cpu", resolution=3)
    assert [path.name for path in written] == ["plane.png", "landscape.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
