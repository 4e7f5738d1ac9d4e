"""Kernels of mixaug/ops/fused against their torch bodies: by Triton's interpreter on a CPU, by themselves on a GPU."""

import contextlib
import itertools
import os
import subprocess
import sys

import pytest
import torch

import golden
import kernel_calls
from helpers import seeded
from mixaug.loading import Normalize, crop_and_flip
from mixaug.ops import blend, borders, cells, fused, gridcut, puzzle, supermodular, transport
from mixaug.ops.saliency import saliency_maps
from mixaug.policies import fmix, guidedmix, saliencymix, tokenmix
from speed import launches

triton = pytest.importorskip("triton", reason="needs Triton, which torch brings for CUDA")


@pytest.fixture(scope="module", autouse=True)
def indices_of_one_value():
    """Triton 3.6, which torch 2.11 brings, counts its interpreter's loops by arrays of one value; NumPy 2.4 refuses."""
    if tuple(map(int, triton.__version__.split(".")[:2])) > (3, 6):
        yield
        return
    from triton.runtime import interpreter

    before = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang_tensor", patched)
        yield


def moved(tensors, device):
    return [tensor.to(device) for tensor in tensors]


@pytest.mark.parametrize(("rows", "columns", "labels"), [(2, 4, 3), (5, 3, 2)])
def test_chains_give_the_torch_body_s_labels(rows, columns, labels, device, monkeypatch):
    # The interpreter takes a second for a round of a small problem.
    monkeypatch.setattr(gridcut, "DEVICE_ROUNDS", 1)
    monkeypatch.setattr(gridcut, "MOST_STATES", 0)
    problem = kernel_calls.cut(1, rows, columns, labels, seed=3)
    found = gridcut._by_kernel(*moved(problem, device))
    wanted = gridcut.grid_cut(*moved(problem, device), read=False)
    assert torch.equal(found, wanted)
    assert len(found.unique()) > 1
    least = gridcut.cut_energy(gridcut.exact_grid_cut(*problem), *problem)
    assert gridcut.cut_energy(found.cpu(), *problem) <= 1.02 * least


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns", "labels"), [(8, 8, 3), (7, 9, 2), (6, 6, 5)])
def test_all_rounds_of_chains_are_near_the_exact_cut(rows, columns, labels, device):
    problem = kernel_calls.cut(2, rows, columns, labels, seed=4)
    found = gridcut._by_kernel(*moved(problem, device))
    assert torch.equal(found, gridcut.grid_cut(*moved(problem, device), read=False))
    least = gridcut.cut_energy(gridcut.exact_grid_cut(*problem), *problem)
    assert (gridcut.cut_energy(found.cpu(), *problem) <= 1.01 * least).all()


@pytest.mark.parametrize(("rows", "columns", "labels"), [(3, 2, 3), (2, 4, 2), (1, 1, 4)])
def test_the_frontier_is_exact_and_gives_the_torch_body_s_labels(rows, columns, labels, device):
    problem = kernel_calls.cut(2, rows, columns, labels, seed=5)
    found = gridcut._by_kernel(*moved(problem, device))
    assert torch.equal(found, gridcut.grid_cut(*moved(problem, device), read=False))
    least = gridcut.cut_energy(gridcut.exact_grid_cut(*problem), *problem)
    torch.testing.assert_close(gridcut.cut_energy(found.cpu(), *problem), least, rtol=1e-5, atol=0)


def mosaics(device, *problem, iterations, threshold, soft=False):
    """Shares by the kernel and by torch operators."""
    given = moved(kernel_calls.mosaics(*problem), device)
    options = (0.32, 1.0, threshold, iterations, soft)
    return supermodular._by_kernel(*given, *options).cpu(), supermodular._sweeps(*given, *options).cpu()


