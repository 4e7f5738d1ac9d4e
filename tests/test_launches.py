"""Launches on a GPU, counted without one, stay within tools/speed/launches.csv."""

import dataclasses
import re

import pytest
import torch
from torch import nn

import mixaug
from helpers import ours, seeded
from mixaug import MixStep, losses
from mixaug.loading import ResidentLoader
from mixaug.losses import MixedCrossEntropy, mixed_accuracy, mixed_cross_entropy
from mixaug.policies import NoMix
from speed import launches, page

BOUNDS = launches.read_bounds()
SIDE = 32


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in launches.cases()])
def test_a_policy_launches_no_more_than_its_bound(case):
    counted = launches.of_policy(case, SIDE, batch=24)
    assert 0 < counted.total <= BOUNDS[case.name, SIDE], counted.counts.most_common(12)


def test_every_policy_and_size_has_a_bound():
    names = {case.name for case in launches.cases()}
    assert {case.policy for case in launches.cases()} == set(ours())
    assert set(BOUNDS) == {(name, side) for name in names for side in launches.SIDES} | {
        ("step of none", 0),
        ("step of mixup", 0),
    }


@pytest.mark.parametrize("policy", ["none", "mixup"])
def test_a_step_launches_no_more_than_its_bound(policy):
    counted = launches.of_step(policy, batch=24)
    assert 5 <= counted.total <= BOUNDS[f"step of {policy}", 0], counted.counts


def test_a_value_is_read_once_and_written_once_on_its_way_to_the_model():
    form = {"mean": (0.5, 0.4, 0.3), "std": 0.2, "dtype": torch.bfloat16, "memory_format": torch.channels_last}
    shape = (64, 3, SIDE, SIDE)
    with launches.pretended_cuda():
        images, labels = torch.empty(shape, dtype=torch.uint8), torch.empty(64, dtype=torch.int64)
        loader = ResidentLoader(images, labels, 64, device="cuda", crop_padding=4, flip=True, **form)
        # Mean and std are brought to the device once.
        normalised = loader.normalize(images)
        flips, offsets = torch.empty(64, dtype=torch.bool), torch.empty(64, 2, dtype=torch.int64)
        with launches.Launches() as plain:
            loader.normalize(images)
        with launches.Launches() as windows:
            loader._batch(slice(0, 64), labels, offsets, flips)
        policy = mixaug.create("mixup")
        with launches.Launches() as mixed:
            policy(normalised, labels)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    values = normalised.numel()
    # A byte comes, two go; the blend gets its batch once and reads it twice, so that two bytes are to be added.
    assert (1 + 2) * values <= plain.bytes < 3.01 * values, plain.counts
    assert (1 + 2) * values <= windows.bytes < 3.1 * values, windows.counts
    assert (2 + 2) * values <= mixed.bytes < 4.1 * values, mixed.counts


def test_the_table_fails_where_a_bound_is_passed(capsys, monkeypatch):
    assert launches.main(["--cases", "mixup", "step of none", "--sides", "32"]) == 0
    assert "| mixup | 32 | 10 | 10 |" in capsys.readouterr().out
    monkeypatch.setattr(launches, "read_bounds", lambda: {("mixup", 32): 9})
    assert launches.main(["--cases", "mixup", "--sides", "32", "--operators"]) == 1
    shown = capsys.readouterr().out
    assert "| mixup | 32 | 10 | 9 passed |" in shown
    assert "|  | sort | 1 | |" in shown


def test_a_case_that_there_is_not_is_refused_with_the_near_ones(capsys):
    for name, hint in (
        ("mixupp", "did you mean 'mixup'?"),
        ("supermix", "did you mean 'supermix 1' or 'supermix 2'?"),
        # A step on vectors has no pixels to cut.
        ("step of cutmix", "there is step of none, step of mixup, "),
        ("nothing", "there is step of none, "),
    ):
        with pytest.raises(SystemExit) as ended:
            launches.main(["--cases", "cutmix", name, "--sides", "32"])
        said = capsys.readouterr()
        assert ended.value.code == 2 and f"there is no case {name!r}; {hint}" in said.err
        assert said.out == ""
    assert launches.main(["--cases", "step of mixup"]) == 0
    assert "| step of mixup |" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cpu", "traced"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignored", [0, 3])
