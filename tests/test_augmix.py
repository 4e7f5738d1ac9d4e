"""AugMix and PixMix: operations against Pillow, what is drawn, the views of an image, and their losses."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mixaug
import mixaug.models
from helpers import index_images, seeded
from mixaug.objectives import AugMix, PixMix, augmix, jensen_shannon, pixmix
from mixaug.ops.eight_bit import OPERATIONS, operate

LABELS = torch.arange(6) % 4
CIFAR = {"mean": (0.49, 0.48, 0.45), "std": (0.2, 0.21, 0.19)}


def pictures(count=6, size=(12, 16), seed=0):
    return torch.randint(0, 256, (count, 3, *size), generator=seeded(seed), dtype=torch.uint8)


def with_pillow(image, operation, level, positive):
    """One image (C, H, W) after one operation, as AugMix's code calls Pillow."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    sign, size = 1 if positive else -1, picture.size
    affine = {
        "shear_x": lambda: (1, sign * level * 0.3 / 10, 0, 0, 1, 0),
        "shear_y": lambda: (1, 0, 0, sign * level * 0.3 / 10, 1, 0),
        "translate_x": lambda: (1, 0, sign * int(level * (size[0] / 3) / 10), 0, 1, 0),
        "translate_y": lambda: (1, 0, 0, 0, 1, sign * int(level * (size[1] / 3) / 10)),
    }
    if operation in affine:
        done = picture.transform(size, Image.AFFINE, affine[operation](), resample=Image.BILINEAR)
    elif operation == "rotate":
        done = picture.rotate(sign * int(level * 30 / 10), resample=Image.BILINEAR)
    elif operation == "posterize":
        done = ImageOps.posterize(picture, 4 - int(level * 4 / 10))
    elif operation == "solarize":
        done = ImageOps.solarize(picture, 256 - int(level * 256 / 10))
    else:
        done = getattr(ImageOps, operation)(picture)
    return torch.from_numpy(np.asarray(done).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(16, 16), (13, 21), (1, 5)], ids=str)
@pytest.mark.parametrize("contrast", [1.0, 0.1, 0.0])
def test_operations_are_pillows_bit_for_bit(size, contrast):
    images = (pictures(90, size).float() * contrast + 60 * (1 - contrast)).to(torch.uint8)
    operation, level = torch.arange(90) % 9, 0.1 + 9.9 * torch.rand(90, generator=seeded(1), dtype=torch.float64)
    positive = torch.rand(90, generator=seeded(2)) < 0.5
    got = operate(images, operation, level, positive)
    for row in range(90):
        name = OPERATIONS[operation[row]]
        expected = with_pillow(images[row], name, level[row].item(), positive[row].item())
        assert torch.equal(got[row], expected), (name, level[row], (got[row].int() - expected.int()).abs().max())


def test_an_operation_of_no_number_changes_nothing():
    images = pictures()
    assert torch.equal(operate(images, torch.full((6,), -1), torch.full((6,), 10.0), LABELS > 1), images)


def test_mixture_against_a_loop():
    images, chains = torch.rand(3, 2, 4, 5, generator=seeded(3)), torch.rand(3, 4, 2, 4, 5, generator=seeded(4))
    weights, skip = torch.rand(3, 4, generator=seeded(5)).softmax(1), torch.tensor([0.0, 1.0, 0.3])
    got = augmix(images, chains, weights, skip)
    for row in range(3):
        mixed = sum(weights[row, i] * chains[row, i] for i in range(4))
        torch.testing.assert_close(got[row], (1 - skip[row]) * images[row] + skip[row] * mixed)
    with pytest.raises(ValueError, match=r"weights \(B, width\)"):
        augmix(images, chains, weights[:, :2], skip)


def test_divergence_against_a_loop():
    logits = [torch.randn(5, 4, generator=seeded(seed), dtype=torch.float64) for seed in (6, 7, 8)]
    shares = [one.softmax(1) for one in logits]
    middle = sum(shares) / 3
    expected = sum((p * (p / middle).log()).sum(1).mean() for p in shares) / 3
    torch.testing.assert_close(jensen_shannon(*logits), expected)
    assert jensen_shannon(logits[0], logits[0]).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="twice or more"):
        jensen_shannon(logits[0])


