"""The picture sheet of all policies."""

import importlib.util

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import gallery

IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=seeded(0))
NAMES = mixaug.list_policies()


@pytest.fixture(scope="module")
def tool(request):
    path = request.config.rootpath / "tools" / "gallery.py"
    spec = importlib.util.spec_from_file_location("gallery_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_pairs_mix_the_two_images(name):
    batches = gallery.mixed_pairs(name, IMAGES, (0.2, 0.8))
    assert len(batches) == 2
    for share, mixed in zip((0.2, 0.8), batches, strict=True):
        assert mixed.inputs.dtype == torch.uint8
        if name != "none":
            assert mixed.partner.tolist() == [1, 0]
        if name in ("mixup", "fmix"):
            assert mixed.lam[0].item() == pytest.approx(share)


def test_sheet_shows_every_policy_with_its_label_share():
    figure = gallery.sheet(NAMES, IMAGES, (0.3, 0.6))
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    names = [axes.get_ylabel().split("\n")[0] for axes in figure.axes if axes.get_ylabel()]
    assert names == NAMES
    for name in NAMES:
        for mixed in gallery.mixed_pairs(name, IMAGES, (0.3, 0.6)):
            assert f"{mixed.lam[0].item():.2f} own" in texts
    bars = [patch for axes in figure.axes for patch in axes.patches]
    own, partner = (sum(bar.get_width() for bar in bars[start::2]) for start in (0, 1))
    assert own + partner == pytest.approx(2 * len(NAMES))


def test_tool_writes_the_sheet_and_a_strip_for_each(tool, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "all.png"), "--strips", str(tmp_path / "one"), "--size", "32"]
    assert tool.main([*arguments, "--policies", "mixup", "cutmix"]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["all.png", "cutmix.png", "mixup.png"]
    assert tool.main([*arguments, "--policies", "cutmx"]) == 2
    assert "Did you mean 'cutmix'" in capsys.readouterr().err


def test_photographs_are_real_and_square():
    images = gallery.photographs(40)
    assert images.shape == (2, 3, 40, 40)
    assert images.dtype == torch.uint8
    assert images.float().std() > 20