def test_mosaics_are_the_torch_body_s(device):
    found, wanted = mosaics(device, 1, 2, 1, 2, 0, 8, iterations=2, threshold=0.83)
    assert torch.equal(found, wanted)
    assert (found == 0.5).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "options"),
    [
        # A part that lacks an input, strips that overlap, one column, a penalty above the threshold alone.
        ((2, 4, 3, 3, 1), {"iterations": 3, "threshold": 0.5}),
        ((1, 3, 2, 6), {"iterations": 3, "threshold": 0.6}),
        ((2, 3, 2, 1, 1), {"iterations": 3, "threshold": 0.3}),
        ((1, 5, 4, 4), {"iterations": 3, "threshold": 0.3, "soft": True}),
    ],
)
def test_mosaics_of_all_forms_are_the_torch_body_s(problem, options, device):
    found, wanted = mosaics(device, *problem, **options)
    assert torch.equal(found, wanted)
    assert not found[-1, problem[1] - (problem[4:] or (0,))[0] :].any()


@pytest.mark.slow
def test_mosaics_by_the_kernel_reach_what_the_authors_reach(monkeypatch):
    monkeypatch.setattr(supermodular, "_sweeps", supermodular._by_kernel)
    for what, got, expected, tolerance in golden.replay(golden.GOLDEN / "comixup_n6_bn4_soft.npz"):
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance, msg=what)


@pytest.mark.parametrize("grid", [(3, 4), (5, 5), (1, 6)])
def test_moves_are_the_torch_body_s(grid, device):
    saliency = torch.rand(2, *grid, generator=seeded(0)) ** 4
    saliency = saliency / saliency.sum((1, 2), keepdim=True)
    visible = torch.rand(2, *grid, generator=seeded(1)) < 0.4
    arguments = moved((saliency, visible), device)
    found = transport._by_kernel(*arguments, 0.8)
    assert torch.equal(found, transport._moves_of_all(*arguments, 0.8))
    assert (found.flatten(1).cpu() != torch.arange(grid[0] * grid[1])).any()


@pytest.mark.parametrize("grid", [(4, 5), (1, 7)])
def test_blocks_of_tokens_are_the_torch_body_s(grid, device):
    units = torch.rand(3, 5, 4, 4, generator=seeded(0), dtype=torch.float64).to(device)
    count = torch.tensor([0, 3, grid[0] * grid[1]], device=device)
    found = tokenmix._by_kernel(units, tokenmix._aspect(units[..., 1]), count, *grid)
    assert torch.equal(found, tokenmix._blocks(units, count, *grid))
    assert not found[0].any()
    assert found[2].any()


@pytest.mark.parametrize(("parts", "count"), [(2, 7), (1, 2)])
def test_cycles_are_the_torch_body_s(parts, count, device):
    # Few values, so that there are equal ones, of which the first counts.
    distance = (4 * torch.rand(parts, count, count, generator=seeded(2))).round().to(device)
    assert torch.equal(guidedmix._by_kernel(distance), guidedmix._cycle_on_device(distance))


