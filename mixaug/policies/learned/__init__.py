"""What policies share whose mask is made by a network that learns beside the classifier."""

from mixaug.policies.learned.base import LearnedMixer
from mixaug.policies.learned.momentum import MomentumNetwork, momentum_at
from mixaug.policies.learned.pairs import PairMixer

__all__ = ["LearnedMixer", "MomentumNetwork", "PairMixer", "momentum_at"]
