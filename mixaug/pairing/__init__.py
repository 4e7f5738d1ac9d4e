"""Who is mixed with whom: partner maps over a batch, and over a training set."""

from mixaug.pairing.base import Pairing, PoolPairing
from mixaug.pairing.contradicting import Contradicting, contradicting_partners
from mixaug.pairing.kernel import FittedKernel, LabelKernel, label_kernel
from mixaug.pairing.named import NAMED, make
from mixaug.pairing.nearest import FittedNearest, Local, Nearest, limited_choice, nearest_rows
from mixaug.pairing.selective import ClassPairs, FittedClassPairs, FittedSelective, Selective, WithinGroup
from mixaug.pairing.within_batch import AnyRow, Derangement, Halves, Own, Permutation, RandomPairs, Reversed, Shift

__all__ = [
    "NAMED",
    "AnyRow",
    "ClassPairs",
    "Contradicting",
    "Derangement",
    "FittedClassPairs",
    "FittedKernel",
    "FittedNearest",
    "FittedSelective",
    "Halves",
    "LabelKernel",
    "Local",
    "Nearest",
    "Own",
    "Pairing",
    "Permutation",
    "PoolPairing",
    "RandomPairs",
    "Reversed",
    "Selective",
    "Shift",
    "WithinGroup",
    "contradicting_partners",
    "label_kernel",
    "limited_choice",
    "make",
    "nearest_rows",
]
