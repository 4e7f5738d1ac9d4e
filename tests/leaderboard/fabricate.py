"""Run folders as the engine leaves them, made up: shapes of curves, costs and faults as real runs have them."""

from __future__ import annotations

import json
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

from mixaug.engine.build import options
from mixaug.engine.config import compose, mixer_settings, plain

# Each policy has (gain in points, ms per step, MB).
POLICIES = {
    "none": (0.0, 41.0, 812.0),
    "mixup": (1.1, 42.5, 850.0),
    "cutmix": (1.9, 42.1, 838.0),
    "fmix": (1.6, 47.9, 861.0),
    "resizemix": (1.7, 43.3, 845.0),
    "deit": (1.5, 42.4, 850.0),
}


def result(policy: str = "none", seed: int = 0, top1: float = 90.0, **changes: Any) -> dict[str, Any]:
    """A complete result.json."""
    return {
        "status": "finished",
        "policy": policy,
        "policy_options": {},
        "model": "cifar_resnet8",
        "data": "digits",
        "data_options": {},
        "protocol": "default",
        "seed": seed,
        "epochs": 30,
        "top1_last": top1,
        "top1_best": top1 + 0.5,
        "top1_median10": top1 - 0.1,
        "top1_best10": top1 + 0.3,
        "top5_last": 99.0,
        "nll_last": 0.4,
        "ece_last": 0.03,
        "train_seconds": 12.0,
        "step_ms": 10.0,
        "peak_memory_mb": 400.0,
        "params": 78042,
        **changes,
    }