def test_shares_of_saliency_are_the_torch_body_s(device):
    saliency = torch.rand(4, 8, 12, generator=seeded(0))
    saliency[1] = 0
    saliency[2, 0, 0] = torch.nan
    saliency[3] *= 1e30
    sums = saliency.unflatten(1, (4, 2)).sum(2).unflatten(2, (4, 3)).sum(3)
    found = cells._shares(sums.to(device)).cpu()
    torch.testing.assert_close(found, cells.pooled_saliency(saliency, 4), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("dtype", "labels", "pixels"),
    [(torch.float32, 3, 1), pytest.param(torch.uint8, 4, 2, marks=pytest.mark.slow)],
)
def test_costs_of_the_cut_are_the_torch_body_s(dtype, labels, pixels, device):
    images = torch.rand(2, 2, 4, 8, generator=seeded(0))
    images = (images * 255).to(dtype) if dtype == torch.uint8 else images.contiguous(memory_format=torch.channels_last)
    saliency = torch.rand(2, 4, 8, generator=seeded(1))
    partner, lam = torch.tensor([1, 0]), torch.rand(2, generator=seeded(2), dtype=torch.float64)
    std = None if dtype == torch.uint8 else (0.5, 0.25)
    options = {"block_num": 2, "beta": 1.2, "gamma": 0.5, "neigh_size": pixels, "std": std}
    costs = puzzle.puzzlemix_costs(images, partner, saliency, **options)
    wanted = puzzle.puzzlemix_energy(*costs, lam, n_labels=labels)
    cell = [pixels, pixels]
    found = puzzle._by_kernel(
        *moved((images, partner, cells.pooled_saliency(saliency, 2)), device),
        borders.cell_scales(images, cell, std).flatten().to(device),
        lam.to(device),
        cell,
        labels,
        [1.2 * 0.5 / 32, 1.2 / 32, 0.2 / 4],
    )
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("copies", [False, True])
def test_the_blend_of_moved_cells_is_the_torch_body_s(dtype, layout, copies, device):
    images = torch.rand(3, 3, 8, 12, generator=seeded(0))
    images = ((images * 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)).to(memory_format=layout)
    share = torch.rand(3, 2, 2, generator=seeded(1))
    share = share > 0.5 if copies else share
    partner = torch.tensor([2, 0, 1])
    moves = [torch.randint(0, 16, (3, 4, 4), generator=seeded(seed)) for seed in (2, 3)]
    wanted = cells.puzzlemix_blend(images, partner, share, (moves[0], moves[1]))
    found = cells._blend_by_kernel(*moved((images, partner, share, *moves), device))
    assert found.stride() == images.stride()
    close = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.uint8: 0}[dtype]
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=0 if copies else close)


@pytest.mark.parametrize(
    ("given", "dtype", "layout", "mode"),
    [
        (torch.uint8, torch.float32, torch.channels_last, "reflect"),
        (torch.uint8, torch.float16, None, "zeros"),
        (torch.float16, None, torch.channels_last, None),
        (torch.uint8, torch.bfloat16, torch.contiguous_format, None),
    ],
)
def test_normalised_windows_are_the_torch_body_s(given, dtype, layout, mode, device):
    images = (255 * torch.rand(5, 3, 18, 20, generator=seeded(0))).to(given)
    normalize = Normalize((0.5, 0.4, 0.3), 0.2, dtype, layout)
    windows = []
    if mode is not None:
        offsets = torch.randint(0, 7, (4, 2), generator=seeded(1))
        windows = [torch.tensor([3, 0, 3, 4]), offsets, torch.tensor([True, False, False, True])]
    elif layout != torch.contiguous_format:
        images = images.to(memory_format=torch.channels_last)
    source = crop_and_flip(images, *windows, padding=3, padding_mode=mode) if windows else images
    wanted = normalize(source)
    options = (3, mode == "reflect") if windows else ()
    found = normalize._windows(images.to(device), wanted.dtype, *moved(windows, device), *options)
    assert found.dtype == wanted.dtype
    assert found.stride() == wanted.stride()
    # The interpreter cuts bfloat16 off where a GPU rounds.
    inexact = wanted.dtype == torch.bfloat16 and device.type == "cpu"
    torch.testing.assert_close(found.cpu(), wanted, rtol=2**-7 if inexact else 0, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("weights", [(4, 1, 1, 1), (1, 1, 16, 22), (4, 1, 16, 22)])
def test_means_of_two_are_the_torch_body_s(weights, dtype, layout, device):
    images = torch.rand(4, 3, 16, 22, generator=seeded(0))
    images = ((images * 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)).to(memory_format=layout)
    weight, partner = torch.rand(weights, generator=seeded(1)), torch.tensor([1, 3, 2, 0])
    found = blend._lerp_by_kernel(*moved((images, partner, weight), device))
    wanted = images[partner].float().lerp(images.float(), weight)
    wanted = (wanted.round() if dtype == torch.uint8 else wanted).to(dtype)
    assert found.stride() == images.stride()
    # The interpreter cuts bfloat16 off where a GPU rounds, and rounds products before sums.
    close = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.uint8: 0}[dtype]
    torch.testing.assert_close(found.cpu(), wanted, rtol=close, atol=0)
    assert (found.cpu() != wanted).float().mean() <= (0 if dtype != torch.bfloat16 else 0.6)