def test_samples_that_nothing_is_mixed_into_are_cheap_and_the_same(ignored, reduction, device, monkeypatch):
    if device == "traced":
        monkeypatch.setattr("mixaug.losses.cross_entropy.can_read", lambda tensor: False)
    labels = torch.randint(0, 7, (12,), generator=seeded(0))
    labels[:ignored] = -100
    mixed = mixaug.create("none")(torch.rand(12, 3, 4, 4, generator=seeded(1)), labels)
    logits = torch.randn(12, 7, generator=seeded(2))
    results = []
    for short in (True, False):
        own = logits.clone().requires_grad_()
        if short:
            loss = MixedCrossEntropy(reduction=reduction)(own, mixed)
            accuracy = mixed_accuracy(own, mixed)
        else:
            # Copies are not known to be the plan's.
            sources, weights = mixed.sources.clone(), mixed.weights.clone()
            loss = mixed_cross_entropy(own, labels, sources, weights, reduction=reduction)
            accuracy = mixed_accuracy(own, mixaug.MixedBatch(mixed.inputs, labels, sources, weights))
        loss.sum().backward()
        results.append((loss.detach(), own.grad, accuracy))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(
            got, wanted, rtol=0 if device == "cpu" else 1e-6, atol=0 if device == "cpu" else 1e-7
        )
    assert results[0][2] == (logits.argmax(1) == labels).sum() / (labels >= 0).sum()


def test_other_weights_than_the_plan_s_count():
    labels = torch.tensor([0, 1, 1])
    mixed = mixaug.create("none")(torch.rand(3, 3, 4, 4, generator=seeded(0)), labels)
    halved = mixaug.MixedBatch(mixed.inputs, labels, mixed.sources, mixed.weights / 2, mixed.plan)
    logits = torch.randn(3, 2, generator=seeded(1))
    torch.testing.assert_close(MixedCrossEntropy()(logits, halved), MixedCrossEntropy()(logits, mixed) / 2)


def test_no_label_is_ignored_where_none_can_be():
    labels = torch.tensor([0, -100, 1])
    logits = torch.randn(3, 2, generator=seeded(1))
    for policy in ("none", "mixup"):
        mixed = mixaug.create(policy)(torch.rand(3, 3, 4, 4, generator=seeded(0)), labels, generator=seeded(2))
        with pytest.raises(ValueError, match=r"class ids in \[0, 2\); got -100"):
            MixedCrossEntropy(ignore_index=None)(logits, mixed)
    with launches.pretended_cuda():
        step = MixStep(nn.Linear(64, 10), mixaug.create("mixup"), losses.MixedCrossEntropy(ignore_index=None))
        with launches.Launches() as counted:
            step(torch.empty(24, 64), torch.empty(24, dtype=torch.int64))
    assert counted.total <= 29, counted.counts


def test_a_result_that_does_not_lie_with_the_images_is_told(monkeypatch):
    really, weights = NoMix.forward, torch.ones(launches.BATCH, 2)
    monkeypatch.setattr(NoMix, "forward", lambda *a, **o: dataclasses.replace(really(*a, **o), weights=weights))
    with pytest.raises(RuntimeError, match=r"none leaves tensors of its result on \['cpu', 'cuda'\]"):
        launches.of_policy(launches.Case("none", "none"), SIDE)


def test_the_page_has_the_bound_of_every_case(root):
    text = (root / "docs" / "speed.md").read_text()
    begin, end = page.marks("launches")
    lines = [line.strip("| ").split(" | ") for line in text.split(begin)[1].split(end)[0].splitlines() if "|" in line]
    shown = {cells[0]: int(cells[1].strip(" |")) for cells in lines[2:]}
    assert shown == {name: most for (name, side), most in BOUNDS.items() if side in (0, SIDE)}


def test_the_table_of_the_page_tells_kernels_from_operators(monkeypatch, tmp_path):
    few = {key: BOUNDS[key] for key in (("mixup", SIDE), ("saliencymix", SIDE), ("saliencymix", 224))}
    monkeypatch.setattr(launches, "read_bounds", lambda: few)
    monkeypatch.setattr(launches, "PAGE", tmp_path / "speed.md")
    launches.PAGE.write_text("before\n{}\nold\n{}\nafter\n".format(*page.marks("launches")))
    assert launches.main(["--page"]) == 0
    text = launches.PAGE.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| mixup | 10 |  |" in text
    found = re.search(r"\| saliencymix \| 51 \| (\d+) \|", text)
    assert found is not None
    # The detector alone takes some fifty operators for each of its scales.
    assert int(found[1]) > 250
    assert text.count("saliencymix") == 1


def test_the_table_of_the_page_takes_no_other_arguments(capsys):
    with pytest.raises(SystemExit):
        launches.main(["--page", "--cases", "mixup"])
    assert "--page writes one table of all cases" in capsys.readouterr().err
