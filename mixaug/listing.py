"""Lists of policies and what is known of each, with what only a training step tells: its passes and its tasks.

A step of every policy that is asked about runs once, on eight small random images and a model of a few thousand
parameters: what a policy costs and which labels it takes is seen, not declared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug import registry
from mixaug.batch import Batch
from mixaug.draws import mean_over_choices
from mixaug.flops import Flops, attention_by_products
from mixaug.losses import MixedCrossEntropy, MixedSquaredError
from mixaug.near import did_you_mean
from mixaug.options import documented_options
from mixaug.policy import Policy
from mixaug.refreshing import Sets, asking, looks_a_sample
from mixaug.registry import PolicyInfo, create
from mixaug.signals import ModelSignals
from mixaug.step import MixStep

__all__ = ["TASKS", "Card", "describe", "list_policies"]

#: What labels can be: class ids, or numbers.
TASKS = ("classification", "regression")
NO_NEEDS = "nothing of the model"
#: Width in columns of a printed card.
CARD_WIDTH = 120
#: Columns that the name and the default of an option may take beside what is said of it.
LONGEST_OPTION = 32
#: What a policy says that works on inputs of any shape.
ANY_TENSOR = "any tensor (B, ...): tables, series, images"
#: Samples, classes, and the side of the square images of the steps that are run.
SAMPLES, CLASSES, SIDE = 8, 4, 32
#: The run that looks at whole sets are spread over: as many images as CIFAR has, in batches of 128, a tenth of them for
#: validation.
RUN = Sets({"train": 50_000, "valid": 5_000}, None, epoch=391, trained=50_000 / 391)


@dataclasses.dataclass(frozen=True)
class Card(PolicyInfo):
    """What is known of a policy; ``print`` shows it as a card."""

    @property
    def passes(self) -> float | None:
        """Forward passes of a batch in one training step with the default options, those of copies of the model
        included; None where no step could be run. Of a policy that chooses for a whole batch the expectation; of one
        that looks at a whole set now and then, its share of that: of 5,000 validation images, or 50,000 for training,
        in batches of 128."""
        return _first_seen(self.name)[0]

    @property
    def cost(self) -> float | None:
        """Floating-point operations of one training step with the default options, forward and backward, as a multiple
        of those of a step that mixes nothing; of a small vision transformer. None where no step could be run. Choices
        and looks count as in :attr:`passes`."""
        return _first_seen(self.name)[1]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The kinds of labels it takes, of :data:`TASKS`."""
        return tuple(task for task in TASKS if _seen(self.name, task) is not None)

    @property
    def inputs(self) -> str:
        """The inputs that it takes, in words."""
        return _inputs_of(self.name, self.target)

    @property
    def any_tensor(self) -> bool:
        """Whether it takes inputs without spatial axes, such as rows of a table."""
        return self.inputs == ANY_TENSOR

    @property
    def options(self) -> Mapping[str, str]:
        """What each option means and which values it takes, as its documentation says."""
        told, shared = documented_options(self.target), documented_options(Policy)
        # A function that makes a policy points at the options of all.
        told = {
            name: shared.get(name, text) if text.startswith("see :class:`mixaug.Policy`") else text
            for name, text in told.items()
        }
        return {option: plain(told.get(option, "")) for option in self.defaults}

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = CARD_WIDTH) -> str:
        """The card in lines of at most ``width`` columns, which are at least 40."""
        passes = "" if self.passes is None else f"{self.passes:g} forward in a training step"
        rows = {
            self.name: plain(self.summary),
            "family": self.family or "",
            "paper": self.paper,
            "arXiv": f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else "",
            "inputs": self.inputs,
            "labels": " or ".join({"classification": "classes", "regression": "numbers"}[task] for task in self.tasks),
            "needs": f"{', '.join(sorted(self.needs))} of the model: mixaug.MixStep" if self.needs else NO_NEEDS,
            "passes": passes,
            "cost": "" if self.cost is None else f"{self.cost:.3g} times the operations of a step without mixing",
            "options": "" if self.defaults else "none",
            "python": f"mixaug.create({self.name!r}), or from {self.target.__module__} import "
            f"{self.target.__qualname__}",
            "command": f"mixaug train policy={self.name}" if self._is_shipped else "",
            "card": f"docs/policies/{self.name}.md: when it helps and hurts" if self._is_shipped else "",
        }
        column = max(map(len, rows)) + 2
        lines = [filled(head.ljust(column), text, width) for head, text in rows.items() if text]
        shown = {f"{option}={self.defaults[option]!r}": text for option, text in self.options.items()}
        if shown:
            lines += ["", "options and their defaults"]
            column = min(max(map(len, shown)) + 4, LONGEST_OPTION)
            lines += [filled(f"  {option}".ljust(column), text, width) for option, text in shown.items()]
        return "\n".join(lines)

    @property
    def _is_shipped(self) -> bool:
        """Whether there is a config of it: packages of others bring none."""
        return self.target.__module__.startswith(f"{registry.OWN_POLICIES}.")


