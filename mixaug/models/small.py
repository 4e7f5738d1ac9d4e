"""Backbones for images of 8 to 64 pixels, built from timm's blocks and registered with timm.

All of them start with a 3x3 convolution of stride 1 and have no max-pool, so the first stage sees every
pixel.

| name | source | parameters (10 classes) |
|---|---|---|
| `cifar_resnet8`, `cifar_resnet20` | He et al. 2016, arXiv:1512.03385, section 4.2 | 0.075 M, 0.27 M |
| `cifar_resnet18` | the same paper's ImageNet ResNet-18 with the small stem | 11.2 M |
| `cifar_resnext50_32x4d` | Xie et al. 2017, arXiv:1611.05431, with the small stem | 23.0 M |
| `cifar_preact_resnet18` | He et al. 2016, arXiv:1603.05027, with the small stem | 11.2 M |
| `cifar_wrn28_8`, `cifar_wrn28_10` | Zagoruyko and Komodakis 2016, arXiv:1605.07146 | 23.4 M, 36.5 M |
| `cifar_convnext_tiny` | Liu et al. 2022, arXiv:2201.03545, with a 3x3 stride-1 stem | 27.8 M |

The models keep timm's conventions: `feature_info`, `features_only=True`, `forward_features`, `forward_head`,
`forward_intermediates`, `get_classifier`, `reset_classifier`, `pretrained_cfg`. Classifiers are linear layers
drawn from N(0, 0.01^2) with zero bias (ConvNeXt: timm's truncated normal, 0.02), and drawn so again by
`reset_classifier`.

`output_stride` is the stride of the last stage, as in timm; here it is 4 for three stages and 8 for four, and
a smaller value replaces strides by dilation. `stem_stride=2` of the post-activation ResNets doubles it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, ClassifierHead, create_classifier, create_conv2d, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, make_blocks
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

__all__ = ["PadShortcut", "SmallConvNeXt", "SmallResNet", "SmallResNetV2"]

# timm counts strides from a stem that divides the image by four; ours does not divide it.
_TIMM_STEM_STRIDE = 4


def _timm_output_stride(output_stride: int | None, stages: int, stem_stride: int = 1) -> int:
    """timm's `output_stride` for a network with another stem.

    Args:
        output_stride: wanted stride of the last of `stages` stages, `stem_stride` times a power of two from 2 to
            `2 ** (stages - 1)`, which None stands for.
        stem_stride: that of the stem.
    """
    allowed = [stem_stride * 2**k for k in range(1, stages)]
    if output_stride is None:
        output_stride = allowed[-1]
    if output_stride not in allowed:
        raise ValueError(f"output_stride must be one of {allowed} for {stages} stages, got {output_stride!r}")
    return output_stride // stem_stride * _TIMM_STEM_STRIDE


def _correct_reductions(feature_info: list[Any], stem_stride: int = 1) -> None:
    for entry in feature_info:
        entry["reduction"] = entry["reduction"] * stem_stride // _TIMM_STEM_STRIDE


def _init_classifier(classifier: nn.Module) -> None:
    if isinstance(classifier, nn.Linear):
        nn.init.normal_(classifier.weight, mean=0.0, std=0.01)
        nn.init.zeros_(classifier.bias)


class PadShortcut(nn.Module):
    """Parameter-free shortcut across a change of shape: option A of He et al. 2016, section 3.3.

    (B, C, H, W) becomes (B, out_channels, ceil(H / stride), ceil(W / stride)): every `stride`-th pixel is
    kept and the new channels, at the end, are zero. The size agrees with a 3x3 convolution of padding 1, odd
    images included.

    Args:
        in_channels: C.
        out_channels: channels of the result, at least `in_channels`.
        stride: step between the pixels that are kept.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(f"PadShortcut cannot drop channels: got {in_channels} in and {out_channels} out")
        self.new_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        return f"new_channels={self.new_channels}, stride={self.stride}"