@pytest.mark.parametrize("make", [AugMix, PixMix])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_augmented_images_are_like_those_that_came(make, dtype):
    pixels = pictures()
    images = pixels if dtype == torch.uint8 else (pixels / 255).to(dtype)
    objective = make(mean=0.0, std=1.0)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = images.contiguous(memory_format=layout)
        before = given.clone()
        got = objective.augment(given, seeded(9))
        assert (got.dtype, got.shape, got.stride()) == (given.dtype, given.shape, given.stride())
        assert torch.equal(given, before)
        assert torch.equal(got, objective.augment(given, seeded(9)))
        assert not torch.equal(got, objective.augment(given, seeded(10)))
        bound = 255 if dtype == torch.uint8 else 1
        assert got.min() >= 0 and got.max() <= bound


@pytest.mark.parametrize("make", [AugMix, PixMix])
def test_normalised_images_are_augmented_as_pixels_are(make):
    pixels = pictures()
    mean, std = (torch.tensor(CIFAR[name])[:, None, None] for name in ("mean", "std"))
    plain = make(mean=0.0, std=1.0).augment(pixels / 255, seeded(11))
    got = make(**CIFAR).augment((pixels / 255 - mean) / std, seeded(11))
    torch.testing.assert_close(got, (plain - mean) / std, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=f"{make.__name__} goes back to 8-bit pixels: pass the mean and std"):
        make().augment(pixels / 255)
    with pytest.raises(ValueError, match=r"images \(B, C, H, W\)"):
        make().augment(pixels[:, 0])


def test_operations_and_shares_are_drawn_as_in_the_paper():
    # Of a white pixel one operation of nine, solarise, makes a black one, and posterise a darker one; the others leave
    # it. One chain of one operation each has on average 1/3 of a half of the result.
    white = torch.ones(3000, 1, 1, 1)
    dark = 1 - AugMix(0.0, 1.0, severity=10.0, depth=1).augment(white, seeded(12)).double().flatten()
    # With 4, 3, 2 bits and 1 bit 255 becomes 240, 224, 192, 128.
    posterised = (2.4 * 15 + 2.5 * (31 + 63 + 127)) / 9.9 / 255
    expected = 0.5 * (1 + posterised) / 9
    assert abs(dark.mean() - expected) < 4 * dark.std() / len(dark) ** 0.5
    # The weakest operations leave a grey pixel as it is.
    grey = torch.full((20, 3, 1, 1), 64, dtype=torch.uint8)
    assert torch.equal(AugMix(severity=0.1).augment(grey, seeded(13)), grey)


def test_pictures_are_drawn_in_every_part():
    stored = torch.arange(3 * 5 * 7, dtype=torch.uint8).reshape(3, 1, 5, 7)
    objective = PixMix(0.0, 1.0, pictures=stored)
    shown = objective._pictures(
        torch.zeros(600, 1, 4, 6, dtype=torch.uint8), mixaug.draws.Draws(600, torch.device("cpu"), seeded(14))
    )
    corner = (shown[:, 0, 0, 0] * 255).round().long()
    assert corner.unique().tolist() == sorted(p * 35 + y * 7 + x for p in range(3) for y in (0, 1) for x in (0, 1))
    for row in range(600):
        place = corner[row].item()
        picture, y, x = place // 35, place % 35 // 7, place % 7
        torch.testing.assert_close(shown[row, 0], stored[picture, 0, y : y + 4, x : x + 6] / 255)
    with pytest.raises(ValueError, match="at least 8 x 8 pixels"):
        objective.augment(torch.zeros(2, 1, 8, 8))


def test_rounds_against_a_loop():
    start, others = torch.rand(40, 1, 2, 3, generator=seeded(15)), torch.rand(40, 3, 1, 2, 3, generator=seeded(16))
    start[0], others[0] = 0.0, 0.0
    multiplies = torch.rand(40, 3, generator=seeded(17)) < 0.5
    coefficients = torch.stack([2 * torch.rand(40, 3, generator=seeded(18)), 2 * torch.rand(40, 3) - 1], -1)
    coefficients[0] = torch.tensor([0.5, -1.0])
    rounds = torch.randint(0, 4, (40,), generator=seeded(19))
    got = pixmix(start, others, multiplies, coefficients, rounds)
    for row in range(40):
        x = start[row].double()
        for turn in range(rounds[row]):
            y, (a, b) = others[row, turn].double(), coefficients[row, turn].tolist()
            if multiplies[row, turn]:
                x = (2 * x) ** a * (2 * y).clamp(min=1e-37) ** b / 2
            else:
                x = (a * (2 * x - 1) + b * (2 * y - 1) + 1) / 2
            x = x.clamp(0, 1)
        torch.testing.assert_close(got[row], x.float(), rtol=1e-4, atol=1e-5)
    assert got.isfinite().all()
    with pytest.raises(TypeError, match="float32 or float64"):
        pixmix(start.half(), others, multiplies, coefficients, rounds)


