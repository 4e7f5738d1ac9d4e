"""accelerate in two processes: mixed batches, wrapped steps, and the Trainer's own wrapper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_the_trainers_own_wrapper_is_looked_through():
    pytest.importorskip("transformers", reason="needs transformers")
    zero, one = seen_by_both("trainer")
    assert zero["puzzlemix"] == one["puzzlemix"] != zero["start"]
    assert "SUMix has parameters of its own, which the Trainer does not average over processes" in zero["sumix"]