def config(told: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The part of a config.yaml that the leaderboard reads."""
    return {
        "root": "runs",
        "seed": told["seed"],
        "epochs": told["epochs"],
        "data": {"name": told["data"], **told["data_options"]},
        "model": {"name": told["model"]},
        "policy": {"name": told["policy"], **told["policy_options"]},
        "optimizer": {"opt": "momentum", "lr": 0.1, "weight_decay": 1e-4},
        "protocol": {"name": told["protocol"]},
        **changes,
    }


def agreeing(told: dict[str, Any], configured: dict[str, Any], **choices: Any) -> dict[str, Any]:
    """A whole config as the run had it that a result is of; ``choices`` are other names of files than its own."""
    changed = {
        "model": {**configured["model"], "name": told["model"]},
        "protocol": {**configured["protocol"], "name": told["protocol"]},
        "data": {"_target_": "mixaug.data.load", "name": told["data"], **told["data_options"]},
        "policy": {"_target_": configured["policy"]["_target_"], **told["policy_options"]},
        "choices": {**configured["choices"], "policy": told["policy"], **choices},
    }
    return {**configured, "seed": told["seed"], "epochs": told["epochs"], "pool": None, **changed}


def write_run(
    root: Path,
    told: dict[str, Any],
    *,
    name: str | None = None,
    configured: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    epochs: list[dict[str, Any]] | None = None,
    finished: bool = True,
) -> Path:
    """One run folder; JSON is valid YAML, so config.yaml is written as JSON."""
    folder = root / (name or f"{told['policy']}-{abs(hash(json.dumps(told, sort_keys=True))):016x}")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(configured if configured is not None else config(told)))
    default = {"versions": {"python": "3.12.4", "torch": "2.15.0"}, "device": "cpu", "threads": 1}
    (folder / "environment.json").write_text(json.dumps({**default, **(environment or {})}))
    if epochs:
        (folder / "epochs.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    if finished:
        (folder / "result.json").write_text(json.dumps(told))
    return folder


def fail(folder: Path, reason: str) -> None:
    """Turn a run folder into one of a failed run."""
    (folder / "result.json").unlink(missing_ok=True)
    told = {"status": "failed", "reason": reason, "step": 1203, "epoch": 7, "policy": "mixup"}
    (folder / "failure.json").write_text(json.dumps({**told, "last_good_checkpoint": "last.pt"}))


def curve(final: float, epochs: int, noise: random.Random) -> list[dict[str, Any]]:
    """Test accuracy that climbs from chance to ``final`` as a cosine schedule lets it."""
    lines = []
    for epoch in range(1, epochs + 1):
        share = 1 - math.exp(-3.2 * epoch / epochs) * 0.62 - 0.05 * (1 + math.cos(math.pi * epoch / epochs)) / 2
        top1 = final * share / (1 - math.exp(-3.2) * 0.62) + noise.gauss(0, 0.9) * (1 - 0.8 * epoch / epochs)
        lines.append(
            {
                "epoch": epoch,
                "train_loss": 2.0 * math.exp(-2 * epoch / epochs),
                "train_accuracy": top1 - 10,
                "lr": 0.05 * (1 + math.cos(math.pi * epoch / epochs)),
                "test_top1": round(top1, 2),
                "test_top5": 95.0,
                "test_nll": 1.0,
                "test_ece": 0.05,
                "seconds": 8.2,
                "samples_per_second": 6100.0,
                "step_ms": 41.0,
                "peak_memory_mb": 812.0,
            }
        )
    return lines


def realistic(root: Path, *, seeds: int = 5, epochs: int = 200, policies: dict[str, Any] | None = None) -> None:
    """A grid of CIFAR-100 runs under the OpenMixup protocol with one failed, one unfinished and one damaged run."""
    from mixaug.engine.config import compose, plain

    noise = random.Random(7)
    composed: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        luck = noise.gauss(0, 0.35)
        for policy, (gain, step, memory) in (policies or POLICIES).items():
            final = 76.9 + gain + luck + noise.gauss(0, 0.25)
            lines = curve(final, epochs, noise)
            accuracies = [line["test_top1"] for line in lines]
            told = result(
                policy,
                seed,
                accuracies[-1],
                model="cifar_resnet18",
                data="cifar100",
                protocol="openmixup_cifar",
                epochs=epochs,
                top1_best=max(accuracies),
                top1_median10=sorted(accuracies[-10:])[4],
                nll_last=round(0.95 - 0.03 * gain + noise.gauss(0, 0.01), 4),
                ece_last=round(0.06 + 0.02 * gain + noise.gauss(0, 0.003), 4),
                step_ms=step * noise.uniform(0.98, 1.03),
                peak_memory_mb=memory,
                train_seconds=8.2 * epochs,
            )
            if policy not in composed:
                changed = [] if policy != "fmix" else ["policy.spectrum=reference"]
                changed += [] if policy != "resizemix" else ["policy.rule=beta"]
                overrides = [f"policy={policy}", "model=cifar_resnet18", "data=cifar100", "protocol=openmixup_cifar"]
                composed[policy] = plain(compose([*overrides, *changed, f"epochs={epochs}", "data.root=/data/cifar"]))
            configured = {**composed[policy], "seed": seed}
            told["policy_options"] = {k: v for k, v in configured["policy"].items() if k != "_target_"}
            told["data_options"] = {k: v for k, v in configured["data"].items() if k not in ("_target_", "name")}
            folder = write_run(
                root,
                told,
                configured=configured,
                name=f"{policy}-seed{seed}",
                environment={"device": "NVIDIA H200", "threads": None},
                epochs=lines,
            )
            if (policy, seed) == ("deit", 3):
                (folder / "result.json").unlink()
            if (policy, seed) == ("resizemix", 4):
                fail(folder, "loss became nan at step 1203 (epoch 7) under policy resizemix")
            if (policy, seed) == ("fmix", 2):
                (folder / "result.json").write_text('{"status": "fin')


@cache
def composed(*overrides: str) -> Any:
    return compose(overrides)


def run(root: Path, top1: float, *overrides: str, seed: int = 0, **changes: Any) -> Path:
    """A finished run of a real config."""
    configured = {**plain(composed(*overrides)), "seed": seed}
    told = result(
        configured["choices"]["policy"],
        seed,
        top1,
        model=configured["model"]["name"],
        data=configured["data"]["name"],
        data_options=options(configured["data"]),
        policy_options={**options(configured["policy"]), **mixer_settings(composed(*overrides))},
        protocol=configured["protocol"]["name"],
        epochs=configured["epochs"],
        **changes,
    )
    return write_run(root, told, configured=configured, name=f"run{len(list(root.iterdir())) if root.exists() else 0}")