#: Bits of the fraction, and the least exponent whose values have all of them.
FORMS = {torch.float16: (10, -14), torch.bfloat16: (7, -126)}


def farthest(found, exact):
    """How far the farthest value lies from the exact one, in units of the last place of its dtype."""
    digits, least = FORMS[found.dtype]
    exponent = exact.abs().log2().floor().clamp(min=least)
    return float(((found.cpu().double() - exact).abs() * 2.0 ** (digits - exponent)).max())


def halves(dtype, layout, *shape):
    return torch.rand(shape, generator=seeded(0)).to(dtype).to(memory_format=layout)


def mean_of_two(dtype, layout, device):
    images, weight, partner = halves(dtype, layout, 3, 3, 4, 6), torch.rand(3, 1, 4, 6), torch.tensor([1, 2, 0])
    own, other, share = images.double(), images[partner].double(), weight.double()
    return blend._lerp_by_kernel(*moved((images, partner, weight), device)), share * own + (1 - share) * other


def moved_cells(dtype, layout, device):
    images, partner, share = halves(dtype, layout, 3, 2, 4, 6), torch.tensor([2, 0, 1]), torch.rand(3, 2, 2)
    moves = [torch.randint(0, 4, (3, 2, 2), generator=seeded(seed)) for seed in (2, 3)]
    exact = torch.empty(3, 2, 4, 6, dtype=torch.float64)
    for sample, row, column in itertools.product(range(3), range(2), range(2)):
        own, other = (
            images[source, :, cell // 2 * 2 :, cell % 2 * 3 :][:, :2, :3].double()
            for source, cell in (
                (sample, moves[0][sample, row, column]),
                (partner[sample], moves[1][sample, row, column]),
            )
        )
        weight = float(share[sample, row, column])
        exact[sample, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3] = weight * own + (1 - weight) * other
    return cells._blend_by_kernel(*moved((images, partner, share, *moves), device)), exact


def normalised(dtype, layout, device):
    images, means = (255 * torch.rand(2, 3, 4, 6, generator=seeded(0))).byte(), (0.5, 0.41, 0.3)
    exact = (images.double() / 255 - torch.tensor(means, dtype=torch.float64)[:, None, None]) / 0.2
    return Normalize(means, 0.2, dtype, layout)._windows(images.to(device), dtype), exact


def normalised_halves(dtype, layout, device):
    images = halves(dtype, layout, 2, 3, 4, 6)
    return Normalize(2.0, 0.25)._windows(images.to(device), dtype), (images.double() - 2) / 0.25


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [mean_of_two, moved_cells, normalised, normalised_halves])
def test_half_precision_is_the_exact_value_rounded_once(kernel, dtype, layout, device):
    torch.manual_seed(1)
    found, exact = kernel(dtype, layout, device)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=layout)
    # Float32 inside moves what lies half way by little. The interpreter cuts bfloat16 off: there the next value serves.
    cuts = dtype == torch.bfloat16 and device.type == "cpu"
    assert farthest(found, exact) <= (1.05 if cuts else 0.55)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_costs_of_half_precision_are_added_in_float32(dtype, device):
    images, saliency = halves(dtype, torch.contiguous_format, 2, 2, 4, 8), torch.rand(2, 4, 8, generator=seeded(1))
    partner, lam = torch.tensor([1, 0]), torch.tensor([0.3, 0.6], dtype=torch.float64)
    # The same values in float64, in which the torch body makes its own sums.
    options = {"block_num": 2, "beta": 1.2, "gamma": 0.5, "neigh_size": 2, "std": 0.5}
    wanted = puzzle.puzzlemix_energy(
        *puzzle.puzzlemix_costs(images.double(), partner, saliency, **options), lam, n_labels=2
    )
    scales = borders.cell_scales(images, [2, 2], 0.5).flatten()
    given = moved((images, partner, cells.pooled_saliency(saliency, 2), scales, lam), device)
    found = puzzle._by_kernel(*given, [2, 2], 2, [1.2 * 0.5 / 32, 1.2 / 32, 0.2 / 4])
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.cpu(), expected.float(), rtol=1e-5, atol=1e-7)


