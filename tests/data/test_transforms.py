"""Named transforms: sizes and types of all, pixels of those that can be predicted, ranges of RandAugment."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("timm")
from PIL import Image

from mixaug.data import transforms
from mixaug.data.transforms import RandAugment, build, default_size, list_transforms


def photo(height: int = 40, width: int = 50, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (channels, height, width), generator=generator, dtype=torch.uint8)


def pil(image: torch.Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


@pytest.mark.parametrize("name", list_transforms())
@pytest.mark.parametrize("channels", [1, 3])
def test_size_type_and_seed(name, channels):
    """PIL and tensor inputs give the same pixels, from torch's generator alone, and the transform survives pickling."""
    image = photo(32, 32, channels)
    transform = pickle.loads(pickle.dumps(build(name)))
    side = default_size(name) or 32
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for seed in range(4):
        torch.manual_seed(seed)
        first = transform(image)
        torch.manual_seed(seed)
        second = transform(pil(image))
        assert first.dtype == torch.uint8
        assert first.shape == (channels, side, side)
        assert torch.equal(first, second)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(image, photo(32, 32, channels))


@pytest.mark.parametrize("name", [n for n in list_transforms() if n != "uint8"])
def test_other_sizes_and_other_shapes(name):
    smallest = 20 if default_size(name) == 32 else 24
    assert build(name, smallest)(photo(61, 37)).shape == (3, smallest, smallest)


@pytest.mark.parametrize(("name", "mode"), [("cifar10_train", "constant"), ("cifar100_train", "reflect")])
def test_crops_come_from_the_padded_image(name, mode):
    image = photo(32, 32)
    padded = torch.nn.functional.pad(image[None].float(), (4, 4, 4, 4), mode=mode)[0].byte()
    windows = {}
    for flipped in (False, True):
        for top in range(9):
            for left in range(9):
                window = padded[:, top : top + 32, left : left + 32]
                windows[(window.flip(2) if flipped else window).numpy().tobytes()] = (top, left, flipped)
    torch.manual_seed(0)
    transform = build(name)
    seen = [windows[transform(image).numpy().tobytes()] for _ in range(400)]  # a KeyError is a wrong crop
    tops, lefts, flips = zip(*seen, strict=True)
    assert set(tops) == set(lefts) == set(range(9))
    assert abs(sum(flips) / 400 - 0.5) < 4 * 0.5 / 20


def test_imagenet_test_resizes_the_shorter_side_and_takes_the_centre():
    image = pil(photo(300, 500))
    resized = image.resize((int(500 * 256 / 300), 256), Image.Resampling.BICUBIC)
    left = round((resized.width - 224) / 2)
    expected = np.array(resized.crop((left, 16, left + 224, 240)))
    assert np.array_equal(build("imagenet_test")(image).permute(1, 2, 0).numpy(), expected)


def test_vit_test_is_a_bicubic_resize():
    image = pil(photo(32, 32))
    expected = np.array(image.resize((224, 224), Image.Resampling.BICUBIC))
    assert np.array_equal(build("cifar_vit_test")(image).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("name", "lowest"),
    [("tiny_imagenet_train", 0.08), ("imagenet_train", 0.08), ("cifar_vit_train", 0.8), ("fine_grained_train", 0.5)],
)
def test_scale_of_random_resized_crops(name, lowest):
    crop = next(step for step in build(name).transforms if type(step).__name__ == "RandomResizedCrop")
    assert tuple(crop.scale) == (lowest, 1.0)
    assert crop.interpolation.value == ("bilinear" if "fine" in name else "bicubic")


# --- RandAugment ------------------------------------------------------------------------------------------------------


def apply(name: str, image: Image.Image, level: float, seed: int = 0) -> np.ndarray:
    torch.manual_seed(seed)
    keywords = {"fillcolor": (114, 123, 125), "resample": Image.Resampling.BICUBIC}
    return np.array(transforms._FIXMATCH_OPS[name](image, level, keywords))


def test_the_fourteen_operations():
    geometric = ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"]
    colour = ["AutoContrast", "Brightness", "Color", "Contrast", "Equalize", "Posterize", "Sharpness", "Solarize"]
    assert sorted(transforms._FIXMATCH_OPS) == sorted([*geometric, *colour, "Identity"])