class SmallResNet(ResNet):
    """Post-activation ResNet or ResNeXt with any number of stages and a 3x3 stem without pooling.

    Args:
        block: timm's `BasicBlock` or `Bottleneck`.
        layers: blocks in each stage.
        channels: base width of each stage.
        num_classes: size of the logits; 0 leaves the classifier out.
        in_chans: channels of the input images.
        stem_width: channels of the stem.
        stem_stride: stride of the stem, 1 or 2; 2 halves the side of every feature map, for a quarter of the time.
        shortcut: `"projection"` (1x1 convolution and norm where the shape changes; option B of He et al.
            2016) or `"pad"` (`PadShortcut`; option A).
        zero_init_last: start every residual branch at zero (last norm weight 0; Goyal et al. 2017,
            arXiv:1706.02677).
        cardinality, base_width: groups of the 3x3 convolution and their width, for `Bottleneck`.
        output_stride, global_pool, act_layer, norm_layer, drop_rate, drop_path_rate, device, dtype: as in
            timm's ResNet.

    Raises:
        ValueError: unknown `shortcut`, impossible `stem_stride` or `output_stride`, or `layers` and `channels` of
            different lengths.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        channels: tuple[int, ...] = (64, 128, 256, 512),
        num_classes: int = 1000,
        in_chans: int = 3,
        stem_width: int = 64,
        stem_stride: int = 1,
        shortcut: str = "projection",
        zero_init_last: bool = True,
        cardinality: int = 1,
        base_width: int = 64,
        output_stride: int | None = None,
        global_pool: str = "avg",
        act_layer: Callable[..., nn.Module] = nn.ReLU,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # timm's constructor fixes a 64-channel stem and four stages; only its methods are wanted.
        nn.Module.__init__(self)
        if len(layers) != len(channels):
            raise ValueError(f"layers and channels must have one entry per stage, got {layers} and {channels}")
        if shortcut not in ("projection", "pad"):
            raise ValueError(f"shortcut must be 'projection' or 'pad', got {shortcut!r}")
        if isinstance(stem_stride, bool) or stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride!r}")
        stages = len(layers)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        stem = nn.Conv2d(in_chans, stem_width, kernel_size=3, stride=stem_stride, padding=1, bias=False, **dd)
        self.conv1 = stem  # type: ignore[assignment]  # timm's is a Sequential only for deep stems
        self.bn1 = norm_layer(stem_width, **dd)
        self.act1 = act_layer(inplace=True)
        self.maxpool = nn.Sequential()  # does nothing, but timm's methods look for the name
        self.feature_info = [{"num_chs": stem_width, "reduction": stem_stride, "module": "act1"}]

        modules, info = make_blocks(
            (block,) * stages,
            channels,
            layers,
            stem_width,
            output_stride=_timm_output_stride(output_stride, stages, stem_stride),
            drop_path_rate=drop_path_rate,
            cardinality=cardinality,
            base_width=base_width,
            act_layer=act_layer,
            norm_layer=norm_layer,
            **dd,
        )
        self.stage_names = tuple(name for name, _ in modules)
        width = stem_width
        for (name, stage), entry in zip(modules, info, strict=True):
            first: Any = next(stage.children())
            if shortcut == "pad" and first.downsample is not None:
                first.downsample = PadShortcut(width, entry["num_chs"], first.stride)
            width = entry["num_chs"]
            self.add_module(name, stage)
            self.feature_info.append(entry)
        _correct_reductions(self.feature_info[1:], stem_stride)

        self.num_features = width
        self.global_pool, self.fc = create_classifier(width, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = width * self.global_pool.feat_mult()
        self.init_weights(zero_init_last=zero_init_last)

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = True) -> None:
        """He initialisation (fan-out) of the convolutions and N(0, 0.01^2) of the classifier."""
        super().init_weights(zero_init_last=zero_init_last)
        _init_classifier(self.fc)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier, drawn as at construction; `num_classes=0` removes it."""
        # Older releases of timm take None here for a kind of pooling.
        super().reset_classifier(num_classes, self.global_pool.pool_type if global_pool is None else global_pool)
        _init_classifier(self.fc)

    def _stages(self) -> list[nn.Module]:
        return [getattr(self, name) for name in self.stage_names]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps after the stem (index 0) and after each stage (1, 2, ...); arguments as in timm."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stage_names) + 1, indices)
        x = self.act1(self.bn1(self.conv1(x)))
        intermediates = [x] if 0 in take else []
        stages = self._stages()
        for index, stage in enumerate(stages[:last] if stop_early else stages, start=1):
            checkpointed = self.grad_checkpointing and not torch.jit.is_scripting()
            x = checkpoint_seq(stage, x) if checkpointed else stage(x)
            if index in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages after the last wanted index, and the head; returns the indices kept."""
        take, last = feature_take_indices(len(self.stage_names) + 1, indices)
        pruned = self.stage_names[last:]
        for name in pruned:
            setattr(self, name, nn.Sequential())  # empty, so that it still has a name and passes its input on
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to the unpooled feature map of the last stage."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self._stages(), x, flatten=True)
        for stage in self._stages():
            x = stage(x)
        return x


class SmallResNetV2(ResNetV2):
    """Pre-activation ResNet of basic blocks with any number of stages and a 3x3 stride-1 stem without
    pooling.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, without a norm; a last
    norm and activation come before the pooling (He et al. 2016, arXiv:1603.05027). WideResNets are the same
    with wide stages.

    Args:
        layers: blocks in each stage.
        channels: width of each stage.
        num_classes: size of the logits; 0 leaves the classifier out.
        in_chans: channels of the input images.
        stem_chs: channels of the stem.
        zero_init_last: start every residual branch at zero (weight of its last convolution).
        output_stride, global_pool, act_layer, norm_layer, conv_layer, drop_rate, drop_path_rate, device,
        dtype: as in
            timm's ResNetV2.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        channels: tuple[int, ...],
        num_classes: int = 1000,
        in_chans: int = 3,
        stem_chs: int = 64,
        zero_init_last: bool = False,
        output_stride: int | None = None,
        global_pool: str = "avg",
        act_layer: Callable[..., nn.Module] = nn.ReLU,
        norm_layer: Callable[..., nn.Module] = BatchNormAct2d,
        conv_layer: Callable[..., nn.Module] = create_conv2d,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if len(layers) != len(channels):
            raise ValueError(f"layers and channels must have one entry per stage, got {layers} and {channels}")
        stages = len(layers)
        super().__init__(
            layers=list(layers),
            channels=channels,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            output_stride=_timm_output_stride(output_stride, stages),
            stem_chs=stem_chs,
            basic=True,
            bottle_ratio=1.0,
            act_layer=act_layer,
            norm_layer=norm_layer,
            conv_layer=conv_layer,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            zero_init_last=zero_init_last,
            device=device,
            dtype=dtype,
        )
        stem: Any = conv_layer(in_chans, stem_chs, kernel_size=3, stride=1, device=device, dtype=dtype)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(OrderedDict(conv=stem))
        self.stem_feat_idx = 0
        # timm's head is a 1x1 convolution here; a linear one makes its weight (K, C), as class activation
        # maps expect.
        self.head = ClassifierHead(
            self.num_features,
            num_classes,
            pool_type=global_pool,
            drop_rate=drop_rate,
            device=device,
            dtype=dtype,
        )
        _init_classifier(self.head.fc)
        self.feature_info[0]["reduction"] = 1
        _correct_reductions(self.feature_info[1:])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier, drawn as at construction; `num_classes=0` removes it."""
        super().reset_classifier(num_classes, global_pool)
        _init_classifier(self.head.fc)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps after the stem (index 0) and after each stage (1, 2, ...); arguments as in timm."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        # timm's own method counts negative and "last n" indices from four stages, whatever the network has.
        take, last = feature_take_indices(len(self.feature_info), indices)
        x = self.stem(x)
        intermediates = [x] if 0 in take else []
        stages = list(self.stages)
        final = len(self.feature_info) - 1
        for index, stage in enumerate(stages[:last] if stop_early else stages, start=1):
            x = stage(x)
            if index in take:
                intermediates.append(self.norm(x) if norm and index == final else x)
        if intermediates_only:
            return intermediates
        # The last norm is as wide as the last stage, so it cannot follow an earlier one.
        return (x if stop_early and last < final else self.norm(x)), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages after the last wanted index, and the head; returns the indices kept."""
        take, _ = feature_take_indices(len(self.feature_info), indices)
        return super().prune_intermediate_layers(take, prune_norm, prune_head)


