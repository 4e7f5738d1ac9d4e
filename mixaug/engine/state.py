"""Everything a run must remember to go on as if it had never stopped."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mixaug.engine.distributed import World, gather_objects, gather_rows, stream_seed
from mixaug.engine.errors import CheckpointError, TrainingDiverged
from mixaug.engine.plateau import load_schedule_state, schedule_state
from mixaug.step import MixStep

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

__all__ = ["Meters", "Part", "Position", "Schedules", "Streams", "TrainingState"]


class Streams:
    """The random streams of this process: mixing, and the global generators for dropout and stochastic depth.

    Besides torch's, the global generators are those of Python's ``random`` and of NumPy, which nothing of mixaug draws
    from while it trains, but a model of one's own may.

    Args:
        seed: the run's seed; each rank gets its own streams from it.
        world: this process among all.
    """

    def __init__(self, seed: int, world: World) -> None:
        self.world = world
        self.mixing = torch.Generator(world.device).manual_seed(stream_seed(seed, "mixing", world.rank))
        torch.manual_seed(stream_seed(seed, "model", world.rank))
        random.seed(stream_seed(seed, "model/python", world.rank))
        np.random.seed(stream_seed(seed, "model/numpy", world.rank) % 2**32)  # noqa: NPY002

    def state_dict(self) -> dict[str, Tensor]:
        """States of all processes, one row each; every process must ask."""
        states = {
            "mixing": self.mixing.get_state(),
            "cpu": torch.get_rng_state(),
            "python": _python_state(),
            "numpy": _numpy_state(),
        }
        if self.world.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.world.device)
        return {name: gather_rows(state, self.world) for name, state in states.items()}

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Continue where the states were taken."""
        rank = self.world.rank
        if len(states["mixing"]) != self.world.size:
            raise CheckpointError(
                f"the checkpoint holds the random streams of {len(states['mixing'])} processes, "
                f"this run has {self.world.size}"
            )
        # The state is copied, because torch's set_state reads a view of a row from the start of its storage.
        own = {name: rows[rank].clone() for name, rows in states.items()}
        self.mixing.set_state(own["mixing"])
        torch.set_rng_state(own["cpu"])
        if self.world.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], self.world.device)
        # Checkpoints of earlier versions have no more than torch's.
        if "python" in own:
            _set_python_state(own["python"])
        if "numpy" in own:
            _set_numpy_state(own["numpy"])


def _python_state() -> Tensor:
    """The state of ``random`` as (627,) float64, which holds its 32-bit words exactly."""
    _, words, gauss = random.getstate()
    return torch.tensor([*words, gauss is not None, gauss or 0.0], dtype=torch.float64)


def _set_python_state(state: Tensor) -> None:
    *words, has_gauss, gauss = state.tolist()
    random.setstate((3, tuple(map(int, words)), gauss if has_gauss else None))


