"""SuperMix (arXiv:2003.05034): masks that a teacher approves, found by its gradients for every set of images.

    x' = sum over k of M_k x_k,   M_k = sigmoid(up(m_k)) / sum over j of sigmoid(up(m_j))
    min over m:  KL(t || p(x')) + sparsity * mean |M (M - 1)|,   t = sum of w_k on the teacher's class of x_k

w ~ Dirichlet(alpha, ..., alpha); m are small maps that start at 0 and follow the smoothed gradient s with steps of
|loss| / <gradient, s>. A set is finished when the largest classes of p are those of t; what is not finished after
``max_iter`` steps stays unmixed. The second image of a set is the sample's partner, the third that one's, and so on;
the authors' sets are consecutive rows, ``pairing="shift"``.

The authors write the images to disk once, with an ImageNet or CIFAR teacher, drop what is not finished, and train
students on what the teacher says of them (:class:`mixaug.objectives.MixKD`). Here masks are found while training, and
labels are the shares w of the true labels. Where fewer classes than images are in a set, theirs waits for classes of no
share as well, whichever torch's ``topk`` names first: ``reference=True``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaug.batch import Batch
from mixaug.checks import (
    check_flag,
    check_images,
    check_not_negative,
    check_out,
    check_positive,
    check_whole,
    shown,
)
from mixaug.draws import Draws
from mixaug.labeling import Area, Drawn
from mixaug.ops.layout import deliver, over_channels, reads_freely, single_precision, take_rows
from mixaug.ops.masks import top_mask
from mixaug.ops.nested import logits_of
from mixaug.ops.resample import cast_pixels
from mixaug.options import is_chosen
from mixaug.plan import MaskBlend, Plan
from mixaug.policies.network import NetworkPolicy
from mixaug.ratio import Beta, check_alpha_acts
from mixaug.registry import register
from mixaug.shared_options import SharedOptions
from mixaug.signals import ModelSignals
from mixaug.signals.model import in_mode

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesLabeling, TakesPairing, TakesRatio

    class Offered(TakesRatio, TakesPairing, TakesLabeling, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["SuperMix", "supermix", "supermix_masks", "supermix_search"]

#: Bounds of the length of a step.
SHORTEST, LONGEST = 1e-4, 2000.0


def supermix_masks(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Share of each image of a set per pixel.

    Args:
        maps: (R, K, h, w) floating point.
        size: (H, W).

    Returns:
        (R, K, H, W) of the dtype of ``maps``, in [0, 1], of sum 1 over the K.
    """
    large = F.interpolate(maps, (size[0], size[1]), mode="bilinear", align_corners=False)
    # The softmax of the logarithms is the quotient of the sigmoids, where all of them are 0 as well.
    return F.logsigmoid(large).softmax(1)


def supermix(
    images: Tensor, sources: Tensor, masks: Tensor, *, out: Tensor | None = None, inplace: bool = False
) -> Tensor:
    """Weighted sum of several images of a batch, with a weight per pixel. Differentiable.

    Half precision and uint8 are computed in float32; uint8 is rounded half to even.

    Args:
        images: (B, ..., H, W) floating point or uint8.
        sources: (B, K) int64 rows of the batch.
        masks: (B, K, H, W) floating point, of sum 1 over the K.
        out: tensor like ``images`` that receives the result and does not overlap it.
        inplace: write the result into ``images``.

    Returns:
        Mixed images, dtype and memory format of ``images``.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: another dtype.
    """
    check_out("supermix", images, out, inplace)
    expected = (*sources.shape, *images.shape[-2:])
    if sources.ndim != 2 or len(sources) != len(images) or images.ndim < 3 or tuple(masks.shape) != expected:
        raise ValueError(
            f"supermix expects sources (B, K) and masks (B, K, H, W) for images {tuple(images.shape)}, got "
            f"{tuple(sources.shape)} and {tuple(masks.shape)}"
        )
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise TypeError(
            f"a blend of {images.dtype} values has no meaning; for a label map pass num_classes to "
            "MixedBatch.apply to get per-pixel class shares, for an image pass uint8 or a float dtype"
        )
    masks = masks.to(images.dtype) if images.dtype == torch.float64 else masks.float()
    mixed = single_precision(images) * over_channels(masks[:, 0], images)
    for k in range(1, sources.shape[1]):
        mixed = mixed + single_precision(take_rows(images, sources[:, k])) * over_channels(masks[:, k], images)
    return deliver(cast_pixels(mixed, images.dtype), images, out, inplace)


