"""Sections that ask whether all is right on a GPU, and what it costs."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import mixaug
from gpu.protocol import FORK
from gpu.setting import Row, Setting
from mixaug import Batch, MixStep, losses, models
from mixaug.networks import Frozen
from mixaug.testing.subject import CHANNELS, Subject

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("test_contract.py", "test_ops.py", "test_golden.py", "test_losses.py", "loading")
FEW = ("none", "cutmix", "puzzlemix")
#: These come first, for what comes last may not be reached.
FIRST = (
    *("none", "mixup", "cutmix", "resizemix", "fmix", "saliencymix", "puzzlemix", "comixup", "tokenmix", "guidedmix"),
    *("gridmix", "smoothmix", "manifoldmix", "snapmix", "transmix", "automix", "samix"),
)


def tests(setting: Setting) -> Iterator[Row]:
    """The tests that say whether results are right, on the device."""
    chosen = (
        ["tests/test_ops.py", "-k", "vmap and small and mixup"]
        if setting.rehearse
        else [f"tests/{name}" for name in TESTS]
    )
    yield from _pytest(setting, "tests", chosen)


def kernels(setting: Setting) -> Iterator[Row]:
    """The Triton kernels against their torch bodies."""
    chosen = ["tests/test_fused.py", *(["-k", "cycles"] if setting.rehearse else [])]
    yield from _pytest(setting, "kernels", chosen)


def _pytest(setting: Setting, section: str, chosen: list[str]) -> Iterator[Row]:
    import pytest

    os.chdir(ROOT)
    workers = ["-n", "6"] if importlib.util.find_spec("xdist") and not setting.rehearse else []
    # Plug-ins of pytest that the machine has of its own, and that would speak up, are left out.
    without = ["-p", "no:cacheprovider", "-p", "no:benchmark", "-p", "no:cov"]
    options = ["-q", *without, "--device", str(setting.device), "-m", "not slow", *workers]
    shown = io.StringIO()
    begun = perf_counter()
    with redirect_stdout(shown):
        code = pytest.main([*options, *chosen], plugins=[Until(begun + 0.9 * setting.seconds)])
    print(shown.getvalue())
    for outcome in ("passed", "failed", "error", "skipped"):
        found = re.search(rf"(\d+) {outcome}", shown.getvalue())
        yield Row(section, outcome, "", int(found[1]) if found else 0, "tests", f"exit code {int(code)}")
    for line in re.findall(r"^(?:FAILED|ERROR) (.*)$", shown.getvalue(), flags=re.MULTILINE):
        yield Row(section, "failed", line.split(" - ")[0], "", "", line.partition(" - ")[2][:200])
    yield Row(section, "seconds", "", perf_counter() - begun, "s")


class Until:
    """Ends a run of tests early, so that what was found by then is told before the section is ended."""

    def __init__(self, moment: float) -> None:
        self.moment = moment
        self.session: Any = None

    def pytest_sessionstart(self, session: Any) -> None:
        self.session = session

    def pytest_runtest_logreport(self, report: Any) -> None:
        if perf_counter() > self.moment and self.session is not None:
            # Where xdist hands tests to several processes, its own loop is the one to end.
            dealt = self.session.config.pluginmanager.getplugin("dsession")
            (self.session if dealt is None else dealt).shouldstop = "the section's time is over"


def steps(setting: Setting) -> Iterator[Row]:
    """Every policy in a training step that may not wait for the device, in float32 and under autocast."""
    for name in _policies(setting):
        for dtype in (torch.float32, torch.bfloat16):
            yield Row("steps", name, str(dtype).split(".")[1], *_outcome(partial(_step, setting, name, dtype)))


def _step(setting: Setting, name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    policy, side = mixaug.create(name), setting.pick(32, 8)
    networks = {one: Frozen(_model(policy, side)) for one in policy.wants_networks}
    step = MixStep(_model(policy, side), policy, losses.MixedCrossEntropy(), networks=networks).to(setting.device)
    images, labels = _batch(setting, setting.pick(32, 4), side)
    # Domains, or photographs that two crops are from.
    batch = Batch(images, labels, metadata=dict.fromkeys(policy.wants_metadata, labels // 2))
    optimizer = torch.optim.SGD(step.parameters(), 0.01)
    for attempt in range(2):
        with torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32), _no_waiting(setting, attempt):
            loss, _ = step(batch)
            loss.backward()
            optimizer.step()
            step.after_step()
        optimizer.zero_grad()
    setting.wait()
    if not bool(loss.isfinite()):
        raise ArithmeticError(f"loss {float(loss)}")


def _model(policy: mixaug.Policy, side: int) -> nn.Module:
    """A small model, with attention for a policy that looks at that."""
    looks = {kind for part in policy.modules() if isinstance(part, mixaug.Policy) for kind in part.needs | part.reads}
    if "attention" not in looks:
        return models.create("cifar_resnet8", num_classes=10)
    size = {"img_size": side, "patch_size": side // 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return models.create("vit_tiny_patch16_224", num_classes=10, **size)


@contextmanager
def _no_waiting(setting: Setting, attempt: int) -> Iterator[None]:
    """Make every wait for the device an error, but in the first step, which makes and loads things."""
    if setting.device.type == "cuda" and attempt > 0:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if setting.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def launches(setting: Setting) -> Iterator[Row]:
    """Kernels and their time for every policy, as the profiler sees them."""
    small, large = setting.pick(32, 8), setting.pick(224, 16)
    names = _policies(setting)
    first = [name for name in names if name in FIRST]
    # How many there are does not depend on the size, so that the time of large images is taken of the first alone.
    for name, side in (
        [(n, small) for n in first] + [(n, large) for n in first] + [(n, small) for n in names[len(first) :]]
    ):
        try:
            count, milliseconds = _profiled(setting, _mixing(setting, name, setting.pick(128, 4), side))
        except Exception as error:
            yield Row("launches", name, f"{side} pixels", "", "launches", _said(error))
            continue
        unit = "launches" if setting.device.type == "cuda" else "operators of a CPU"
        yield Row("launches", name, f"{side} pixels", count, unit)
        yield Row("device time", name, f"{side} pixels", milliseconds, "ms")


def _profiled(setting: Setting, call: Callable[[], object]) -> tuple[int, float]:
    on_gpu = setting.device.type == "cuda"
    for _ in range(2):
        call()
    setting.wait()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as record:
        call()
        setting.wait()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in record.events() if event.device_type == kind]
    time = sum(event.device_time if on_gpu else event.self_cpu_time_total for event in events)
    return len(events), time / 1000


def graphs(setting: Setting) -> Iterator[Row]:
    """Which policies a CUDA graph can hold.

    A capture that fails inside CUDA may leave a process that captures nothing any more: the policies that are left are
    then asked in a new one.
    """
    left = _policies(setting)
    while left:
        reader, writer = FORK.Pipe(duplex=False)
        worker = FORK.Process(target=_capture_each, args=(setting, tuple(left), writer))
        worker.start()
        # The worker's end alone is left, so that reading ends with it, however it ends.
        writer.close()
        while (answer := _received(reader)) is not None:
            yield Row("graphs", left.pop(0), "", *answer)
        worker.join()
        if worker.exitcode and left:
            yield Row("graphs", left.pop(0), "", 0, "works", f"exit code {worker.exitcode}")


def _received(reader: Any) -> tuple[float | str, str, str] | None:
    """What comes next from a process; None when it has ended."""
    try:
        return reader.recv()
    except EOFError:
        return None


def _capture_each(setting: Setting, names: Sequence[str], answers: Any) -> None:
    for name in names:
        outcome = _outcome(partial(_capture, setting, name))
        answers.send(outcome)
        if outcome[0] != 1 and not _captures(setting):
            return


def _captures(setting: Setting) -> bool:
    """Whether this process can still capture an addition."""
    if setting.device.type != "cuda":
        return True
    value = torch.ones(1, device=setting.device)
    return _outcome(partial(_replayed, setting, lambda: value + 1))[0] == 1


def _capture(setting: Setting, name: str) -> None:
    call = _mixing(setting, name, setting.pick(32, 4), setting.pick(32, 8))
    if setting.device.type == "cuda":
        _replayed(setting, call)
    else:
        call()


def _replayed(setting: Setting, call: Callable[[], object]) -> None:
    """Three calls, one that is captured, and the graph's own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    setting.wait()


