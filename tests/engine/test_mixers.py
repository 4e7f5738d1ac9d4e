"""What a run's mixer has learned: masks and loss beside a fresh one's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from mixaug.engine import run
from mixaug.engine.mixers import mask_reports
from mixaug.engine.pictures import open_run
from mixaug.engine.train import train
from processes import run_script

Tiny = Callable[..., DictConfig]
TOOL = Path(__file__).parents[2] / "tools" / "mixer.py"


def test_masks_of_a_run_and_of_a_fresh_mixer(tiny: Tiny) -> None:
    config = tiny("policy=automix", "model=cifar_resnet8", "+model.output_stride=2", "policy.upsampling=bilinear")
    train(config)
    folder = run.run_folder(config)
    opened = open_run(folder, "cpu")
    block = opened.step.policy.block
    with torch.no_grad():
        # The own share is sigmoid(-value): a large bias shows partners alone, whatever lambda is.
        block.value.weight.zero_()
        block.value.bias.fill_(3.0)
    before = torch.get_rng_state()
    trained = mask_reports(opened, 40, (0.2, 0.8))
    fresh = mask_reports(opened, 40, (0.2, 0.8), fresh=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert opened.step.policy.block is block
    assert [report.mean for report in trained] == pytest.approx([1 - torch.tensor(3.0).sigmoid().item()] * 2, abs=1e-5)
    assert max(report.within for report in trained) < 1e-5
    assert all(abs(report.mean - 0.5) < 0.05 for report in fresh)
    # The partner is nearly all that is seen: the copy likes it less, the more it is told that the own image is there.
    assert trained[0].loss != pytest.approx(trained[1].loss)
    assert mask_reports(opened, 40, (0.2, 0.8)) == trained
    done = run_script(TOOL, str(folder), "--samples", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| 0.") >= 5
    assert "epoch 2" in done.stdout


def test_a_run_without_such_a_mixer_is_named(tiny: Tiny) -> None:
    config = tiny("policy=cutmix")
    train(config)
    with pytest.raises(ValueError, match="CutMix has no mixer of AutoMix's kind"):
        mask_reports(open_run(run.run_folder(config), "cpu"))
    done = run_script(TOOL, str(run.run_folder(config)))
    assert done.returncode == 2
    assert "has no mixer of AutoMix's kind" in done.stderr
