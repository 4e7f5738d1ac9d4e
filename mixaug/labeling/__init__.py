"""How much of each label: from what a policy drew to the weights of the sources."""

from mixaug.labeling.attention import Attention
from mixaug.labeling.base import Labeling
from mixaug.labeling.cam import ClassActivation
from mixaug.labeling.content import Content
from mixaug.labeling.named import NAMED, make
from mixaug.labeling.object import VisibleObject
from mixaug.labeling.progressive import Progressive
from mixaug.labeling.remix import Remix
from mixaug.labeling.saliency import VisibleSaliency
from mixaug.labeling.separate import Separate
from mixaug.labeling.shares import Area, Drawn, Own, Partner
from mixaug.labeling.token_labels import TokenLabels

__all__ = [
    "NAMED",
    "Area",
    "Attention",
    "ClassActivation",
    "Content",
    "Drawn",
    "Labeling",
    "Own",
    "Partner",
    "Progressive",
    "Remix",
    "Separate",
    "TokenLabels",
    "VisibleObject",
    "VisibleSaliency",
    "make",
]
