"""accelerate in two processes: mixed batches, wrapped steps, and the Trainer's own wrapper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import mixaug
from processes import run_ranks

pytest.importorskip("accelerate", reason="needs accelerate")
SCRIPT = Path(__file__).with_name("accelerate_ranks.py")


def seen_by_both(*arguments):
    return json.loads(run_ranks(SCRIPT, *arguments).strip().splitlines()[-1])


def test_mixed_batches_and_steps_are_prepared():
    zero, one = seen_by_both()
    for name in ("map", "stream"):
        assert len(zero[name]) == len(one[name]) == 2
        assert not set(zero[name]) & set(one[name])
    assert "wrap the step, not the model" in zero["wrapped"]
    # The gradients were averaged: both have the same weights, though each mixed by a stream of its own.
    assert zero["trained"] == one["trained"] != zero["start"]
    assert zero["loss"] != one["loss"]


@pytest.mark.parametrize(("workers", "start"), [(0, None), (1, "fork"), (1, "spawn")])
def test_a_mixed_batch_that_would_be_dealt_out_is_refused_with_the_way_out(workers, start):
    from accelerate.data_loader import prepare_data_loader

    def dealt(num_classes):
        collate = mixaug.MixCollate(mixaug.create("cutmix"), num_classes)
        data = TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 5)
        loader = DataLoader(data, 4, collate_fn=collate, num_workers=workers, multiprocessing_context=start)
        return prepare_data_loader(loader, torch.device("cpu"), 1, 0, put_on_device=True, dispatch_batches=True)

    with pytest.raises(ValueError, match="dispatch_batches=False"):
        next(iter(dealt(None)))
    if start != "spawn":  # whose import of torch takes seconds
        assert [targets.shape for _, targets in dealt(5)] == [(4, 5), (4, 5)]


@pytest.mark.slow
def test_the_trainers_own_wrapper_is_looked_through():
    pytest.importorskip("transformers", reason="needs transformers")
    zero, one = seen_by_both("trainer")
    assert zero["puzzlemix"] == one["puzzlemix"] != zero["start"]
    assert "SUMix has parameters of its own, which the Trainer does not average over processes" in zero["sumix"]
