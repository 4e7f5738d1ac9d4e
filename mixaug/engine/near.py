"""Which of some names was probably meant by one that is none of them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ELSEWHERE", "near"]

#: What other tools call something, and what there is here: of settings that stand in no section, and of a section that
#: the answer names.
ELSEWHERE = {
    "resume": "the same command goes on with an interrupted run",
    **dict.fromkeys(("learning_rate", "base_lr"), "it is optimizer.lr"),
    **dict.fromkeys(("wd", "decay"), "it is optimizer.weight_decay"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "sched"), "it is schedule=... and its settings"),
    **dict.fromkeys(("loss", "criterion"), "it is objective=... and its settings"),
    **dict.fromkeys(("arch", "backbone", "network", "net"), "it is model=..., of timm model=timm model.name=..."),
    **dict.fromkeys(("aug", "mix", "augmentation", "method"), "it is policy=..."),
    **dict.fromkeys(("gpu", "gpus", "cuda"), "it is device=cuda:0"),
    **dict.fromkeys(("amp", "fp16", "bf16", "half", "dtype"), "it is precision=bfloat16 or precision=float16"),
    **dict.fromkeys(("output", "output_dir", "outdir", "save_dir", "logdir", "log_dir"), "it is root=..."),
    **dict.fromkeys(("checkpoint", "ckpt", "pretrained", "weights", "finetune"), "it is init_from=runs/<run>"),
}
#: A name that is cut off needs so many letters to be known by them.
LEAST_OF_A_NAME = 4


def near(name: str, known: Iterable[str], most: int = 3, *, words: bool = True) -> list[str]:
    """Names that one is a misspelling of, the nearest ones alone; else, with ``words``, those that share words with it.

    A letter that is missing, too much, wrong, or changed places with the next one is a fault; a name may have one, and
    one more where it has six letters.

    >>> near("alhpa", ["alpha", "eta"]), near("warmup", ["warmup_lr", "warmup_epochs"]), near("resume", ["reshuffle"])
    (['alpha'], ['warmup_lr', 'warmup_epochs'], [])
    """
    names = list(dict.fromkeys(known))
    if not name:
        return []
    faults = {other: _faults(name.lower(), other.lower()) for other in names}
    least = min(faults.values(), default=0)
    if names and least <= (1 if len(name) < 6 else 2) and least < len(name) - 1:
        return [other for other in names if faults[other] == least][:most]
    return [other for other in names if words and _shares_words(name.lower(), other.lower())][:most]


def _shares_words(one: str, other: str) -> bool:
    """Whether the words of the shorter name stand in the longer one in a row, or begin it."""
    short, long = sorted((one, other), key=len)
    return f"_{short}_" in f"_{long}_" or (len(short) >= LEAST_OF_A_NAME and long.startswith(short))


def _faults(one: str, other: str) -> int:
    """Letters to insert, leave out, replace or swap with the next one, to make one name of the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        last, row, before = before, [i], row
        for j, wanted in enumerate(other, start=1):
            least = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                least = min(least, last[j - 2] + 1)
            row.append(least)
    return row[-1]