class SmallConvNeXt(ConvNeXt):
    """ConvNeXt whose stem is a 3x3 stride-1 convolution (and the usual norm) in place of 4x4 patches.

    Args:
        in_chans: channels of the input images.
        output_stride: stride of the last stage: 2, 4 or 8 (default 8).
        device, dtype: of the parameters.
        **options: as in timm's ConvNeXt, apart from the stem's (`stem_type`, `patch_size`).
    """

    def __init__(
        self,
        in_chans: int = 3,
        output_stride: int = 8,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        for name in ("stem_type", "patch_size"):
            if name in options:
                raise TypeError(f"SmallConvNeXt has a fixed stem and got {name}={options[name]!r}")
        super().__init__(
            in_chans=in_chans,
            output_stride=_timm_output_stride(output_stride, 4),
            device=device,
            dtype=dtype,
            **options,
        )
        patches: Any = self.stem[0]
        stem = nn.Conv2d(
            in_chans,
            patches.out_channels,
            kernel_size=3,
            stride=1,
            padding=1,
            bias=patches.bias is not None,
            device=device,
            dtype=dtype,
        )
        trunc_normal_(stem.weight, std=0.02)
        if stem.bias is not None:
            nn.init.zeros_(stem.bias)
        self.stem[0] = stem
        _correct_reductions(self.feature_info)


# CIFAR statistics as the published small-image protocols use them (mixaug.data.CIFAR_MEAN, CIFAR_STD).
def _cfg(first_conv: str, classifier: str, pool_size: int = 4) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "min_input_size": (3, 8, 8),
        "pool_size": (pool_size, pool_size),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.201),
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet8": _cfg("conv1", "fc", pool_size=8),
        "cifar_resnet20": _cfg("conv1", "fc", pool_size=8),
        "cifar_resnet18": _cfg("conv1", "fc"),
        "cifar_resnext50_32x4d": _cfg("conv1", "fc"),
        "cifar_preact_resnet18": _cfg("stem.conv", "head.fc"),
        "cifar_wrn28_8": _cfg("stem.conv", "head.fc", pool_size=8),
        "cifar_wrn28_10": _cfg("stem.conv", "head.fc", pool_size=8),
        "cifar_convnext_tiny": _cfg("stem.0", "head.fc"),
    }
)


