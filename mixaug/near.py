"""Which of some names was probably meant by one that is none of them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["did_you_mean", "near"]

#: What other libraries, or languages, call an option or a choice, and what it may be here, where there is one of these
#: names.
SYNONYMS = {
    **dict.fromkeys(("p", "prob", "probs", "chance", "mix_prob", "switch_prob"), ("probability", "probabilities")),
    "weights": ("probabilities",),
    **dict.fromkeys(("transforms", "methods", "augmentations"), ("policies",)),
    **dict.fromkeys(("transform", "method", "augmentation"), ("policy",)),
    **dict.fromkeys(("beta", "mixup_alpha", "cutmix_alpha", "cutmix_beta"), ("alpha",)),
    **dict.fromkeys(("lam", "lambda_"), ("ratio",)),
    "mode": ("per", "interpolation"),
    "pairs": ("pairing",),
    **dict.fromkeys(("elem", "element", "image", "instance"), ("sample",)),
    **dict.fromkeys(("flip", "flipped"), ("reversed",)),
    **dict.fromkeys(("roll", "rolled", "cyclic"), ("shift",)),
    **dict.fromkeys(("random", "randperm", "shuffle"), ("permutation",)),
    **dict.fromkeys(("foto", "fotos"), ("photos",)),
}
#: A name that is cut off needs so many letters to be known by them.
LEAST_OF_A_NAME = 4


def near(name: str, known: Iterable[str], most: int = 3, *, words: bool = True) -> list[str]:
    """Names that one is a misspelling of, the nearest ones alone.

    With ``words``, those that stand for it in ``SYNONYMS`` go before, and those that share words with it come where
    there are no others.

    A letter that is missing, too much, wrong, or changed places with the next one is a fault; a name may have one, and
    one more where it has six letters.

    >>> near("alhpa", ["alpha", "eta"]), near("warmup", ["warmup_lr", "warmup_epochs"]), near("resume", ["reshuffle"])
    (['alpha'], ['warmup_lr', 'warmup_epochs'], [])
    """
    names = list(dict.fromkeys(known))
    if not name:
        return []
    same = [other for other in SYNONYMS.get(name.lower(), ()) if other in names] if words else []
    if same:
        return same[:most]
    faults = {other: _faults(name.lower(), other.lower()) for other in names}
    least = min(faults.values(), default=0)
    if names and least <= (1 if len(name) < 6 else 2) and least < len(name) - 1:
        return [other for other in names if faults[other] == least][:most]
    if not words:
        return []
    return [other for other in names if _shares_words(name.lower(), other.lower())][:most]


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message that refuses a name: the one that was probably meant, as a question; empty without one.

    Args:
        name: what came; nothing is like what is no string.
        known: the names that there are.

    >>> did_you_mean("flip", ["shift", "reversed"]), did_you_mean(0.5, ["shift"])
    ("; did you mean 'reversed'?", '')
    """
    close = near(name, known) if isinstance(name, str) else []
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


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
