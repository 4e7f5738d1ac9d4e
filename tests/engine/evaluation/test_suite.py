"""The suite over run folders: real runs, small ones, each number by another way where there is one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from mixaug.commands import evaluate
from mixaug.data import ArrayData, load
from mixaug.engine import run
from mixaug.engine.build import load_data
from mixaug.engine.config import compose, plain
from mixaug.engine.distributed import World
from mixaug.engine.errors import ConfigError, RunHeld
from mixaug.engine.evaluation import attack, corruption, datasets, families, suite
from mixaug.engine.evaluation.calibration import calibration, fit_temperature
from mixaug.engine.evaluation.draws import sample_order, sample_uniforms
from mixaug.engine.evaluation.subject import Split, Subject, Unavailable, outlier_images
from mixaug.engine.lock import RunLock
from mixaug.engine.reading import DamagedFile
from mixaug.engine.stored import evaluate_checkpoint
from mixaug.engine.train import train
from mixaug.loading import Normalize

NAMES = ("apple", "bottle", "cloud")


def write_sheets(root: Path) -> Path:
    """Pictures of three classes, 12 to train on and 4 to test, as one sheet of each class and split."""
    generator = np.random.default_rng(0)
    rows = ["label,name,coarse_label,coarse_name,train_pixels_sha256,test_pixels_sha256"]
    for label, name in enumerate(NAMES):
        rows.append(f"{label},{name},{label},{name},,")
        for split, side in (("train", 12), ("test", 4)):
            pixels = generator.normal(90 + 40 * label, 40, (32 * side // 4, 32 * 4, 3))
            pixels[..., label] += 40
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / f"{name}.webp", lossless=True)
    (root / "classes.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a finished run, and that of its data."""
    root = tmp_path_factory.mktemp("photos")
    data = write_sheets(root / "data")
    config = compose(
        [
            *("data=image_sheets", f"data.root={data}", f"root={root / 'runs'}", "policy=mixup"),
            *("batch_size=12", "epochs=2", "threads=1", "device=cpu", "progress=false"),
        ]
    )
    train(config)
    return run.run_folder(config), data


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images for what is dear."""
    monkeypatch.setattr(families, "MASKING_SAMPLES", 2)
    monkeypatch.setattr(families, "SHARES", (0.0, 0.5, 0.9))
    monkeypatch.setattr(attack, "STEPS", 2)


def test_all_families_of_a_run(photos: tuple[Path, Path], few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data = photos
    said: list[str] = []
    held_back = load("image_sheets", root=data).train
    assert isinstance(held_back, ArrayData)
    # With some labels wrong there is a temperature that fits best.
    noisy = torch.where(torch.arange(36) % 3 == 0, (held_back.labels + 1) % 3, held_back.labels)
    options: dict[str, Any] = {
        "device": "cpu",
        "outliers": {"name": "digits", "train_size": 10},
        "valid": (held_back.images, noisy),
        "say": said.append,
    }
    result = suite.evaluate_run(folder, **options)
    assert result == json.loads((folder / "evaluation.json").read_text())
    assert list(result["families"]) == list(families.FAMILIES)
    assert len(said) == len(families.FAMILIES) + 1
    assert said[-1].endswith("passes over the test images")
    found = {name: entry["numbers"] for name, entry in result["families"].items()}
    lacking = {name: set(families.HEADLINES[name]) - set(numbers) for name, numbers in found.items()}
    # These images have no masks of objects.
    assert lacking == {name: set() for name in found} | {
        "activation": {"object_share", "object_pointing", "object_area"}
    }

    scores = evaluate_checkpoint(folder, device="cpu")
    assert found["calibration"]["nll"] == pytest.approx(scores["nll"], abs=1e-5)
    assert found["calibration"]["ece"] == pytest.approx(scores["ece"], abs=1e-5)
    assert 100 * found["calibration"]["accuracy"] == pytest.approx(scores["top1"])
    assert found["attack"]["clean"] == pytest.approx(scores["top1"])
    assert result["families"]["occlusion"]["curves"]["mean"][0] == pytest.approx(scores["top1"])
    assert found["outliers"]["samples"] == 12
    assert found["corruption"]["mean_error"] == pytest.approx(
        np.mean(list(result["families"]["corruption"]["curves"].values()))
    )
    assert len(result["families"]["corruption"]["curves"]) == 15
    # A gradient counts three: clean, FGSM, two steps of PGD; in the check noise, and four times five times the steps.
    usual = 1 + (3 + 1) + (2 * 3 + 1)
    check = usual + 1 + 4 * (10 * 3 + 1) + 3
    assert result["families"]["attack"]["passes"] == pytest.approx(usual + check * 2 / 12, abs=0.01)
    assert result["families"]["corruption"]["passes"] == 75
    kept = list((folder.parent / "corrupted").iterdir())
    assert len(kept) == 1 and kept[0].name.startswith("image_sheets-")

    # The same command again takes nothing; another seed takes all but what was not asked for.
    def refuse(subject: Subject) -> families.Found:
        pytest.fail("taken a second time")

    with monkeypatch.context() as patch:
        patch.setattr(suite, "open_model", lambda *_: pytest.fail("opened a second time"))
        said.clear()
        assert suite.evaluate_run(folder, **options) == result
        assert said == [f"{folder.name}  {name}: done before" for name in families.FAMILIES]
    with monkeypatch.context() as patch:
        patch.setattr(suite, "FAMILIES", {**families.FAMILIES, "attack": refuse, "corruption": refuse})
        again = suite.evaluate_run(folder, "occlusion,attack", **options | {"seed": 0, "samples": None})
        assert again == result
        fewer = suite.evaluate_run(folder, ["calibration"], **options | {"samples": 7})
    assert fewer["families"]["calibration"]["samples"] == 7
    assert fewer["families"]["attack"] == result["families"]["attack"]
    assert suite.read_results(folder)["geometry"].numbers == found["geometry"]
    whole = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps({**whole, "config": "0123456789"}))
    with pytest.raises(DamagedFile, match="it is that of another run"):
        suite.read_results(folder)
    (folder / "evaluation.json").write_text(json.dumps(whole))


def test_corruptions_are_read_where_a_user_has_them(photos: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = photos
    labels = torch.arange(3).repeat_interleave(4)
    black = np.zeros((60, 32, 32, 3), np.uint8)
    for name in corruption.CORRUPTIONS:
        np.save(tmp_path / f"{name}.npy", black)
    np.save(tmp_path / "labels.npy", labels.repeat(5).numpy())
    found = suite.evaluate_run(folder, "corruption", device="cpu", corrupted=tmp_path, say=lambda _: None)
    numbers = found["families"]["corruption"]["numbers"]
    # A network that always sees the same picture is right for one class of three.
    assert numbers["mean_error"] == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match=r"for the whole test set; leave samples=9 out"):
        suite.evaluate_run(folder, "corruption", device="cpu", corrupted=tmp_path, samples=9, say=lambda _: None)


def test_what_cannot_be_taken_is_left_out_with_the_reason(tiny: Callable[..., DictConfig]) -> None:
    config = tiny("epochs=1")
    with pytest.raises(ConfigError, match="not the folder of a finished run: it is absent"):
        suite.evaluate_run(run.run_folder(config), "calibration")
    train(config)
    folder = run.run_folder(config)
    said: list[str] = []
    found = suite.evaluate_run(folder, "temperature,outliers,corruption", device="cpu", say=said.append)["families"]
    skipped = found["temperature"]["skipped"]
    assert skipped.startswith("data=digits has no validation split") and "a run with data.valid_share=0.1" in skipped
    assert found["outliers"]["skipped"].startswith("no second data set was named")
    assert found["corruption"]["skipped"].endswith("of 3x32x32, and data=digits has 1x8x8")
    assert suite.read_results(folder) == {}
    with pytest.raises(ValueError, match=r"suite expects each family in \['all', 'calibration'.*got 'colour'"):
        suite.evaluate_run(folder, "calibration,colour")
    with RunLock(folder) as lock:
        lock.take()
        with pytest.raises(RunHeld, match="one process at a time"):
            suite.evaluate_run(folder, "calibration", device="cpu")
    for content in ("{", '{"families": 3}'):
        (folder / "evaluation.json").write_text(content)
        said.clear()
        assert "calibration" in suite.evaluate_run(folder, "calibration", device="cpu", say=said.append)["families"]
        assert said[0].endswith("everything is taken anew")


def test_nothing_that_a_folder_names_is_run(tiny: Callable[..., DictConfig], tmp_path: Path) -> None:
    folder = tmp_path / "sent"
    folder.mkdir()
    proof = str(tmp_path / "executed")
    config = {**plain(tiny()), "data": {"_target_": "builtins.open", "file": proof, "mode": "w"}}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "result.json").write_text("{}")
    torch.save({"config_hash": "x"}, folder / "last.pt")
    with pytest.raises(ConfigError, match=r"data: builtins\.open"):
        suite.evaluate_run(folder, "calibration", device="cpu")
    assert not Path(proof).exists()


def test_results_of_anybody_are_numbers_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    numbers = {"ece": 0.1, "nll": None, "mce": "0", "rms": True, "ace": 1e400}
    curves = {"count": [1, 2], "edges": [0, "x"], "confidence": 3}
    entry = {"numbers": numbers, "curves": curves, "notes": ["one", 2], "settings": {"checkpoint": "a", "seed": 0}}
    told = {"calibration": entry, "colour": entry, "attack": 3, "geometry": {"skipped": "so"}}
    path.write_text(json.dumps({"families": told}))
    expected = suite.FamilyResult({"ece": 0.1}, {"count": [1, 2]}, ["one"], '{"seed": 0}')
    assert suite.read_results(tmp_path) == {"calibration": expected}
    path.write_text(json.dumps({"families": {"calibration": {"numbers": numbers}}}))
    with pytest.raises(DamagedFile, match="calibration: expected numbers, curves and settings"):
        suite.read_results(tmp_path)
    path.write_text('{"families": []}')
    with pytest.raises(DamagedFile, match="expected a mapping"):
        suite.read_results(tmp_path)
    with pytest.raises(FileNotFoundError):
        suite.read_results(tmp_path / "elsewhere")


class Pool(nn.Module):
    """Looks at rough features of an image; no training is needed to be right more often than not."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 4).flatten(1))
        return logits


