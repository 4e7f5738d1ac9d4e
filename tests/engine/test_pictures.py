"""Pictures of a run under way, and of a run's folder."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from helpers import interrupt
from mixaug.engine import build, checkpoint, distributed, pictures, run
from mixaug.engine.batches import Batches
from mixaug.engine.config import compose, config_hash
from mixaug.engine.errors import ConfigError
from mixaug.engine.train import train
from mixaug.gallery import on_screen

Tiny = Callable[..., DictConfig]

PICTURED = ("tensorboard=true", "pictures_every_epochs=1")
VIT = (
    *("model=timm", "model.name=vit_tiny_patch16_224", "+model.img_size=8", "+model.patch_size=2"),
    *("+model.embed_dim=24", "+model.depth=1", "+model.num_heads=2"),
)


def kept(config: DictConfig) -> dict[str, Any]:
    """What a run computed, of its last checkpoint."""
    state = checkpoint.load(run.run_folder(config) / "last.pt")
    losses = [record["train_loss"] for record in state["history"]]
    names = ("model", "policy", "optimizer", "streams", "position")
    return {**{name: state[name] for name in names}, "losses": losses}


def assert_same(one: Any, two: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


def shown(config: DictConfig) -> list[Tensor]:
    """The pictures in a run's TensorBoard files, in their order: (3, H, W) uint8."""
    import io

    import numpy as np
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.run_folder(config) / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["mixed"]
    read = [np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) for event in events.Images("mixed")]
    return [torch.from_numpy(pixels.copy()).permute(2, 0, 1) for pixels in read]