def _numpy_state() -> Tensor:
    """The state of ``numpy.random`` as (627,) float64."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(state, dict)  # as legacy=False promises
    inner = state["state"]
    return torch.tensor([*inner["key"].tolist(), inner["pos"], state["has_gauss"], state["gauss"]], dtype=torch.float64)


def _set_numpy_state(state: Tensor) -> None:
    *words, place, has_gauss, gauss = state.tolist()
    key = np.array(words, dtype=np.uint32)
    np.random.set_state(("MT19937", key, int(place), int(has_gauss), gauss))  # noqa: NPY002


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        epoch: epochs finished.
        batch: batches finished in the epoch under way.
        step: batches finished in all, the number that messages name.
        update: optimizer steps taken.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    update: int = 0


class Meters:
    """Sums over the epoch under way, kept on the device so that no step waits for it.

    Args:
        device: where the losses lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        wide = {"dtype": torch.float64, "device": self.device}
        self.loss = torch.zeros((), **wide)  # type: ignore[call-overload]  # dtype and device by name
        self.accuracy = torch.zeros((), **wide)  # type: ignore[call-overload]
        # Every term of the loss has, by its name, a sum over samples and the number of samples that had it.
        self.terms: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.samples = 0
        self.scored = 0
        self.milliseconds: list[float] = []
        self.seconds = 0.0
        # This is the number of the first step with a bad loss; -1 while there is none.
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)

    def add(self, logs: dict[str, Tensor], loss: Tensor, samples: int, step: int) -> None:
        """Count one step of ``samples`` samples."""
        loss = loss.detach()
        self.loss += loss.double() * samples
        self.samples += samples
        if "accuracy" in logs:
            self.accuracy += logs["accuracy"].double() * samples
            self.scored += samples
        for name in logs.keys() - {"loss", "accuracy"}:
            term = logs[name].double() * samples
            self.terms[name] = self.terms[name] + term if name in self.terms else term
            self.counts[name] = self.counts.get(name, 0) + samples
        fine = loss.isfinite() | (self.first_bad >= 0)
        self.first_bad = torch.where(fine, self.first_bad, torch.full_like(self.first_bad, step))

    def check(self, world: World, policy: str, checkpoint: str | None) -> None:
        """Wait for the device and stop the run, on all processes, if a loss was not finite.

        Raises:
            TrainingDiverged: names the step, the policy and the last good checkpoint.
        """
        never = torch.iinfo(torch.int64).max
        bad = torch.where(self.first_bad < 0, torch.full_like(self.first_bad, never), self.first_bad)
        first = -int(world.max(-bad))
        if first != never:
            raise TrainingDiverged(
                f"the loss is not finite at step {first} with policy {policy}; "
                f"last good checkpoint: {checkpoint or 'none yet'}",
                step=first,
            )

    def means(self, world: World) -> tuple[float, float | None, int]:
        """Mean loss, mean accuracy in percent where it was measured, and samples, over all processes."""
        own = torch.stack([self.loss, self.accuracy])
        counts = torch.tensor([self.samples, self.scored], dtype=torch.float64, device=self.device)
        loss, accuracy, samples, scored = world.sum(torch.cat([own, counts])).tolist()
        return loss / samples, (100 * accuracy / scored if scored else None), int(samples)

    def term_means(self) -> dict[str, float]:
        """Mean of every term that the policy added to the loss, over the samples of this process that had it."""
        return {name: float(total) / self.counts[name] for name, total in sorted(self.terms.items())}

    def state_dict(self, world: World) -> dict[str, Any]:
        """The sums as tensors and numbers, those that `means` adds up with a row for each process, all of which ask."""
        counts = torch.tensor([self.samples, self.scored], dtype=torch.float64)
        own = torch.cat([torch.stack([self.loss, self.accuracy]).cpu(), counts])
        return {
            "processes": gather_rows(own, world),
            "terms": self.terms,
            "counts": self.counts,
            "milliseconds": self.milliseconds,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any], world: World) -> None:
        """Go on with an epoch."""
        self.reset()
        if "processes" in state:
            loss, accuracy, samples, scored = state["processes"][world.rank]
        else:
            # Earlier versions kept the first process's sums alone.
            loss, accuracy, samples, scored = (torch.as_tensor(state[name]) for name in _SUMS)
        self.loss, self.accuracy = loss.double().to(self.device), accuracy.double().to(self.device)
        self.samples, self.scored = int(samples), int(scored)
        self.terms = {name: total.to(self.device) for name, total in state["terms"].items()}
        self.counts = dict(state["counts"])
        self.milliseconds, self.seconds = list(state["milliseconds"]), state["seconds"]


_SUMS = ("loss", "accuracy", "samples", "scored")


