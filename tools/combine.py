"""Which policies, objectives and sources of partners combine: writes the tables of docs/combinations.md.

    python tools/combine.py    # three minutes on a quiet core

Every combination runs a whole training step of a small network, with finite losses and gradients. The tables are of
pairs, policies with objectives and policies with partners; what two pairs allow is then run with all three at once.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mixaug
from mixaug import losses, models, networks, objectives
from mixaug.partners import Memory, PartnerSource, PreviousBatch, Stream, TrainingSet, View

PAGE = Path(__file__).resolve().parents[1] / "docs" / "combinations.md"
START, END = "<!-- tables of combinations -->", "<!-- end of tables -->"
CLASSES, SIZE, SIDE = 4, 6, 16
IMAGES = torch.randn(SIZE, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 2, 2, 0])
NUMBERS = torch.linspace(0, 1, SIZE)[:, None]
POOL = IMAGES.repeat(3, 1, 1, 1), LABELS.repeat(3), NUMBERS.repeat(3, 1)

#: Objectives that take any policy, for both tasks by the names of their config files. The others are systems with a
#: policy, networks or streams of their own, each with a card.
OBJECTIVES: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "classification": {
        "cross_entropy": losses.MixedCrossEntropy,
        "binary_cross_entropy": losses.MixedBinaryCrossEntropy,
        "decoupled": losses.DecoupledCrossEntropy,
        "regmixup": objectives.RegMixup,
        "rankmixup": lambda: objectives.RankMixup(draws=2),
        "mixkd": objectives.MixKD,
        "cutmixpick": objectives.CutMixPick,
        "mixoe": objectives.MixOE,
        "augmix": lambda: objectives.AugMix(mean=0.0, std=1.0),
        "pixmix": lambda: objectives.PixMix(mean=0.0, std=1.0),
    },
    "regression": {
        "squared_error": losses.MixedSquaredError,
        "absolute_error": losses.MixedAbsoluteError,
        "huber": losses.MixedHuber,
        "regmixup": lambda: objectives.RegMixup(loss=losses.MixedSquaredError()),
    },
}

#: The objective of each task without anything beside the loss of the mixed batch.
PLAIN = {"classification": "cross_entropy", "regression": "squared_error"}

#: Sources of partners by the title of their column; each makes one for labels (N, ...).
PARTNERS: Mapping[str, Callable[[torch.Tensor], PartnerSource | None]] = {
    "batch": lambda labels: None,
    "training set": lambda labels: TrainingSet(POOL[0], labels, metadata=_metadata(3 * SIZE)),
    "stream": lambda labels: Stream("other"),
    "outliers": lambda labels: Stream("outliers", label="uniform"),
    "view": lambda labels: View("other"),
    "previous batch": lambda labels: PreviousBatch(),
    "memory": lambda labels: Memory(2 * SIZE),
}

#: Options with which a step of a small network on small images stays a small step.
OPTIONS: Mapping[str, dict[str, Any]] = {
    "puzzlemix": {"block_nums": (4,)},
    "selfmix": {"view": "other"},
}


def cnn(outputs: int) -> nn.Module:
    """A ResNet of eight layers."""
    return models.create("cifar_resnet8", num_classes=outputs)


def vit(outputs: int) -> nn.Module:
    """A vision transformer of two blocks, for policies that look at attention."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=SIDE, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=outputs)


def policies(task: str) -> list[str]:
    """Policies of mixaug for a task; one that pairs by metadata is for both."""
    known = [set(mixaug.list_policies(task=one)) for one in OBJECTIVES]
    neither = set(mixaug.list_policies()).difference(*known)
    return sorted(filter(_is_ours, neither.union(mixaug.list_policies(task=task))))


