"""GuidedMixup beyond the contract: maps, the greedy cycle on both devices, the pixelwise mask, and the clean loss."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import functional as F
from mixaug.losses import MixedCrossEntropy
from mixaug.policies import guidedmix
from mixaug.policies.guidedmix import GreedyCycle

IMAGES = torch.randn(7, 3, 12, 15, generator=seeded(0))
LABELS = torch.arange(7) % 4
SALIENCY = torch.rand(7, 12, 15, generator=seeded(1)) ** 3
GIVEN = mixaug.Signals(saliency=SALIENCY)


def slow_blur(image, kernel_size, sigma):
    reach = kernel_size // 2
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    # A side too short to be mirrored repeats its border.
    for axis, side in enumerate(image.shape):
        widths = [(reach, reach) if a == axis else (0, 0) for a in (0, 1)]
        image = np.pad(image, widths, mode="reflect" if side > reach else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(image, (kernel_size, kernel_size))
    return (windows * kernel).sum((2, 3))


def slow_cycle(distance):
    """Over pairs in row-major order: the first farthest pair, then always the first farthest free sample."""
    count = len(distance)
    first, current = max(itertools.permutations(range(count), 2), key=lambda pair: distance[pair])
    partner, free = {first: current}, set(range(count)) - {first, current}
    while free:
        following = max(sorted(free), key=lambda other: distance[current, other])
        partner[current] = following
        free.remove(following)
        current = following
    partner[current] = first
    return [partner[i] for i in range(count)]


@pytest.mark.parametrize("size", [(12, 15), (4, 3), (1, 1), (1, 9)], ids=str)
@pytest.mark.parametrize("kernel", [(7, 3.0), (3, 0.8), (1, 1.0)], ids=str)
def test_the_blur_against_a_loop(size, kernel):
    maps = torch.rand(2, *size, generator=seeded(2), dtype=torch.float64)
    expected = np.stack([slow_blur(image, *kernel) for image in maps.numpy()])
    torch.testing.assert_close(F.gaussian_blur(maps, *kernel), torch.from_numpy(expected))


def test_the_blur_is_torchvisions():
    functional = pytest.importorskip("torchvision.transforms.functional")
    expected = functional.gaussian_blur(SALIENCY, [7, 7], [3.0, 3.0])
    torch.testing.assert_close(F.gaussian_blur(SALIENCY), expected, rtol=0, atol=1e-6)


def test_spectral_residual_against_numpy():
    image = IMAGES[:1].double()
    grey = (0.2989 * image[0, 0] + 0.587 * image[0, 1] + 0.114 * image[0, 2]).numpy()
    spectrum = np.fft.fft2(grey)
    log = np.log(np.abs(spectrum))
    wide = np.pad(log, 1, mode="edge")
    mean = sum(wide[i : i + 12, j : j + 15] for i in range(3) for j in range(3)) / 9
    residual = np.fft.ifft2(np.exp(log - mean) * np.exp(1j * np.angle(spectrum)))
    expected = slow_blur(np.abs(residual), 7, 3.0)
    torch.testing.assert_close(F.spectral_residual(image)[0], torch.from_numpy(expected), rtol=1e-6, atol=1e-8)


def test_spectral_residual_finds_the_odd_one_out():
    # A grid of dots, one of which is missing and another one elsewhere.
    images = torch.zeros(1, 1, 64, 64)
    images[:, :, ::8, ::8] = 1
    images[:, :, 35:38, 19:22] = 1
    saliency = F.spectral_residual(images)[0]
    y, x = divmod(int(saliency.argmax()), 64)
    assert abs(y - 36) <= 3
    assert abs(x - 20) <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 8), (130, 140), (130, 20), (20, 130)], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_spectral_residual_of_any_size(size, channels):
    images = torch.rand(2, channels, *size, generator=seeded(3))
    saliency = F.spectral_residual(images)
    assert saliency.shape == (2, *size)
    assert saliency.isfinite().all()
    assert (saliency >= 0).all()
    # One sample at a time, in bytes, in half precision.
    torch.testing.assert_close(F.spectral_residual(images[1:]), saliency[1:])
    assert F.spectral_residual((images * 255).byte()).isfinite().all()
    assert F.spectral_residual(images.half()).dtype == torch.float32


def test_maps_sum_to_one_whatever_the_saliency():
    odd = SALIENCY.clone()
    odd[0] = 0
    odd[1] = 4.0
    odd[2] *= 1e37
    odd[3] *= 1e-37
    odd[4, 3, 3] = torch.nan
    odd[4, 3, 4] = torch.inf
    odd[5] = -1
    odd[6] = torch.nan
    maps = F.guided_maps(odd)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(7))
    assert (maps >= 0).all()
    even = torch.full((12, 15), 1 / 180)
    for row in (0, 1, 5, 6):
        torch.testing.assert_close(maps[row], even)
    plain = F.guided_maps(SALIENCY)
    torch.testing.assert_close(maps[2:4], plain[2:4], rtol=1e-4, atol=1e-8)
    whole = SALIENCY.clone()
    whole[4, 3, 3:5] = 0
    torch.testing.assert_close(maps[4], F.guided_maps(whole)[4])
    assert F.guided_maps(SALIENCY.half()).dtype == torch.float32


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_distances_against_a_loop(distance):
    maps = F.guided_maps(SALIENCY)
    rows = maps.flatten(1).double()
    slow = {
        "l2": lambda a, b: (a - b).norm(),
        "l1": lambda a, b: (a - b).abs().sum(),
        "cosine": lambda a, b: 1 - a @ b / (a.norm() * b.norm()),
    }[distance]
    expected = torch.stack([torch.stack([slow(a, b) for b in rows]) for a in rows]).float()
    found = F.map_distance(maps, distance)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-7 if distance == "l1" else 1e-6)
    assert torch.equal(found, found.T)
    large = F.guided_maps(torch.rand(40, 30, 30, generator=seeded(4)))
    assert torch.equal(F.map_distance(large, distance), F.map_distance(large, distance).T)


@pytest.mark.parametrize("count", [2, 3, 4, 9, 30])
@pytest.mark.parametrize("body", ["_cycle_on_host", "_cycle_on_device"])
def test_the_greedy_cycle_against_a_loop(count, body):
    walk = getattr(guidedmix, body)
    for seed in range(5):
        # Coarse values, so that many are equal; and identical samples.
        distance = torch.randint(0, 5, (2, count, count), generator=seeded(seed)).double()
        distance = distance + distance.transpose(1, 2)
        distance[1] = 0
        found = walk(distance.clone())
        assert found.dtype == torch.int64
        assert found.tolist() == [slow_cycle(part.numpy()) for part in distance]
        # One cycle through all.
        place, visited = 0, set()
        for _ in range(count):
            place = int(found[0, place])
            visited.add(place)
        assert visited == set(range(count))
    assert F.greedy_cycle(distance).tolist() == found.tolist()


def test_the_cycle_starts_with_the_farthest_pair():
    distance = torch.tensor([[0.0, 1, 2, 3], [1, 0, 4, 9], [2, 4, 0, 5], [3, 9, 5, 0]])
    # 1 and 3 are farthest; of 3 the farthest free one is 2; 0 is left.
    assert F.greedy_cycle(distance).tolist() == [1, 3, 0, 2]
    assert F.greedy_cycle(distance[:2, :2]).tolist() == [1, 0]


def test_parts_are_cycles_of_their_own():
    policy = mixaug.create("guidedmix", part_size=3)
    partner = policy(IMAGES, LABELS, signals=GIVEN).partner
    distance = F.map_distance(F.guided_maps(SALIENCY))
    expected = [*slow_cycle(distance[:3, :3].numpy()), *[3 + i for i in slow_cycle(distance[3:6, 3:6].numpy())], 6]
    assert partner.tolist() == expected


@pytest.mark.parametrize("saliency", ["gradient", "spectral"])
def test_the_whole_against_a_loop(saliency):
    policy = mixaug.create("guidedmix", saliency=saliency)
    mixed = policy(IMAGES, LABELS, signals=GIVEN)
    maps = F.guided_maps(SALIENCY if saliency == "gradient" else F.spectral_residual(IMAGES))
    assert mixed.partner.tolist() == slow_cycle(F.map_distance(maps).numpy())
    for i, j in enumerate(mixed.partner.tolist()):
        mask = maps[i] / (maps[i] + maps[j])
        torch.testing.assert_close(mixed.inputs[i], mask * IMAGES[i] + (1 - mask) * IMAGES[j])
        torch.testing.assert_close(mixed.mask[i, 0], mask)
        torch.testing.assert_close(mixed.weights[i], torch.stack([mask.mean(), 1 - mask.mean()]))
    again, lam, mask = F.guidedmix(IMAGES, mixed.partner, maps)
    torch.testing.assert_close(again, mixed.inputs)
    torch.testing.assert_close(lam, mixed.lam)
    assert torch.equal(mask, mixed.mask)


def test_nothing_is_drawn_and_partners_are_farther_than_random_ones():
    generator = seeded(5)
    state = generator.get_state()
    policy = mixaug.create("guidedmix")
    mixed = policy(IMAGES, LABELS, signals=GIVEN, generator=generator)
    assert torch.equal(generator.get_state(), state)
    distance = F.map_distance(F.guided_maps(SALIENCY))
    others = distance.sum() / (7 * 6)
    assert distance[torch.arange(7), mixed.partner].mean() > others


def test_other_pairings_share_the_maps(monkeypatch):
    calls = []
    monkeypatch.setattr(guidedmix, "spectral_residual", lambda *a: calls.append(1) or F.spectral_residual(*a))
    mixed = mixaug.create("guidedmix", saliency="spectral", pairing="shift")(IMAGES, LABELS)
    assert mixed.partner.tolist() == [6, 0, 1, 2, 3, 4, 5]
    mixaug.create("guidedmix", saliency="spectral")(IMAGES, LABELS)
    assert len(calls) == 2
    # The pairing on its own looks at the images.
    cut = mixaug.create("cutmix", pairing=GreedyCycle("l1"))(IMAGES, LABELS, generator=seeded(6))
    expected = slow_cycle(F.map_distance(F.guided_maps(F.spectral_residual(IMAGES)), "l1").numpy())
    assert cut.partner.tolist() == expected
    assert calls == [1, 1, 1]


def test_two_samples_swap_and_one_stays():
    two = mixaug.Signals(saliency=SALIENCY[:2])
    mixed = mixaug.create("guidedmix")(IMAGES[:2], LABELS[:2], signals=two)
    assert mixed.partner.tolist() == [1, 0]
    # The mask of one is what the other's leaves, so the two become one image.
    torch.testing.assert_close(mixed.inputs[0], mixed.inputs[1])
    torch.testing.assert_close(mixed.lam.sum(), torch.tensor(1.0))
    one = mixaug.create("guidedmix")(IMAGES[:1], LABELS[:1], signals=mixaug.Signals(saliency=SALIENCY[:1]))
    assert torch.equal(one.inputs, IMAGES[:1])


def test_pixels_that_matter_to_neither_are_shared():
    saliency = torch.zeros(2, 16, 16)
    saliency[0, 2, 2] = saliency[1, 13, 13] = 1
    mixed = mixaug.create("guidedmix")(IMAGES.new_zeros(2, 1, 16, 16), signals=mixaug.Signals(saliency=saliency))
    assert mixed.mask[0, 0, 2, 2] == 1
    assert mixed.mask[0, 0, 13, 13] == 0
    assert mixed.mask[0, 0, 2, 13] == 0.5
    # No saliency at all anywhere: the plain mean.
    none = mixaug.create("guidedmix")(IMAGES, signals=mixaug.Signals(saliency=torch.zeros(7, 12, 15)))
    torch.testing.assert_close(none.inputs, (IMAGES + IMAGES[none.partner]) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8], ids=str)
@pytest.mark.parametrize("saliency", ["gradient", "spectral"])
def test_dtypes(dtype, saliency):
    images = (torch.rand(7, 3, 12, 15, generator=seeded(7)) * 255).to(dtype)
    policy = mixaug.create("guidedmix", saliency=saliency)
    mixed = policy(images.to(memory_format=torch.channels_last), LABELS, signals=GIVEN)
    assert mixed.inputs.dtype == dtype
    assert mixed.inputs.is_contiguous(memory_format=torch.channels_last)
    assert mixed.weights.dtype == mixed.mask.dtype == torch.float32
    reference = policy(images.float(), LABELS, signals=GIVEN)
    torch.testing.assert_close(mixed.inputs.float(), reference.inputs, rtol=2e-2, atol=1.0)


@pytest.mark.parametrize("saliency", ["gradient", "spectral"])
def test_no_value_is_read_back_to_the_host(saliency):
    with FakeTensorMode():
        images = torch.empty(6, 3, 130, 48, device="cuda")
        given = mixaug.Signals(saliency=torch.empty(6, 130, 48, device="cuda"))
        mixed = mixaug.create("guidedmix", saliency=saliency, part_size=4)(images, signals=given)
        assert mixed.weights.device.type == "cuda"


def model_and_images():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mixaug.models.create("cifar_resnet8", 4)
    return model, torch.randn(6, 3, 16, 16, generator=seeded(8)), torch.arange(6) % 4


def test_through_mixstep_by_hand():
    model, images, labels = model_and_images()
    twin = copy.deepcopy(model).eval()
    statistics = model.bn1.running_mean.clone()
    step = mixaug.MixStep(model, mixaug.create("guidedmix"), MixedCrossEntropy())
    loss, scalars = step(images, labels)
    loss.backward()
    leaf = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(twin(leaf), labels).backward()
    maps = F.guided_maps(leaf.grad.square().mean(1).sqrt())
    partner = F.greedy_cycle(F.map_distance(maps))
    mixed, lam, _ = F.guidedmix(images, partner, maps)
    twin.zero_grad()
    outputs = twin.train()(mixed)
    each = [torch.nn.functional.cross_entropy(outputs, y, reduction="none") for y in (labels, labels[partner])]
    expected = (lam * each[0] + (1 - lam) * each[1]).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert set(scalars) == {"loss", "accuracy"}
    for (name, got), want in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-5, msg=name)
    # Statistics saw the mixed batch once, and the clean one not at all.
    torch.testing.assert_close(model.bn1.running_mean, twin.bn1.running_mean)
    assert not torch.equal(model.bn1.running_mean, statistics)


def test_the_clean_loss_is_a_part_of_the_step():
    model, images, labels = model_and_images()
    twin = copy.deepcopy(model)
    step = mixaug.MixStep(model, mixaug.create("guidedmix", clean_weight=0.7), MixedCrossEntropy())
    loss, scalars = step(images, labels)
    loss.backward()
    leaf = images.clone().requires_grad_()
    clean = torch.nn.functional.cross_entropy(twin(leaf), labels)
    (0.7 * clean).backward()
    torch.testing.assert_close(scalars["clean_loss"], 0.7 * clean.detach())
    maps = F.guided_maps(leaf.grad.square().mean(1).sqrt())
    partner = F.greedy_cycle(F.map_distance(maps))
    mixed, lam, _ = F.guidedmix(images, partner, maps)
    outputs = twin(mixed)
    each = [torch.nn.functional.cross_entropy(outputs, y, reduction="none") for y in (labels, labels[partner])]
    (lam * each[0] + (1 - lam) * each[1]).mean().backward()
    for (name, got), want in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_clean_loss_needs_a_model_and_a_mixed_batch():
    policy = mixaug.create("guidedmix", clean_weight=1.0)
    mixed = policy(IMAGES, LABELS, signals=GIVEN)
    model, images, labels = model_and_images()
    with policy.tap(model, mixed, GIVEN) as seen:
        pass
    with pytest.raises(ValueError, match=r"loss of the clean batch, which comes with.*clean_weight=0"):
        policy.auxiliary_loss(mixed, seen)
    step = mixaug.MixStep(model, mixaug.Sometimes(policy, 0.0), MixedCrossEntropy())
    assert "clean_loss" not in step(images, labels)[1]
    step = mixaug.MixStep(model.eval(), policy, MixedCrossEntropy())
    assert "clean_loss" not in step(images[:1], labels[:1])[1]


def test_spectral_needs_no_model():
    policy = mixaug.create("guidedmix", saliency="spectral")
    assert policy.needs == frozenset()
    assert mixaug.describe("guidedmix").needs == {"saliency"}
    assert policy(IMAGES, LABELS).inputs.shape == IMAGES.shape
    with pytest.raises(ValueError, match="needs saliency of the model"):
        mixaug.create("guidedmix")(IMAGES, LABELS)
    pickle.loads(pickle.dumps(copy.deepcopy(policy)))
    assert "GreedyCycle(distance='l1', part_size=20)" in repr(mixaug.create("guidedmix", distance="l1", part_size=20))


@pytest.mark.parametrize(("options", "message"), [
    ({"saliency": "sr"}, "expects saliency 'gradient' or 'spectral', got 'sr'"),
    ({"distance": "l3"}, "expects distance in .*got 'l3'"),
    ({"part_size": 1}, "part_size as an integer >= 2, got 1"),
    ({"part_size": True}, "part_size as an integer >= 2"),
    ({"blur_size": 6}, "odd number of pixels to blur over, got 6"),
    ({"blur_sigma": 0.0}, "blur_sigma as a positive"),
    ({"clean_weight": -1.0}, "clean_weight as a number that is not negative, got -1.0"),
    ({"clean_weight": float("nan")}, "clean_weight as a number that is not negative, got nan"),
    ({"clean_weight": 1.0, "saliency": "spectral"}, "saliency='spectral' lacks"),
    ({"pairing": "shift", "distance": "l1"}, "of the greedy pairing"),
    ({"pairing": "nobody"}, "unknown pairing 'nobody'"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("guidedmix", **options)


def test_bad_tensors_are_named():
    with pytest.raises(ValueError, match=r"saliency \(7, 12, 15\), a value per pixel, got \(7, 12, 14\)"):
        mixaug.create("guidedmix")(IMAGES, LABELS, signals=mixaug.Signals(saliency=SALIENCY[:, :, :14]))
    with pytest.raises(ValueError, match=r"guidedmix expects maps \(7, 12, 15\), got \(7, 15, 12\)"):
        F.guidedmix(IMAGES, torch.arange(7), SALIENCY.transpose(1, 2))
    with pytest.raises(ValueError, match=r"expects distance \(B, B\), got \(7, 6\)"):
        F.greedy_cycle(torch.zeros(7, 6))
    with pytest.raises(ValueError, match="guided_mask expects partner in"):
        F.guided_mask(SALIENCY, torch.arange(7) + 1)
    with pytest.raises(ValueError, match="'l3'"):
        F.map_distance(SALIENCY, "l3")
    with pytest.raises(ValueError, match=r"spectral_residual works on pixels"):
        F.spectral_residual(SALIENCY)
