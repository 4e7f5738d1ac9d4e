"""Whole training steps of a backbone, alone and in a loop that is fed from the device."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import mixaug
from mixaug.loading import ResidentLoader
from mixaug.losses import DecoupledCrossEntropy
from mixaug.networks import Frozen
from mixaug.objectives.mixkd import MixKD
from mixaug.objectives.mixoe import MixOE
from mixaug.objectives.rankmixup import RankMixup
from mixaug.objectives.regmixup import RegMixup
from mixaug.partners import Stream
from mixaug.passes import as_objective
from mixaug.policies.learned import clean, objective, pairs
from speed.memory import peak_bytes
from speed.sections import PLAIN, Job, Row, material
from speed.setting import DTYPES, LAYOUTS, Setting
from speed.timing import Ratio, interleaved, once_a_round

#: Policies that look at the model: backbone, shape of a batch, jobs.
GUIDED: tuple[tuple[str, tuple[int, int, int, int], tuple[Job, ...]], ...] = (
    (
        "cifar_resnet18",
        (32, 3, 32, 32),
        tuple(
            Job(name, name)
            for name in (
                "manifoldmix",
                "snapmix",
                "puzzlemix",
                "guidedmix",
                "alignmix",
                "attentivemix",
                "comixup",
                "sumix",
            )
        ),
    ),
    (
        "deit_tiny_patch16_224",
        (8, 3, 224, 224),
        tuple(
            Job(name, name) for name in ("cutmix", "transmix", "mixpro", "tlalign", "tokenmix", "smmix", "manifoldmix")
        ),
    ),
)


#: Policies that learn to mix: backbone, shape of a batch, jobs. Economy spares parts of two branches.
ECONOMY = {"clean_share": 0.5, "generator_share": 0.25}
LEARNED: tuple[tuple[str, tuple[int, int, int, int], tuple[Job, ...]], ...] = tuple(
    (
        backbone,
        shape,
        (
            Job("automix", "automix"),
            Job("automix, one graph", "automix", one_graph=True),
            Job("automix, economy", "automix", ECONOMY),
            Job("samix", "samix"),
            Job("samix, economy", "samix", ECONOMY),
            Job("samix, frozen", "samix", {"frozen": True}),
            Job("adautomix", "adautomix"),
            Job("adamixup", "adamixup"),
        ),
    )
    for backbone, shape in (("cifar_resnet18", (32, 3, 32, 32)), ("deit_tiny_patch16_224", (8, 3, 224, 224)))
)


#: Objectives of one or more passes, on mixup: backbone, shape of a batch, jobs.
OBJECTIVES: tuple[tuple[str, tuple[int, int, int, int], tuple[Job, ...]], ...] = (
    (
        "cifar_resnet18",
        (32, 3, 32, 32),
        (
            Job("cross-entropy", "mixup"),
            Job("decoupled", "mixup", objective=DecoupledCrossEntropy),
            Job("regmixup", "mixup", objective=RegMixup),
            Job("rankmixup, margin", "mixup", objective=partial(RankMixup, "margin")),
            Job("rankmixup, NDCG of 3 draws", "mixup", objective=RankMixup),
            Job("mixkd", "mixup", objective=MixKD),
            Job("mixoe", "mixup", {"partners": Stream("outliers", label="uniform")}, objective=MixOE),
        ),
    ),
)


def training_step(
    setting: Setting, jobs: Sequence[Job], model_name: str, rounds: int, *, memory: bool = False
) -> Iterator[Row]:
    """A whole SGD step of a backbone; the reference is the step of ``none``.

    Args:
        setting, jobs, rounds: as elsewhere.
        model_name: see ``mixaug.models.create``.
        memory: add the peak of the memory that a step holds, beside that of ``none``.
    """
    if setting.dtype == "uint8":
        raise ValueError("the training step takes floating-point images, got uint8")
    images, _, labels = material(setting)
    device = torch.device(setting.device)
    model = _model(model_name, setting)
    cases: dict[str, Callable[[], object]] = {}
    for job in (Job("floor", "none"), *jobs):
        update = _Update(model, job, _autocast(setting))
        name = job.label if job.policy == "none" else f"{PLAIN}/{job.label}"
        case = partial(update, images.float(), labels)
        cases[name] = partial(_in_one_graph, case) if job.one_graph else case
    timings = interleaved(cases, rounds=rounds, round_seconds=0.5, device=device)
    held = {name: peak_bytes(case, device) for name, case in cases.items()} if memory else {}
    for name, timing in timings.items():
        share = held[name] / held["floor"] if memory else None
        yield Row(
            section=f"training step of {model_name}, as a multiple of the step without mixing",
            setting=setting.name,
            job=name.partition("/")[2] or "none",
            per="default",
            output="fresh",
            library=PLAIN,
            milliseconds=timing.median * 1e3,
            floor=Ratio.of(timing, timings["floor"]),
            note="" if share is None else f"peak memory x {share:.2f}",
            memory=share,
            goal_section="step",
            where=model_name,
        )


def resident(
    setting: Setting, jobs: Sequence[Job], model_name: str, rounds: int, *, batches: int | None = None, compiled: bool
) -> Iterator[Row]:
    """Training from data on the device; the reference repeats the step without mixing on one batch.

    What is timed is a loop over one epoch of :class:`mixaug.loading.ResidentLoader` (the epoch's draws, crop, flip and
    normalisation included), each batch given to a :class:`mixaug.MixStep` and an SGD update. Job and reference take
    turns. Models run under autocast where the setting is bfloat16; images come as float32 either way.

    Args:
        setting: shape of a batch, dtype (float32 or bfloat16), layout, device.
        jobs: ``none`` is added; those whose policy asks the model are left out.
        model_name: see ``mixaug.models.create``.
        rounds: as elsewhere.
        batches: number of batches in an epoch. None takes 64 on a CUDA device and 4 elsewhere.
        compiled: the whole MixStep by ``torch.compile``, for the reference as well.
    """
    if setting.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"the resident section takes float32 or bfloat16, got {setting.dtype}")
    device = torch.device(setting.device)
    if batches is None:
        batches = 64 if device.type == "cuda" else 4
    size, generator = setting.shape[0], torch.Generator().manual_seed(0)
    loader = ResidentLoader(
        torch.randint(256, (size * batches, *setting.shape[1:]), dtype=torch.uint8, generator=generator),
        torch.randint(setting.num_classes, (size * batches,), generator=generator),
        size,
        device=device,
        crop_padding=4,
        flip=True,
        mean=0.5,
        std=0.25,
        memory_format=LAYOUTS[setting.layout],
    )
    first_images, first_labels = next(iter(loader))
    model = _model(model_name, setting)

    def repeat(update: _Update) -> None:
        for _ in range(batches):
            update(first_images, first_labels)

    def epoch(update: _Update) -> None:
        for images, labels in loader:
            update(images, labels)

    for job in (Job("none", "none"), *jobs):
        if mixaug.create(job.policy, **job.options).needs:
            continue
        if compiled:
            # The compiler keeps a few versions of MixStep.forward only, so job and reference share it with no other.
            torch.compiler.reset()
        autocast = _autocast(setting)
        cases = {
            "floor": partial(repeat, _Update(model, Job("none", "none"), autocast, compiled=compiled)),
            PLAIN: partial(epoch, _Update(model, job, autocast, compiled=compiled)),
        }
        timings = once_a_round(cases, rounds=rounds, device=device)
        for name, timing in timings.items():
            yield Row(
                section=f"training {model_name} from data on the device, as a multiple of steps on one batch",
                setting=setting.name,
                job="one batch again" if name == "floor" else job.label,
                per="default",
                output="compiled" if compiled else "eager",
                library=name,
                milliseconds=timing.median * 1e3 / batches,
                floor=Ratio.of(timing, timings["floor"]),
                note=f"{size * batches / timing.median:,.0f} images/s",
                goal_section="resident",
                where=model_name,
            )


class _Update:
    """One SGD step of a model under a job's policy: forward, backward, update, gradients back to None."""

    def __init__(
        self, model: nn.Module, job: Job, autocast: AbstractContextManager[Any], *, compiled: bool = False
    ) -> None:
        policy = mixaug.create(job.policy, **job.options)
        device = next(model.parameters()).device
        objective = mixaug.losses.MixedCrossEntropy() if job.objective is None else job.objective()
        wanted = as_objective(objective).wants.networks
        networks = {name: Frozen(copy.deepcopy(model)) for name in wanted}
        self.step = mixaug.MixStep(model, policy, objective, networks=networks).to(device)
        policy.set_progress(0.5)
        self.streams = () if policy.partners is None else policy.partners.streams
        self.forward = torch.compile(self.step) if compiled else self.step
        learning = [parameter for parameter in self.step.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(learning, lr=1e-3)
        self.autocast = autocast

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        # A stream brings as many samples as the batch has.
        brought = {name: mixaug.Batch(images.flip(0)) for name in self.streams}
        given = (mixaug.Batch(images, labels, streams=brought),) if brought else (images, labels)
        with self.autocast:
            loss, _ = self.forward(*given)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step.after_step()


def _model(name: str, setting: Setting) -> nn.Module:
    from mixaug import models

    model = models.create(name, num_classes=setting.num_classes, in_chans=setting.shape[1])
    return model.to(setting.device).to(memory_format=LAYOUTS[setting.layout])


def _autocast(setting: Setting) -> AbstractContextManager[Any]:
    device = torch.device(setting.device)
    if setting.dtype == "float32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, DTYPES[setting.dtype])


def _in_one_graph(run: Callable[[], object]) -> None:
    # The library always takes gradients of a branch at once and has no option for the costlier way, which only this
    # comparison needs: so the function that takes them is replaced, in all modules that AutoMix's step goes through.
    with contextlib.ExitStack() as replaced:
        for module in (clean, objective, pairs):
            replaced.enter_context(patch.object(module, "early_backward", _kept))
        run()


def _kept(loss: Tensor, parameters: object, scale: float = 1.0) -> Tensor:
    return loss