def mixing(setting: Setting) -> Iterator[Row]:
    """Mixing against timm, torchvision and kornia, eager and compiled, as ratios to the floor."""
    from speed.command import main as speed

    size = ["--shapes", "128,3,32,32", "64,3,224,224", "--rounds", "5"]
    jobs = ["mixup", "cutmix", "resizemix", "fmix"]
    if setting.rehearse:
        size, jobs = ["--shapes", "2,3,4,4", "--rounds", "1", "--per", "batch"], ["mixup"]
    place = ["--device", str(setting.device), "--sections", "mixing", *size]
    # One at a time, for a table comes at the end; compiling takes longest.
    for job, more in [(job, []) for job in jobs] + [(job, ["--compiled"]) for job in jobs[:2] if not setting.rehearse]:
        with tempfile.TemporaryDirectory() as folder:
            speed([*place, "--jobs", job, *more, "--out", folder])
            with (Path(folder) / "speed.csv").open() as file:
                for row in csv.DictReader(file):
                    if more and row["output"] != "compiled":
                        continue
                    variant = f"{row['regime']}, per {row['per']}, {row['library']} {row['output']}"
                    yield Row("mixing", row["job"], variant, float(row["x_floor"]), "x floor", f"{row['ms']} ms")


def processes(setting: Setting) -> Iterator[Row]:
    """One training step by DistributedDataParallel, over a group of one process."""
    yield Row("processes", "DistributedDataParallel", "", *_outcome(partial(_distributed, setting)))


