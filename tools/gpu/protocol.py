"""Sections that train: the time of a step, then the published protocol to its end."""

from __future__ import annotations

import csv
import json
import multiprocessing
import runpy
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch

import mixaug
from gpu.setting import Row, Setting
from mixaug import MixStep, losses, models

ROOT = Path(__file__).resolve().parents[2]
#: Sections start from a server that has imported all, and has touched no GPU; so have those that train.
CONTEXT = multiprocessing.get_context("forkserver")
FORK = multiprocessing.get_context("fork")
#: The policies in the order in which they are run, and their names in the tables of published figures.
POLICIES = {"none": "Vanilla", "cutmix": "CutMix", "resizemix": "ResizeMix"}
#: Two single runs agree when they lie no further apart, in percent.
AGREEMENT = 0.7
EPOCHS, STEPS_AN_EPOCH = 200, 500
#: Seconds of part 2 that training may take; of those, what compiling takes, and reading the data and the evaluations.
SECONDS, COMPILING, BESIDE = 480.0, 60.0, 40.0


def published() -> dict[str, float]:
    """Published medians of single runs of 200 epochs on CIFAR-100 with ResNet-18, in percent."""
    with (ROOT / "mixaug" / "leaderboard" / "published" / "classification.csv").open(newline="") as file:
        lines = [
            line
            for line in csv.DictReader(file)
            if (line["source"], line["dataset"], line["backbone"], line["epochs"])
            == ("OpenMixup", "CIFAR-100", "ResNet-18", str(EPOCHS))
        ]
    known = {line["method"]: float(line["value"]) for line in lines}
    return {policy: known[name] for policy, name in POLICIES.items()}


def step_times(setting: Setting) -> Iterator[Row]:
    """The published step, in float32 with TF32 and in bfloat16, eager and compiled, in several processes at once."""
    # The forms that part 2 most likely takes come first: compiling takes up to a minute.
    forms = [("bfloat16", False), ("bfloat16", True), ("float32", False), ("float32", True)]
    for dtype, compiled in forms[::2] if setting.rehearse else forms:
        for number, milliseconds in _at_once(setting, setting.pick(3, 2), dtype, compiled).items():
            yield Row("step", _variant(dtype, compiled), _processes(number), milliseconds, "ms")


def _variant(dtype: str, compiled: bool) -> str:
    return f"{dtype}{', compiled' if compiled else ''}"


#: The published figure of a run.
TITLE = "top-1, median of the last 10"


def _processes(number: int) -> str:
    return f"{number} process{'es' * (number > 1)}"