def why_not(policy: str, objective: str, partners: str = "batch", task: str = "classification", steps: int = 1) -> str:
    """Why a combination does not train; empty where it does.

    Args:
        policy, objective, partners: names.
        task: of the labels.
        steps: whole training steps that are taken.
    """
    labels, pool = (LABELS, POOL[1]) if task == "classification" else (NUMBERS, POOL[2])
    outputs = CLASSES if task == "classification" else 1
    reasons = []
    for model in (cnn, vit):
        torch.manual_seed(0)
        try:
            _train(policy, OBJECTIVES[task][objective](), PARTNERS[partners](pool), model(outputs), labels, steps)
        except (ValueError, TypeError) as error:
            reasons.append(str(error))
            # Only what a policy looks at may be lacking in one network and there in the other.
            if "attention" not in str(error):
                break
            continue
        return ""
    return reasons[-1]


def _train(
    policy: str, objective: Any, source: PartnerSource | None, model: nn.Module, labels: torch.Tensor, steps: int
) -> None:
    options = OPTIONS.get(policy, {})
    if isinstance(source, TrainingSet) and "partners" not in mixaug.describe(policy).defaults:
        # Presets without the option get a training set around them.
        around = mixaug.create(policy, **options)
        made: mixaug.Policy = mixaug.Pooled(around, source.inputs, source.labels, metadata=source.metadata)
    else:
        made = mixaug.create(policy, **options, **({} if source is None else {"partners": source}))
    wanted = (*mixaug.passes.as_objective(objective).wants.networks, *made.wants_networks)
    beside = {name: networks.Frozen(copy.deepcopy(model)) for name in wanted}
    step = mixaug.MixStep(model, made, objective, networks=beside)
    other = mixaug.Batch(IMAGES.flip(0), labels.flip(0), metadata=_metadata(SIZE))
    batch = mixaug.Batch(
        IMAGES,
        labels,
        rows=torch.arange(SIZE),
        metadata=_metadata(SIZE),
        views={"other": IMAGES.flip(3)},
        streams={"other": other, "outliers": mixaug.Batch(IMAGES.flip(2))},
    )
    generator = torch.Generator().manual_seed(1)
    for number in range(steps):
        step.set_progress(number / steps)
        loss, _ = step(batch, generator=generator)
        loss.backward()
        if not loss.isfinite() or any(p.grad is not None and not p.grad.isfinite().all() for p in step.parameters()):
            raise RuntimeError(f"{policy} with {type(objective).__name__}: a loss or a gradient is not finite")
        step.zero_grad()
        step.after_step()


def _metadata(count: int) -> dict[str, torch.Tensor]:
    group = torch.arange(count) % 2
    masks = torch.zeros(count, SIDE, SIDE)
    masks[:, 4:12, 4:12] = 1
    return {"group": group, "domain": group, "object_mask": masks}


def _is_ours(name: str) -> bool:
    return mixaug.describe(name).target.__module__.startswith("mixaug.")


def cell(policy: str, column: str, task: str) -> str:
    """What the table says of a policy.

    Args:
        policy: its name.
        column: ``"objectives"``, for which the cell is ``all``, or ``all but`` those that do not train with the policy;
            or a source of partners: a tick where the policy trains with them under the plain objective, or a dash.
        task: of the labels.
    """
    if column == "objectives":
        # MixOE is for partners that are outliers.
        every = [name for name in OBJECTIVES[task] if name != "mixoe"]
        missing = [name for name in every if why_not(policy, name, task=task)]
        return "all but " + ", ".join(missing) if missing else "all"
    plain = PLAIN[task]
    asked = [plain, "mixoe"] if column == "outliers" else [plain]
    return "–" if any(why_not(policy, name, column, task) for name in asked) else "✓"


def columns(task: str) -> list[str]:
    """Titles of a table's columns; outliers have no label for a loss on numbers."""
    return [
        "objectives",
        *(name for name in PARTNERS if name != "batch" and (task, name) != ("regression", "outliers")),
    ]