class Part(torch.optim.Optimizer):
    """The groups of an optimizer that are, or are not, a learned mixer's: as much of it as a schedule looks at.

    Args:
        optimizer: the optimizer with all groups.
        mixer: whether the groups of the mixer are meant, or those of everything else.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, mixer: bool) -> None:
        # This is an Optimizer by its type alone, which torch's plateau schedule asks for: it steps and keeps nothing.
        # The groups are read anew each time, because an optimizer that loads a state has new ones.
        self.optimizer, self.mixer = optimizer, mixer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """These groups, as they are now."""
        return [group for group in self.optimizer.param_groups if bool(group.get("mixer")) == self.mixer]


class Schedules:
    """Schedules of parts of an optimizer, stepped together.

    Args:
        parts: timm's schedulers by the names of the parts.
    """

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Tell all how many epochs are done."""
        for schedule in self.parts.values():
            schedule.step(epoch, metric)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Tell all how many updates are done."""
        for schedule in self.parts.values():
            schedule.step_update(num_updates, metric)

    def state_dict(self) -> dict[str, Any]:
        """The state of each."""
        return {name: schedule_state(schedule) for name, schedule in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            CheckpointError: it is not one of these parts.
        """
        if state.keys() != self.parts.keys():
            raise _of_another_version(f"its schedule is not one of {' and '.join(self.parts)}")
        for name, schedule in self.parts.items():
            load_schedule_state(schedule, state[name])