def small_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )


def test_three_views_run_in_one_pass_and_the_clean_one_meets_the_labels():
    model, rows = small_model(), []
    model.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0]))
    objective = AugMix(0.0, 1.0)
    images = pictures() / 255
    step = mixaug.MixStep(model, mixaug.create("none"), objective)
    loss, logs = step(images, LABELS, generator=seeded(20))
    (seen,) = rows
    clean, first, second = seen.split(6)
    assert torch.equal(clean, images)
    generator = seeded(20)
    assert torch.equal(first, objective.augment(images, generator))
    assert torch.equal(second, objective.augment(images, generator))
    outputs = model(seen).split(6)
    torch.testing.assert_close(logs["clean"], nn.functional.cross_entropy(outputs[0], LABELS).detach())
    torch.testing.assert_close(logs["consistency"], 12 * jensen_shannon(*outputs).detach())
    torch.testing.assert_close(loss.detach(), logs["clean"] + logs["consistency"])
    loss.backward()
    single = mixaug.MixStep(small_model(), mixaug.create("none"), AugMix(0.0, 1.0, form="single"))
    assert set(single(images, LABELS)[1]) >= {"augmented"}


@pytest.mark.parametrize("make", [AugMix, PixMix])
def test_what_a_policy_mixed_goes_on_into_it(make):
    model, rows = small_model(), []
    model.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0]))
    objective, images = make(0.0, 1.0), pictures() / 255
    step = mixaug.MixStep(model, mixaug.create("mixup", pairing="shift"), objective)
    loss, _ = step(images, LABELS, generator=seeded(21))
    generator = seeded(21)
    mixed = mixaug.create("mixup", pairing="shift")(images, LABELS, generator=generator)
    augmented = objective.augment(mixed.inputs, generator)
    shown = rows[0][6:12] if make is AugMix else rows[0]
    assert torch.equal(shown, augmented)
    loss.backward()


@pytest.mark.parametrize("objective", [AugMix(0.0, 1.0, form="single"), PixMix(0.0, 1.0)])
@pytest.mark.parametrize(("policy", "late"), [("transmix", True), ("smmix", True), ("snapmix", False)])
def test_policies_that_wait_for_their_own_pass_are_refused(objective, policy, late):
    model = mixaug.models.create("cifar_resnet8", num_classes=4)
    step = mixaug.MixStep(model, mixaug.OneOf(["mixup", policy], [0.5, 0.5]), objective)
    images = pictures(size=(16, 16)) / 255
    if late:
        with pytest.raises(ValueError, match=r"runs augmented images alone, but (TransMix|SMMix) has labels or losses"):
            step(images, LABELS)
    else:
        assert step(images, LABELS)[0].isfinite()


class Operators(TorchDispatchMode):
    """Names of the operators that are run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [AugMix, PixMix])
def test_no_value_is_read_back_and_no_work_is_done_image_by_image(make):
    counts = []
    for count in (8, 12):
        with Operators() as operators:
            make(**CIFAR).augment(index_images(count, 3, 8, 8), seeded(22))
        counts.append(len(operators.names))
        assert not any("_local_scalar_dense" in name or "nonzero" in name for name in operators.names)
    assert counts[0] == counts[1]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"severity as \(low, high\)"):
        AugMix(severity=11)
    with pytest.raises(ValueError, match="depth as a number or"):
        AugMix(depth=(3, 1))
    with pytest.raises(ValueError, match="form 'consistency' or 'single'"):
        AugMix(form="none")
    np.save(tmp_path / "pictures.npy", np.zeros((2, 3, 4, 4), dtype=np.float32))
    with pytest.raises(TypeError, match=r"pictures of dtype uint8, got torch\.float32"):
        PixMix(pictures=tmp_path / "pictures.npy")
    np.save(tmp_path / "pictures.npy", np.zeros((2, 3, 4, 4), dtype=np.uint8))
    assert PixMix(pictures=str(tmp_path / "pictures.npy")).pictures.shape == (2, 3, 4, 4)
    assert not PixMix(pictures=torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).state_dict()
