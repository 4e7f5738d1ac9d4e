"""Every golden file in tests/golden, and, where the shared folder is there, every file with an adapter."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import mixaug
from golden import GOLDEN, replay
from golden_adapters import ADAPTERS

FILES = sorted(GOLDEN.glob("*.npz"))

#: Files of what no policy does: measures, corruptions, losses, objectives' own operations, and functions of one image.
WITHOUT_POLICY = (
    *("attack", "augmix_mix", "calibration", "cmixup_metrics", "corruptions", "cutmixpick", "decoupled"),
    *(
        "guidedmix_sr_large",
        "neural_collapse",
        "objective_mix_heads",
        "occlusion",
        "ood",
        "pixmix",
        "samix_lam_rescale",
    ),
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_against_reference(path, monkeypatch):
    made, really = [], mixaug.create
    monkeypatch.setattr(mixaug, "create", lambda *given, **options: made.append(given) or really(*given, **options))
    comparisons = replay(path)
    assert bool(made) != path.stem.startswith(WITHOUT_POLICY), "files of a policy go through create, only they"
    assert comparisons, "an adapter that compares nothing proves nothing"
    for what, got, expected, tolerance in comparisons:
        assert got.shape == expected.shape, what
        assert not got.requires_grad and not expected.requires_grad, what
        assert got is not expected, f"{what}: compared with itself"
        difference = (got.double() - expected.double()).abs().max().item() if got.numel() else 0.0
        assert difference <= tolerance, f"{what}: off by {difference}, tolerance {tolerance}"


def test_every_adapter_has_a_file():
    prefixes = {max((p for p in ADAPTERS if f"{path.stem}_".startswith(p + "_")), key=len) for path in FILES}
    assert prefixes == set(ADAPTERS)


def test_copies_equal_the_shared_files(shared):
    for path in FILES:
        assert path.read_bytes() == (shared / "golden" / path.name).read_bytes(), path.name


def test_a_wrong_result_is_noticed(tmp_path):
    path = GOLDEN / "mixup_elem_16x16.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["lam"] = 1 - arrays["lam"]
    np.savez(tmp_path / "mixup_wrong.npz", **arrays)
    what, got, expected, tolerance = replay(tmp_path / "mixup_wrong.npz")[0]
    assert (got - expected).abs().max() > 100 * tolerance, what


def test_unknown_method_is_named(tmp_path):
    with pytest.raises(LookupError, match=r"no adapter for strangemix_1.npz"):
        replay(tmp_path / "strangemix_1.npz")


def test_replay_works_from_another_folder(tmp_path):
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert replay(GOLDEN / "cutmix_boxes_16x16.npz")
    finally:
        os.chdir(before)
    assert torch.is_grad_enabled()


def test_what_the_readme_says_of_the_files_is_so():
    files = [path for path in FILES if not path.stem.startswith(WITHOUT_POLICY)]
    readme = (GOLDEN.parents[1] / "README.md").read_text()
    said = re.search(r"(\d+) files\s+of draws for (\d+) of the (\d+)", readme).groups()
    others = {"manifold_mixup": "manifoldmix", "timm": "deit", "prior_mixup": "manifoldmix", "midpoint_mixup": "mixup"}
    named = {next((new for old, new in others.items() if path.stem.startswith(old)), path.stem) for path in files}
    names = {name for name in mixaug.list_policies() if any(f"{stem}_".startswith(f"{name}_") for stem in named)}
    assert said == (str(len(files)), str(len(names)), str(len(mixaug.list_policies())))
