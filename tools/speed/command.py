"""The command line of tools/speed.py."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from speed import check, loaders, sections, steps
from speed.goals import judge, read_goals
from speed.page import PAGE, TABLES, around, fill
from speed.profiles import Profile, profiles
from speed.report import markdown, table
from speed.setting import DTYPES, LAYOUTS, Setting, environment

#: Where runs of this machine are kept, out of git.
RECORDED = Path(__file__).resolve().parents[2] / "runs" / "speed_recorded.csv"
SHAPES = ("128,3,32,32", "64,3,224,224", "16,3,384,384")
SECTIONS = ("mixing", "loss", "step", "resident", "loader", "pairing", "puzzlemix", "guided", "learned", "objectives")
#: The sections that time whole training steps, each for backbones of its own.
STEPS = {"guided": steps.GUIDED, "learned": steps.LEARNED, "objectives": steps.OBJECTIVES}
LABELS = list(
    dict.fromkeys(
        job.label for jobs in (sections.JOBS, *(step[2] for known in STEPS.values() for step in known)) for job in jobs
    )
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print Markdown, write files if asked; 1 when ``--check`` finds something slower, or a rival's lead."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.profile and not {job.label for job in sections.JOBS} & set(options.jobs):
        parser.error(f"--profile needs --jobs, of {', '.join(repr(job.label) for job in sections.JOBS)}")
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out: {error}")
    if options.page:
        if options != parser.parse_args(["--page", *options.page]):
            parser.error("--page measures each table by a command of its own, which the page names: leave out the rest")
        for name in options.page:
            # Before minutes of measuring, which a page without a place would lose.
            around(PAGE, name)
        for name in options.page:
            _fill_page(parser, name)
        return 0
    conditions = _conditions(options)
    rows, profiled = _measure(options)
    verdicts = judge(rows, read_goals(), torch.device(options.device).type)
    page = markdown(conditions, rows, verdicts, profiled)
    print(page)
    if options.out is not None:
        (options.out / "speed.md").write_text(page)
        (options.out / "speed.csv").write_text(table(rows))
    if options.check and not _passes(options, rows, conditions):
        return 1
    if options.check or options.record:
        check.record(options.recorded, rows, conditions, replace=options.record)
    return 0


def _fill_page(parser: argparse.ArgumentParser, name: str) -> None:
    options = parser.parse_args(TABLES[name].arguments.split())
    conditions = _conditions(options)
    rows, _ = _measure(options)
    fill(PAGE, name, rows, judge(rows, read_goals()), conditions)
    print(f"{name} is in {PAGE}")


def _conditions(options: argparse.Namespace) -> dict[str, str]:
    torch.set_num_threads(options.threads)
    conditions = environment(options.device)
    print(", ".join(f"{key} {value}" for key, value in conditions.items()), file=sys.stderr)
    return conditions


def _measure(options: argparse.Namespace) -> tuple[list[sections.Row], list[Profile]]:
    jobs = [job for job in sections.JOBS if not options.jobs or job.label in options.jobs]
    rows: list[sections.Row] = []
    profiled: list[Profile] = []
    few = max(3, options.rounds // 2)
    for setting in _settings(options):
        print(f"measuring {setting.name}", file=sys.stderr)
        if "mixing" in options.sections:
            rows += sections.mixing(setting, jobs, options.per, compiled=options.compiled, rounds=options.rounds)
        if setting.dtype != "uint8" and "loss" in options.sections:
            pair = [job for job in jobs if job.label in ("mixup", "cutmix")]
            rows += sections.labels_and_loss(
                setting, pair, options.per, compiled=options.compiled, rounds=options.rounds
            )
        if setting.dtype != "uint8" and "step" in options.sections and setting.shape[-1] <= options.step_side:
            rows += steps.training_step(setting, jobs, options.model, few)
        if setting.dtype == "float32" and setting.layout == "contiguous" and "loader" in options.sections:
            rows += loaders.loaders(setting, options.per, few, options.workers)
        if options.profile:
            profiled += profiles(setting, jobs, options.per)
    for shape in options.shapes if "resident" in options.sections else ():
        if shape[-1] <= options.step_side:
            # Few CPUs have units for bfloat16; the others take ten times as long.
            dtype = "bfloat16" if options.device.startswith("cuda") else "float32"
            setting = Setting(shape, dtype, "channels_last", options.device)
            rows += steps.resident(
                setting, jobs, options.model, few, batches=options.batches, compiled=not options.eager
            )
    if "loss" in options.sections:
        for batch, classes in ((128, 100), (128, 1000), (1024, 1000), (1024, 21841)):
            rows += sections.index_loss(batch, classes, options.device, options.rounds)
    if "pairing" in options.sections:
        for count, columns in ((1_000, 1), (40_000, 1), (1_000_000, 1), (7_588, 8), (1_000_000, 2)):
            rows += sections.pairing(count, columns, options.device, options.rounds)
    if "puzzlemix" in options.sections:
        for shape in ((100, 3, 32, 32), (64, 3, 224, 224)):
            rows += sections.puzzlemix(shape, options.device, options.rounds)
        rows += sections.cut_energies(options.device)
    for model, shape, known_jobs in [step for name in STEPS if name in options.sections for step in STEPS[name]]:
        chosen = [job for job in known_jobs if not options.jobs or job.label in options.jobs]
        if chosen:
            setting = Setting(shape, "float32", "contiguous", options.device)
            rows += steps.training_step(setting, chosen, model, few, memory=True)
    return rows, profiled


def _passes(options: argparse.Namespace, rows: Sequence[sections.Row], conditions: Mapping[str, str]) -> bool:
    """Whether nothing became slower and no rival is faster by what a training step feels; says what did and is."""
    earlier = check.recorded(options.recorded, conditions)
    if not earlier:
        where = f"{options.recorded} has no run of {conditions['device']} with {conditions['threads']} threads"
        print(f"{where}: this one is kept, and later ones are compared with it", file=sys.stderr)
    settings = {setting.name: setting for setting in _settings(options)}

    @functools.cache
    def step(name: str) -> float:
        return check.step_milliseconds(settings[name], options.model)

    slower, compared = check.regressions(rows, earlier)
    faster, rivals = check.leads([row for row in rows if row.setting in settings], step)
    if compared + rivals == 0:
        print(
            "nothing that this run measured has been recorded or has a rival: name other sections, jobs or shapes",
            file=sys.stderr,
        )
        return False
    for line in [*(f"slower: {line}" for line in slower), *(f"rival: {line}" for line in faster)]:
        print(line, file=sys.stderr)
    found = f"{len(slower)} of {compared} rows slower than recorded, {len(faster)} of {rivals} rivals ahead"
    print(f"{found} by more than {check.FELT:.0%} of a training step", file=sys.stderr)
    return not slower and not faster


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time every policy against the memory floor and other libraries.")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=["mixing", "loss"])
    parser.add_argument("--jobs", nargs="+", choices=LABELS, default=[])
    parser.add_argument("--shapes", nargs="+", type=_shape, default=[_shape(text) for text in SHAPES])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32"])
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=["contiguous"])
    parser.add_argument("--per", nargs="+", choices=["batch", "sample", "pair"], default=["batch", "sample"])
    parser.add_argument("--compiled", action="store_true", help="time torch.compile as well")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=_positive, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--rounds", type=_positive, default=7)
    parser.add_argument("--model", default="cifar_resnet18", help="backbone of the sections step and resident")
    parser.add_argument(
        "--step-side", type=int, default=64, help="largest image side of the sections step and resident"
    )
    parser.add_argument("--eager", action="store_true", help="leave the resident section uncompiled")
    parser.add_argument(
        "--batches", type=_positive, help="of an epoch of the resident section (64 on a GPU, 4 on a CPU)"
    )
    parser.add_argument("--workers", type=_not_negative, default=2, help="worker processes of every loader")
    parser.add_argument(
        "--profile", action="store_true", help="show the operators that mixing in --jobs spends time in"
    )
    parser.add_argument("--out", type=Path, help="folder for speed.md and speed.csv")
    parser.add_argument(
        "--page", nargs="+", choices=list(TABLES), help="measure these tables of docs/speed.md, write them there, end"
    )
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 on what became slower, and on rivals that a step feels"
    )
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="file of runs that --check compares with")
    parser.add_argument("--record", action="store_true", help="let this run replace what it holds")
    return parser


def _settings(options: argparse.Namespace) -> list[Setting]:
    return [
        Setting(shape, dtype, layout, options.device)
        for shape in options.shapes
        for dtype in options.dtypes
        for layout in options.layouts
    ]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, int, int, int]:
    parts = tuple(int(part) if part.strip().isdecimal() else 0 for part in text.split(","))
    if len(parts) != 4 or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"expected B,C,H,W of positive integers, got {text!r}")
    return parts[0], parts[1], parts[2], parts[3]