def test_without_triton_the_torch_bodies_serve(monkeypatch):
    with launches.pretended_cuda():
        assert fused.serves(torch.empty(2))
        monkeypatch.setattr(fused, "INSTALLED", False)
        assert not fused.serves(torch.empty(2))
        with launches.Launches() as counted:
            found = guidedmix.greedy_cycle(torch.empty(24, 24))
    assert found.shape == (24,)
    assert counted.total > 60


def test_a_compiler_that_fails_is_told_of_once(monkeypatch):
    from mixaug.ops.fused import probe

    monkeypatch.setattr(fused, "current", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(probe, "run", lambda device: (_ for _ in ()).throw(OSError("no C compiler")))
    fused._works.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"Triton cannot compile for cuda.*OSError: no C compiler"):
        assert not fused._works(torch.device("cuda"))
    assert not fused._works(torch.device("cuda"))
    fused._works.cache_clear()


def test_nothing_is_served_on_a_cpu():
    assert not fused.serves(torch.rand(2))


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_that_is_not_there(root, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, root / "tests" / "kernel_calls.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(maxsplit=6) for line in done.stdout.splitlines()]
    assert list(dict.fromkeys(line[0] for line in lines)) == list(kernel_calls.calls())
    for name, _, binary, shared, fused_adds, rounded, cut in lines:
        assert int(binary) > 1000
        assert int(shared) <= 48 * 1024
        # A product and a sum in one rounding would make other labels than the torch body's.
        assert int(fused_adds) == 0
        # What the interpreter cannot show: results of half precision are rounded to the nearest, and never cut off.
        halves = name in kernel_calls.WRITE_HALVES
        assert (int(rounded) > 0, int(cut)) == (halves, 0), name
    assert {line[0] for line in lines} > kernel_calls.WRITE_HALVES


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 3, 6, 9), torch.channels_last), ((1, 4, 5, 3), torch.contiguous_format), ((1, 1, 1, 1), None)],
)
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_the_detector_is_the_torch_body_s(shape, layout, channels, device):
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(0))
    images = images if layout is None else images.to(memory_format=layout)
    wanted = saliencymix._detect(images, channels)
    assert torch.equal(saliencymix._by_kernel(images.to(device), channels == "rgb").cpu(), wanted)
    assert torch.equal(saliency_maps(images, channels == "rgb"), wanted)


def test_the_detector_on_a_cpu_is_that_of_devices_where_sums_leave_float32():
    images = torch.randint(0, 256, (1, 3, 300, 260), dtype=torch.uint8, generator=seeded(1))
    assert torch.equal(saliency_maps(images, True), saliencymix._detect(images, "rgb"))


def test_the_largest_are_those_of_a_sort(device, monkeypatch):
    from mixaug.ops.fused import largest_kernel

    # Two blocks a row, and few values, so that there are equal ones at the threshold.
    monkeypatch.setattr(largest_kernel, "VALUES", 16)
    width = 20
    scores = (4 * torch.randn(4, width, generator=seeded(0))).round() / 4
    scores[0, ::2] *= -0.0
    count = torch.tensor([2, 0, width, width // 2])
    found = fmix._by_kernel(scores.to(device), count.to(device)).cpu()
    assert torch.equal(found, fmix._largest_by_sort(scores, count))
    assert found.sum(1).tolist() == count.tolist()
