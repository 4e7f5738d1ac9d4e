"""The CPU body that goes sample by sample and the body that works on whole batches give the same bits."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import mixaug
from helpers import seeded
from mixaug.ops import blend as blends
from mixaug.ops import layout
from mixaug.ops.boxes import paste
from mixaug.ops.masks import cells_to_pixels, ranks, top_mask

PARTNERS = {
    "cycle": [1, 2, 3, 4, 0],
    "two cycles and a fixed point": [1, 0, 2, 4, 3],
    "identity": [0, 1, 2, 3, 4],
    "with repeats": [1, 1, 0, 0, 2],
}


def both_bodies(monkeypatch, call):
    results = []
    for threshold in (0, 1 << 40):
        monkeypatch.setattr(layout, "SLICE_BYTES", threshold)
        results.append(call())
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", ["lam", "one lam", "mask", "one mask", "bool mask", "one bool mask"])
def test_both_bodies_agree(monkeypatch, dtype, weights):
    forms, ways = (torch.contiguous_format, torch.channels_last), ("fresh", "out", "inplace")
    for (name, partner), how, form in itertools.product(PARTNERS.items(), ways, forms):
        both_bodies_agree(monkeypatch, partner, how, dtype, form, weights, f"partners: {name}, {how}, {form}")


def both_bodies_agree(monkeypatch, partner, how, dtype, form, weights, case):
    images = torch.randint(0, 256, (5, 3, 9, 11), generator=seeded(0)).to(dtype).to(memory_format=form)
    rows = 1 if weights.startswith("one") else 5
    share = torch.rand(rows, generator=seeded(1))
    mask = torch.rand(rows, 9, 11, generator=seeded(2))

    def call():
        own = images.clone()
        options = {"fresh": {}, "out": {"out": torch.empty_like(images)}, "inplace": {"inplace": True}}[how]
        if "lam" in weights:
            result = blends.blend(own, torch.tensor(partner), share, **options)
        else:
            chosen = mask > 0.4 if "bool" in weights else mask
            result = blends.blend_mask(own, torch.tensor(partner), chosen, **options)
        assert how != "inplace" or result is own, case
        assert how == "inplace" or torch.equal(own, images), case
        return result

    by_rows, whole = both_bodies(monkeypatch, call)
    assert torch.equal(by_rows, whole), case
    assert by_rows.stride() == whole.stride() == images.stride(), case
    if "lam" in weights:
        weight = share[:, None, None, None].double()
    else:
        weight = (mask > 0.4 if "bool" in weights else mask)[:, None].double()
    expected = weight * images.double() + (1 - weight) * images[torch.tensor(partner)].double()
    tolerance = {torch.uint8: 0.5001, torch.bfloat16: 1.0}.get(dtype, 1e-4)
    torch.testing.assert_close(whole.double(), expected, rtol=0, atol=tolerance, msg=lambda said: f"{case}: {said}")


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last, torch.channels_last_3d, "strided"])
def test_take_rows_keeps_the_layout(form):
    shape = (6, 2, 3, 4, 5) if form == torch.channels_last_3d else (6, 2, 4, 5)
    images = torch.rand(shape, generator=seeded(3))
    images = images[..., ::2] if form == "strided" else images.to(memory_format=form)
    rows = torch.tensor([5, 0, 0, 3])
    got = layout.take_rows(images, rows)
    assert torch.equal(got, images[rows])
    if form != "strided":
        assert got.is_contiguous(memory_format=form)
        out = torch.empty_like(images[:4])
        assert layout.take_rows(images, rows, out=out) is out
        assert torch.equal(out, got)


def test_ranks_and_top_mask_against_sorting():
    scores = torch.rand(7, 20, generator=seeded(4))
    scores[0] = 0.5
    count = torch.tensor([3, 0, 20, 1, 7, 19, 10])
    place = ranks(scores)
    for row in range(7):
        order = sorted(range(20), key=lambda cell: (-scores[row, cell].item(), cell))
        assert [place[row, cell].item() for cell in order] == list(range(20))
    assert torch.equal(top_mask(scores, count).sum(1), count)


@pytest.mark.parametrize(("cells", "size"), [((4,), (9,)), ((2, 3), (5, 8)), ((2, 2, 2), (3, 4, 4))], ids=str)
def test_cells_to_pixels(cells, size):
    values = torch.rand(3, *cells, generator=seeded(5))
    side = [-(-pixels // count) for count, pixels in zip(cells, size, strict=True)]
    got = cells_to_pixels(values, side, size)
    assert got.shape == (3, *size)
    for place in torch.cartesian_prod(*[torch.arange(pixels) for pixels in size]).reshape(-1, len(size)).tolist():
        cell = [p // s for p, s in zip(place, side, strict=True)]
        assert torch.equal(got[(slice(None), *place)], values[(slice(None), *cell)])


@pytest.mark.parametrize("mask_rows", [1, 4])
def test_gradient_reaches_the_mask_of_large_images(mask_rows):
    images = torch.rand(4, 3, 96, 96, generator=seeded(6), dtype=torch.float64)
    mask = torch.rand(mask_rows, 96, 96, generator=seeded(7), dtype=torch.float64).requires_grad_()
    partner = torch.tensor([1, 2, 3, 0])
    blends.blend_mask(images, partner, mask).sum().backward()
    expected = (images - images[partner]).sum(1)
    expected = expected.sum(0, keepdim=True) if mask_rows == 1 else expected
    torch.testing.assert_close(mask.grad, expected)


DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("rows", [4, 1])
@pytest.mark.parametrize("given", [False, True], ids=["fresh", "out"])
def test_pick_copies_values_as_where_does(dtype, form, rows, given):
    yes, no = (
        torch.randint(-99, 99, (4, 3, 5, 6), generator=seeded(n)).to(dtype).to(memory_format=form) for n in range(2)
    )
    mask = torch.rand(rows, 1, 5, 6, generator=seeded(2)) < 0.5
    out = torch.empty_like(yes) if given else None
    kept = yes.clone(), no.clone()
    found = layout.pick(mask, yes, no, out)
    assert torch.equal(found, torch.where(mask, yes, no))
    assert (found.dtype, found.stride()) == (dtype, yes.stride())
    assert out is None or found is out
    assert torch.equal(yes, kept[0]) and torch.equal(no, kept[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("given", [False, True], ids=["fresh", "out"])
def test_what_is_not_finite_stays_where_it_shows(dtype, value, given):
    yes, no = torch.full((1, 2, 4, 4), 1.0, dtype=dtype), torch.full((1, 2, 4, 4), 2.0, dtype=dtype)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    # One that shows and one that is hidden in each of the two.
    yes[0, 0, 0, 0] = yes[0, 0, 1, 3] = no[0, 1, 2, 1] = no[0, 1, 3, 2] = value
    found = layout.pick(mask, yes, no, torch.empty_like(yes) if given else None)
    assert torch.equal(found.isfinite().logical_not().nonzero(), torch.tensor([[0, 0, 0, 0], [0, 1, 3, 2]]))
    assert torch.equal(found.nan_to_num(), torch.where(mask, yes, no).nan_to_num())


def test_pick_of_values_whose_difference_overflows():
    yes, no = torch.full((1, 1, 2, 2), 3e38), torch.full((1, 1, 2, 2), -3e38)
    mask = torch.tensor([[True, False], [False, True]])
    assert layout.pick(mask, yes, no).tolist() == [
        [[[yes[0, 0, 0, 0], no[0, 0, 0, 0]], [no[0, 0, 0, 0], yes[0, 0, 0, 0]]]]
    ]


def test_pick_lets_gradients_through():
    yes, no = (torch.rand(2, 1, 3, 3, generator=seeded(n)).requires_grad_() for n in range(2))
    mask = torch.rand(2, 1, 3, 3, generator=seeded(2)) < 0.5
    layout.pick(mask, yes, no).sum().backward()
    assert torch.equal(yes.grad, mask.float()) and torch.equal(no.grad, (~mask).float())


@pytest.mark.parametrize("name", ["mixup", "cutmix", "gridmix", "resizemix", "smoothmix"])
@pytest.mark.parametrize("side", [8, 160], ids=["small", "large"])
def test_a_plan_replays_under_vmap(name, side):
    images = torch.rand(2, 3, 3, side, side, generator=seeded(0))
    plan = mixaug.create(name).draw(images[0], generator=seeded(1))
    mixed = torch.func.vmap(plan.mix)(images)
    torch.testing.assert_close(mixed, torch.stack([plan.mix(images[0]), plan.mix(images[1])]))


class Counted(TorchDispatchMode):
    """Operations that a device would launch: all but views, allocations and looks at a tensor's device."""

    FREE = frozenset({
        "device", "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "select", "slice",
        "expand", "t", "transpose", "permute", "alias", "detach", "unbind", "split", "as_strided", "unfold", "empty",
        "empty_like", "empty_strided", "new_empty",
    })  # fmt: skip

    def __init__(self):
        super().__init__()
        self.launched = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.launched += func._schema.name.split("::")[1] not in self.FREE
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "most"), [("mixup", 10), ("cutmix", 34)])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_a_device_launches_few_operations(name, most, per):
    policy = mixaug.create(name, per=per)
    with FakeTensorMode():
        images, labels = torch.empty(8, 3, 32, 32, device="cuda"), torch.empty(8, dtype=torch.int64, device="cuda")
        with Counted() as counted:
            policy(images, labels)
    # Two draws, a sort, a gather and the mix at the least.
    assert 5 <= counted.launched <= most