def filled(head: str, text: str, width: int) -> str:
    """A text beside its head, wrapped to ``width`` columns; below a head that leaves no room beside it."""
    indent = " " * min(len(head), LONGEST_OPTION)
    lines = textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if not lines:
        return head.rstrip()
    if head[:-1].endswith(" ") or len(head) <= len(indent):
        return "\n".join([head + lines[0][len(head) :], *lines[1:]])
    return "\n".join([head.rstrip(), *lines])


def describe(name: str) -> Card:
    """Paper, family, options and their defaults, needs, passes and tasks of a policy.

    Raises:
        ValueError: unknown name, with the closest ones.

    >>> print(describe("mixup"))
    mixup    Blend every sample with its partner, lam ~ Beta(alpha, alpha). Works on any tensor (B, ...).
    family   blends
    paper    mixup: Beyond Empirical Risk Minimization, ICLR 2018
    arXiv    https://arxiv.org/abs/1710.09412
    inputs   any tensor (B, ...): tables, series, images
    labels   classes or numbers
    needs    nothing of the model
    passes   1 forward in a training step
    cost     1 times the operations of a step without mixing
    python   mixaug.create('mixup'), or from mixaug.policies.mixup import Mixup
    command  mixaug train policy=mixup
    card     docs/policies/mixup.md: when it helps and hurts
    <BLANKLINE>
    options and their defaults
      alpha=1.0        concentration; 1.0 is the paper's CIFAR value, 0.2 its ImageNet value.
    ...
    """
    info = registry.describe(name)
    return Card(**{field.name: getattr(info, field.name) for field in dataclasses.fields(PolicyInfo)})


def list_policies(
    pattern: str = "*",
    needs: str | Iterable[str] | None = None,
    family: str | None = None,
    *,
    task: str | None = None,
    passes: float | None = None,
    cost: float | None = None,
) -> list[str]:
    """Names of all policies, sorted.

    Args:
        pattern: shell-style pattern, such as ``"*mix"``.
        needs: keep policies that need at least these signals; ``()`` keeps the model-free ones; None keeps all.
        family: keep policies of this one of ``mixaug.registry.FAMILIES``; None keeps all.
        task: keep policies that take class ids as labels (``"classification"``), or numbers (``"regression"``); None
            keeps all.
        passes: keep policies whose training step runs at most this many forward passes of a batch; None keeps all.
        cost: keep policies whose training step takes at most this many times the operations of a step without mixing,
            see :attr:`Card.cost`; None keeps all.

    Raises:
        ValueError: unknown family or task, ``passes`` or ``cost`` below 1.

    >>> list_policies("*cut*", needs=(), task="regression", passes=1)
    ['cutmix']
    """
    if task is not None and task not in TASKS:
        raise ValueError(
            f"list_policies expects task as one of {list(TASKS)} or None, got {task!r}{did_you_mean(task, TASKS)}"
        )
    for option, most in (("passes", passes), ("cost", cost)):
        if most is not None and (isinstance(most, bool) or not isinstance(most, int | float) or not most >= 1):
            raise ValueError(f"list_policies expects {option} as a number of at least 1 or None, got {most!r}")
    names = registry.list_policies(pattern, needs, family)
    if task is not None:
        names = [name for name in names if _seen(name, task) is not None]
    if passes is not None:
        names = [name for name in names if (taken := describe(name).passes) is not None and taken <= passes]
    if cost is not None:
        # What is shown as 1.34 is kept by 1.34.
        names = [name for name in names if (taken := describe(name).cost) is not None and round(taken, 2) <= cost]
    return names


#: Inputs by the number of their spatial axes.
KINDS_OF_INPUTS = {1: "series (B, C, T)", 2: "images (B, C, H, W)", 3: "volumes (B, C, D, H, W)"}