@pytest.fixture
def subject(tiny: Callable[..., DictConfig]) -> Iterator[Callable[..., Subject]]:
    def make(*overrides: str, **options: Any) -> Subject:
        config = tiny(*overrides)
        data = load_data(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Pool(10)
        # The means of the classes make a classifier.
        images = data.train.inputs.float() / 255 - 0.3
        features = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        means = torch.stack([features[data.train.labels == k].mean(0) for k in range(10)])
        model.fc.weight.data, model.fc.bias.data = means * 8, -4 * means.square().sum(1)
        return Subject(model, config, data, World(0, 1, torch.device("cpu")), **options)

    yield make


def test_numbers_do_not_depend_on_the_size_of_a_batch(subject: Callable[..., Subject], few: None) -> None:
    for family in ("occlusion", "attack", "geometry"):
        small, large = (families.FAMILIES[family](subject(f"eval_batch_size={size}", samples=60)) for size in (7, 50))
        assert small.numbers == pytest.approx(large.numbers, rel=1e-5), family
        assert small.curves == large.curves


def test_the_part_of_a_test_set_is_drawn_once_and_keeps_its_order(subject: Callable[..., Subject]) -> None:
    whole, part, other = subject(), subject(samples=50), subject(samples=50, seed=1)
    assert len(whole.test) == 797 and len(part.test) == 50
    rows = [(whole.test.images == image).flatten(1).all(1).nonzero()[0, 0].item() for image in part.test.images]
    assert rows == sorted(rows)
    assert torch.equal(whole.test.labels[rows], part.test.labels)
    assert not torch.equal(part.test.images, other.test.images)


def test_occlusion_by_hand(subject: Callable[..., Subject], few: None) -> None:
    made = subject(samples=40)
    found = families.take_occlusion(made)
    split, partners = made.test, made.partners(made.test)
    assert (split.labels[partners] != split.labels).all()
    order = sample_order(torch.arange(40), 64, 0, "cells")[:, :32]
    pixels, others = (made.normalize(each) for each in (split.images, split.images[partners]))
    for name, fill in (("mean", torch.zeros_like(pixels)), ("foreign", others)):
        shown = pixels.flatten(2).clone()
        for row in range(40):
            shown[row][:, order[row]] = fill.flatten(2)[row][:, order[row]]
        right = (made.model(shown.view_as(pixels)).argmax(1) == split.labels).double().mean()
        assert found.curves[name][1] == pytest.approx(100 * right.item())
        assert found.numbers[f"{name}_half"] == found.curves[name][1]
    assert found.numbers["selectivity"] == pytest.approx(found.numbers["foreign_area"] - found.numbers["mean_area"])
    assert found.numbers["cell"] == 1


class Bright(nn.Module):
    """Sees class 0 where an image is bright and class 1 where it is dark, in cells of two pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2, 10)
        self.conv.weight.data = torch.tensor([0.25, -0.25])[:, None, None, None].repeat(1, 1, 2, 2)
        self.conv.bias = None
        self.fc.weight.data, self.fc.bias.data = torch.eye(10, 2), torch.zeros(10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.conv(images).relu()).flatten(1))
        return logits


def test_class_activation_on_halves_and_on_masks(subject: Callable[..., Subject]) -> None:
    base = subject("eval_batch_size=7")
    # Grey but for two columns, bright ones in class 0 and dark ones in class 1.
    labels = torch.arange(20) % 2
    images = torch.full((20, 1, 8, 8), 128, dtype=torch.uint8)
    images[:, :, :, :2] = torch.where(labels == 0, 255, 0).to(torch.uint8)[:, None, None, None]
    masks = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    masks[:, :, :, :2] = 1
    masks[3] = 0

    def made(masks: Tensor, **options: Any) -> Subject:
        data = dataclasses.replace(base.data, test=ArrayData(images, labels, {"object_mask": masks}))
        found = Subject(Bright(), base.config, data, base.world, **options)
        found.normalize = Normalize(128 / 255, 0.25, torch.float32)
        return found

    numbers = families.take_activation(made(masks)).numbers
    # Cells of 1, 0, 0, 0 are 1, 3/4, 1/4, 0, ... in pixels.
    assert numbers["object_share"] == pytest.approx(87.5, abs=0.01)
    assert (numbers["object_pointing"], numbers["object_area"], numbers["object_samples"]) == (100, 25, 19)
    # Where its own columns are covered, by the other class's, the map of a class is even.
    left = (sample_uniforms(torch.arange(20), (), 0, "half") < 0.5).double().mean().item()
    assert 0.2 < left < 0.8
    assert numbers["half_share"] == pytest.approx(100 * left + 50 * (1 - left), abs=0.01)
    assert numbers["half_pointing"] == pytest.approx(100 * left + 50 * (1 - left), abs=0.01)
    assert families.take_activation(made(masks, samples=5)).numbers["object_samples"] <= 5
    assert "object_share" not in families.take_activation(made(masks * 0)).numbers
    with pytest.raises(Unavailable, match=r"8x8 pixels, and metadata 'object_mask' has the shape \(20, 1, 8, 4\)"):
        families.take_activation(made(masks[..., :4]))
    without = subject(samples=5)
    without.model.fc = nn.Sequential(without.model.fc, nn.Identity())
    without.model.get_classifier = nn.Identity
    with pytest.raises(Unavailable, match="classifier"):
        families.take_activation(without)


def test_features_are_what_enters_the_last_layer(subject: Callable[..., Subject]) -> None:
    made = subject(samples=30)
    found = made.on_test
    assert found.features is not None
    torch.testing.assert_close(made.model.fc(found.features), found.logits)
    assert made.predicted == 30
    made.on_test  # noqa: B018 (asked for again, nothing is run)
    assert made.predicted == 30
    without = subject(samples=30)
    without.model.fc = nn.Sequential(without.model.fc, nn.Identity())
    without.model.get_classifier = nn.Identity
    assert without.on_test.features is None
    with pytest.raises(Unavailable, match="Pool has no linear classifier to be found"):
        families.take_geometry(without)
    without.outliers = made.test.images[:5]
    found_outliers = families.take_outliers(without)
    assert found_outliers.notes == ["mahalanobis and knn are left out: the model has no linear classifier to be found"]
    assert "knn_auroc" not in found_outliers.numbers


def test_too_few_images_leave_geometry_out(subject: Callable[..., Subject]) -> None:
    with pytest.raises(Unavailable, match="1 test images are too few: class_alignment expects"):
        families.take_geometry(subject(samples=1))
    lacking = subject(samples=20)
    split = lacking.data.train
    lacking.data = dataclasses.replace(lacking.data, train=ArrayData(split.inputs, split.labels.clamp_max(8)))
    for take in (families.take_geometry, families.take_outliers):
        lacking.outliers = lacking.test.images
        with pytest.raises(Unavailable, match=r"training set of data=digits: .* got none of \[9\]"):
            take(lacking)


def test_outliers_are_told_apart_and_the_same_images_are_not(subject: Callable[..., Subject]) -> None:
    made = subject(samples=100)
    made.outliers = made.test.images
    same = families.take_outliers(made)
    assert same.numbers["msp_auroc"] == pytest.approx(0.5)
    made.outliers = torch.full((50, 1, 8, 8), 255, dtype=torch.uint8)
    white = families.take_outliers(made)
    assert white.numbers["mahalanobis_auroc"] > 0.95
    for name in ("msp", "energy", "max_logit", "mahalanobis", "knn"):
        assert sum(white.curves[f"{name}_in"]) == pytest.approx(1, abs=0.03)


def test_a_temperature_is_fitted_on_the_validation_split_alone(subject: Callable[..., Subject]) -> None:
    made = subject(samples=200)
    made.valid = Split(made.data.train.inputs, made.data.train.labels)
    found = families.take_temperature(made).numbers
    plain = families.take_calibration(made).numbers
    inputs = made.normalize(made.valid.images)
    expected = fit_temperature(made.model(inputs).detach(), made.valid.labels)
    assert found["temperature"] == pytest.approx(expected, rel=1e-6)
    scaled = calibration(made.on_test.logits / expected, made.on_test.labels)
    assert found["ece"] == pytest.approx(scaled["ece"]) and found["ece"] != pytest.approx(plain["ece"])
    told = subject(samples=50)
    told.valid = Split(made.valid.images, made.predictions(made.valid).logits.argmax(1))
    with pytest.raises(Unavailable, match="no temperature between"):
        families.take_temperature(told)


def test_outlier_images_fit_the_run(tmp_path: Path) -> None:
    sheets = {"name": "image_sheets", "root": str(write_sheets(tmp_path))}
    found = outlier_images(sheets, (1, 8, 8), 100, 0)
    assert found.shape == (12, 1, 8, 8) and found.dtype == torch.uint8
    assert outlier_images(sheets, (3, 32, 32), 10, 0).shape == (10, 3, 32, 32)
    last = outlier_images({**sheets, "first_class": 2}, (3, 32, 32), 100, 0)
    assert len(last) == 4
    assert outlier_images({"name": "digits"}, (3, 32, 32), 3, 0).shape == (3, 3, 32, 32)
    with pytest.raises(ValueError, match="no class from 3 on: it has 3"):
        outlier_images({**sheets, "first_class": 3}, (3, 32, 32), 3, 0)
    with pytest.raises(ValueError, match="a set with numbers as labels"):
        outlier_images({"name": "diabetes"}, (3, 32, 32), 3, 0)


def test_runs_on_the_same_data_load_them_once(tiny: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    for name in ("load_data", "outlier_images"):
        original = getattr(datasets, name)

        def noted(*arguments: Any, name: str = name, original: Callable[..., Any] = original) -> Any:
            loaded.append(name)
            return original(*arguments)

        monkeypatch.setattr(datasets, name, noted)
    sets = datasets.DataSets(most=2)
    configs = [tiny(f"seed={seed}", f"policy={policy}") for seed in (0, 1) for policy in ("none", "mixup")]
    held = [sets.of_run(config) for config in configs]
    assert all(each is held[0] for each in held)
    spec = {"name": "digits", "train_size": 10}
    assert sets.outliers(spec, (3, 8, 8), 5, 0) is sets.outliers(dict(spec), (3, 8, 8), 5, 0)
    assert loaded == ["load_data", "outlier_images"]
    assert sets.outliers(spec, (3, 8, 8), 5, 1) is not sets.outliers(spec, (3, 8, 8), 5, 0)
    own = sets.of_run(tiny("seed=0", "data.valid_share=0.1", "data.split_seed=by_seed"))
    other = sets.of_run(tiny("seed=1", "data.valid_share=0.1", "data.split_seed=by_seed"))
    assert not torch.equal(own.train.labels, other.train.labels)


def test_regression_is_refused(tiny: Callable[..., DictConfig], tmp_path: Path) -> None:
    options = ["data=diabetes", "model=mlp", "objective=squared_error", "protocol=cmixup", "batch_size=16", "epochs=1"]
    config = compose([*options, "threads=1", "device=cpu", "progress=false", f"root={tmp_path}"])
    train(config)
    with pytest.raises(ConfigError, match="for classification, and data=diabetes has numbers as labels"):
        suite.evaluate_run(run.run_folder(config), "calibration", device="cpu", say=lambda _: None)


def tool(*arguments: str) -> int:
    try:
        return evaluate.main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def test_the_command_takes_every_finished_run_below_a_folder(
    tiny: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("epochs=1")
    train(config)
    folder = run.run_folder(config)
    below = str(folder.parent)
    given = ["--suite", "calibration,outliers", "--device", "cpu", "--samples", "50"]
    assert tool(below, *given, "--outliers", "digits", "train_size=20", "first_class=5") == 0
    assert f"{folder.name}  outliers: msp_auroc" in capsys.readouterr().out
    assert json.loads((folder / "evaluation.json").read_text())["families"]["outliers"]["settings"]["outliers"] == {
        "name": "digits",
        "train_size": "20",
        "first_class": "5",
    }
    assert tool(below, str(folder.parent / "none"), *given) == 1
    said = capsys.readouterr()
    assert "1 of 2 runs were not evaluated" in said.err and "it is absent" in said.err
    assert "calibration: done before" in said.out
    assert tool(below, *given, "--outliers", "digits", "train_size") == 2
    assert "options as NAME=VALUE, got 'train_size'" in capsys.readouterr().err
    assert tool(below, str(folder)) == 2
    assert "several runs take --suite" in capsys.readouterr().err
    assert tool(str(folder), "--samples", "5") == 2
    assert "--samples does nothing without --suite" in capsys.readouterr().err
