"""Where the time of mixing goes, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

import mixaug
from speed.sections import Job, material
from speed.setting import Setting

PYTHON = "between operators (Python)"


@dataclass(frozen=True)
class Operator:
    """An operator's own part of a step: calls, microseconds without what it calls, share of all operators' time."""

    name: str
    calls: float
    microseconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """The operators of a job that take the most time, largest first."""

    setting: str
    job: str
    per: str
    operators: tuple[Operator, ...]


def profiles(setting: Setting, jobs: Sequence[Job], pers: Sequence[str], steps: int = 20) -> Iterator[Profile]:
    """Profiles of mixing into ``out=``, eager."""
    images, _, labels = material(setting)
    for job in jobs:
        for per in pers:
            policy = mixaug.create(job.policy, per=per, **job.options)
            call = partial(policy, images, labels, out=torch.empty_like(images))
            yield Profile(setting.name, job.label, per, top_operators(call, images.device, steps))


def top_operators(
    call: Callable[[], object], device: torch.device, steps: int = 20, count: int = 10
) -> tuple[Operator, ...]:
    """The ``count`` operators of a call with the largest self time: of kernels on a CUDA device, else of the CPU.

    On a CPU the time between operators counts as one of them. The profiler adds some microseconds to every
    operator and its surroundings, so many small ones look larger than they are.
    """
    on_cuda = device.type == "cuda"
    for _ in range(3):
        call()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as recorded:
        for _ in range(steps):
            with record_function(PYTHON):
                call()
        if on_cuda:
            torch.cuda.synchronize(device)
    # Kernels stand in the record twice, by themselves and as the time of the operators that launched them.
    events = [event for event in recorded.key_averages() if event.device_type == DeviceType.CPU]
    times = [(event, event.self_device_time_total if on_cuda else event.self_cpu_time_total) for event in events]
    total = sum(time for _, time in times) or 1.0
    largest = sorted(times, key=lambda entry: entry[1], reverse=True)[:count]
    return tuple(
        Operator(event.key, event.count / steps, time / steps, time / total) for event, time in largest if time > 0
    )
