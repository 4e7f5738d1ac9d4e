"""Contrastive losses of embeddings with class labels."""

from __future__ import annotations

import torch
from torch import Tensor

from mixaug.checks import check_dense, check_positive, check_positive_share
from mixaug.losses.checks import compute_dtype
from mixaug.ops.precision import full_precision


def supervised_contrastive_loss(
    embeddings: Tensor, labels: Tensor, temperature: float = 0.1, q: float | None = None
) -> Tensor:
    """Supervised contrastive loss (arXiv:2004.11362), and its generalised form that amplifies what is easy.

        L = -mean_i mean_{j of the class of i} f(p_ij) log p_ij,   p_ij = softmax over k != i of z_i . z_k / T

    f is 1, or ``q p^q`` without gradient (SelecMix, arXiv:2211.02291): pairs that are told to be alike already count
    most, so that a network learns what goes along with the class in most samples, a bias.

    Args:
        embeddings: (B, D) floating z, rows of length 1.
        labels: (B,) integer class ids.
        temperature: T, positive.
        q: of the generalised form, in (0, 1]; 0.7 in SelecMix. None takes the plain form.

    Returns:
        Scalar, float32 or wider. A sample that is alone in its class counts as 0 in the mean over all B.

    Raises:
        ValueError: other shapes, an option out of range.
        TypeError: labels that are no integers, embeddings that are no floating tensor.
    """
    what = "supervised_contrastive_loss"
    check_dense(what, "embeddings", embeddings)
    check_dense(what, "labels", labels)
    temperature = check_positive(what, "temperature", temperature)
    q = None if q is None else check_positive_share(what, "q", q)
    if not embeddings.is_floating_point() or embeddings.ndim != 2 or not len(embeddings):
        raise TypeError(f"{what} expects embeddings (B, D) floating, got {tuple(embeddings.shape)} {embeddings.dtype}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"{what} expects labels as integer class ids, got {labels.dtype}")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"{what} expects labels ({len(embeddings)},), got {tuple(labels.shape)}")
    rows = embeddings.to(compute_dtype(embeddings))
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    with full_precision(rows.device):
        logits = rows @ rows.T / temperature
    # The smallest number and not -inf, so that a batch of one sample has a gradient, of zero.
    logits = logits.masked_fill(own, torch.finfo(rows.dtype).min)
    log_p = logits.log_softmax(1)
    positive = (labels[:, None] == labels) & ~own
    if q is not None:
        log_p = q * log_p.detach().exp() ** q * log_p
    each = log_p.where(positive, torch.zeros_like(log_p)).sum(1)
    return -(each / positive.sum(1).clamp(min=1)).mean()
