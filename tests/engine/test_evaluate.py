"""Scores against a slow twin in plain Python."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mixaug.engine import run
from mixaug.engine.distributed import World
from mixaug.engine.errors import CheckpointError
from mixaug.engine.evaluate import evaluate, predict
from mixaug.engine.evaluation.calibration import expected_calibration_error
from mixaug.engine.stored import evaluate_checkpoint
from mixaug.engine.train import train
from processes import run_script

CPU = torch.device("cpu")


def slow_scores(logits: Tensor, labels: Tensor) -> tuple[float, float, float, float]:
    """Top-1, top-5, negative log-likelihood and calibration error, one sample after the other, in float64."""
    top1 = top5 = 0
    nll = 0.0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        total = sum(map(math.exp, row))
        order = sorted(range(len(row)), key=lambda k: -row[k])
        top1 += order[0] == label
        top5 += label in order[:5]
        nll -= row[label] - math.log(total)
        confidence = math.exp(row[order[0]]) / total
        bins[min(int(confidence * 15), 14)].append((confidence, order[0] == label))
    count = len(labels)
    ece = sum(abs(sum(c for c, _ in b) - sum(hit for _, hit in b)) for b in bins) / count
    return 100 * top1 / count, 100 * top5 / count, nll / count, ece


@pytest.mark.parametrize("classes", [3, 5, 12])
@pytest.mark.parametrize("scale", [0.1, 4.0])
def test_scores_agree_with_the_slow_twin(classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(classes)
    # Small positive logits all lie in [0, 1], where a careless metric takes them for probabilities.
    logits = torch.rand(101, classes, generator=generator) * scale
    labels = torch.randint(classes, (101,), generator=generator)
    parts = [(logits[k : k + 40], labels[k : k + 40]) for k in range(0, 101, 40)]
    model = nn.Identity().train()
    scores = evaluate(model, parts, classes, CPU)
    expected = slow_scores(logits, labels)
    assert (scores.top1, scores.top5, scores.nll, scores.ece) == pytest.approx(expected, abs=2e-5)
    assert scores.samples == 101
    assert model.training


def test_recalls_and_the_worst_group_are_those_of_the_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.rand(120, 4, generator=generator), torch.arange(120) % 3  # there is no sample of class 3
    logits[torch.arange(120), labels] += 0.3
    groups = torch.randint(3, (120,), generator=generator) * 2  # nor of groups 1 and 3
    parts = [(logits[k : k + 50], labels[k : k + 50]) for k in range(0, 120, 50)]
    scores = evaluate(nn.Identity(), parts, 4, CPU, groups=groups, num_groups=5)
    right = logits.argmax(1) == labels
    recalls = [100 * float(right[labels == label].double().mean()) for label in range(3)]
    assert scores.mean_recall == pytest.approx(statistics.fmean(recalls))
    assert scores.min_recall == pytest.approx(min(recalls))
    assert scores.gmean_recall == pytest.approx(statistics.geometric_mean(recalls))
    assert scores.hmean_recall == pytest.approx(statistics.harmonic_mean(recalls))
    assert scores.worst_group == pytest.approx(min(100 * float(right[groups == g].double().mean()) for g in (0, 2, 4)))
    assert evaluate(nn.Identity(), parts, 4, CPU).worst_group is None
    # A class that is never found makes the two means zero, without a number that is none.
    never = evaluate(nn.Identity(), [(logits - 9 * nn.functional.one_hot(labels * 0, 4), labels)], 4, CPU)
    assert (never.min_recall, never.gmean_recall, never.hmean_recall) == (0, 0, 0)
    assert never.mean_recall > 0


def test_confidences_of_exactly_one_share_the_last_bin() -> None:
    # Sure and right, and a little less sure and wrong: in one bin the two gaps make up for each other in part.
    logits = torch.tensor([[200.0, 0, 0]] * 12 + [[3.2, 0, -9]] * 4)
    labels = torch.tensor([0] * 9 + [1] * 3 + [0] * 4)
    assert float(logits[0].softmax(0)[0]) == 1.0 and float(logits[12].softmax(0)[0]) > 14 / 15
    scores = evaluate(nn.Identity(), [(logits, labels)], 3, CPU)
    assert scores.ece == pytest.approx(slow_scores(logits, labels)[3], abs=1e-6)
    assert scores.ece == pytest.approx(float(expected_calibration_error(logits.double().softmax(1), labels)), abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_scored_as_it_predicts_and_learns_nothing_from_it(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4))
    inputs, labels, numbers = torch.randn(50, 6) * 3 + 1, torch.randint(4, (50,)), torch.randn(50, 4)
    model(inputs)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model.eval()(inputs)
    model.train(training)
    scores = evaluate(model, [(inputs[:30], labels[:30]), (inputs[30:], labels[30:])], 4, CPU)
    assert scores.nll == pytest.approx(nn.functional.cross_entropy(expected, labels).item(), rel=1e-5)
    predicted, found = predict(model, [(inputs[:30], numbers[:30]), (inputs[30:], numbers[30:])], World(0, 1, CPU))
    torch.testing.assert_close(predicted, expected)
    assert torch.equal(found, numbers)
    assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        evaluate(nn.Identity(), [], 3, CPU)


def test_the_tool_scores_a_run_as_the_run_did(tiny: Callable[..., DictConfig], root: Path) -> None:
    config = tiny()
    result = train(config)
    folder = run.run_folder(config)
    tool = root / "tools" / "evaluate.py"
    shown = run_script(tool, str(folder), "--device", "cpu")
    assert shown.returncode == 0, shown.stderr
    scores = json.loads(shown.stdout)
    assert (scores["top1"], scores["samples"]) == (result["top1_last"], 797)
    assert scores["nll"] == pytest.approx(result["nll_last"], abs=1e-6)
    missing = run_script(tool, str(folder / "no.pt"))
    assert missing.returncode == 2
    assert "no.pt" in missing.stderr
    with pytest.raises(CheckpointError, match="no averaged weights"):
        evaluate_checkpoint(folder, weights="ema", device="cpu")
    with pytest.raises(ValueError, match="weights must be"):
        evaluate_checkpoint(folder, weights="best", device="cpu")


def test_a_damaged_newest_checkpoint_of_a_folder_gives_way_to_the_one_before(
    tiny: Callable[..., DictConfig], root: Path
) -> None:
    config = tiny("epochs=2")
    train(config)
    folder = run.run_folder(config)
    newest = folder / "last.pt"
    before, whole = (evaluate_checkpoint(folder / name, device="cpu") for name in ("previous.pt", "last.pt"))
    assert before != whole
    changed = bytearray(newest.read_bytes())
    changed[len(changed) // 2] ^= 1
    newest.write_bytes(changed)
    with pytest.warns(RuntimeWarning, match=r"last\.pt cannot be read.*falling back to .*previous\.pt"):
        assert evaluate_checkpoint(folder, device="cpu") == before
    shown = run_script(root / "tools" / "evaluate.py", str(folder), "--device", "cpu")
    assert json.loads(shown.stdout) == before
    assert "falling back to" in shown.stderr
    # Whoever names the file means that file.
    with pytest.raises(CheckpointError, match="SHA-256 does not hold"):
        evaluate_checkpoint(newest, device="cpu")
    (folder / "previous.pt").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        evaluate_checkpoint(folder, device="cpu")
    newest.unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        evaluate_checkpoint(folder, device="cpu")
