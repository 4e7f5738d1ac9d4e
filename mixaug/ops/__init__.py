"""Tensor primitives that several methods share. No randomness, no policies, torch only."""