def test_no_memory_of_the_batch_s_size_beside_out():
    images = torch.rand(64, 3, 16, 16, generator=seeded(0))
    out, partner = torch.empty_like(images), torch.arange(63, -1, -1)
    mask = torch.rand(64, 16, 16, generator=seeded(1)) < 0.5
    boxes = torch.tensor([[2, 2, 9, 9]]).repeat(64, 1)
    for mix in (
        lambda: blends.blend_mask(images, partner, mask, out=out),
        lambda: paste(images, partner, boxes, (16, 16), out=out),
    ):
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            mix()
        held = max(event.self_cpu_memory_usage for event in seen.key_averages())
        # A mask of float32 is a third of three channels.
        assert held <= images.nbytes * 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("side", [8, 160], ids=["small", "large"])
def test_forward_mode_gradients_pass(dtype, form, side):
    images = torch.rand(4, 3, side, side, generator=seeded(0)).to(dtype).to(memory_format=form)
    for name in ("cutmix", "gridmix", "mixup"):
        plan = mixaug.create(name).draw(images, generator=seeded(1))
        with forward_ad.dual_level():
            mixed = plan.mix(forward_ad.make_dual(images, torch.ones_like(images)))
            tangent = forward_ad.unpack_dual(mixed).tangent
        torch.testing.assert_close(tangent, torch.ones_like(images))


