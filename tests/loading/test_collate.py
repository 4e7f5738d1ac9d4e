"""Mixing in workers: what comes out, and which random streams it comes from."""

from __future__ import annotations

import copy
import pickle
from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

import mixaug
from mixaug.loading import MixCollate


class Images(Dataset):
    """Images that are a function of their index, so that only mixing is random."""

    def __init__(self, count: int = 24, kind: str = "tuple") -> None:
        self.count, self.kind = count, kind

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        g = torch.Generator().manual_seed(index)
        image = torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=g)
        if self.kind == "dict":
            return {"pixel_values": image, "labels": index % 5, "id": index, "depth": image[:1].float()}
        if self.kind == "triple":
            return index % 5, image, index
        return image, index % 5


def batches(collate, *, workers: int = 0, epochs: int = 1, context: str | None = None, **options) -> list[list]:
    loader = DataLoader(
        Images(),
        batch_size=4,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0 and epochs > 1,
        multiprocessing_context=context,
        **options,
    )
    done = []
    for epoch in range(epochs):
        if collate.seed is not None:
            collate.set_epoch(epoch)
        done.append(list(loader))
    return done


def weights(epoch: list) -> Tensor:
    return torch.stack([mixed.weights for mixed in epoch])


def in_worker_loop(call, number: int):
    """Call as torch's loop of a worker does while it makes the batch of this number."""

    def _worker_loop(idx: int):
        return call()

    return _worker_loop(number)


@pytest.fixture
def policy():
    return mixaug.create("cutmix")