class StepClock:
    """Wall time from step to step, data included: by device events on a GPU, so that no step waits.

    Args:
        device: where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []
        self.tick()

    def tick(self) -> None:
        """Mark the end of a step."""
        if self._cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
            self._marks.append(mark)
        else:
            self._marks.append(perf_counter())

    def milliseconds(self) -> list[float]:
        """Durations between the marks since the last call; waits for the device."""
        marks = self._marks
        self._marks = marks[-1:]
        if self._cuda:
            torch.cuda.synchronize()
            return [start.elapsed_time(end) for start, end in pairwise(marks)]
        return [1000 * (end - start) for start, end in pairwise(marks)]


#: A checkpoint must hold these entries for a run to go on from it.
KEPT = (
    "model",
    "ema",
    "policy",
    "objective",
    "optimizer",
    "scheduler",
    "scaler",
    "streams",
    "position",
    "meters",
    "history",
    "prepare_seconds",
)


@dataclass
class TrainingState:
    """The parts of a run that change while it trains.

    Attributes:
        step: the bare ``MixStep`` (model, policy, objective).
        optimizer, scheduler, scaler, ema: as built; ``scheduler`` and ``ema`` may be None.
        streams, position, meters: see their classes.
        history: one record per finished epoch, as in ``epochs.jsonl``.
        prepare_seconds: what the policy's preparation took when the run began.
        init_from: source and fingerprint of the weights that the run began with; None for freshly drawn ones.
    """

    step: MixStep
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    streams: Streams
    meters: Meters
    config_hash: str
    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)
    prepare_seconds: float = 0.0
    init_from: dict[str, str] | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The weights that the figures are of: the averaged ones where they are kept."""
        model: nn.Module = self.step.model if self.ema is None else self.ema.module
        return model

    def rates(self) -> dict[str, float]:
        """Learning rates as they are now, by their names in ``epochs.jsonl``."""
        rates = {"lr": self.optimizer.param_groups[0]["lr"]}
        mixer = Part(self.optimizer, mixer=True).param_groups
        if mixer:
            rates["mixer_lr"] = mixer[0]["lr"]
        return rates

    def weights(self) -> dict[str, Any]:
        """What an evaluation needs."""
        return {
            "config_hash": self.config_hash,
            "epoch": self.position.epoch,
            "model": self.step.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain containers; every process must ask."""
        return {
            **self.weights(),
            "policy": self.step.policy.state_dict(),
            "objective": _state(self.step.objective),
            # The state of a frozen network is its fingerprint alone.
            "networks": self.step.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else schedule_state(self.scheduler),
            "scaler": self.scaler.state_dict(),
            "streams": self.streams.state_dict(),
            "position": vars(self.position).copy(),
            "meters": self.meters.state_dict(self.streams.world),
            "history": self.history,
            "prepare_seconds": self.prepare_seconds,
            "init_from": self.init_from,
            "kept": gather_objects(_kept(self.step), self.streams.world),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it was written by another configuration, by a version that kept less, or holds values of
                other kinds than a run keeps.
        """
        try:
            self._load(state)
        except (CheckpointError, torch.OutOfMemoryError, torch.distributed.DistError):
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # Whole as a file, it can still hold anything; torch and timm take no care of what they are given.
            reason = str(error).splitlines()[0] if str(error) else "no reason"
            raise CheckpointError(
                f"the checkpoint holds something else than the state of this run ({type(error).__name__}: {reason}); "
                "move the run's folder away to start it anew"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        if state["config_hash"] != self.config_hash:
            raise CheckpointError(
                f"the checkpoint belongs to config {state['config_hash']}, this run is {self.config_hash}"
            )
        missing = [key for key in KEPT if key not in state]
        if missing:
            raise _of_another_version(f"it has no {', '.join(missing)}")
        began = state.get("init_from")
        if self.init_from is not None and began != self.init_from:
            raise CheckpointError(
                f"this run began with other weights of init_from={self.init_from['source']} than that holds now: "
                f"SHA-256 {_sha256(began)}, now {_sha256(self.init_from)}; put those back, or remove the run's folder"
            )
        self.step.model.load_state_dict(state["model"])
        self.step.policy.load_state_dict(state["policy"])
        if "kept" in state:
            _keep(self.step, state["kept"][self.streams.world.rank])
        if isinstance(self.step.objective, nn.Module):
            self.step.objective.load_state_dict(state["objective"])
        try:
            # A checkpoint from before there were networks is one without any.
            self.step.networks.load_state_dict(state.get("networks", {}))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the networks beside the model are not those of the checkpoint: {error}") from error
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise _of_another_version(f"its optimizer is not of these parameters: {error}") from error
        if self.scheduler is not None:
            load_schedule_state(self.scheduler, state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.streams.load_state_dict(state["streams"])
        self.position = Position(**{key: _whole(key, value) for key, value in state["position"].items()})
        self.meters.load_state_dict(state["meters"], self.streams.world)
        self.history = [dict(record) for record in state["history"]]
        epochs = [record["epoch"] for record in self.history]
        if epochs != list(range(1, self.position.epoch + 1)):
            raise ValueError(f"{self.position.epoch} epochs are finished, and there are records of {epochs}")
        self.prepare_seconds = float(state["prepare_seconds"])


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"position: {name} is {value!r}")
    return value


def _kept(step: MixStep) -> dict[str, Any]:
    """What this process's policy and objective keep of their own batches, by the names of the parts, on the CPU."""
    states = {name: part.get_extra_state() for name, part in _keeping(step)}
    return {name: {key: value.cpu() for key, value in state.items()} for name, state in states.items()}


def _keep(step: MixStep, states: dict[str, Any]) -> None:
    for name, part in _keeping(step):
        if name in states:
            part.set_extra_state(states[name])


def _keeping(step: MixStep) -> Iterator[tuple[str, nn.Module]]:
    """Parts that keep samples of their own batches, of which each process has others. They say so."""
    places = {"": step.policy, "objective/": step.objective}
    for prefix, module in places.items():
        for name, part in module.named_modules() if isinstance(module, nn.Module) else ():
            if getattr(part, "keeps_state", False):
                yield prefix + name, part


def _sha256(began: Any) -> str:
    """The start of a fingerprint, as messages show it."""
    return f"{began['sha256'][:12]}..." if isinstance(began, dict) and "sha256" in began else "unknown"


def _of_another_version(reason: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint was written by another version of mixaug: {reason}; remove the run's folder to start it anew"
    )


def _state(objective: nn.Module | Callable[..., Tensor]) -> dict[str, Any]:
    return objective.state_dict() if isinstance(objective, nn.Module) else {}


def median_of(values: Iterable[float]) -> float:
    """Median of at least one number."""
    return float(median(values))
