"""Whose random numbers are whose: nothing but the model draws from the stream that a checkpoint carries for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from mixaug.engine import build, checkpoint, run, train
from mixaug.engine.batches import Batches
from mixaug.engine.config import compose
from mixaug.engine.distributed import World
from mixaug.engine.sources import SeededDraws
from mixaug.engine.state import Streams

Tiny = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training and 8 test images of 8 x 8 in two classes."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(pixels.randint(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def read(images: Path, tmp_path: Path) -> Tiny:
    """`read("policy=mixup", ...)`: 2 epochs of 4 batches, read from files, augmented, with dropout."""

    def make(*overrides: str, root: Path | None = None) -> DictConfig:
        files = ("data=imagefolder", f"data.root={images}", "data.transform=cifar10_train", "data.image_size=8")
        ways = ("batch_size=4", "epochs=2", "checkpoint_every_steps=2", "+model.drop_rate=0.2", "threads=1")
        shown = ("device=cpu", "progress=false", f"root={root or tmp_path / 'runs'}")
        return compose([*files, *ways, *shown, *overrides])

    return make


def ended(config: DictConfig) -> dict[str, Any]:
    """What a run computed, from its last checkpoint."""
    state = checkpoint.load(run.run_folder(config) / "last.pt")
    return {key: state[key] for key in ("model", "policy", "optimizer", "streams", "position")} | {
        "losses": [(record["train_loss"], record["test_nll"]) for record in state["history"]]
    }


def same(one: Any, two: Any) -> bool:
    """Equal bit for bit, all the way down."""
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def stopped_after(monkeypatch: pytest.MonkeyPatch, config: DictConfig, saves: int) -> None:
    """Let a run die right behind its checkpoint of this number."""
    really, done = train._save, [0]

    def save(*arguments: Any) -> None:
        really(*arguments)
        done[0] += 1
        if done[0] == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_save", save)
        with pytest.raises(KeyboardInterrupt):
            train.train(config)


WAYS = [
    # AutoMix is read without workers, and this with them.
    pytest.param(("policy=mixup",), 0, (2,), id="mixup", marks=pytest.mark.slow),
    pytest.param(("policy=mixup",), 2, (3,), id="mixup, two workers"),
    pytest.param(("policy=automix",), 0, (1,), id="automix"),
    pytest.param(
        ("policy=automix", "ema.decay=0.9"), 2, (1, 2, 3, 4), id="automix, two workers", marks=pytest.mark.slow
    ),
    pytest.param(("policy=samix", "accumulate=2"), 2, (1, 2, 3, 4), id="samix, two workers", marks=pytest.mark.slow),
    pytest.param(("policy=adamixup",), 2, (1, 2, 3, 4), id="adamixup, two workers", marks=pytest.mark.slow),
    pytest.param(
        ("policy=cutmix", "data.test_transform=cifar10_train"),
        2,
        (1, 2, 3, 4),
        id="random tests",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("overrides", "workers", "stops"), WAYS)
def test_data_read_from_files_resumes_bit_identical_whatever_reads_it(
    read: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    workers: int,
    stops: tuple[int, ...],
) -> None:
    """Dropout, and a stop behind each checkpoint: in the middle of epochs (1, 3) and at their ends (2, 4)."""
    whole = read(*overrides, root=tmp_path / "whole")  # without workers
    train.train(whole)
    expected = ended(whole)
    for stop in stops:
        broken = read(*overrides, f"workers={workers}", root=tmp_path / f"stopped{stop}")
        stopped_after(monkeypatch, broken, stop)
        train.train(broken)
        assert same(ended(broken), expected), stop


class DrawsEverywhere(nn.Module):
    """A model of one's own that draws from each global generator in its forward."""

    num_features = 4

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.layer(images.flatten(1))
        if self.training:
            numpy = np.random.randn()  # noqa: NPY002
            outputs = outputs * (1 + torch.rand(()) + random.random() + random.gauss(0, 1) + numpy)
        return outputs


def test_a_model_that_draws_from_python_and_numpy_resumes_them(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_model", lambda config, data: DrawsEverywhere())
    whole, broken = (
        tiny("checkpoint_every_steps=1", "policy=mixup", root=tmp_path / name) for name in ("whole", "broken")
    )
    train.train(whole)
    for stop in (1, 4):
        stopped_after(monkeypatch, broken, stop)
    train.train(broken)
    assert same(ended(whole), ended(broken))


def test_a_checkpoint_from_before_there_were_more_streams_is_taken(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("policy=mixup")
    stopped_after(monkeypatch, config, 1)
    path = run.run_folder(config) / "last.pt"
    state = checkpoint.load(path)
    del state["streams"]["python"], state["streams"]["numpy"]
    torch.save(state, path)
    train.train(config)
    whole = tiny("policy=mixup", root=tmp_path / "whole")
    train.train(whole)
    assert same(ended(whole)["model"], ended(config)["model"])


@pytest.mark.parametrize("policy", ["none", "cutmix", "puzzlemix", "automix", "adamixup"])
def test_nothing_but_the_model_draws_from_the_models_streams(read: Tiny, policy: str) -> None:
    """Without dropout they end as they began: reading, augmenting, mixing, scoring and saving have their own."""
    config = read(f"policy={policy}", "model.drop_rate=0", "data.test_transform=cifar10_train", "epochs=1")
    train.train(config)
    got = ended(config)["streams"]
    expected = Streams(0, World(0, 1, torch.device("cpu"))).state_dict()
    for name in ("cpu", "python", "numpy"):
        assert same(got[name], expected[name]), name
    assert not same(got["mixing"], expected["mixing"]) or policy == "none"


class DrawsOfEveryKind(torch.utils.data.Dataset[Any]):
    """A transform may draw from torch, Python or NumPy."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        numpy = np.random.rand()  # noqa: NPY002
        return torch.tensor([torch.rand(()), random.random(), numpy], dtype=torch.float64), index


def global_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002


def test_draws_of_a_sample_depend_on_seed_epoch_and_sample_alone() -> None:
    data = SeededDraws(DrawsOfEveryKind(), seed=3)
    before = global_states()
    alone = {key: data[key][0] for key in [(0, 2), (0, 3), (1, 2)]}
    assert global_states() == before
    assert len({tuple(value.tolist()) for value in alone.values()}) == 3
    for workers in (0, 1):
        loader = torch.utils.data.DataLoader(
            data, sampler=[(1, 2), (0, 3), (0, 2)], num_workers=workers, batch_size=None
        )
        for (image, _), key in zip(loader, [(1, 2), (0, 3), (0, 2)], strict=True):
            assert torch.equal(image, alone[key])
    other = SeededDraws(DrawsOfEveryKind(), seed=3, purpose="evaluation")[0, 2][0]
    assert not (other == alone[0, 2]).any()


def test_batches_are_the_same_for_any_number_of_workers_and_from_any_place(read: Tiny) -> None:
    def given(workers: int, first: int) -> list[Tensor]:
        config = read(f"workers={workers}")
        batches = Batches(config, build.load_data(config), World(0, 1, torch.device("cpu")))
        return [batch.inputs for batch in batches.epoch(1, first)]

    whole = given(0, 0)
    for workers, first in ((0, 2), (2, 1)):
        assert same(given(workers, first), whole[first:])
