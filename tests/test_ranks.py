"""Two processes that were seeded alike mix differently, whatever the entrance."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import mixaug
from mixaug.streams import rank_generator
from processes import run_ranks


def test_ranks_that_were_seeded_alike_mix_differently():
    zero, one = json.loads(run_ranks(Path(__file__).with_name("ranks.py")).strip().splitlines()[-1])
    for name, images in zero["first"].items():
        assert images != one["first"][name], name
    # Restoring torch's generator, as checkpoints do, restores the draws of each rank.
    assert (zero["again"], one["again"]) == (zero["first"], one["first"])
    # What else draws from that generator, such as the seeds of workers, stays the same on all ranks.
    assert zero["left"] == one["left"]


def test_one_process_draws_from_torchs_own_generator(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rank_generator(torch.device("cpu")) is None
    policy, images = mixaug.create("mixup"), torch.rand(8, 1, 2, 2)
    torch.manual_seed(0)
    drawn = policy(images).lam
    expected = policy(images, generator=torch.Generator().manual_seed(0)).lam
    assert torch.equal(drawn, expected)


def test_a_worker_knows_the_rank_from_the_environment(monkeypatch):
    lams = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        torch.manual_seed(0)
        lams.append(mixaug.create("mixup")(torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(1))).lam)
    assert not torch.equal(*lams)