@pytest.mark.parametrize(
    "overrides",
    [
        ("policy=snapmix", "+model.drop_rate=0.2", "ema.decay=0.9"),  # asks the model in training mode
        # Saliency is asked for in evaluation mode; attention is read as SnapMix reads its maps.
        pytest.param(("policy=puzzlemix", "policy.clean_weight=0.5"), marks=pytest.mark.slow),
        ("policy=cutmix", "data.transform=uint8", "augment.crop_padding=0"),  # read sample by sample
        pytest.param(("policy=smmix", *VIT), marks=pytest.mark.slow),
        # Drawn in evaluation mode, too; the tool below draws it.
        pytest.param(("policy=automix",), marks=pytest.mark.slow),
    ],
    ids=["snapmix", "puzzlemix", "from_files", "smmix", "automix"],
)
def test_pictures_change_nothing_that_a_run_computes(tiny: Tiny, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    plain, pictured = tiny(*overrides), tiny(*overrides, *PICTURED, root=tmp_path / "pictured")
    assert config_hash(plain) == config_hash(pictured)
    train(plain)
    train(pictured)
    assert_same(kept(plain), kept(pictured))
    first, second = shown(pictured)
    # The digits of 8 pixels are shown eight times as large, in rows: images, mixed ones, masks.
    assert first.shape == (3, 3 * 64, 8 * 64)
    assert torch.equal(first[:, :64], second[:, :64])
    assert not torch.equal(first[:, :64], first[:, 64:128])


def test_a_resumed_run_with_pictures_ends_bit_identical(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("policy=snapmix", "epochs=3", "checkpoint_every_steps=2")
    whole, broken = tiny(*overrides), tiny(*overrides, *PICTURED, root=tmp_path / "broken")
    train(whole)
    with monkeypatch.context() as patch:
        interrupt(patch, after=7)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    train(broken)
    assert_same(kept(whole), kept(broken))
    assert len(shown(broken)) == 3


def test_pictures_come_every_so_many_epochs_and_not_unasked(tiny: Tiny, tmp_path: Path) -> None:
    some = tiny("epochs=5", "tensorboard=true", "pictures_every_epochs=2", "policy=mixup")
    train(some)
    found = shown(some)
    assert len(found) == 2
    assert found[0].shape == (3, 2 * 64, 8 * 64)  # mixup has no mask
    assert torch.equal(found[0], found[1])  # mixup learns nothing
    none = tiny("tensorboard=true", root=tmp_path / "none")
    train(none)
    with pytest.raises(AssertionError):
        shown(none)


def test_a_picture_is_what_the_policy_makes_of_the_images(tiny: Tiny) -> None:
    config = tiny("policy=puzzlemix", *PICTURED)
    data = build.load_data(config)
    batches = Batches(config, data, distributed.start("cpu"))
    step = build.build_step(
        config,
        build.build_model(config, data),
        build.build_policy(config),
        build.build_objective(config),
        data,
    ).train()
    album = pictures.pictures_of(config, batches)
    assert album is not None
    drawn = album.draw(step)
    step.model.eval()
    seed = distributed.stream_seed(config.seed, "pictures/mixing")
    mixed = step.policy(album.images, album.labels, signals=step.model, generator=torch.Generator().manual_seed(seed))
    images = on_screen(mixed.inputs, batches.mean, batches.std)
    for number in range(8):
        columns = slice(64 * number, 64 * (number + 1))
        own = data.train.inputs[album.rows[number]] / 255
        torch.testing.assert_close(drawn[:, :64:8, columns][..., ::8], own.expand(3, -1, -1), rtol=0, atol=1e-6)
        torch.testing.assert_close(drawn[:, 64:128:8, columns][..., ::8], images[number], rtol=0, atol=1e-6)
        torch.testing.assert_close(drawn[0, 128::8, columns][..., ::8], mixed.mask[number, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("pictures_every_epochs=2",), "pictures_every_epochs=2 goes to TensorBoard: tensorboard=true"),
        (("tensorboard=true", "pictures_every_epochs=0"), "pictures_every_epochs must be an integer of at least 1"),
        ((*PICTURED, "experiment=diabetes"), r"pictures_every_epochs=1 needs images; diabetes has inputs \(10,\)"),
    ],
)
def test_pictures_that_cannot_be_are_refused_before_a_run_begins(
    tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train(compose([*overrides, f"root={tmp_path / 'runs'}", "progress=false", "device=cpu"]))
    assert not (tmp_path / "runs").exists()


def test_drawing_asks_no_other_process(tiny: Tiny) -> None:
    """Synchronised batch norm waits for the others in training mode only; SnapMix asks for a pass in that mode."""
    config = tiny("policy=snapmix", *PICTURED)
    data = build.load_data(config)
    batches = Batches(config, data, distributed.start("cpu"))
    model, objective = build.build_model(config, data), build.build_objective(config)
    step = build.build_step(config, model, build.build_policy(config), objective, data).train()
    seen = []
    for module in step.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda norm, inputs: seen.append(norm.training))
    album = pictures.pictures_of(config, batches)
    assert album is not None
    assert album.draw(step).shape == (3, 3 * 64, 8 * 64)
    assert seen
    assert not any(seen)
    batches.world = distributed.World(rank=1, size=2, device=torch.device("cpu"))
    assert pictures.pictures_of(config, batches) is None


@pytest.mark.slow
def test_with_two_processes_only_the_first_draws_and_nobody_waits(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = ("data=digits", "data.train_size=60", "batch_size=10", "epochs=2")
    overrides = [*digits, *VIT, *PICTURED, "policy=snapmix", "threads=1"]
    overrides += ["device=cpu", "progress=false", f"root={tmp_path}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(root / "tools" / "train.py"), *overrides],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        config = compose(overrides)
    assert len(list((run.run_folder(config) / "tensorboard").glob("events*"))) == 1
    assert len(shown(config)) == 2


# -- the sheet of a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tool(request: pytest.FixtureRequest) -> Any:
    spec = importlib.util.spec_from_file_location("gallery_tool", request.config.rootpath / "tools" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("overrides", "split"),
    [
        (("policy=puzzlemix", "ema.decay=0.9"), "test"),
        pytest.param(("policy=mixup", "pool=all", "augment.crop_padding=0"), "train", marks=pytest.mark.slow),
        # Attention goes the way of the saliency, and transmix has both attention and files.
        pytest.param(("policy=smmix", *VIT), "test", marks=pytest.mark.slow),
        (("policy=transmix", *VIT, "data.transform=uint8", "augment.crop_padding=0"), "train"),
        (("policy=automix",), "train"),
    ],
    ids=["puzzlemix", "pool", "smmix", "from_files", "automix"],
)
def test_tool_draws_a_run(tool: Any, tiny: Tiny, tmp_path: Path, overrides: tuple[str, ...], split: str) -> None:
    config = tiny(*overrides, "epochs=1")
    train(config)
    opened = pictures.open_run(run.run_folder(config), "cpu")
    state = checkpoint.load(run.run_folder(config) / "last.pt")
    assert_same(dict(opened.step.model.state_dict()), state["model"])
    assert_same(dict(opened.step.policy.state_dict()), state["policy"])
    out = tmp_path / "sheet.png"
    arguments = ["--run", str(run.run_folder(config)), "--out", str(out), "--samples", "3", "--split", split]
    assert tool.main([*arguments, "--device", "cpu"]) == 0
    assert out.stat().st_size > 5000


def test_samples_of_a_run_are_those_of_the_data(tiny: Tiny) -> None:
    config = tiny("epochs=1")
    train(config)
    opened = pictures.open_run(run.run_folder(config), "cpu")
    one, labels = opened.samples("test", 5, seed=3)
    two, _ = opened.samples("test", 5, seed=3)
    other, _ = opened.samples("test", 5, seed=4)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    every = opened.batches.data.test
    pixels = (on_screen(one, opened.batches.mean, opened.batches.std)[:, :1] * 255).round().to(torch.uint8)
    for image, label in zip(pixels, labels, strict=True):
        found = (every.images == image).flatten(1).all(1)
        assert label in every.labels[found]


def test_tool_says_what_is_wrong_with_a_run(
    tool: Any, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(folder: Path, *more: str) -> str:
        out = tmp_path / "sheet.png"
        assert tool.main(["--run", str(folder), "--out", str(out), "--device", "cpu", *more]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert "no config.yaml" in said(tmp_path / "nowhere")
    config = tiny()
    run.prepare(run.run_folder(config), config, torch.device("cpu"), 1)
    assert "has no checkpoint yet" in said(run.run_folder(config))
    (run.run_folder(config) / "last.pt").write_bytes(b"torn")
    assert "cannot be read" in said(run.run_folder(config))
    with pytest.raises(SystemExit, match="2"):
        said(run.run_folder(config), "--samples", "1")
    assert "argument --samples: expected a whole number of at least 2" in capsys.readouterr().err
    numbers = compose(["experiment=diabetes", "epochs=1", "progress=false", "device=cpu", f"root={tmp_path / 'runs'}"])
    train(numbers)
    assert "is a run in regression on diabetes" in said(run.run_folder(numbers))
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--run", str(tmp_path), "--policies", "mixup"])