def _build(cls: type[nn.Module], name: str, pretrained: bool, features: int, **options: Any) -> nn.Module:
    feature_cfg: dict[str, Any] = {"out_indices": tuple(range(features))}
    if cls is not SmallResNet:
        feature_cfg["flatten_sequential"] = True
    return build_model_with_cfg(cls, name, pretrained, feature_cfg=feature_cfg, **options)


def _resnet_6n_plus_2(name: str, n: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    settings: dict[str, Any] = {
        "block": BasicBlock,
        "layers": (n, n, n),
        "channels": (16, 32, 64),
        "stem_width": 16,
        "shortcut": "pad",
        "zero_init_last": False,
    }
    return _build(SmallResNet, name, pretrained, 4, **{**settings, **options})


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-8 for CIFAR: `cifar_resnet20` with one block per stage; small enough to train on a CPU."""
    return _resnet_6n_plus_2("cifar_resnet8", 1, pretrained, kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 for CIFAR (He et al. 2016, arXiv:1512.03385, section 4.2): 16, 32, 64 channels, 0.27 M
    parameters.

    Shortcuts are parameter-free (option A), because the paper's CIFAR networks have "identity shortcuts in
    all cases" and its parameter counts hold only so; `shortcut="projection"` gives option B. Residual
    branches are not zeroed at the start, as the paper does not.
    """
    return _resnet_6n_plus_2("cifar_resnet20", 3, pretrained, kwargs)


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with the small stem, as the published CIFAR and Tiny-ImageNet mixing tables use it.

    Post-activation basic blocks, 64 to 512 channels, projection shortcuts, residual branches zero at the
    start.
    """
    settings: dict[str, Any] = {"block": BasicBlock, "layers": (2, 2, 2, 2)}
    return _build(SmallResNet, "cifar_resnet18", pretrained, 5, **{**settings, **kwargs})


@register_model
def cifar_resnext50_32x4d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeXt-50 32x4d (arXiv:1611.05431) with the small stem; residual branches zero at the start."""
    settings: dict[str, Any] = {
        "block": Bottleneck,
        "layers": (3, 4, 6, 3),
        "cardinality": 32,
        "base_width": 4,
    }
    return _build(SmallResNet, "cifar_resnext50_32x4d", pretrained, 5, **{**settings, **kwargs})


@register_model
def cifar_preact_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pre-activation ResNet-18 (arXiv:1603.05027) with the small stem.

    Has the paper's norm and activation before the pooling; several public training codes for CIFAR leave them
    out, which saves 1,024 of 11.2 M parameters.
    """
    settings: dict[str, Any] = {"layers": (2, 2, 2, 2), "channels": (64, 128, 256, 512)}
    return _build(SmallResNetV2, "cifar_preact_resnet18", pretrained, 5, **{**settings, **kwargs})


def _wide_resnet28(name: str, widen: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    settings: dict[str, Any] = {
        "layers": (4, 4, 4),
        "channels": (16 * widen, 32 * widen, 64 * widen),
        "stem_chs": 16,
    }
    return _build(SmallResNetV2, name, pretrained, 4, **{**settings, **options})


@register_model
def cifar_wrn28_8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideResNet-28-8 (arXiv:1605.07146), without dropout: 23.4 M parameters.

    As in the paper: ReLU, convolutions without bias, every shortcut that changes shape reads the activated
        input.
    OpenMixup's variant has leaky ReLU 0.1, biases, norm momentum 0.001, and activated shortcuts in the first
    stage alone.
    """
    return _wide_resnet28("cifar_wrn28_8", 8, pretrained, kwargs)


@register_model
def cifar_wrn28_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WideResNet-28-10 (arXiv:1605.07146), without dropout: 36.5 M parameters; see `cifar_wrn28_8`."""
    return _wide_resnet28("cifar_wrn28_10", 10, pretrained, kwargs)


@register_model
def cifar_convnext_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T (arXiv:2201.03545) with a 3x3 stride-1 stem: stages at strides 1, 2, 4 and 8."""
    settings: dict[str, Any] = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}
    return _build(SmallConvNeXt, "cifar_convnext_tiny", pretrained, 4, **{**settings, **kwargs})
