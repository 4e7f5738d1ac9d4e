"""The command line of tools/gpu_day.py."""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, process_time
from typing import Any

import torch

from gpu import checks, protocol, report
from gpu.protocol import CONTEXT
from gpu.setting import Row, Section, Setting
from speed.setting import environment

ROOT = Path(__file__).resolve().parents[2]
CARRY = ROOT / "gpu_day"
#: Seconds that a whole part may take.
PARTS = {1: 150.0, 2: 520.0}
SECTIONS = (
    Section("processes", 1, 50, checks.processes, timed=False),
    Section("engine", 1, 50, protocol.engine, timed=False),
    Section("kernels", 1, 50, checks.kernels, timed=False),
    Section("steps", 1, 50, checks.steps, timed=False),
    Section("graphs", 1, 50, checks.graphs, timed=False),
    Section("tests", 1, 50, checks.tests, timed=False),
    Section("step", 1, 75, protocol.step_times),
    Section("launches", 1, 12, checks.launches),
    Section("mixing", 1, 20, checks.mixing),
    Section("protocol", 2, 510, protocol.train),
)
#: What runs need beside torch, torchvision, timm and Triton, which a machine with a GPU is taken to have.
PACKAGES = (
    "hydra-core>=1.3.7,<1.4",
    "omegaconf>=2.3,<2.4",
    "pyyaml",
    "torchmetrics",
    "lightning-utilities",
    "packaging",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections of a part; 1 where one of them did not end."""
    parser = argparse.ArgumentParser(description="Answer what only a GPU can tell, in two calls of a few minutes.")
    parser.add_argument("--part", type=int, choices=[1, 2], default=1, help="1: is all right, and how fast; 2: train")
    parser.add_argument("--sections", nargs="+", choices=[section.name for section in SECTIONS])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_day_out")), help="for CSV and log")
    parser.add_argument("--rehearse", action="store_true", help="every section of both parts, tiny, on the CPU")
    parser.add_argument("--data", type=Path, default=Path.home() / "gpu_day_data" / "cifar100", help="sheets, decoded")
    parser.add_argument("--bring", type=Path, help="copy the sheets of this folder to --data first")
    parser.add_argument(
        "--figures",
        type=Path,
        help="CSV of part 1, from which part 2 chooses; without --sections part 1 keeps its own beside --data",
    )
    parser.add_argument("--pack", type=Path, metavar="SHEETS", help="make gpu_day/ for the two calls, and end")
    parser.add_argument("--page", type=Path, metavar="CSV", help="fill docs/speed.md from a file of figures, and end")
    options = parser.parse_args(arguments)
    if options.pack is not None:
        pack(options.pack)
        return 0
    if options.page is not None:
        report.fill_page(ROOT / "docs" / "speed.md", options.page)
        return 0
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --rehearse runs everything on the CPU, in its smallest form")
    if options.bring is not None:
        bring(options.bring, options.data)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    # A busy machine without a GPU may take its time.
    patience = 10 if options.rehearse else 1
    deadline = monotonic() + patience * (sum(PARTS.values()) if options.rehearse else PARTS[options.part])
    options.out.mkdir(parents=True, exist_ok=True)
    if options.rehearse:
        # Before the server starts that all sections come from, so that kernels run in the interpreter.
        os.environ["TRITON_INTERPRET"] = "1"
    _start_server()
    device = torch.device("cpu" if options.rehearse else "cuda")
    known = environment(str(device))
    where, versions = known.pop("device"), ", ".join(f"{name} {version}" for name, version in known.items())
    kept = options.data.parent / "gpu_day_part1.csv"
    figures = options.figures or (kept if kept.exists() else None)
    earlier = report.read_rows(figures)[0] if figures is not None and options.part == 2 else []
    chosen = [
        section
        for section in SECTIONS
        if (section.name in options.sections if options.sections else options.rehearse or section.part == options.part)
    ]
    rows: list[Row] = []
    failed = []
    at_once = [section for section in chosen if not section.timed]
    groups = [*([at_once] if at_once else []), *([section] for section in chosen if section.timed)]
    with (options.out / "log.txt").open("w") as log:
        for group in groups:
            running = []
            for section in group:
                seconds = min(patience * section.seconds, deadline - monotonic())
                setting = Setting(device, options.rehearse, options.out, options.data, (*earlier, *rows), seconds)
                running.append(start_section(section, setting, log))
            for started in running:
                found, ended = end_section(started)
                rows += found
                failed += [] if ended == "ended" else [started.section.name]
                print(f"{started.section.name}: {ended}, {len(found)} figures", flush=True)
                # A later section that hangs the machine must not cost what is known already.
                report.write_rows(options.out / "gpu_day.csv", rows, where, versions)
    # What some sections gave must not take the place of what all of them gave, from which part 2 chooses.
    if options.part == 1 and not options.rehearse and not options.sections:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(options.out / "gpu_day.csv", kept)
    print(f"\n{where}, {versions}\n\n{report.table(rows)}")
    return int(bool(failed))


def _start_server() -> None:
    """Start the process that sections are forked from, which imports once what takes seconds."""
    # The server itself does not get this process's path, and leaves out without a word what it cannot import.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        CONTEXT.set_forkserver_preload(["gpu.command", "timm.optim", "mixaug.engine.train", "pytest"])
        first = CONTEXT.Process(target=int)
        first.start()
        first.join()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@dataclass
class Started:
    """A section at work.

    Attributes:
        section: which one.
        worker: its process.
        part: the file that its rows go to.
        begun, until: when it was started, and when it is ended, by the clocks of this process.
    """

    section: Section
    worker: Any
    part: Path
    begun: float
    until: float


def start_section(section: Section, setting: Setting, log: Any) -> Started:
    """Start a section in a process of its own."""
    part = setting.out / f"{section.name}.rows"
    part.write_text("")
    worker = CONTEXT.Process(target=_section, args=(section.name, setting, str(part), log.name))
    begun = perf_counter()
    worker.start()
    return Started(section, worker, part, begun, monotonic() + setting.seconds)


def end_section(started: Started) -> tuple[list[Row], str]:
    """Its rows, also those of before it was ended or failed, and how it ended."""
    worker, name = started.worker, started.section.name
    worker.join(max(started.until - monotonic(), 0.1))
    ended = "ended"
    if worker.is_alive():
        ended = f"stopped after {perf_counter() - started.begun:.0f} s"
        # Its own group: what it has started goes with it.
        try:
            os.killpg(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            worker.kill()
        worker.join()
    elif worker.exitcode:
        ended = f"failed with exit code {worker.exitcode}, see log.txt"
    with started.part.open(newline="") as file:
        # The last line of a process that was ended may be half a line.
        rows = [Row(*line) for line in csv.reader(file) if len(line) == len(Row._fields)]
    started.part.unlink()
    return [*rows, Row(name, "seconds", "section", f"{perf_counter() - started.begun:.2f}", "s", ended)], ended


def _section(name: str, setting: Setting, part: str, log: str) -> None:
    os.setsid()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    # Whatever stood in their place in the process that this one came from.
    sys.stdout = sys.stderr = os.fdopen(target, "w", buffering=1)
    print(f"=== {name}", flush=True)
    section = next(section for section in SECTIONS if section.name == name)
    try:
        with Path(part).open("a", newline="") as file:
            writer = csv.writer(file)
            for row in section.run(setting):
                writer.writerow(row)
                file.flush()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        print(f"=== {name}: {process_time():.1f} s of this process on the CPU")


def bring(source: Path, target: Path) -> None:
    """Copy sheets to where earlier ones lie, for the set comes in two parts, and the packages beside them.

    Raises:
        FileNotFoundError: a folder without sheets.
    """
    sheets = [path for path in source.rglob("*") if path.suffix in (".webp", ".csv")]
    if not sheets:
        raise FileNotFoundError(f"--bring expects a folder of gpu_day/ with sheets, found none in {source}")
    for path in sheets:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    if (CARRY / "site").is_dir():
        shutil.copytree(CARRY / "site", target.parent / "site", dirs_exist_ok=True)


def pack(sheets: Path) -> None:
    """Make the folder that travels beside the checkout: packages, and CIFAR-100 in two halves of the classes.

    Raises:
        FileNotFoundError: a folder without sheets.
    """
    names = sorted(path.stem for path in (sheets / "train").glob("*.webp"))
    if not names:
        raise FileNotFoundError(
            f"--pack expects CIFAR-100 as sheets, train/*.webp and test/*.webp, found none in {sheets}"
        )
    shutil.rmtree(CARRY, ignore_errors=True)
    # The first part travels with the packages.
    border = len(names) * 46 // 100
    for half, members in enumerate((names[:border], names[border:]), start=1):
        for split in ("train", "test"):
            folder = CARRY / f"half{half}" / split
            folder.mkdir(parents=True)
            for name in members:
                shutil.copy(sheets / split / f"{name}.webp", folder)
        shutil.copy(sheets / "classes.csv", CARRY / f"half{half}")
    pip = [sys.executable, "-m", "pip"]
    # antlr4 comes as source; a wheel of it fits every Python.
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "-w", CARRY / "wheels", "antlr4-python3-runtime==4.9.3"], check=True
    )
    wheels = list((CARRY / "wheels").glob("antlr4*.whl"))
    place = ["--target", CARRY / "site", "--no-deps", "--no-compile", "--only-binary=:all:"]
    place += ["--python-version", "3.12"]
    subprocess.run([*pip, "install", "--quiet", *place, *wheels, *PACKAGES], check=True)
    shutil.rmtree(CARRY / "wheels")
    # PyYAML does without its compiled part.
    for path in (CARRY / "site").rglob("*.so"):
        path.unlink()
    for half in (1, 2):
        size = sum(path.stat().st_size for path in (CARRY / f"half{half}").rglob("*") if path.is_file())
        print(f"{CARRY.name}/half{half}: {size / 2**20:.0f} MiB")