class TestOutput:
    def test_mixed_batch_is_the_policy_on_the_collated_batch(self, policy):
        samples = [Images()[i] for i in range(6)]
        mixed = MixCollate(policy)(samples)
        assert isinstance(mixed, mixaug.MixedBatch)
        images, labels = default_collate(samples)
        assert mixed.inputs.dtype == torch.uint8
        assert torch.equal(mixed.inputs, mixed.plan.mix(images))
        assert torch.equal(mixed.labels, labels)

    @pytest.mark.parametrize("name", ["none", "mixup", "cutmix", "deit"])
    def test_mixing_in_place_changes_nothing_but_memory(self, name):
        samples = [Images()[i] for i in range(6)]
        outs = [
            MixCollate(mixaug.create(name), collate=collate, seed=0)(samples)
            for collate in (default_collate, lambda s: default_collate(s))
        ]
        assert torch.equal(outs[0].inputs, outs[1].inputs)
        assert torch.equal(outs[0].weights, outs[1].weights)

    def test_samples_that_record_a_gradient_are_mixed_into_a_new_tensor(self, policy):
        samples = [(torch.rand(3, 8, 8, requires_grad=True), i) for i in range(4)]
        mixed = MixCollate(policy, seed=0)(samples)
        mixed.inputs.sum().backward()
        grads = torch.stack([image.grad for image, _ in samples])
        torch.testing.assert_close(grads.sum(0), torch.full((3, 8, 8), 4.0))

    def test_dense_targets(self, policy):
        samples = [Images()[i] for i in range(6)]
        images, targets = MixCollate(policy, 5, label_smoothing=0.1, seed=0)(samples)
        mixed = MixCollate(policy, seed=0)(samples)
        assert torch.equal(images, mixed.inputs)
        assert torch.equal(targets, mixed.targets(5, 0.1))
        torch.testing.assert_close(targets.sum(1), torch.ones(6))

    def test_samples_that_are_mappings(self, policy):
        samples = [Images(kind="dict")[i] for i in range(6)]
        plain = default_collate(samples)
        options = {"image_key": "pixel_values", "label_key": "labels", "keys": ("depth",), "seed": 0}
        mixed = MixCollate(policy, **options)(samples)
        assert set(mixed.inputs) == {"pixel_values", "id", "depth"}
        assert torch.equal(mixed.inputs["id"], plain["id"])
        assert torch.equal(mixed.inputs["depth"], mixed.plan.mix(plain["depth"]))
        batch = MixCollate(policy, 5, **options)(samples)
        assert list(batch) == list(plain)
        assert torch.equal(batch["pixel_values"], mixed.inputs["pixel_values"])
        assert torch.equal(batch["labels"], mixed.targets(5))

    def test_any_mapping_of_a_custom_collate(self, policy):
        collate = MixCollate(
            policy, 5, collate=lambda s: UserDict(default_collate(s)), image_key="pixel_values", label_key="labels"
        )
        assert collate([Images(kind="dict")[i] for i in range(6)])["labels"].shape == (6, 5)

    def test_tuples_in_another_order(self, policy):
        samples = [Images(kind="triple")[i] for i in range(6)]
        labels, images, ids = default_collate(samples)
        collate = MixCollate(policy, image_key=1, label_key=0, seed=0)
        mixed = collate(samples)
        assert torch.equal(mixed.labels, labels) and torch.equal(mixed.inputs[1], ids)
        assert torch.equal(mixed.inputs[0], mixed.plan.mix(images))
        batch = MixCollate(policy, 5, image_key=1, label_key=0, seed=0)(samples)
        assert torch.equal(batch[0], mixed.targets(5)) and torch.equal(batch[2], ids)
        assert torch.equal(batch[1], mixed.inputs[0])
        pair = MixCollate(policy, 5, image_key=1, label_key=0, seed=0)([s[:2] for s in samples])
        assert torch.equal(pair[0], mixed.targets(5)) and torch.equal(pair[1], mixed.inputs[0])

    def test_images_alone(self, policy):
        samples = [Images()[i][0] for i in range(6)]
        mixed = MixCollate(policy)(samples)
        assert mixed.labels is None and mixed.inputs.shape == (6, 3, 8, 8)
        with pytest.raises(ValueError, match="no labels"):
            MixCollate(policy, 5)(samples)

    def test_data_set_that_yields_batches(self, policy):
        ready = default_collate([Images()[i] for i in range(6)])
        loader = DataLoader([tuple(ready)], batch_size=None, collate_fn=MixCollate(policy, collate=default_convert))
        before = ready[0].clone()
        (mixed,) = loader
        assert mixed.inputs.shape == (6, 3, 8, 8)
        assert torch.equal(ready[0], before)

    def test_batch_of_one_is_unchanged(self, policy):
        mixed = MixCollate(policy)([Images()[0]])
        assert torch.equal(mixed.inputs[0], Images()[0][0])

    def test_mixed_batch_survives_pickle_and_the_worker_boundary(self, policy):
        mixed = MixCollate(policy, seed=0)([Images()[i] for i in range(6)])
        again = pickle.loads(pickle.dumps(mixed))
        assert torch.equal(again.inputs, mixed.inputs) and torch.equal(again.weights, mixed.weights)
        depth = torch.rand(6, 1, 8, 8)
        assert torch.equal(again.apply(depth), mixed.apply(depth))


