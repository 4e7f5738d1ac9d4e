"""Every kernel of mixaug/ops/fused, called once: compared in tests/test_fused.py, compiled by this file as a script.

`python tests/kernel_calls.py` compiles all of them for a GPU that need not be there, and prints a line for each.
"""

import re
from functools import partial

import torch

from mixaug.ops import supermodular
from mixaug.ops.fused import (
    cycle_kernel,
    gridcut_kernels,
    largest_kernel,
    pixels_kernels,
    puzzle_kernels,
    saliency_kernels,
    tokens_kernel,
    transport_kernel,
)
from mixaug.policies.saliencymix import GREY_WEIGHTS, SCALES

#: Calls whose results are of half precision and computed in float32.
WRITE_HALVES = {
    *(f"{what} {dtype}" for what in ("blend", "mean of two") for dtype in (torch.bfloat16, torch.float16)),
    *("normalised windows zeros", "normalised windows reflect", "normalised batch"),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cut(batch, rows, columns, labels, seed=0):
    """Costs and edges of a cut as PuzzleMix makes them, near the balance of both."""
    draw = partial(torch.rand, generator=seeded(seed))
    scale = 1 / (rows * columns)
    return (
        scale * draw(batch, rows, columns, labels),
        scale * draw(batch, rows - 1, columns),
        scale * draw(batch, rows, columns - 1),
    )


def mosaics(parts, count, rows, columns, missing=0, seed=0):
    """Costs, compatibility, start and outputs that are there, as Co-Mixup makes them."""
    draw = partial(torch.rand, generator=seeded(seed))
    saliency = draw(parts, count, rows, columns) ** 3
    distance = draw(count, count)
    distance = (distance + distance.T).fill_diagonal_(0).expand(parts, -1, -1)
    valid = torch.arange(count).expand(parts, -1) < count - missing * (torch.arange(parts) == parts - 1)[:, None].long()
    start = torch.randint(count - missing, saliency.shape, generator=seeded(seed + 1))
    compatibility = supermodular.compatibility_of(distance, 0.1, count)
    return -saliency / saliency.sum((2, 3), keepdim=True), compatibility, start, valid


def calls():
    """Functions that launch each kernel, with sizes as in training."""
    half = torch.rand(4, 16, 16, generator=seeded(0))
    images = torch.rand(4, 3, 32, 32, generator=seeded(1))
    partner = torch.arange(4).roll(1)
    moves = torch.arange(256).reshape(16, 16).repeat(4, 1, 1)
    units = torch.rand(4, 40, 10, 4, generator=seeded(2), dtype=torch.float64)
    return {
        **{
            f"chains {side} {labels}": partial(gridcut_kernels.by_chains, *cut(4, side, side, labels), 8)
            for side, labels in ((16, 3), (8, 3), (16, 2), (16, 8))
        },
        "frontier 4 3": partial(gridcut_kernels.by_frontier, *cut(4, 4, 4, 3)),
        "moves": partial(transport_kernel.moves, half, half > 0.5, 0.8),
        "tokens": partial(tokens_kernel.blocks, units, units[..., 1].contiguous(), torch.full((4,), 90), 14, 14),
        **{
            f"mosaic {side} {soft}": partial(
                supermodular._by_kernel, *mosaics(2, 20, side, side, 12), 0.32, 1.0, 0.83, 4, soft
            )
            for side, soft in ((2, False), (4, False), (4, True), (16, False))
        },
        "cycle": partial(cycle_kernel.cycles, torch.rand(1, 128, 128, generator=seeded(3))),
        "shares": partial(puzzle_kernels.shares, half),
        **{
            f"costs {dtype}": partial(
                puzzle_kernels.costs, images.to(dtype), partner, half, torch.ones(1), half[:, 0, 0].double(), (2, 2), 3,
                (1.0, 1.0, 1.0),
            )
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
        },
        **{
            f"blend {dtype}": partial(puzzle_kernels.blend, images.to(dtype), partner, half, moves, moves)
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
        },
        "detector": partial(saliency_kernels.detect, (255 * images).byte(), GREY_WEIGHTS, SCALES),
        **{
            f"normalised windows {mode}": partial(
                pixels_kernels.normalize, (255 * images).byte(), partner, partner[:, None].repeat(1, 2), partner > 1, 4,
                mode == "reflect", torch.ones(3), torch.ones(1), torch.empty_like(images, dtype=torch.bfloat16),
            )
            for mode in ("zeros", "reflect")
        },
        "normalised batch": partial(
            pixels_kernels.normalize, (255 * images).byte(), None, None, None, 0, False, torch.ones(3), torch.ones(3),
            images.half().contiguous(memory_format=torch.channels_last),
        ),
        **{
            f"mean of two {dtype}": partial(pixels_kernels.lerp, images.to(dtype), partner, torch.rand(4, 1, 32, 32))
            for dtype in (torch.bfloat16, torch.float16, torch.uint8)
        },
        "largest": partial(largest_kernel.largest, torch.rand(4, 50176, generator=seeded(4)), torch.full((4,), 9)),
        "blend copies": partial(puzzle_kernels.blend, images, partner, half > 0.5, moves, moves),
    }  # fmt: skip


def main() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    names = {
        torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "i8",
        torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64",
    }  # fmt: skip

    def compiled(kernel, *arguments, grid, warmup, **options):
        types, constants = {}, {}
        for place, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=True)):
            if parameter.is_constexpr:
                types[parameter.name], constants[(place,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                types[parameter.name] = "*" + names[value.dtype]
            else:
                types[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        made = triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", 90, 32), options=options)
        fused_adds = made.asm["ptx"].count("fma.rn.f32") if options.get("enable_fp_fusion") is False else 0
        rounded, cut = (len(re.findall(rf"cvt\.{way}\.(?:satfinite\.)?b?f16", made.asm["ptx"])) for way in ("rn", "rz"))
        print(name, kernel.__name__, len(made.asm["cubin"]), made.metadata.shared, fused_adds, rounded, cut)

    JITFunction.run = compiled
    for known, call in calls().items():
        name = known
        call()


if __name__ == "__main__":
    main()
