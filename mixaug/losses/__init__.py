"""Losses and accuracy for mixed samples, in index form.

A mixed sample is a weighted list of sources, so the loss of its label needs only the log-probabilities of the
sources' classes: ``loss_b = sum_m w[b, m] * l(logits[b], labels[sources[b, m]])``. Class ids therefore never
become a (B, K) target; one ``log_softmax`` and a (B, M) gather are all there is. docs/losses.md derives how
this agrees with ``torch.nn.CrossEntropyLoss`` and with ``timm.loss.BinaryCrossEntropy``, the choice of
normaliser included.

Sources: mixup, arXiv:1710.09412; label smoothing, arXiv:1512.00567; BCE for mixed labels with a threshold,
"ResNet strikes back", arXiv:2110.00476; weights that need not sum to one, SnapMix, arXiv:2012.04846.
"""

from mixaug.losses.accuracy import mixed_accuracy
from mixaug.losses.any_loss import MixedLoss, mixed_loss
from mixaug.losses.binary_cross_entropy import MixedBinaryCrossEntropy, mixed_binary_cross_entropy
from mixaug.losses.contrastive import supervised_contrastive_loss
from mixaug.losses.cross_entropy import MixedCrossEntropy, mixed_cross_entropy
from mixaug.losses.decoupled import DecoupledCrossEntropy, decoupled_regularizer
from mixaug.losses.regression import (
    Against,
    MixedAbsoluteError,
    MixedHuber,
    MixedRegressionLoss,
    MixedSquaredError,
    mixed_regression_loss,
)

__all__ = [
    "Against",
    "DecoupledCrossEntropy",
    "MixedAbsoluteError",
    "MixedBinaryCrossEntropy",
    "MixedCrossEntropy",
    "MixedHuber",
    "MixedLoss",
    "MixedRegressionLoss",
    "MixedSquaredError",
    "decoupled_regularizer",
    "mixed_accuracy",
    "mixed_binary_cross_entropy",
    "mixed_cross_entropy",
    "mixed_loss",
    "mixed_regression_loss",
    "supervised_contrastive_loss",
]