def _distributed(setting: Setting) -> None:
    backend = "nccl" if setting.device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/meet", rank=0, world_size=1)
        try:
            model = models.create("cifar_resnet8", num_classes=10).to(setting.device)
            step = MixStep(model, mixaug.create("cutmix"), losses.MixedCrossEntropy())
            parallel = nn.parallel.DistributedDataParallel(step)
            loss, _ = parallel(*_batch(setting, 4))
            loss.backward()
            setting.wait()
        finally:
            torch.distributed.destroy_process_group()


def _policies(setting: Setting) -> list[str]:
    names = mixaug.list_policies()
    return list(FEW) if setting.rehearse else [*FIRST, *(name for name in names if name not in FIRST)]


def _batch(setting: Setting, count: int, side: int = 32) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 3, side, side, device=setting.device), torch.arange(count, device=setting.device) % 10


def _mixing(setting: Setting, name: str, count: int, side: int) -> Callable[[], object]:
    """A call of a policy with made-up signals, or with a small model where those will not do."""
    options: dict[str, Any] = {}
    if "channels" in mixaug.describe(name).defaults and name in ("adautomix", "automix", "samix"):
        options = {"channels": CHANNELS}
    elif name == "comixup":
        options = {"clean_weight": 0.0}
    elif name == "puzzlemix":
        options = {"block_nums": 4}
    subject = Subject(partial(mixaug.create, name, **options), {}, None, None, setting.device, (side, side))
    policy = subject.policy()
    images, labels = _batch(setting, count, side)
    signals = subject.signals(policy, images, labels)
    return partial(policy, images, labels, signals=signals)


def _outcome(call: Callable[[], object]) -> tuple[float | str, str, str]:
    """1 where the call ends well, else 0 and what it said."""
    try:
        call()
    except Exception as error:
        return 0, "works", _said(error)
    return 1, "works", ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
