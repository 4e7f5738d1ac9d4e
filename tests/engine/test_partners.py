"""Partners from elsewhere in runs of the engine: streams, earlier batches, pairs of classes; resumed to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from helpers import interrupt, seeded
from mixaug.data import FileData, load
from mixaug.draws import Draws
from mixaug.engine import build, checkpoint, run
from mixaug.engine.batches import Batches
from mixaug.engine.config import compose
from mixaug.engine.distributed import World
from mixaug.engine.errors import ConfigError
from mixaug.engine.sources import Pool, Source
from mixaug.engine.train import train
from mixaug.loading import ResidentLoader
from mixaug.policies import SelMix
from mixaug.preparation import Inspection
from processes import in_two_processes

Tiny = Callable[..., DictConfig]
SETTINGS = {
    "recursivemix": ["policy=recursivemix"],
    "memory": ["policy=cutmix", "policy.partners={_target_: mixaug.partners.Memory, size: 40}"],
    "selmix": ["policy=selmix", "policy.refresh_every=3", "policy.measure=min_recall", "data.valid_share=0.3"],
    # Cropped anew each time, and the model looks at the partners, too.
    "pool": ["policy=snapmix", "pool=all"],
    "pool of files": ["policy=mixup", "pool=all", "augment.crop_padding=0", "data.transform=uint8"],
    "mixoe": [
        "policy=mixup",
        "policy.partners={_target_: mixaug.partners.Stream, name: outliers, label: uniform}",
        "objective=mixoe",
        "+streams.outliers.data.name=digits",
        "+streams.outliers.data.train_size=70",
    ],
    "selecmix": [
        "policy=selecmix",
        "objective=selecmix",
        "+networks.biased={_target_: mixaug.networks.Auxiliary, network: "
        "{_target_: mixaug.models.projector, dim: 8, hidden: 8, in_chans: 1}}",
    ],
    "cowa": ["policy=mixup", "objective=cowa"],
    "dualmix": ["policy=mixup", "objective=dualmix", "objective.size=30"],
    "ferkd": [
        "policy=selfmix",
        "policy.view=second",
        "views=[second]",
        "augment.crop_padding=1",
        "objective=ferkd",
        "+networks.teacher={_target_: mixaug.networks.Momentum, momentum: 0.5}",
    ],
}


def content(config: DictConfig) -> dict[str, Any]:
    return checkpoint.load(run.run_folder(config) / checkpoint.LAST)


def tensors(value: Any, place: str = "") -> dict[str, torch.Tensor]:
    """Every tensor in nested containers, by its place."""
    if isinstance(value, torch.Tensor):
        return {place: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: tensor for name, item in items for key, tensor in tensors(item, f"{place}/{name}").items()}


def assert_equal_states(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("model", "policy", "objective", "networks", "optimizer", "streams", "kept"):
        ours, theirs = tensors(one[part]), tensors(other[part])
        assert ours.keys() == theirs.keys(), part
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), part


#: What these keep is kept by others, too: rows of the pool by "pool of files", a second view, a momentum network and a
#: stream's place by test_sources.py, samples of earlier batches by "recursivemix".
OF_A_KIND_SEEN = ("pool", "ferkd", "memory", "mixoe")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in OF_A_KIND_SEEN else ()) for kind in SETTINGS]
)
def test_a_run_resumes_to_the_bit(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    overrides = SETTINGS[kind]
    whole, broken = tiny(*overrides), tiny(*overrides, "checkpoint_every_steps=5", root=tmp_path / "broken")
    assert train(whole)["status"] == "finished"
    with monkeypatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    train(broken)
    assert_equal_states(content(whole), content(broken))
    if kind in ("recursivemix", "memory"):
        assert tensors(content(whole)["kept"])


def test_the_validation_set_says_which_pairs_are_mixed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Inspection] = []
    before = SelMix.on_refresh

    def watched(policy: SelMix, inspection: Inspection) -> None:
        seen.append(inspection)
        before(policy, inspection)

    monkeypatch.setattr(SelMix, "on_refresh", watched)
    config = tiny(*SETTINGS["selmix"])
    train(config)
    # Two epochs of two steps: before the first step and before the fourth.
    steps = content(config)["position"]["update"]
    assert len(seen) == -(-steps // 3)
    assert {inspection.split for inspection in seen} == {"valid"}
    assert seen[0].outputs.shape == (30, 10)
    assert not torch.equal(seen[0].outputs, seen[-1].outputs)
    assert not torch.allclose(content(config)["policy"]["pairs"], torch.full((10, 10), 0.01))


def test_a_pool_is_read_and_augmented_as_batches_are() -> None:
    """Pixels of the rows as the generator's offsets say; from files the same images as from memory."""
    base = ["data=digits", "batch_size=20", "data.train_size=100", "device=cpu", "threads=1"]
    alone = World(0, 1, torch.device("cpu"))

    def pool_of(*overrides: str) -> tuple[Pool, Any]:
        config = compose([*base, *overrides])
        data = build.load_data(config)
        return Batches(config, data, alone).pool(), data

    rows = torch.tensor([5, 5, 7, 90])
    plain, data = pool_of("augment.crop_padding=0")
    assert not plain.augmented
    pixels = (data.train.images.float() / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(plain.inputs(rows), pixels[rows], rtol=1e-4, atol=1e-5)

    cropped, _ = pool_of("augment.crop_padding=2", "augment.flip=true")
    assert cropped.augmented
    got = cropped.inputs(rows, Draws(4, alone.device, seeded(3)))
    again = Draws(4, alone.device, seeded(3))
    offsets, flips = again.integers(0, 5, (2,)), again.uniform() < 0.5
    padded = torch.nn.functional.pad(data.train.images[rows].float(), (2, 2, 2, 2))
    for image, (top, left), flip, found in zip(padded, offsets.tolist(), flips, got, strict=True):
        window = image[:, top : top + 8, left : left + 8]
        window = window.flip(2) if flip else window
        torch.testing.assert_close(found, (window / 255 - data.mean[0]) / data.std[0], rtol=1e-4, atol=1e-5)
    assert not torch.equal(got[0], got[1])

    read, _ = pool_of("augment.crop_padding=0", "data.transform=uint8")
    assert read.augmented  # a transform may draw
    before = torch.get_rng_state()
    torch.testing.assert_close(read.inputs(rows, Draws(4, alone.device, seeded(3))), pixels[rows])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(read.labels, data.train.labels)


def test_pairings_by_group_look_into_a_pool() -> None:
    config = compose(["data=framed_photos", "policy=selective_mixup", "policy.label=same", "policy.group=domain",
                      "policy.relation=other", "pool=all", "device=cpu", "threads=1"])  # fmt: skip
    data = build.load_data(config)
    batches = Batches(config, data, World(0, 1, torch.device("cpu")))
    policy = build.with_pool(config, build.build_policy(config), batches)
    batch = next(batches.epoch(0))
    mixed = policy(batch, generator=seeded(1))
    partner, rows = mixed.sources[:, 1], mixed.plan.pool_rows
    # Of a class, 13 of 250 have the other frame: in the batch hardly any, in the set one for everybody.
    assert (partner >= len(batch)).all()
    assert torch.equal(data.train.labels[rows], batch.labels)
    assert torch.equal(data.train.metadata["domain"][rows], 1 - batch.metadata["domain"])


def test_batches_follow_the_weights_as_they_are() -> None:
    weights = torch.zeros(50)
    loader = ResidentLoader(
        torch.arange(50.0)[:, None], torch.arange(50), 8, with_rows=True, seed=3, weights=lambda labels: weights
    )
    weights[:5] = 1.0
    drawn = []
    for _, labels, rows in loader:
        assert torch.equal(labels, rows)
        drawn.append(rows)
        if len(drawn) == 3:
            weights = torch.zeros(50)
            weights[40:] = 1.0
    assert torch.cat(drawn[:3]).max() < 5
    assert torch.cat(drawn[3:]).min() >= 40
    assert len(torch.cat(drawn[:3]).unique()) == 5
    with pytest.raises(ValueError, match=r"weights \(50,\) floating of its function, got \(3,\)"):
        next(iter(ResidentLoader(torch.ones(50, 1), torch.arange(50), 8, weights=lambda labels: torch.ones(3))))


@pytest.mark.parametrize(("overrides", "message"), [
    (["policy=selmix"], "looks at a validation set, but data=digits has none: data.valid_share"),
    (["policy=mixup", "policy.partners={_target_: mixaug.partners.Stream, name: outliers}"],
     r"policy=mixup: the policy wants 'outliers' of streams, there are \[\]: \+streams.outliers.data.name"),
    (["policy=lisa"], r"policy=lisa: the policy wants 'domain' of metadata"),
    (["policy=cutmix", "policy.labeling=object", "augment.flip=true"],
     r"the policy wants 'object_mask' of metadata, there are \[\]: masks do not follow what moves images: augment"),
    (["policy=selecmix"], r"policy=selecmix: the policy wants 'biased' of networks, there are \[\]: \+networks.biased"),
    (["policy=mixup", "objective=selecmix", SETTINGS["selecmix"][2]], "the policy does not look at it"),
    (["policy=mixup", "objective=cowa", "policy.partners=previous"], "CoWA knows pseudo-labels of"),
    (["policy=mixup", "objective=mixoe", *SETTINGS["mixoe"][3:]], "MixOE expects a policy whose partners are outliers"),
    (["policy=recursivemix", "policy.partners=null"], "expects partners='previous'"),
    (SETTINGS["mixoe"][3:], "streams: neither objective=cross_entropy nor policy=none looks at outliers"),
    (["views=[second]", "augment.flip=true"], "views: neither objective=cross_entropy nor policy=none looks at second"),
])  # fmt: skip
def test_what_nobody_brings_is_named_before_the_folder_is_made(
    tiny: Tiny, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tiny(*overrides))
    assert not (tmp_path / "runs").exists()


def test_masks_of_objects_go_where_the_images_go() -> None:
    data = load("digits", train_size=20)
    for split in (data.train, data.test):
        assert torch.equal(split.metadata["object_mask"], split.images[:, 0] != 0)
    moved = load("digits", train_size=20, transform=lambda image: image.flip(-1), test_transform=lambda image: image)
    assert "object_mask" not in moved.train.metadata
    plain = {"crop_padding": 0, "padding_mode": "zeros", "flip": False}
    options: Any = {"seed": 0, "form": {"mean": 0.0, "std": 1.0}, "workers": 0}
    source = Source(data, 5, World(0, 1, torch.device("cpu")), augment=plain, **options)
    batch = next(source.epoch(0))
    assert torch.equal(batch.metadata["object_mask"], batch.inputs[:, 0] != 0)
    world = World(0, 1, torch.device("cpu"))
    assert not Source(data, 5, world, augment={**plain, "flip": True}, **options).metadata
    masks = {"object_mask": torch.zeros(5, 8, 8)}
    for transform, brought in ((lambda image: image, set()), (None, {"object_mask"})):
        files = FileData(["a.png"] * 5, [0] * 5, transform, masks)
        source = Source(dataclasses.replace(data, train=files), 5, world, augment=plain, **options)
        assert set(source.metadata) == brought


def two_processes(rank: int, root: Path) -> None:
    """Each process keeps batches of its own, and a resumed run ends as a whole one."""
    digits = ("data=digits", "data.train_size=100", "batch_size=12", "epochs=2")
    shown = (*digits, "threads=1", "device=cpu", "progress=false")
    overrides = ["policy=recursivemix", "checkpoint_every_steps=1", "world_size=2", *shown]
    configs = [compose([*overrides, f"root={root / name}"]) for name in ("whole", "broken")]
    train(configs[0])
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(KeyboardInterrupt):
            train(configs[1])
    train(configs[1])
    if rank == 0:
        whole, broken = (content(config) for config in configs)
        assert_equal_states(whole, broken)
        first, second = whole["kept"]
        assert not torch.equal(first["partners"]["inputs"], second["partners"]["inputs"])


@pytest.mark.slow
def test_two_processes_keep_their_own_batches(tmp_path: Path) -> None:
    in_two_processes(two_processes, tmp_path)
