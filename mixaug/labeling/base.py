"""How much of each label: what a labeling is, and what several of them share."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mixaug.batch import Batch, MixedBatch
from mixaug.plan import Plan
from mixaug.signals.backbone import has_class_token


@runtime_checkable
class Labeling(Protocol):
    """Weights of the sources' labels: (B, M) float32, column 0 for the sample itself.

    ``needs`` names the signals it asks of the model (see ``Policy.needs``). A labeling that can say more once the
    model has seen the mixed images names what it ``reads`` of that pass (see ``Policy.reads``) and has a method
    ``after(plan, mixed, seen)``, which gives the final weights. One that draws has a method ``draw(plan, batch,
    draws)``, which is asked in place of the call. One that learns from the training data beforehand has a method
    ``on_prepare(preparation)``, see :class:`mixaug.preparation.Preparation`. One that needs per-sample tensors
    beside images and labels names them in ``metadata``. One whose weights need not sum to one over the sources has
    an attribute ``normalised = False``, so that :func:`mixaug.testing.check_policy` does not expect it. One that weighs
    what a mask shows of each source has an attribute ``weighs_mask = True``; policies without a mask refuse it.
    """

    needs: frozenset[str]

    def __call__(self, plan: Plan, batch: Batch) -> Tensor: ...


def reads_class_token(model: nn.Module | None) -> bool:
    """Whether the classifier takes the class token, and not a mean of tokens."""
    if model is None or not has_class_token(model):
        return False
    pool = getattr(model, "global_pool", None)
    return pool in ("token", "") if isinstance(pool, str) else True


def area_of_images(name: str, plan: Plan, batch: Batch) -> Tensor:
    """The area's shares, which stand until the model has seen the mixed images."""
    if batch.images.ndim != 4:
        raise ValueError(f"labeling {name!r} expects images (B, C, H, W), got shape {tuple(batch.images.shape)}")
    return two_shares(plan.area(), len(batch))


def mask_and_area(name: str, plan: Plan, mixed: MixedBatch) -> tuple[Tensor, Tensor] | None:
    """Own mask (R, H, W) and own share of the area (B,) float32; None for a policy without a mask."""
    mask = plan.own_mask()
    if mask is None:
        return None
    # The plan's weights count and not the batch's, which an earlier call may have replaced.
    weights = mixed.weights if plan.weights is None else plan.weights
    if weights.shape[1] != 2:
        raise ValueError(f"labeling {name!r} weighs pairs; these samples have {weights.shape[1]} sources each")
    return mask, weights[:, 0].float().expand(len(mixed))


def height_and_width(mask: Tensor) -> tuple[int, int]:
    return mask.shape[-2], mask.shape[-1]


def of_pair(own: Tensor) -> Tensor:
    return torch.stack([own, 1 - own], dim=1)


def two_shares(lam: Tensor, batch_size: int) -> Tensor:
    lam = lam.float()
    return torch.stack([lam, 1 - lam], dim=1).expand(batch_size, 2)
