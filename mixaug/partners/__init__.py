"""Where partners come from: the batch (default), the training set, another stream or view, earlier batches.

>>> import mixaug, torch
>>> from mixaug import Batch
>>> from mixaug.partners import Stream
>>> policy = mixaug.create("mixup", partners=Stream("outliers", label="uniform"))
>>> batch = Batch(torch.rand(4, 3, 8, 8), torch.arange(4), streams={"outliers": Batch(torch.rand(4, 3, 8, 8))})
>>> mixed = policy(batch)
>>> torch.allclose(mixed.targets(10).sum(1), torch.ones(4))
True
"""

from mixaug.partners.base import InBatch, Partners, PartnerSource
from mixaug.partners.beside import PseudoLabel, Stream, View
from mixaug.partners.history import Memory, PreviousBatch
from mixaug.partners.named import NAMED, make
from mixaug.partners.plan import PartnersPlan
from mixaug.partners.training_set import TrainingSet

__all__ = [
    "NAMED",
    "InBatch",
    "Memory",
    "PartnerSource",
    "Partners",
    "PartnersPlan",
    "PreviousBatch",
    "PseudoLabel",
    "Stream",
    "TrainingSet",
    "View",
    "make",
]
