"""Imported before Triton: without a GPU, its kernels are run by its interpreter.

The variable is read when Triton is first imported.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
