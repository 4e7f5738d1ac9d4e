"""What travels beside the training batch: streams, views, metadata; and steps of several passes and networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from helpers import THIN, interrupt
from mixaug import Batch, Objective, Passes
from mixaug.data import ArrayData, MappedData
from mixaug.engine import build, checkpoint, run
from mixaug.engine.batches import Batches
from mixaug.engine.config import compose
from mixaug.engine.distributed import World
from mixaug.engine.errors import ConfigError
from mixaug.engine.train import train
from mixaug.passes import Wants
from processes import in_two_processes

Tiny = Callable[..., DictConfig]
ALONE = World(0, 1, torch.device("cpu"))
OUTLIERS = ("+streams.outliers.data.name=digits", "+streams.outliers.data.train_size=70")


class Beside(Objective):
    """A clean pass, a mixed pass, outliers, a frozen teacher on the mixed batch and a slow copy on the second view."""

    wants = Wants(views=("second",), streams=("outliers",), networks=("teacher", "slow"))

    def forward(self, passes: Passes) -> dict[str, Tensor]:
        clean, mixed = passes.run(passes.clean, passes.mixed)
        outliers = passes.run(passes.stream("outliers"))
        teacher = passes.run(passes.mixed, network="teacher", grad=False)
        slow = passes.run(passes.view("second"), network="slow", grad=False)
        return {
            "clean": self.loss(clean.outputs, clean.batch),
            "mixed": 0.5 * self.loss(mixed.outputs, mixed.batch),
            "outliers": -0.1 * outliers.outputs.log_softmax(1).mean(),
            "teacher": 0.1 * F.mse_loss(mixed.outputs, teacher.outputs),
            "slow": 0.1 * F.mse_loss(clean.outputs, slow.outputs),
        }


def ways(teacher: Path) -> tuple[str, ...]:
    """The settings that bring what `Beside` wants, and the weights to start from; streams come from elsewhere."""
    slow = "+networks.slow={_target_: mixaug.networks.Momentum, momentum: 0.9}"
    from_run = (f"+networks.teacher={teacher}", f"init_from={teacher}")
    return ("policy=cutmix", "views=[second]", *from_run, slow, "ema.decay=0.9")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits."""
    root = tmp_path_factory.mktemp("teacher")
    shown = ("threads=1", "device=cpu", "progress=false", f"root={root}")
    config = compose(["data=digits", "data.train_size=50", "batch_size=25", "epochs=1", *THIN, *shown])
    train(config)
    return run.run_folder(config)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of 8 x 8 images in ten classes, 2 for training and 1 to test in each, and one of 7 other things."""
    folder, pixels = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for split, count in (("train", 2), ("val", 1), ("other", 1)):
        for name in range(7 if split == "other" else 10):
            (folder / split / str(name)).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(pixels.randint(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(folder / split / str(name) / f"{number}.png")
    return folder


def made(config: DictConfig, world: World = ALONE) -> Batches:
    return Batches(config, build.load_data(config), world, build.load_streams(config))


def ended(config: DictConfig) -> dict[str, Any]:
    """What a run computed, from its last checkpoint."""
    state = checkpoint.load(run.run_folder(config) / checkpoint.LAST)
    kept = {key: state[key] for key in ("model", "ema", "networks", "optimizer", "streams", "position")}
    losses = [{k: v for k, v in record.items() if k.startswith(("train_", "test_"))} for record in state["history"]]
    return {**kept, "losses": losses}


def same(one: Any, two: Any) -> bool:
    """Equal bit for bit, all the way down."""
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


# -- what a batch brings -----------------------------------------------------------------------------------------------


def test_a_stream_has_its_own_size_order_and_pace(tiny: Tiny) -> None:
    config = tiny(*OUTLIERS, "+streams.outliers.batch_size=10", "augment.crop_padding=0", "augment.flip=false")
    batches = made(config)
    images = build.load_streams(config)["outliers"].train
    given = [batch for epoch in range(4) for batch in batches.epoch(epoch)]  # 16 steps, 2 2/7 epochs of the stream
    places = []
    for batch in given:
        other = batch.streams["outliers"]
        assert (len(batch), len(other)) == (25, 10)
        assert torch.equal(other.labels, images.labels[other.rows])
        pixels = (images.images[other.rows].float() / 255 - batches.mean[0]) / batches.std[0]
        torch.testing.assert_close(other.inputs, pixels, atol=1e-5, rtol=1e-5)
        places.append(other.rows.tolist())
    epochs = [[row for rows in places[start : start + 7] for row in rows] for start in (0, 7)]
    assert all(sorted(rows) == list(range(70)) for rows in epochs)
    assert epochs[0] != epochs[1]
    # The training batches are those of a run without streams.
    without = made(tiny("augment.crop_padding=0", "augment.flip=false"))
    alone = [batch for epoch in range(4) for batch in without.epoch(epoch)]
    assert all(torch.equal(one.inputs, two.inputs) for one, two in zip(given, alone, strict=True))
    # Another name is another seed.
    renamed = [override.replace("outliers", "others") for override in OUTLIERS]
    other = next(iter(made(tiny(*renamed, "+streams.others.batch_size=10")).epoch(0))).streams["others"]
    assert other.rows.tolist() != places[0]


def test_two_processes_share_the_batches_of_a_stream(tiny: Tiny) -> None:
    def rows(size: int, batch: int, world: World) -> list[Tensor]:
        config = tiny(*OUTLIERS, f"+streams.outliers.batch_size={size}", f"batch_size={batch}")
        return [batch.streams["outliers"].rows for batch in made(config, world).epoch(0)]

    whole = rows(10, 24, ALONE)
    halves = [rows(5, 12, World(rank, 2, torch.device("cpu"))) for rank in (0, 1)]
    for number, expected in enumerate(whole):
        assert torch.equal(torch.cat([half[number] for half in halves]), expected)


def from_files(images: Path, root: Path, *overrides: str) -> DictConfig:
    """A run of 2 epochs with 5 batches each and a stream of 2 batches an epoch, all read from files."""
    files = ("data=imagefolder", f"data.root={images}", "data.transform=cifar10_train", "data.image_size=8")
    stream = (
        f"+streams.outliers.data={{name: imagefolder, root: {images}, train_folder: other, test_folder: other, "
        "transform: cifar10_train, test_transform: uint8, image_size: 8}"
    )
    sizes = ("batch_size=4", "+streams.outliers.batch_size=3", "epochs=2")
    shown = ("threads=1", "device=cpu", "progress=false", f"root={root}")
    return compose([*files, stream, *sizes, *shown, "views=[second]", *overrides])


def parts(batch: Batch) -> list[Tensor]:
    other = batch.streams["outliers"]
    return [batch.inputs, batch.labels, batch.rows, batch.views["second"], other.inputs, other.labels, other.rows]


def test_batches_with_all_that_travels_start_anywhere_whatever_reads_them(images: Path, tmp_path: Path) -> None:
    def given(workers: int, *firsts: int) -> list[list[list[Tensor]]]:
        batches = made(from_files(images, tmp_path, f"workers={workers}"))
        try:
            return [[parts(batch) for batch in batches.epoch(1, first)] for first in firsts]
        finally:
            batches.close()

    [whole] = given(0, 0)
    assert len(whole) == 5
    assert all(same(one, whole[first:]) for first, one in zip((3, 1), given(0, 3, 1), strict=True))
    assert all(same(one, whole[first:]) for first, one in zip((0, 2), given(2, 0, 2), strict=True))
    labels = [label for _, label in build.load_data(from_files(images, tmp_path)).train]
    seen = []
    for inputs, targets, rows, second, others, _, _ in whole:
        assert targets.tolist() == [labels[row] for row in rows]
        assert (inputs.shape, second.shape, others.shape) == ((4, 3, 8, 8), (4, 3, 8, 8), (3, 3, 8, 8))
        assert second.dtype == torch.float32
        assert not torch.equal(second, inputs)
        seen += rows.tolist()
    assert sorted(seen) == list(range(20))
    # Batches 6 and 7 of the run are epoch 3 of the stream: no image comes twice in it.
    assert len({*whole[1][-1].tolist(), *whole[2][-1].tolist()}) == 6


def test_a_view_is_another_augmentation_of_the_same_samples(tiny: Tiny) -> None:
    plain, viewed = made(tiny()), made(tiny("views=[second, third]"))
    images = viewed.data.train.images
    for one, two in zip(plain.epoch(2), viewed.epoch(2), strict=True):
        assert torch.equal(one.inputs, two.inputs)
        second, third = two.views["second"], two.views["third"]
        assert not torch.equal(second, third)
        # Each is a crop of the padded image, or of its mirror image.
        padded = F.pad(viewed._normalize()(images[two.rows]), (1, 1, 1, 1), value=-viewed.mean[0] / viewed.std[0])
        for view in (two.inputs, second, third):
            crops = [p[..., y : y + 8, x : x + 8] for p in (padded, padded.flip(3)) for y in range(3) for x in range(3)]
            close = torch.stack([(view - crop).abs().amax((1, 2, 3)) < 1e-4 for crop in crops])
            assert close.any(0).all()
    with pytest.raises(ConfigError, match=r"views=\['second'\] are further augmentations, but digits is not augmented"):
        made(tiny("views=[second]", "augment.crop_padding=0", "augment.flip=false"))


@pytest.mark.parametrize("overrides", [(), ("data.transform=uint8", "augment.crop_padding=0", "augment.flip=false")])
def test_metadata_travel_with_their_samples(tiny: Tiny, overrides: tuple[str, ...]) -> None:
    config = tiny(*overrides)
    data = build.load_data(config)
    held = data.train if data.in_memory else data.train.data
    known = {"domain": 7 * torch.arange(len(held)), "weight": torch.rand(len(held), 2)}
    train_part = ArrayData(held.images, held.labels, known)
    part = train_part if data.in_memory else MappedData(train_part, data.train.transform)
    batches = Batches(config, replace(data, train=part), ALONE)
    assert sorted(batches.metadata) == ["domain", "weight"]
    for batch in batches.epoch(0):
        assert torch.equal(batch.metadata["domain"], 7 * batch.rows)
        assert torch.equal(batch.metadata["weight"], known["weight"][batch.rows])
        assert torch.equal(batch.labels, held.labels[batch.rows])


def test_groups_of_a_table_are_its_domain(tmp_path: Path) -> None:
    rows = torch.arange(40)
    lines = ["x,y,state", *(f"{row},{row / 3},{row % 3}" for row in rows.tolist())]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    data = ("data=table", f"data.root={tmp_path / 'table.csv'}", "data.target=y", "data.group=state")
    config = compose([*data, "data.scaling=none", "protocol=cmixup", "model=mlp", "batch_size=8", "device=cpu"])
    for batch in made(config).epoch(0):
        assert torch.equal(batch.metadata["domain"], batch.inputs[:, 0].long() % 3)


# -- what is missing -------------------------------------------------------------------------------------------------


class Wanting(Objective):
    def __init__(self, wants: Wants) -> None:
        super().__init__()
        self.wants = wants

    def forward(self, passes: Passes) -> Tensor:
        raise AssertionError("a run of this objective must not begin")


@pytest.mark.parametrize(
    ("wants", "message"),
    [
        (
            Wants(streams=("outliers",)),
            r"wants 'outliers' of streams, there are \[\]: \+streams\.outliers\.data\.name=",
        ),
        (Wants(views=("second",)), r"wants 'second' of views, there are \[\]: views=\[second\]"),
        (Wants(networks=("slow",)), r"wants 'slow' of networks, there are \[\]: \+networks\.slow=<folder"),
        (Wants(metadata=("domain",)), r"wants 'domain' of metadata, there are \[\]: data that bring it, such as"),
    ],
)
def test_what_nobody_brings_is_named_with_the_setting(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wants: Wants, message: str
) -> None:
    monkeypatch.setattr(build, "build_objective", lambda config: Wanting(wants))
    with pytest.raises(ConfigError, match=message):
        train(tiny())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+streams.outliers.batch_size=3"], r"streams\.outliers needs data, such as \+streams\.outliers\.data\.name="),
        (["+streams.outliers.data.train_size=3"], r"streams\.outliers\.data needs the name of a data set"),
        ([*OUTLIERS, "+streams.outliers.batchsize=3"], r"unknown keys \['batchsize'\]; it takes data, batch_size"),
        ([*OUTLIERS, "+streams.outliers.batch_size=0"], r"streams\.outliers\.batch_size must be an integer"),
        ([*OUTLIERS, "+streams.outliers.augment.mean=0"], r"streams\.outliers\.augment takes crop_padding"),
        (["+streams={a-b: {data: {name: digits}}}"], r"letters, digits and _, got 'a-b'"),
        (["streams=3"], "streams must give each name its data, got 3"),
        (["views=second"], "views must be a list of names, got 'second'"),
        (["views=[a, a]"], "views must name each view once"),
        (["+networks.slow={momentum: 0.9}"], "networks must give each name the folder of a finished run, or what to"),
    ],
)
def test_settings_that_cannot_work_are_refused(tiny: Tiny, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(*overrides)


def test_a_stream_that_does_not_fit_is_named(tiny: Tiny, images: Path) -> None:
    with pytest.raises(ConfigError, match=r"streams\.outliers: 70 training samples give no batch"):
        made(tiny(*OUTLIERS, "+streams.outliers.batch_size=71"))
    with pytest.raises(ConfigError, match=r"streams\.o has inputs \(3, 8, 8\), but the model is for .* \(1, 8, 8\)"):
        made(tiny(f"+streams.o.data={{name: imagefolder, root: {images}, transform: uint8, image_size: 8}}"))


def test_a_network_from_a_target_draws_nothing_from_the_models_stream(tiny: Tiny) -> None:
    from mixaug.engine.stored import networks_of
    from mixaug.networks import Auxiliary, Momentum

    inner = "{_target_: mixaug.models.create, name: cifar_resnet8, num_classes: 3, in_chans: 1}"
    config = tiny(
        "+networks.slow={_target_: mixaug.networks.Momentum, momentum: 0.9}",
        f"+networks.beside={{_target_: mixaug.networks.Auxiliary, network: {inner}}}",
    )
    before = torch.get_rng_state()
    one, two = (networks_of(config, None) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(one["slow"], Momentum)
    assert one["slow"].momentum == 0.9
    assert isinstance(one["beside"], Auxiliary)
    assert same(dict(one["beside"].state_dict()), dict(two["beside"].state_dict()))


# -- a step of several passes and networks -----------------------------------------------------------------------------


def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build_objective", lambda config: Beside())


def test_a_run_of_many_passes_and_networks_resumes_to_the_bit(
    tiny: Tiny, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(monkeypatch)
    settings = (*ways(teacher), *OUTLIERS, "+streams.outliers.batch_size=10")
    whole = tiny(*settings, root=tmp_path / "whole")
    train(whole)
    expected = ended(whole)
    slow = expected["networks"]["slow.copied.fc.weight"]
    assert not torch.equal(slow, expected["model"]["fc.weight"])
    assert set(expected["losses"][0]) >= {"train_clean", "train_mixed", "train_outliers", "train_teacher", "train_slow"}
    broken = tiny(*settings, "checkpoint_every_steps=1", root=tmp_path / "broken")
    for stop in (2, 3):  # in the first epoch, then in the second one
        with monkeypatch.context() as patch:
            interrupt(patch, after=stop)
            with pytest.raises(KeyboardInterrupt):
                train(broken)
    train(broken)
    assert same(ended(broken), expected)


class Outliers(Objective):
    """A joined pass of a mixed batch and a view, and one of outliers."""

    wants = Wants(views=("second",), streams=("outliers",))

    def forward(self, passes: Passes) -> dict[str, Tensor]:
        mixed, second = passes.run(passes.mixed, passes.view("second"), joined=True)
        others = passes.run(passes.stream("outliers"))
        return {
            "mixed": self.loss(mixed.outputs, mixed.batch),
            "second": second.outputs.square().mean(),
            "even": -others.outputs.log_softmax(1).mean(),
        }


def test_streams_read_from_files_resume_to_the_bit_whatever_reads_them(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_objective", lambda config: Outliers())
    settings = ("policy=mixup", "+model.drop_rate=0.2")
    whole = from_files(images, tmp_path / "whole", *settings)
    train(whole)
    for workers in (0, 2):
        ways = (*settings, "checkpoint_every_steps=7", f"workers={workers}")
        broken = from_files(images, tmp_path / f"broken{workers}", *ways)
        with monkeypatch.context() as patch:
            interrupt(patch, after=7)
            with pytest.raises(KeyboardInterrupt):
                train(broken)
        train(broken)
        assert same(ended(broken), ended(whole)), workers


@pytest.mark.slow
def test_a_compiled_run_of_many_passes_trains_as_an_eager_one(
    tiny: Tiny, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(monkeypatch)
    # From fresh weights: those of a run would make more of the last bits in which the two differ.
    settings = (*ways(teacher), "init_from=null", *OUTLIERS, "+streams.outliers.batch_size=10")
    eager, compiled = (tiny(*settings, f"compile={way}", root=tmp_path / way) for way in ("false", "true"))
    train(eager)
    train(compiled)
    one, other = ended(eager), ended(compiled)
    for key in ("model", "networks"):
        assert one[key].keys() == other[key].keys()
        for name, value in one[key].items():
            torch.testing.assert_close(other[key][name], value, rtol=1e-3, atol=1e-4, msg=name)


def two_processes_stay_alike(rank: int, folder: Path, root: Path) -> None:
    """Both processes end with the same weights, slow copies included, and a resumed run with those of a whole one."""
    with pytest.MonkeyPatch.context() as patch:
        beside(patch)
        digits = ("data=digits", "data.train_size=84", "batch_size=10", "epochs=2")
        shown = (*digits, *THIN, "threads=1", "device=cpu", "progress=false")
        settings = (*ways(folder), *OUTLIERS, "+streams.outliers.batch_size=10", *shown, "checkpoint_every_steps=1")
        whole, broken = (compose([*settings, f"root={root / name}"]) for name in ("whole", "broken"))
        train(whole)
        with pytest.MonkeyPatch.context() as stop:
            interrupt(stop, after=6)
            with pytest.raises(KeyboardInterrupt):
                train(broken)
        train(broken)
    torch.distributed.barrier()
    one, other = ended(whole), ended(broken)
    assert same(one, other)
    assert one["position"]["step"] == 10


@pytest.mark.slow
def test_two_processes_of_many_passes_resume_to_the_bit(teacher: Path, tmp_path: Path) -> None:
    in_two_processes(two_processes_stay_alike, teacher, tmp_path)