def test_pixels_of_predictable_operations():
    image = pil(photo())
    pixels = np.array(image).astype(int)
    assert np.array_equal(apply("Identity", image, 0.7), pixels)
    threshold = int(256 - 256 * 0.7)
    assert np.array_equal(apply("Solarize", image, 0.7), np.where(pixels < threshold, pixels, 255 - pixels))
    assert np.array_equal(apply("Solarize", image, 0.0), pixels)
    assert np.array_equal(apply("Posterize", image, 0.7), pixels & 0b11111110)  # ceil(4 + 2.8) = 7 bits
    assert np.array_equal(apply("Posterize", image, 0.0), pixels & 0b11110000)
    factors = set()
    for seed in range(8):
        bright = apply("Brightness", image, 0.5, seed)
        for factor in (0.5, 1.5):
            if np.abs(bright - np.clip(pixels * factor, 0, 255)).max() <= 1:
                factors.add(factor)
    assert factors == {0.5, 1.5}  # 1 +- (0.05 + 0.9 * 0.5)


def test_translation_moves_by_a_share_of_the_side_and_fills():
    image = pil(photo(40, 50))
    pixels = np.array(image)
    moved = {}
    for seed in range(8):
        result = apply("TranslateX", image, 2 / 3, seed)  # 0.3 * 2/3 of 50 pixels: 10
        if np.array_equal(result[:, 10:], pixels[:, :40]):
            moved["right"] = result[:, :10]
        elif np.array_equal(result[:, :40], pixels[:, 10:]):
            moved["left"] = result[:, 40:]
    assert set(moved) == {"left", "right"}
    assert all((border == (114, 123, 125)).all() for border in moved.values())


def test_how_often_randaugment_acts():
    """Of the 14 operations 13 change a generic image; two draws, each acting with 1/2: P(unchanged) by arithmetic."""
    image = pil(photo(16, 16))
    pixels = np.array(image)
    torch.manual_seed(0)
    augment = RandAugment()
    count = 2000
    unchanged = sum(np.array_equal(np.array(augment(image)), pixels) for _ in range(count))
    # uniform noise already spans 0..255, so AutoContrast changes nothing; equalising it changes some pixels
    idle = [name for name in transforms._FIXMATCH_OPS if np.array_equal(apply(name, image, 0.7), pixels)]
    chance = (0.5 + 0.5 * len(idle) / 14) ** 2
    assert abs(unchanged / count - chance) < 4 * (chance * (1 - chance) / count) ** 0.5
    assert np.array_equal(np.array(RandAugment(probability=0.0)(image)), pixels)
    assert np.array_equal(np.array(RandAugment(num_ops=0)(image)), pixels)


def test_magnitudes_spread_around_the_mean_and_are_clipped(monkeypatch):
    levels = []
    spy = {name: lambda image, level, _: (levels.append(level), image)[1] for name in transforms._FIXMATCH_OPS}
    monkeypatch.setattr(transforms, "_FIXMATCH_OPS", spy)
    image = pil(photo(4, 4))
    torch.manual_seed(0)
    augment = RandAugment(probability=1.0)
    for _ in range(1000):
        augment(image)
    drawn = torch.tensor(levels)
    assert len(drawn) == 2000
    assert abs(drawn.mean() - 0.7) < 4 * 0.05 / 2000**0.5
    assert abs(drawn.std() - 0.05) < 4 * 0.05 / 4000**0.5
    levels.clear()
    for _ in range(200):
        RandAugment(magnitude=10, magnitude_std=3, probability=1.0)(image)
    assert max(levels) == 1.0
    assert 0 <= min(levels) < 1


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors():
    with pytest.raises(ValueError, match=r"'imagenet_trian'.*imagenet_train"):
        build("imagenet_trian")
    with pytest.raises(ValueError, match="takes none"):
        build("uint8", 32)
    with pytest.raises(ValueError, match="expected >= 1"):
        build("imagenet_test", 0)
    with pytest.raises(TypeError, match=r"float32 of shape \(3, 4, 4\)"):
        build("uint8")(torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match="got ndarray"):
        build("uint8")(np.zeros((4, 4, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        build("uint8")(torch.zeros(2, 4, 4, dtype=torch.uint8))
    for options in ({"num_ops": -1}, {"magnitude": 11}, {"magnitude_std": -1.0}, {"probability": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            RandAugment(**options)