def supermix_search(
    images: Tensor,
    sources: Tensor,
    target: Tensor,
    network: Callable[[Tensor], Tensor],
    *,
    mask_size: int = 8,
    sigma: float = 1.0,
    sparsity: float = 25.0,
    max_iter: int = 50,
    reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """Maps of sets of images whose mixture a network takes for what a target says.

    Args:
        images: (B, C, H, W) floating point, as the network takes them.
        sources: (B, K) int64 rows of each set, the sample itself first.
        target: (B, classes) floating point shares of the classes, of sum 1.
        network: images to (B, classes) logits; its gradient is taken with respect to the images alone.
        mask_size: side of the maps, at least 1.
        sigma: of the smoothing of the gradient, in cells of the map: int(5 sigma) of them.
        sparsity: weight of |M (M - 1)|.
        max_iter: steps, at least 1.
        reference: compare as many classes as there are images, classes of no share among them.

    Returns:
        Maps (B, K, mask_size, mask_size) for :func:`supermix_masks`, and (B,) bool, whether the set is finished.

    Raises:
        ValueError: an option out of range, shapes that do not fit.
        RuntimeError: under ``torch.inference_mode``, which forbids gradients.
    """
    check_images("supermix_search", images, (2,))
    mask_size = check_whole("supermix_search", "mask_size", mask_size)
    max_iter = check_whole("supermix_search", "max_iter", max_iter)
    sparsity = check_not_negative("supermix_search", "sparsity", sparsity)
    if sources.ndim != 2 or len(sources) != len(images) or target.ndim != 2 or len(target) != len(images):
        raise ValueError(
            f"supermix_search expects sources (B, K) and target (B, classes) for {len(images)} images, got "
            f"{tuple(sources.shape)} and {tuple(target.shape)}"
        )
    if torch.is_inference_mode_enabled():
        raise RuntimeError("SuperMix needs gradients, which torch.inference_mode() forbids; use torch.no_grad()")
    count, size = sources.shape[1], images.shape[2:]
    images, target = images.detach(), target.detach()
    smoothing = _smoothing(sigma, mask_size, images.device)
    if reference:
        compared = min(count, target.shape[1])
        wanted = _members(target.topk(compared, 1).indices, target)
    else:
        wanted = target > 0
        number = wanted.sum(1)
    maps = torch.zeros(len(images), count, mask_size, mask_size, device=images.device)
    finished = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    # The first step is always taken: what a search begins with is an even blend.
    with torch.enable_grad():
        for step in range(max_iter + 1):
            maps.requires_grad_(step < max_iter)
            masks = supermix_masks(maps, size)
            logits = single_precision(network(supermix(images, sources, masks)))
            if step > 0:
                found = _members(logits.topk(compared, 1).indices, logits) if reference else top_mask(logits, number)
                # A network that overflowed approves of nothing.
                finished = (found == wanted).all(1) & logits.isfinite().all(1)
            if step == max_iter or (reads_freely(finished) and bool(finished.all())):
                break
            loss = torch.special.xlogy(target, target).sum(1) - (target * logits.log_softmax(1)).sum(1)
            loss = loss + sparsity * (masks * (masks - 1)).abs().mean((1, 2, 3))
            (gradient,) = torch.autograd.grad(loss.sum(), maps)
            smooth = smoothing @ gradient @ smoothing.T
            along = (gradient * smooth).flatten(1).sum(1)
            length = (loss.detach().abs() / (along + 1e-10)).clamp(SHORTEST, LONGEST) * ~finished
            maps = maps.detach() - length[:, None, None, None] * smooth
    return maps.detach(), finished


def _smoothing(sigma: float, side: int, device: torch.device) -> Tensor:
    """(side, side) matrix that smooths a line by a Gaussian of int(5 sigma) cells, with zeros around the map."""
    cells = max(int(5 * check_positive("supermix_search", "sigma", sigma)), 1)
    place = torch.arange(cells, device=device)
    kernel = torch.exp(-0.5 * ((place - (cells - 1) / 2) * 5 / cells) ** 2)
    kernel = kernel / kernel.sum()
    line = torch.arange(side, device=device)
    # A kernel of an even number of cells reaches one cell further to the right.
    offset = line - line[:, None] + (cells - 1) // 2
    inside = (offset >= 0) & (offset < cells)
    return kernel[offset.clamp(0, cells - 1)] * inside


def _members(indices: Tensor, like: Tensor) -> Tensor:
    """(B, classes) bool, True for the classes that are listed."""
    return torch.zeros_like(like, dtype=torch.bool).scatter_(1, indices, True)


@dataclass(frozen=True, kw_only=True)
class SourceMasks(Plan):
    """Several images of the batch, each with a share per pixel.

    Attributes:
        rows_mixed: (B, K) int64, the sample itself first.
        masks: (B, K, H, W) float32, of sum 1 over the K.
    """

    rows_mixed: Tensor
    masks: Tensor

    @property
    def sources(self) -> Tensor:
        return self.rows_mixed

    def area(self) -> Tensor:
        return self.masks[:, 0].flatten(1).mean(1)

    def own_mask(self) -> Tensor:
        return self.masks[:, 0]

    def mix(self, tensor: Tensor, *, out: Tensor | None = None, inplace: bool = False) -> Tensor:
        return supermix(tensor, self.rows_mixed, self.masks, out=out, inplace=inplace)


@register(
    "supermix",
    paper="SuperMix: Supervising the Mixing Data Augmentation, CVPR 2021",
    arxiv="2003.05034",
    family="guided by the model",
)
class SuperMix(NetworkPolicy):
    """Mix sets of images under masks that a teacher approves; label shares are drawn.

    Args:
        alpha: of the Dirichlet distribution of the label shares, positive; 3.0 is the authors' value. For pairs it is
            Beta(alpha, alpha).
        sources: images of a set, at least 2; 2 and 3 in the paper.
        network: the teacher: a module that puts out logits. It is frozen in place and always runs in ``eval()`` mode;
            it moves with the policy, but is no part of its parameters, its ``state_dict`` or its submodules. None asks
            the model in training, in ``eval()`` mode: our substitute.
        mask_size: side of the maps that are searched, at least 1 and at most the image's: 8 for CIFAR, 16 for ImageNet.
        sigma: of the smoothing of their gradients, in cells: 1 for CIFAR, 2 for ImageNet.
        sparsity: weight of the term that wants every pixel to show one image, not negative; 25 in the authors' code.
        max_iter: steps, at least 1, each a forward and a backward pass of the teacher; 50 in the authors' code.
        reference: see the module.
        ratio: of the own share, for sets of three and more too, whose further shares are then the Dirichlet's of the
            rest.
        pairing: see :class:`mixaug.Policy`.
        labeling: ``"ratio"``, the drawn shares; ``"area"``, the mean of the masks; others for pairs alone.

    Raises:
        ValueError: an option out of range.
        TypeError: ``network`` is no module.
    """

    needs = frozenset({"outputs"})
    spatial = (2,)
    shared_defaults: ClassVar[SharedOptions] = {"labeling": "ratio"}
    # In sets of three and more alpha draws what the others leave of each other.
    alpha_acts_always = True
    not_offered = ("per", "partners")

    def __init__(
        self,
        alpha: float = 3.0,
        sources: int = 2,
        network: nn.Module | ModelSignals | None = None,
        mask_size: int = 8,
        sigma: float = 1.0,
        sparsity: float = 25.0,
        max_iter: int = 50,
        reference: bool = False,
        **shared: Unpack[Offered],
    ) -> None:
        sources = check_whole("SuperMix", "sources", sources, 2, 16)
        alpha = check_positive("SuperMix", "alpha", alpha)
        if sources == 2 and is_chosen(self, "alpha", alpha):
            check_alpha_acts("SuperMix", alpha, shared.get("ratio", "beta"))
        if sources > 2 and shared.get("ratio", "beta") == "beta":
            # One share of a Dirichlet distribution, beside all the others.
            shared["ratio"] = Beta(alpha, (sources - 1) * alpha)
        super().__init__(alpha=alpha, **shared)
        if sources > 2 and not isinstance(self.labeling, Drawn | Area):
            raise ValueError(
                f"SuperMix of {sources} images expects labeling 'ratio' or 'area', got {shown(shared.get('labeling'))}"
            )
        self.hold_network(network, "outputs")
        self.sources = sources
        self.mask_size = check_whole("SuperMix", "mask_size", mask_size)
        self.sigma = check_positive("SuperMix", "sigma", sigma, most=100)
        self.sparsity = check_not_negative("SuperMix", "sparsity", sparsity)
        self.max_iter = check_whole("SuperMix", "max_iter", max_iter, most=10_000)
        self.reference = check_flag("SuperMix", "reference", reference)
        # A tuple hides the model from torch: it is none of the policy's submodules.
        self._attached: tuple[nn.Module, ...] = ()

    def on_attach(self, signals: ModelSignals) -> None:
        super().on_attach(signals)
        self._attached = (signals.inner,)

    def check(self, batch: Batch) -> None:
        super().check(batch)
        if self.network is None and self._model(batch) is None:
            raise ValueError(
                "SuperMix needs a network whose gradients it can follow: pass network=, train through mixaug.MixStep, "
                "or pass signals=model"
            )

    def sample(self, batch: Batch, partner: Tensor, draws: Draws) -> Plan:
        shares = self._shares(draws)
        rows = [torch.arange(len(batch), device=batch.device), partner]
        while len(rows) < self.sources:
            rows.append(partner.index_select(0, rows[-1]))
        sources = torch.stack(rows, 1)
        maps, finished = self._search(batch, sources, shares)
        masks = supermix_masks(maps, batch.size)
        # What is not finished stays as it is.
        alone = torch.arange(sources.shape[1], device=batch.device) == 0
        masks = torch.where(finished[:, None, None, None], masks, alone[:, None, None].to(masks.dtype))
        shares = torch.where(finished[:, None], shares, alone.to(shares.dtype))
        size, own = batch.size, shares[:, 0]
        if sources.shape[1] == 2:
            return MaskBlend(partner=partner, lam=own, size=size, mask=masks[:, 0].contiguous())
        plan = SourceMasks(partner=partner, lam=own, size=size, rows_mixed=sources, masks=masks)
        weights = shares if isinstance(self.labeling, Drawn) else masks.flatten(2).mean(2)
        return dataclasses.replace(plan, weights=weights)

    def _shares(self, draws: Draws) -> Tensor:
        """(R, K) float32 of sum 1."""
        shares = [self.ratio(draws)]
        left = 1 - shares[0]
        for others in range(self.sources - 2, 0, -1):
            shares.append(left * draws.beta(self.alpha, others * self.alpha))
            left = left - shares[-1]
        return torch.stack([*shares, left], 1).clamp(0, 1).float()

    def _search(self, batch: Batch, sources: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        model = self._model(batch) if self.network is None else self.network
        assert model is not None  # check() has seen to it
        weight = next((p for p in model.parameters() if p.is_floating_point()), None)
        images = batch.images.detach()
        if not images.is_floating_point():
            images = images.float() / 255
        images = images if weight is None else images.to(weight.dtype)
        # A half-precision network still takes images that were put together in single precision.
        dtype = images.dtype
        with in_mode(model, "eval"):
            with torch.no_grad():
                known = self.network is None and batch.signals is not None
                outputs = batch.ask("SuperMix").outputs() if known else logits_of(model(images))
            classes = outputs.argmax(1)
            named = classes[sources][..., None] == torch.arange(outputs.shape[1], device=batch.device)
            target = (named * shares[..., None]).sum(1)
            return supermix_search(
                single_precision(images),
                sources,
                target,
                lambda mixed: logits_of(model(mixed.to(dtype))),
                mask_size=min(self.mask_size, *batch.size),
                sigma=self.sigma,
                sparsity=self.sparsity,
                max_iter=self.max_iter,
                reference=self.reference,
            )

    def _model(self, batch: Batch) -> nn.Module | None:
        """The model in training: behind the signals, or as it was attached."""
        behind = None if batch.signals is None else batch.signals.model
        return behind if behind is not None else (self._attached[0] if self._attached else None)