@pytest.mark.parametrize("name", ["mixup", "cutmix", "fmix", "gridmix", "resizemix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plans_replay_on_tensors_without_values(name, dtype):
    images = torch.rand(4, 3, 16, 16, generator=seeded(0))
    plan = mixaug.create(name, per="sample").draw(images, generator=seeded(1))
    with FakeTensorMode() as mode:
        fake = plan.map_tensors(mode.from_tensor)
        mixed = fake.mix(torch.empty(4, 3, 16, 16, dtype=dtype))
    assert (mixed.shape, mixed.dtype) == (images.shape, dtype)


def test_a_mask_per_call_under_vmap():
    images, masks = torch.rand(4, 3, 8, 8, generator=seeded(0)), torch.rand(5, 4, 8, 8, generator=seeded(1)) < 0.5
    partner = torch.tensor([1, 0, 3, 2])
    mixed = torch.func.vmap(lambda mask: blends.blend_mask(images, partner, mask))(masks)
    torch.testing.assert_close(mixed, torch.stack([blends.blend_mask(images, partner, mask) for mask in masks]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16], ids=str)
def test_any_byte_but_zero_is_true(dtype):
    mask = torch.tensor([0, 1, 2, 255], dtype=torch.uint8).view(torch.bool)
    yes, no = torch.full((4,), 5).to(dtype), torch.full((4,), 7).to(dtype)
    assert layout.pick(mask, yes, no).tolist() == [7, 5, 5, 5]


@pytest.mark.parametrize("side", [8, 160], ids=["small", "large"])
@pytest.mark.parametrize("name", ["mixup", "cutmix", "gridmix"])
def test_plans_replay_while_traced(name, side):
    images, other = (torch.rand(4, 3, side, side, generator=seeded(n)) for n in range(2))
    plan = mixaug.create(name).draw(images, generator=seeded(2))

    def replayed(tensor):
        return plan.mix(tensor)

    assert torch.equal(make_fx(replayed)(images)(other), plan.mix(other))


def test_hashed_numbers_are_uniform_and_independent():
    from scipy import stats

    from mixaug.ops.hashing import hashed_normal, hashed_uniform

    seeds = torch.tensor([0, 1, 2, 12345, 2**31 - 2])
    uniform = hashed_uniform(seeds, (4, 50, 50))
    assert uniform.shape == (5, 4, 50, 50)
    assert (uniform > 0).all() and (uniform < 1).all()
    for row in uniform.flatten(1):
        assert stats.kstest(row.numpy(), "uniform").pvalue > 1e-4
        # Three neighbours fill the cube evenly.
        cells = (row[:9999].reshape(-1, 3) * 6).long()
        assert stats.chisquare(torch.bincount(cells @ torch.tensor([36, 6, 1]), minlength=216).numpy()).pvalue > 1e-4
    # One place under many seeds, and many places under near seeds.
    assert stats.kstest(hashed_uniform(torch.arange(10_000), (1,))[:, 0].numpy(), "uniform").pvalue > 1e-4
    assert torch.corrcoef(uniform.flatten(1)).fill_diagonal_(0).abs().max() < 0.05
    normal = hashed_normal(seeds, (10_000,))
    for row in normal:
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-4
    # The same numbers whatever shape they have, and another call gives them again.
    assert torch.equal(hashed_uniform(seeds, (10_000,)), uniform.flatten(1))
    assert torch.equal(hashed_uniform(seeds[3:4], (4, 50, 50)), uniform[3:4])


def test_hashed_numbers_against_plain_integers():
    from mixaug.ops.hashing import hashed_uniform

    def bits(place, seed):
        x = (place * 0x9E3779B9 % 2**32) ^ seed
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> shift)) * factor % 2**32
        return x >> 9

    for seed in (0, 7, 2**31 - 2):
        got = hashed_uniform(torch.tensor([seed]), (40,))[0].double()
        expected = [(bits(place, seed) + 0.5) / 2**23 for place in range(40)]
        assert got.tolist() == expected


