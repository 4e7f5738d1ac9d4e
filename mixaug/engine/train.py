"""One training run: batch, mix, forward, loss, backward, step, log.

``train(config)`` does a whole run in its folder, continues one that was interrupted, and skips one that is finished.
Under ``torchrun`` every process calls it. The loop knows no method by name: a policy gets ``set_progress`` before a
step and ``after_step`` behind it, and what it learns sits in the optimizer and in the checkpoint.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mixaug.engine import build, checkpoint, distributed, lock, run
from mixaug.engine.assembly import assemble
from mixaug.engine.batches import Batches
from mixaug.engine.budget import settle
from mixaug.engine.config import config_hash, mixer_settings, plain, validate
from mixaug.engine.distributed import World
from mixaug.engine.errors import (
    CheckpointError,
    ConfigError,
    LoadingError,
    ProcessLost,
    RunFolderError,
    TrainingDiverged,
)
from mixaug.engine.evaluate import autocast
from mixaug.engine.idle import idle_settings
from mixaug.engine.log import Log
from mixaug.engine.pictures import Pictures, pictures_of
from mixaug.engine.refreshes import Refreshes
from mixaug.engine.results import digest_beside, read_result
from mixaug.engine.state import Meters, StepClock, Streams, TrainingState, median_of
from mixaug.engine.tasks import FIGURES_OF_LAST_EPOCHS, LAST_EPOCHS, Task, held_out_splits
from mixaug.policy import Policy
from mixaug.step import MixStep

__all__ = ["train"]


@dataclass(frozen=True)
class _Training:
    """A run at work: what the parts of the loop share.

    Attributes:
        config: the run's config.
        folder: the run's folder.
        world: the processes of the run, and this one's device.
        log: where progress is shown.
        task: what is predicted, and by which number epochs are compared.
        batches: the run's data, read in batches.
        state: everything that a checkpoint keeps.
        forward: the module whose forward trains: the step, wrapped where several processes take part.
        pictures: draws mixed samples while the run goes on; None where there are none to draw.
        refreshes: shows the policy the validation set, where it asks for that.
    """

    config: DictConfig
    folder: Path
    world: World
    log: Log
    task: Task
    batches: Batches
    state: TrainingState
    forward: nn.Module
    pictures: Pictures | None
    refreshes: Refreshes


def train(config: DictConfig, given: Collection[str] = ()) -> dict[str, Any]:
    """Do, continue or skip the run of a composed config.

    Args:
        config: from ``mixaug.engine.config.compose``; its ``budget`` is put into effect first.
        given: dotted keys that the command line sets; a line on the standard error names those that do nothing.

    Returns:
        The content of ``result.json``; where ``stop_after`` ends the command before the run is finished, ``status``
        (``"stopped"``), ``task``, ``epoch`` and the scores of the validation set there, if there is one.

    Raises:
        ConfigError: a value that cannot work; nothing has been created.
        RunHeld: another process works on this run; its folder is untouched.
        RunFolderError: the run folder cannot be written; earlier checkpoints are untouched.
        TrainingDiverged: the loss became infinite or not a number.
        ProcessLost: another process of a distributed run ended.
        LoadingError: a sample cannot be read, or a process that reads samples was killed.
        CheckpointError: no checkpoint of the folder can be read.
    """
    validate(config)
    world = distributed.start(config.device)
    if config.world_size != world.size:
        raise ConfigError(f"config.world_size is {config.world_size}, but {world.size} processes take part")
    if config.sync_batchnorm and world.device.type != "cuda":
        raise ConfigError("sync_batchnorm=true needs GPUs: torch has no synchronised batch norm on the CPU")
    config = settle(config)
    folder = run.run_folder(config)
    with (
        Log(run.run_name(config), active=world.is_main, progress=config.progress) as log,
        lock.RunLock(folder, log.say) as own,
    ):
        finished = distributed.on_main(world, lambda: _finished(folder, log))
        if finished is not None:
            log.say(f"{folder} is finished; skipped")
            return finished
        stopped = distributed.on_main(world, lambda: _stopped(folder, config))
        if stopped is not None:
            log.say(f"{folder} was stopped after epoch {config.stop_after} before; skipped")
            return stopped
        log.warn(idle_settings(config, given))
        if distributed.on_main(world, folder.is_dir):
            # The lock comes before the data, so that a second process on a folder need not wait for its answer.
            distributed.on_main(world, own.take)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        try:
            parts = assemble(config, world)
        except ConfigError as error:
            if not any((folder / name).exists() for name in (checkpoint.LAST, checkpoint.PREVIOUS)):
                raise
            raise ConfigError(
                f"{error}; the unfinished run in {folder} began with these settings, under an earlier version of "
                "mixaug or with other data: change what is named here, which makes it another run that starts anew"
            ) from error
        data, task, batches, step = parts.data, parts.task, parts.batches, parts.step
        pictures = pictures_of(config, batches, parts.policy)
        distributed.on_main(world, own.take)
        finished = distributed.on_main(world, lambda: _finished(folder, log))
        if finished is not None:
            log.say(f"{folder} was finished by another process meanwhile; skipped")
            return finished
        distributed.on_main(world, lambda: run.prepare(folder, config, world.device, world.size))
        state: TrainingState | None = None
        try:
            begun = perf_counter()
            build.prepare_policy(config, step.policy, parts.objective, data, batches)
            prepared = perf_counter() - begun
            unused = world.size > 1 and build.leaves_parameters_out(parts.model, data)
            state, forward = _assemble(config, step, world, len(batches), find_unused_parameters=unused)
            state.prepare_seconds, state.init_from = prepared, parts.init_from
            distributed.on_main(world, lambda: checkpoint.settle(folder, log.say))
            saved = checkpoint.load_latest(folder, log.say)
            if saved is not None:
                state.load_state_dict(saved)
            _agree(state, world)
            if saved is not None:
                log.say(f"{folder} resumed at epoch {state.position.epoch}, batch {state.position.batch}")
            if world.is_main:
                _rewrite_epochs(folder, state)
            return _run_epochs(
                _Training(config, folder, world, log, task, batches, state, forward, pictures, parts.refreshes)
            )
        except Exception as error:
            # First of all: the end of a loader's process may be reported at any moment, in the writing below too.
            batches.close()
            clear = distributed.explained(batches.explained(error), world)
            if world.is_main:
                _record_failure(folder, config, state, clear)
            if clear is error:
                raise
            raise clear from error
        finally:
            batches.close()


def _finished(folder: Path, log: Log) -> dict[str, Any] | None:
    """The result of a finished run; None where there is none, or none that can be read."""
    if run.status(folder) != "finished":
        return None
    try:
        return read_result(folder / "result.json")
    except ValueError as error:
        there = any((folder / name).exists() for name in (checkpoint.LAST, checkpoint.PREVIOUS))
        log.say(f"{error}; it is made again from {'the newest checkpoint' if there else 'the start'}")
        return None


def _stopped(folder: Path, config: DictConfig) -> dict[str, Any] | None:
    """What an earlier command found where this one is to stop; None where it has to go there."""
    if config.stop_after is None or config.stop_after >= config.epochs:
        return None
    record = run.read_stops(folder).get(config.stop_after)
    return None if record is None else {"status": "stopped", **record}


def _agree(state: TrainingState, world: World) -> None:
    """Make sure that all processes go on from one place; each has read the checkpoints by itself.

    Raises:
        CheckpointError: in every process.
    """
    steps = distributed.gather_objects(state.position.step, world)
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"the processes read checkpoints of different steps, {', '.join(map(str, steps))}: some of them cannot "
            "read the newest one; give the same command again, or remove it from the run's folder"
        )
    sources = distributed.gather_objects(state.init_from, world)
    if any(source != sources[0] for source in sources):
        raise CheckpointError(
            f"the processes read other weights from init_from, SHA-256 {', '.join(s['sha256'][:12] for s in sources)}: "
            "all of them must see the same file"
        )


def _assemble(
    config: DictConfig, step: MixStep, world: World, batches_per_epoch: int, *, find_unused_parameters: bool
) -> tuple[TrainingState, nn.Module]:
    """The state of a run at its beginning, and the module whose forward trains."""
    step.to(world.device)
    if config.channels_last:
        step.to(memory_format=torch.channels_last)
    if config.sync_batchnorm:
        step.model = nn.SyncBatchNorm.convert_sync_batchnorm(step.model)
    ema = None
    if config.ema.decay is not None:
        # timm takes seconds to import, and the rest of the engine serves rankings too, which do without it.
        from timm.utils import ModelEmaV3

        ema = ModelEmaV3(step.model, decay=config.ema.decay, use_warmup=config.ema.warmup)
    optimizer = build.build_optimizer(config, step)
    updates_per_epoch = -(-batches_per_epoch // config.accumulate)
    state = TrainingState(
        step=step,
        optimizer=optimizer,
        scheduler=build.build_scheduler(config, optimizer, updates_per_epoch),
        scaler=torch.amp.GradScaler(world.device.type, enabled=config.precision == "float16"),
        ema=ema,
        streams=Streams(config.seed, world),
        meters=Meters(world.device),
        config_hash=config_hash(config),
    )
    if config.compile:
        # Without the reset, torch reuses for this model what an earlier run compiled, whatever its hooks are.
        torch.compiler.reset()
        # The model is compiled in place, so that the names in checkpoints stay those of the bare model.
        step.model.compile()
        if _can_be_traced(step.policy):
            # Random numbers come from torch's own operators: they are those of a run that is not compiled.
            # torch 2.11 moves draws to where they are used, and so gives each the numbers of another.
            step.policy.compile(options={"fallback_random": True, "reorder_for_locality": False})
    if world.size == 1:
        return state, step
    devices = [world.device] if world.device.type == "cuda" else None
    return state, DistributedDataParallel(step, device_ids=devices, find_unused_parameters=find_unused_parameters)


def _can_be_traced(policy: Policy) -> bool:
    """Whether a policy compiles as one graph: it looks at no model, has no network, fetches no rows and keeps none."""
    has_network = any(True for _ in policy.parameters())
    if any(getattr(part, "keeps_state", False) or getattr(part, "augmented", False) for part in policy.modules()):
        return False
    looks = policy.needs or policy.reads or policy.wants_networks
    return not looks and not policy.needs_rows and not has_network


def _run_epochs(training: _Training) -> dict[str, Any]:
    """Train, score and record every epoch that is left or asked for; returns what `train` does."""
    config, state, task, log = training.config, training.state, training.task, training.log
    position = state.position
    tensorboard = training.folder / "tensorboard" if config.tensorboard else None
    log.start(config.epochs * len(training.batches), position.step, tensorboard)
    last = config.epochs if config.stop_after is None else min(config.stop_after, config.epochs)
    while position.epoch < last:
        _train_epoch(training)
        is_scored = _is_scored(config, position.epoch + 1)
        scores: dict[str, float | None] = {}
        if is_scored:
            distributed.share_buffers(state.evaluated, training.world)
            scores = task.scores(state.evaluated, training.batches, config.precision)
            _check_scores(scores, position.epoch + 1, position.step)
        record = _record(config, state, training.world, scores)
        state.history.append(record)
        position.epoch, position.batch = position.epoch + 1, 0
        state.meters.reset()
        if state.scheduler is not None:
            state.scheduler.step(position.epoch, task.value(record) if is_scored else None)
        if training.world.is_main:
            if is_scored and task.chosen(state.history) == len(state.history) - 1:
                checkpoint.save(training.folder / checkpoint.BEST, state.weights())
            run.append_line(training.folder / "epochs.jsonl", record)
        if position.epoch % config.checkpoint_every_epochs == 0 or position.epoch == last:
            _save(training)
        log.epoch(record, config.epochs, task.line(record) if is_scored else "not scored")
        log.curves({k: v for k, v in record.items() if v is not None and k != "epoch"}, position.step)
        if training.pictures is not None and position.epoch % config.pictures_every_epochs == 0:
            log.picture("mixed", training.pictures.draw(state.step), position.step)
    if last < config.epochs:
        return _stop(training)
    of_config = distributed.on_main(training.world, lambda: digest_beside(training.folder))
    result = {**_result(config, state, task, len(training.batches.data.test)), "config": of_config}
    if training.world.is_main:
        run.write_json(training.folder / "result.json", result)
    training.world.barrier()
    log.result(result, task, config.protocol.figure)
    return result


def _check_scores(scores: Mapping[str, float | None], epoch: int, step: int) -> None:
    """Raise where a model whose last losses were finite gives no numbers any more."""
    for name, value in scores.items():
        if value is not None and math.isinf(value):
            raise TrainingDiverged(f"{name} is {value} after epoch {epoch}, step {step}: lower the learning rate", step)


def _stop(training: _Training) -> dict[str, Any]:
    """Score the validation set where ``stop_after`` ends the command.

    The scores stand in a file of their own: the run itself, its history included, goes on as if it had not stopped.
    """
    config, state, task, log = training.config, training.state, training.task, training.log
    position = state.position
    record: dict[str, Any] = {"task": task.name, "measure": task.measure, "epoch": position.epoch}
    if position.epoch > config.stop_after or position.batch > 0:
        log.say(f"{training.folder} is past epoch {config.stop_after} already: its scores there cannot be had any more")
        return {"status": "stopped", **record}
    if "valid" in held_out_splits(training.batches.data):
        distributed.share_buffers(state.evaluated, training.world)
        scores = task.score(state.evaluated, training.batches, "valid", config.precision)
        record |= {f"valid_{name}": value for name, value in scores.items() if name != "samples"}
    if training.world.is_main:
        run.append_line(training.folder / run.STOPS, record)
    training.world.barrier()
    value = record.get(f"valid_{task.measure}")
    told = "" if value is None else f", valid {task.title} {value:.{task.digits}f}"
    log.say(
        f"{training.folder} stopped after epoch {position.epoch} of {config.epochs}{told}; "
        "the same command without stop_after goes on"
    )
    return {"status": "stopped", **record}


def _is_scored(config: DictConfig, epoch: int) -> bool:
    """Whether an epoch, from 1 on, is scored: every n-th, the last, and the last ten if the protocol counts them."""
    counted = LAST_EPOCHS if config.protocol.figure in FIGURES_OF_LAST_EPOCHS else 1
    return epoch % config.evaluate_every == 0 or epoch > config.epochs - counted


def _train_epoch(training: _Training) -> None:
    """Take the steps of an epoch that are left."""
    config, state, forward = training.config, training.state, training.forward
    step, position, meters = state.step, state.position, state.meters
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    count, accumulate = len(training.batches), config.accumulate
    total = config.epochs * count
    begun, before = perf_counter(), meters.seconds
    clock = StepClock(training.world.device)
    forward.train()
    for batch in training.batches.epoch(position.epoch, position.batch):
        group_start = position.batch - position.batch % accumulate
        group = min(accumulate, count - group_start)
        updates = position.batch + 1 == group_start + group

        step.set_progress(position.step / total)
        if position.batch == group_start:
            training.refreshes.before(position.update)
        # Gradients of the processes meet once, with the last batch of a group.
        apart = forward.no_sync() if isinstance(forward, DistributedDataParallel) and not updates else nullcontext()
        with apart:
            with autocast(training.world.device, config.precision):
                loss, logs = forward(batch, generator=state.streams.mixing)
            state.scaler.scale(loss / group).backward()
        meters.add(logs, loss, len(batch), position.step + 1)

        if updates:
            if config.clip_grad_norm is not None:
                state.scaler.unscale_(state.optimizer)
                nn.utils.clip_grad_norm_(parameters, config.clip_grad_norm)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            position.update += 1
            if state.scheduler is not None:
                state.scheduler.step_update(position.update)
            if state.ema is not None:
                state.ema.update(step.model, step=position.update)
            step.after_step()
        position.batch += 1
        position.step += 1
        clock.tick()

        if position.step % config.log_every == 0:
            _check_losses(training)
            training.log.step(position.step)
        every = config.checkpoint_every_steps
        if (
            every is not None
            and updates
            and position.batch < count
            and position.step // every > (position.step - group) // every
        ):
            _check_losses(training)
            meters.milliseconds += clock.milliseconds()
            meters.seconds = before + perf_counter() - begun
            _save(training)
            # The time that writing takes is not the method's.
            clock = StepClock(training.world.device)
    _check_losses(training)
    meters.milliseconds += clock.milliseconds()
    meters.seconds = before + perf_counter() - begun
    training.log.step(position.step)


def _check_losses(training: _Training) -> None:
    """Raise TrainingDiverged where a loss since the start of the epoch was not finite."""
    training.state.meters.check(training.world, training.config.choices.policy, checkpoint.last_good(training.folder))


def _save(training: _Training) -> None:
    content = training.state.state_dict()
    if training.world.is_main:
        checkpoint.save(training.folder / checkpoint.LAST, content, training.folder / checkpoint.PREVIOUS)


def _record(config: DictConfig, state: TrainingState, world: World, scores: dict[str, float | None]) -> dict[str, Any]:
    meters = state.meters
    loss, accuracy, samples = meters.means(world)
    return {
        "epoch": state.position.epoch + 1,
        "train_loss": loss,
        "train_accuracy": accuracy,
        **{f"train_{name}": value for name, value in meters.term_means().items()},
        **state.rates(),
        **scores,
        "seconds": meters.seconds,
        "samples_per_second": samples / meters.seconds,
        "step_ms": median_of(meters.milliseconds),
        "peak_memory_mb": _peak_memory_mb(world.device),
    }


def _result(config: DictConfig, state: TrainingState, task: Task, test_samples: int) -> dict[str, Any]:
    history = state.history
    settings = plain(config)
    parameters = state.step.model.parameters()
    pool = {} if config.pool is None or not state.step.policy.has_partners else {"pool": config.pool}
    return {
        "status": "finished",
        "task": task.name,
        "measure": task.measure,
        "policy": config.choices.policy,
        "policy_options": {**build.options(settings["policy"]), **pool, **mixer_settings(config)},
        "model": config.model.name,
        "data": config.data.name,
        "data_options": build.options(settings["data"]),
        "protocol": config.protocol.name,
        "seed": config.seed,
        "epochs": config.epochs,
        **task.summary(history),
        "test_samples": test_samples,
        "prepare_seconds": state.prepare_seconds,
        "train_seconds": sum(record["seconds"] for record in history),
        "step_ms": median_of(record["step_ms"] for record in history),
        "peak_memory_mb": max(record["peak_memory_mb"] for record in history),
        "params": sum(parameter.numel() for parameter in parameters),
    }


def _peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # The unit is bytes on macOS, kibibytes elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _rewrite_epochs(folder: Path, state: TrainingState) -> None:
    """Bring ``epochs.jsonl`` to the checkpoint's state: no line doubled, missing or half written."""
    lines = "".join(json.dumps(record) + "\n" for record in state.history)
    run.write_atomic(folder / "epochs.jsonl", lambda file: file.write(lines.encode()))


#: The messages of these errors say all that there is to say.
_OURS = (RunFolderError, CheckpointError, ConfigError, LoadingError, ProcessLost, TrainingDiverged)


def _record_failure(folder: Path, config: DictConfig, state: TrainingState | None, error: Exception) -> None:
    is_ours = isinstance(error, _OURS)
    step = None if state is None else state.position.step
    if isinstance(error, TrainingDiverged):
        step = error.step
    try:
        run.write_json(
            folder / "failure.json",
            {
                "status": "failed",
                "reason": str(error) if is_ours else f"{type(error).__name__}: {error}",
                "step": step,
                "epoch": None if state is None else state.position.epoch + 1,
                "policy": config.choices.policy,
                "last_good_checkpoint": checkpoint.last_good(folder),
            },
        )
    except RunFolderError as second:
        # A full disk takes this file too; the error that is raised says so.
        with suppress(OSError):
            print(f"the failure could not be recorded: {second}", file=sys.stderr)