def _at_once(setting: Setting, most: int, dtype: str, compiled: bool) -> dict[int, float]:
    """Milliseconds of a step in the slowest of 1, 2, ... processes that run at the same time."""
    answers, barrier = FORK.SimpleQueue(), FORK.Barrier(most)
    arguments = (str(setting.device), setting.rehearse, dtype, compiled, barrier, answers)
    workers = [FORK.Process(target=_time_steps, args=(rank, most, *arguments)) for rank in range(most)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(f"a process that timed steps ended with {[worker.exitcode for worker in workers]}")
    every = [answers.get() for number in range(1, most + 1) for _ in range(number)]
    return {number: max(time for count, time in every if count == number) for number in range(1, most + 1)}


def _time_steps(
    rank: int, most: int, device: str, rehearse: bool, dtype: str, compiled: bool, barrier: Any, answers: Any
) -> None:
    try:
        some = _stepping(device, rehearse, dtype, compiled)
        some(1 if rehearse else 10)
        count = 1 if rehearse else 100
        for number in range(1, most + 1):
            # Those that do not take part in this number wait for the next.
            barrier.wait()
            if rank < number:
                begun = perf_counter()
                some(count)
                answers.put((number, (perf_counter() - begun) / count * 1000))
    except Exception:
        # The others would wait for this one.
        barrier.abort()
        raise


def _stepping(device: str, rehearse: bool, dtype: str, compiled: bool) -> Callable[[int], None]:
    """A function that takes a number of steps of the published training, and waits for the device."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(1)
    name, batch = ("cifar_resnet8", 4) if rehearse else ("cifar_resnet18", 100)
    where = torch.device(device)
    model = models.create(name, num_classes=100).to(where, memory_format=torch.channels_last)
    step = MixStep(model, mixaug.create("cutmix", per="batch"), losses.MixedCrossEntropy())
    run = torch.compile(step) if compiled else step
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    images = torch.rand(batch, 3, 32, 32, device=where).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=where) % 100

    def some(number: int) -> None:
        for _ in range(number):
            with torch.autocast(where.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss, _ = run(images, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if where.type == "cuda":
            torch.cuda.synchronize()

    return some


def chosen(setting: Setting) -> tuple[int, str, bool, int]:
    """How many runs side by side, the form of their step, and the epochs, by the times that were taken before.

    As many runs as fit with all epochs, in the fastest form. Where not even two fit, two with fewer epochs: their
    learning rate then ends all the same, and what the policy gains can be seen.
    """
    times = {(row.what, row.variant): float(row.value) for row in setting.earlier if row.section == "step"}
    if not times:
        return 2, "bfloat16", True, EPOCHS
    forms = sorted({what for what, _ in times})

    def epochs(form: str, number: int) -> float:
        milliseconds = times.get((form, _processes(number)))
        if milliseconds is None:
            return 0
        ready = SECONDS - (COMPILING if "compiled" in form else 0) - BESIDE
        return ready * 1000 / (milliseconds * STEPS_AN_EPOCH)

    for number in (3, 2, 1):
        form = max(forms, key=lambda form: epochs(form, number))
        possible = epochs(form, number)
        if possible >= EPOCHS or (number == 2 and possible >= 10):
            # Two runs that are cut short say more than a whole one beside which there is nothing.
            whole = min(EPOCHS, int(possible) // 10 * 10)
            return number, form.split(",")[0], "compiled" in form, whole
    # One run, as long as the time allows; its level is compared with nothing then.
    return 1, form.split(",")[0], "compiled" in form, max(10, int(possible) // 10 * 10)


def engine(setting: Setting) -> Iterator[Row]:
    """A tiny run of the engine on the device, from sheets to a score, before part 2 takes minutes for a long one."""
    tiny = replace(setting, rehearse=True)
    for compiled in (False,) if setting.rehearse else (False, True):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            _write_tiny_sheets(root / "tiny_sheets")
            arguments = _arguments(tiny, "cutmix", root, "bfloat16", compiled, 1)
            worker = FORK.Process(target=_train, args=(arguments, str(root / "cutmix.log")))
            worker.start()
            worker.join()
            works = worker.exitcode == 0 and _figure(root, "cutmix")[1] is not None
            said = "" if works else f"exit code {worker.exitcode}: {_last_line(root / 'cutmix.log')}"
            yield Row("engine", "cutmix", _variant("bfloat16", compiled), int(works), "works", said[:200])


def _last_line(log: Path) -> str:
    lines = log.read_text().strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "nothing was said"


def train(setting: Setting) -> Iterator[Row]:
    """The published protocol without mixing and with CutMix, and with ResizeMix where three runs fit."""
    number, precision, compiled, length = (2, "float32", False, 1) if setting.rehearse else chosen(setting)
    policies, known = list(POLICIES)[:number], published()
    yield Row("protocol", "runs at once", _variant(precision, compiled), number, "runs", f"{length} epochs")
    root = setting.out / "runs" if setting.rehearse else setting.data.parent / "gpu_day_runs"
    workers = {}
    for policy in policies:
        arguments = _arguments(setting, policy, root, precision, compiled, length)
        workers[policy] = FORK.Process(target=_train, args=(arguments, str(root / f"{policy}.log")))
    root.mkdir(parents=True, exist_ok=True)
    if setting.rehearse and not (root / "tiny_sheets").exists():
        _write_tiny_sheets(root / "tiny_sheets")
    deadline = monotonic() + setting.pick(int(SECONDS), 600)
    for worker in workers.values():
        worker.start()
    for worker in workers.values():
        worker.join(max(0.0, deadline - monotonic()))
    for worker in workers.values():
        if worker.is_alive():
            # The engine resumes such a run exactly where its last checkpoint stands.
            worker.kill()
            worker.join()
    figures = {}
    for policy in policies:
        title, figure, epochs = _figure(root, policy)
        if figure is None:
            said = _last_line(root / f"{policy}.log")
            yield Row("protocol", policy, title, "", "%", f"no epoch was scored: {said}"[:200])
            continue
        figures[policy] = title, figure, epochs
        note = f"{epochs} epochs, {_variant(precision, compiled)}; published {known[policy]} at {EPOCHS}"
        yield Row("protocol", policy, title, figure, "%", note)
        if policy == "none" or figures.get("none", ())[::2] != (title, epochs):
            # Runs that ended at different epochs are not compared.
            continue
        gain, theirs = figure - figures["none"][1], known[policy] - known["none"]
        verdict = "agrees" if abs(gain - theirs) <= AGREEMENT else "differs"
        whole = epochs == EPOCHS and title == TITLE
        said = f"published {theirs:+.2f}: {verdict}" if whole else f"published {theirs:+.2f}; not at the end"
        yield Row("protocol", policy, "gain over none", gain, "points", said)


def _arguments(setting: Setting, policy: str, root: Path, precision: str, compiled: bool, epochs: int) -> list[str]:
    data = root / "tiny_sheets" if setting.rehearse else setting.data
    common = ["protocol=openmixup_cifar", f"policy={policy}", f"root={root}", f"precision={precision}", "seed=0"]
    common += [f"epochs={epochs}", "data=image_sheets", f"data.root={data}", "channels_last=true"]
    # Scoring and writing at every epoch would take a fifth of the time; the last ten epochs are scored anyway.
    common += ["evaluate_every=20", "checkpoint_every_epochs=20", f"compile={str(compiled).lower()}"]
    common += ["progress=false", "tensorboard=false"]
    if setting.rehearse:
        return [*common, "model=cifar_resnet8", f"device={setting.device}", "threads=1"]
    return [*common, "model=cifar_resnet18", f"device={setting.device}"]


def _write_tiny_sheets(folder: Path) -> None:
    """Sheets like those of CIFAR-100, of two classes of noise that differ in their brightness."""
    from PIL import Image

    folder.mkdir(parents=True)
    lines = ["label,name,coarse_label,coarse_name,train_pixels_sha256,test_pixels_sha256"]
    for label, name in enumerate(("dark", "light")):
        lines.append(f"{label},{name},0,noise,,")
        for split, rows in (("train", 5), ("test", 2)):
            pixels = 100 * label + 150 * torch.rand(32 * rows, 320, 3)
            (folder / split).mkdir(exist_ok=True)
            Image.fromarray(pixels.byte().numpy()).save(folder / split / f"{name}.webp", lossless=True)
    (folder / "classes.csv").write_text("\n".join(lines) + "\n")


def _train(arguments: list[str], log: str) -> None:
    with Path(log).open("w") as file:
        sys.stdout = sys.stderr = file
        sys.argv = ["tools/train.py", *arguments]
        sys.path.insert(0, str(ROOT / "tools"))
        runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")


def _figure(root: Path, policy: str) -> tuple[str, float | None, int]:
    """What is told of a run: the published figure where all of its last ten epochs are scored, else the newest score.

    Returns:
        What the number is, the number in percent, None where nothing was scored, and the number of epochs.
    """
    for file in root.glob(f"{policy}-*/epochs.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        scores = [(record["epoch"], record.get("test_top1")) for record in records]
        last = [top1 for _, top1 in scores[-10:]]
        if len(last) == 10 and None not in last:
            return TITLE, statistics.median(last), len(records)
        scored = [(epoch, top1) for epoch, top1 in scores if top1 is not None]
        if scored:
            return f"top-1 at epoch {scored[-1][0]}", scored[-1][1], len(records)
        return TITLE, None, len(records)
    return TITLE, None, 0