BOXES = torch.tensor([[0, 0, 8, 8], [4, 2, 12, 9], [1, 1, 5, 16], [0, 3, 16, 7]])
MASK = torch.rand(4, 1, 16, 16, generator=seeded(4))
SOURCES = torch.stack([torch.arange(4), torch.tensor([1, 2, 3, 0]), torch.tensor([3, 0, 1, 2])], 1)
BY_HAND = {
    "mixup": {"lam": torch.tensor([0.2, 0.5, 0.7, 1.0])},
    "cutmix": {"boxes": BOXES},
    "saliencymix": {"boxes": BOXES},
    "resizemix": {"boxes": BOXES},
    "hmix": {"lam": torch.tensor([0.2, 0.5, 0.7, 0.6]), "boxes": BOXES},
    "gmix": {"lam": torch.tensor([0.2, 0.5, 0.7, 0.6]), "centers": torch.tensor([[3, 4], [0, 0], [8, 8], [15, 2]])},
    "fmix": {"mask": MASK > 0.5},
    "cowmix": {"mask": MASK > 0.5},
    "dmixup": {"sources": SOURCES, "shares": torch.rand(4, 3, generator=seeded(5)).softmax(1)},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_images_are_written_to_where_that_is_asked_for_and_nowhere_else(name):
    images = torch.rand(4, 3, 16, 16, generator=seeded(3))
    partner = {} if "sources" in BY_HAND[name] else {"partner": torch.tensor([1, 2, 3, 0])}

    def mix(inputs, **options):
        found = getattr(mixaug.functional, name)(inputs, **partner, **BY_HAND[name], **options)
        # Some give the shares beside the images.
        return found[0] if isinstance(found, tuple) else found

    own = images.clone()
    fresh = mix(own)
    assert torch.equal(own, images) and not torch.equal(fresh, images)
    out = torch.empty_like(images)
    assert mix(own, out=out) is out
    assert torch.equal(own, images) and torch.equal(out, fresh)
    assert mix(own, inplace=True) is own
    assert torch.equal(own, fresh)