def allowed_twice(task: str, cells: Mapping[tuple[str, str, str], str]) -> list[tuple[str, str, str]]:
    """Policy, objective and source of every combination of three that both of its pairs allow.

    Args:
        task: of the labels.
        cells: what :func:`written` gives. The plain objective with a source, and ``mixoe``, stand there already.
    """
    plain = PLAIN[task]
    found = []
    for policy in sorted(policy for of, policy, column in cells if (of, column) == (task, "objectives")):
        missing = cells[task, policy, "objectives"].removeprefix("all but ").split(", ")
        others = [name for name in OBJECTIVES[task] if name not in (plain, "mixoe", *missing)]
        sources = [source for source in columns(task)[1:] if cells[task, policy, source] == "✓"]
        found += [(policy, objective, source) for source in sources for objective in others]
    return found


def refused_at_once(task: str, cells: Mapping[tuple[str, str, str], str]) -> list[tuple[str, str, str]]:
    """Those of :func:`allowed_twice` that do not train."""
    return [one for one in allowed_twice(task, cells) if why_not(*one, task)]


def table_of_refused(task: str, refused: Sequence[tuple[str, str, str]]) -> str:
    """Combinations of three that do not train, a line for each policy and set of sources, as Markdown."""
    sources: dict[tuple[str, str], list[str]] = {}
    for policy, objective, source in refused:
        sources.setdefault((policy, objective), []).append(source)
    lines: dict[tuple[str, str], list[str]] = {}
    for (policy, objective), named in sources.items():
        told = ", ".join(source for source in columns(task) if source in named)
        lines.setdefault((policy, told), []).append(objective)
    rows = [
        f"| [{policy}](policies/{policy}.md) | {', '.join(names)} | {told} |" for (policy, told), names in lines.items()
    ]
    return "\n".join(["| policy | not with the objectives | and partners from |", "|---|---|---|", *rows])


def all_three(task: str, cells: Mapping[tuple[str, str, str], str], refused: Sequence[tuple[str, str, str]]) -> str:
    """The part of the page on combinations of a policy, an objective and a source."""
    count = len(allowed_twice(task, cells))
    told = f"Of {count} combinations of three that the table of pairs allows, {count - len(refused)} train."
    return f"{told} The others are refused:\n\n{table_of_refused(task, refused)}" if refused else told


def table(task: str) -> str:
    """The table of a task as Markdown."""
    titles = columns(task)
    lines = [f"| policy | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for policy in policies(task):
        cells = " | ".join(cell(policy, title, task) for title in titles)
        lines.append(f"| [{policy}](policies/{policy}.md) | {cells} |")
    return "\n".join(lines)


def written(text: str) -> dict[tuple[str, str, str], str]:
    """(task, policy, source) to the cell of a page that `main` wrote."""
    found: dict[tuple[str, str, str], str] = {}
    for task in OBJECTIVES:
        part = text.partition(f"### {task.title()}\n")[2].partition("\n### ")[0]
        head, *rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")] or [[]]
        for row in rows[1:]:
            policy = row[0].strip()[1:].partition("]")[0]
            for source, value in zip(head[1:], row[1:], strict=True):
                found[task, policy, source.strip()] = value.strip()
    return found


def main() -> None:
    """Write the tables anew."""
    tables = "\n\n".join(f"### {task.title()}\n\n{table(task)}" for task in OBJECTIVES)
    cells = written(tables)
    write(tables, cells, {task: refused_at_once(task, cells) for task in OBJECTIVES})


def write(
    tables: str, cells: Mapping[tuple[str, str, str], str], refused: Mapping[str, Sequence[tuple[str, str, str]]]
) -> None:
    """Put the tables of pairs, and what is said of combinations of three, into the page."""
    parts = [f"### {task.title()}, all three\n\n{all_three(task, cells, refused[task])}" for task in OBJECTIVES]
    text = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(START)}.*{re.escape(END)}", re.DOTALL)
    whole = "\n\n".join([START, tables, *parts, END])
    PAGE.write_text(pattern.sub(lambda _: whole, text), encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