@functools.cache
def _inputs_of(name: str, _: Any) -> str:
    spatial = create(name).spatial
    return ANY_TENSOR if spatial is None else ", ".join(KINDS_OF_INPUTS[axes] for axes in spatial)


def plain(text: str) -> str:
    """A docstring's text without its marks of code and references."""
    return re.sub(r":\w+:`[~!]?([^`]*)`", r"\1", text).replace("``", "")


def _first_seen(name: str) -> tuple[float, float] | tuple[None, None]:
    """Passes and cost of a step of the first of :data:`TASKS` for which a policy runs."""
    return next((seen for task in TASKS if (seen := _seen(name, task)) is not None), (None, None))


def _seen(name: str, task: str) -> tuple[float, float] | None:
    """Passes and cost of a step of a policy for one of :data:`TASKS`; None where it does not run."""
    return _seen_of(name, registry.describe(name).target, task)


@functools.cache
def _seen_of(name: str, _: Any, task: str) -> tuple[float, float] | None:
    # The class is part of the key: a name can be given anew.
    try:
        with apart():
            passes, operations = _step_of(name, task)
    except (ValueError, TypeError, RuntimeError):
        # It refuses such labels, or such images at all; any of these is how policies refuse.
        return None
    return passes, operations / plain_operations(task)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """On the CPU in one thread, which is fastest for so little; torch's global state is afterwards as it was."""
    threads = torch.get_num_threads()
    # Under a device that is named, torch imports its compiler, which takes as long as all the rest of a card.
    on_cpu = contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    with torch.random.fork_rng(devices=[]), on_cpu, torch.inference_mode(False), torch.enable_grad():
        torch.set_num_threads(1)
        torch.manual_seed(0)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@functools.cache
def plain_operations(task: str) -> float:
    """Operations of a step that mixes nothing, for one of :data:`TASKS`."""
    with apart():
        return _step_of("none", task)[1]


def _step_of(name: str, task: str) -> tuple[float, float]:
    """Forward passes and operations of one training step, over all choices for a whole batch."""

    def run() -> tuple[float, float]:
        if task == "classification":
            model, labels = SmallModel(CLASSES), torch.arange(SAMPLES) % CLASSES
            step = MixStep(model, create(name), MixedCrossEntropy())
        else:
            model, labels = SmallModel(1), torch.linspace(-1, 1, SAMPLES)[:, None]
            step = MixStep(model, create(name), MixedSquaredError(), ModelSignals(model, loss=F.mse_loss))
            if asking(step):
                raise ValueError(f"{name} looks at whole sets of classes")
        return counted_step(step, model, Batch(torch.rand(SAMPLES, 3, SIDE, SIDE), labels))

    passes, operations = mean_over_choices(run)
    return passes, operations


def counted_step(step: MixStep, model: SmallModel, batch: Batch) -> tuple[float, float]:
    """Forward passes of the batch and operations in one training step, with its share of looks at whole sets."""
    looks, operations = looks_a_sample(step, batch.inputs, batch.labels, RUN)
    step.set_progress(0.5)
    model.counted.rows = 0
    with attention_by_products(), Flops() as flops:
        loss, _ = step(batch)
        loss.backward()
        step.after_step()
    count = len(batch)
    return model.counted.rows / count + looks, float(flops.total) + operations * count


class _Counted:
    """The rows that a model and all copies of it have run."""

    def __init__(self) -> None:
        self.rows = 0

    def __deepcopy__(self, _: Any) -> _Counted:
        return self


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = 2
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.mlp = _Attention(width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(tokens)
        return tokens + F.gelu(self.mlp(tokens))


class SmallModel(nn.Module):
    """A small vision transformer, which has whatever policies look at: stages, attention, a linear classifier.

    Args:
        outputs: numbers for each image.

    Attributes:
        counted: the rows that it and all its copies have run.
    """

    num_prefix_tokens = 1
    has_class_token = True

    def __init__(self, outputs: int, width: int = 16, patch: int = 8) -> None:
        super().__init__()
        self.counted = _Counted()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        self.feature_info = [{"module": f"blocks.{i}", "num_chs": width, "reduction": patch} for i in range(4)]

    def forward(self, images: Tensor) -> Tensor:
        self.counted.rows += len(images)
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], 1)
        outputs: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return outputs