class TestStreams:
    def test_default_follows_torchs_seed_and_differs_between_batches_epochs_and_ranks(self, policy, monkeypatch):
        def run(rank: str = "0") -> list[list]:
            monkeypatch.setenv("RANK", rank)
            torch.manual_seed(7)
            return batches(MixCollate(policy), epochs=2)

        first, again, other = run(), run(), run("1")
        assert torch.equal(weights(first[0]), weights(again[0]))
        assert torch.equal(weights(first[1]), weights(again[1]))
        assert not torch.equal(weights(first[0]), weights(first[1]))
        assert not torch.equal(weights(first[0]), weights(other[0]))
        assert len(weights(first[0]).flatten(1).unique(dim=0)) == 6  # batches

    def test_default_in_workers(self, policy, monkeypatch):
        def run(rank: str = "0") -> list[Tensor]:
            monkeypatch.setenv("RANK", rank)
            g = torch.Generator().manual_seed(7)
            loader = DataLoader(Images(), 4, collate_fn=MixCollate(policy), num_workers=2, generator=g)
            return [weights(list(loader)) for _ in range(2)]

        first, again, other = run(), run(), run("1")
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
        assert not torch.equal(first[0], first[1])  # epochs
        assert not torch.equal(first[0], other[0])  # ranks
        assert not torch.equal(first[0][0], first[0][1])  # workers

    @pytest.mark.filterwarnings("ignore:This DataLoader will create")
    @pytest.mark.parametrize("workers", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 3))])
    def test_seeded_is_the_same_for_any_number_of_workers(self, policy, workers):
        alone = batches(MixCollate(policy, seed=5), epochs=2)
        ours = batches(MixCollate(policy, seed=5), workers=workers, epochs=2)
        for epoch in range(2):
            assert torch.equal(weights(ours[epoch]), weights(alone[epoch]))
            for a, b in zip(ours[epoch], alone[epoch], strict=True):
                assert torch.equal(a.inputs, b.inputs)
        assert not torch.equal(weights(alone[0]), weights(alone[1]))

    def test_seeded_depends_on_nothing_else(self, policy):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        collate = MixCollate(policy, seed=5)
        samples = [Images()[i] for i in range(4)]
        collate.set_epoch(3)
        runs = [collate(samples).weights for _ in range(3)]
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        collate.set_epoch(3)
        assert all(torch.equal(collate(samples).weights, run) for run in runs)
        collate.set_epoch(3, first_batch=2)
        assert torch.equal(collate(samples).weights, runs[2])
        other = MixCollate(policy, seed=6)
        other.set_epoch(3)
        assert not torch.equal(other(samples).weights, runs[0])

    def test_seeded_ranks_differ(self, policy, monkeypatch):
        samples = [Images()[i] for i in range(4)]
        seen = []
        for rank in ("0", "1", "2"):
            monkeypatch.setenv("RANK", rank)
            collate = MixCollate(policy, seed=5)
            collate.set_epoch(0)
            seen.append(collate(samples).lam)
        assert len(torch.stack(seen).unique(dim=0)) == 3

    @pytest.mark.parametrize("workers", [0, 2])
    def test_forgotten_set_epoch_repeats_no_epoch(self, policy, workers):
        collate = MixCollate(policy, seed=5)
        loader = DataLoader(Images(), 4, collate_fn=collate, num_workers=workers)
        assert not torch.equal(weights(list(loader)), weights(list(loader)))

    @pytest.mark.filterwarnings("ignore:This DataLoader will create")
    def test_forgotten_set_epoch_repeats_no_batch_and_counts_over_all_workers(self, policy):
        def drawn(workers: int) -> Tensor:
            # The base seed of the workers comes from here; what is drawn must not tell how many there are.
            generator = torch.Generator().manual_seed(7)
            collate = MixCollate(policy, seed=5)
            return weights(list(DataLoader(Images(), 4, collate_fn=collate, num_workers=workers, generator=generator)))

        one, two, three = map(drawn, (1, 2, 3))
        assert torch.equal(one, two) and torch.equal(one, three)
        assert len(one.flatten(1).unique(dim=0)) == 6  # batches

    def test_the_number_of_a_batch_is_that_of_the_workers_loop(self, policy, monkeypatch):
        samples = [Images()[i] for i in range(4)]
        collate = MixCollate(policy, seed=5)

        def drawn(first_batch: int) -> Tensor:
            collate.set_epoch(3, first_batch=first_batch)
            return collate(samples).weights

        expected = [drawn(number) for number in (9, 1)]
        info = SimpleNamespace(id=1, num_workers=2, seed=8)
        monkeypatch.setattr("mixaug.loading.collate.get_worker_info", lambda: info)
        # A lasting worker may have made batches of a pass that was broken off, so that what it has counted is wrong.
        assert torch.equal(in_worker_loop(lambda: drawn(0), 9), expected[0])
        # A loop of another torch has no such name: the batches that were made are counted.
        assert torch.equal(drawn(0), expected[1])

    def test_set_epoch_reaches_a_copy_s_own_workers(self, policy):
        collate = copy.deepcopy(MixCollate(policy, seed=5))
        alone = batches(MixCollate(policy, seed=5), epochs=2)
        ours = batches(collate, workers=2, epochs=2)
        assert torch.equal(weights(ours[1]), weights(alone[1]))

    @pytest.mark.slow
    def test_spawned_workers_learn_the_rank_of_their_parent(self, policy, monkeypatch):
        collate = MixCollate(policy, seed=5)
        monkeypatch.setattr("mixaug.loading.collate.process_rank", lambda: 3)
        here = batches(MixCollate(policy, seed=5))
        monkeypatch.setenv("RANK", "0")
        there = batches(collate, workers=1, context="spawn")
        assert torch.equal(weights(here[0]), weights(there[0]))

    def test_progress_reaches_persistent_workers(self):
        collate = MixCollate(mixaug.Sometimes("cutmix", until=0.5), seed=0)
        loader = DataLoader(Images(), 4, collate_fn=collate, num_workers=2, persistent_workers=True)
        mixed = []
        for fraction in (0.0, 0.6):
            collate.set_epoch(int(fraction * 10))
            collate.set_progress(fraction)
            mixed.append(any(bool((batch.lam < 1).any()) for batch in loader))
        assert mixed == [True, False]


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_classes": 0}, "num_classes as an integer >= 1"),
            ({"num_classes": "10"}, "num_classes as an integer >= 1"),
            ({"num_classes": 10, "label_smoothing": "0.1"}, r"label_smoothing in \[0, 1\], got '0.1'"),
            ({"num_classes": 5, "label_smoothing": 1.5}, "label_smoothing in"),
            ({"label_smoothing": 0.1}, "pass num_classes"),
        ],
    )
    def test_options(self, policy, options, message):
        with pytest.raises(ValueError, match=message):
            MixCollate(policy, **options)

    def test_policies(self, policy):
        with pytest.raises(TypeError, match=r"mixaug\.create"):
            MixCollate("cutmix")
        policy.needs = frozenset({"saliency"})
        with pytest.raises(
            ValueError,
            match=r"saliency of the model; .* in Lightning as mix_step of MixBatchMixin",
        ):
            MixCollate(policy)

    def test_batches(self, policy):
        dicts = [Images(kind="dict")[i] for i in range(4)]
        with pytest.raises(ValueError, match=r"entries \['pixel_values', 'labels', 'id', 'depth'\]"):
            MixCollate(policy)(dicts)
        with pytest.raises(ValueError, match="no entry 'image'"):
            MixCollate(policy, image_key="image")(dicts)
        with pytest.raises(ValueError, match="no entry 'y'"):
            MixCollate(policy, image_key="pixel_values", label_key="y")(dicts)
        with pytest.raises(ValueError, match="no entry 'second'"):
            MixCollate(policy, image_key="pixel_values", keys=("second",))(dicts)
        with pytest.raises(ValueError, match="no entry 5"):
            MixCollate(policy, image_key=5)([Images()[0]])
        with pytest.raises(ValueError, match="images and labels only"):
            MixCollate(policy, keys=(2,))([Images()[i] for i in range(4)])
        with pytest.raises(TypeError, match="tensor of images, got list"):
            MixCollate(policy, collate=lambda s: ([1], [2]))([1])

    def test_an_error_in_a_worker_names_its_cause(self, policy):
        loader = DataLoader(Images(), 4, collate_fn=MixCollate(policy, 3), num_workers=1)
        with pytest.raises(ValueError, match=r"class ids in \[0, 3\)"):
            list(loader)

    def test_repr(self, policy):
        assert "seed=3" in repr(MixCollate(policy, seed=3))


def test_a_batch_is_told_from_samples_that_do_not_fit():
    collate = MixCollate(mixaug.create("mixup"))
    with pytest.raises(TypeError, match=r"hands it the list of the samples of a batch, got tuple: a batch that is put"):
        collate((torch.rand(4, 3, 8, 8), torch.arange(4)))
    for kind in (list, tuple):
        with pytest.raises(ValueError, match=r"of one size, got \(3, 8, 8\) and \(3, 9, 9\)"):
            collate(kind([(torch.rand(3, 8, 8), 0), (torch.rand(3, 9, 9), 1)]))
