"""Corruptions against SciPy and slow loops, sets that are made and kept."""

import io
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from golden import GOLDEN
from helpers import seeded
from mixaug.engine.errors import RunFolderError
from mixaug.engine.evaluation import corruption
from mixaug.engine.evaluation import corruption_ops as ops


def pictures(count=2, side=32):
    """Smooth colours with an edge, as photographs have."""
    noise = torch.rand(count, 3, 5, 5, generator=seeded(count))
    smooth = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic").clamp(0, 1)
    smooth[:, :, side // 3 : side // 2, side // 4 :] = 0.9
    return (smooth * 255).byte()


def corrupted(name, severity, images, seed=0):
    return corruption.corrupt(images, name, severity, torch.Generator().manual_seed(seed))


WITHOUT_DRAWS = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"} | {
    "gaussian_blur",
    "saturate",
}


@pytest.mark.parametrize("name", [*corruption.CORRUPTIONS, *corruption.EXTRA])
def test_every_corruption_does_more_with_severity_and_is_drawn_from_its_generator(name):
    images = pictures(6)
    before = images.clone()
    made = [corrupted(name, severity, images) for severity in range(1, 6)]
    assert torch.equal(images, before)
    assert all(each.shape == images.shape and each.dtype == torch.uint8 for each in made)
    change = [(each.double() - images.double()).square().mean().item() for each in made]
    # The severities were chosen by what they do to networks; these do not grow in every picture's mean square.
    if name not in ("glass_blur", "frost", "elastic_transform", "pixelate", "saturate"):
        assert change == sorted(change)
    assert min(change) > 0
    if name not in ("frost", "elastic_transform", "saturate"):
        assert change[4] > change[0]
    assert torch.equal(corrupted(name, 3, images), made[2])
    random = name not in WITHOUT_DRAWS
    assert torch.equal(corrupted(name, 3, images, seed=1), made[2]) is not random
    if random:
        twins = corrupted(name, 5, images[:1].expand(2, -1, -1, -1))
        assert not torch.equal(twins[0], twins[1]), "each image has its own draw"


#: Where the golden files have a corruption's constants. One constant of zoom and glass blur is a count of something.
RECORDED = {
    "gaussian_noise": ("gaussian_noise_constant",),
    "shot_noise": ("shot_noise_constant",),
    "impulse_noise": ("impulse_noise_constant",),
    "speckle_noise": ("speckle_noise_constant",),
    "gaussian_blur": ("gaussian_sigma",),
    "glass_blur": ("glass_sigma", "glass_rounds"),
    "fog": ("fog_strength", "fog_decay"),
    "contrast": ("contrast_factor",),
    "brightness": ("brightness_added",),
}


def test_constants_are_those_that_the_authors_ran_with():
    recorded = {}
    for kind in ("noise", "blur", "digital"):
        with np.load(GOLDEN / f"corruptions_{kind}_a.npz", allow_pickle=False) as arrays:
            recorded.update(arrays)
    for name, keys in RECORDED.items():
        levels = np.array(corruption.CONSTANTS[name]).reshape(5, -1)
        np.testing.assert_array_equal(levels, np.stack([recorded[key] for key in keys], 1), err_msg=name)
    np.testing.assert_array_equal(corruption.CONSTANTS["saturate"], recorded["saturate_scale_shift"])
    assert [int(32 * part) for part in corruption.CONSTANTS["pixelate"]] == recorded["pixelate_side"].tolist()
    for end, count in zip(corruption.CONSTANTS["zoom_blur"], recorded["zoom_factors"], strict=True):
        np.testing.assert_array_equal(np.arange(1, end, 0.01), recorded["zoom_values"][:count])
    for constants, kernel in zip(corruption.CONSTANTS["defocus_blur"], recorded["defocus_kernel"], strict=True):
        np.testing.assert_allclose(ops.disk_kernel(*constants), kernel, atol=1e-7)


def test_the_other_constants_are_those_of_the_sheet(shared):
    rows = dict(re.findall(r"\| (\w+) \|[^|]*\| ([^|]*) \|", (shared / "methods/corruptions.md").read_text()))
    for name, key in {
        "motion_blur": "motion_blur",
        "frost": "frost",
        "snow": "snow",
        "jpeg_compression": "jpeg",
    }.items():
        stated = [float(number) for number in re.findall(r"[\d.]+", rows[key])]
        assert np.ravel(corruption.CONSTANTS[name]).tolist() == stated, name
    stated = [float(number) for number in re.findall(r"[\d.]+", rows["elastic"])]
    assert np.ravel(corruption.CONSTANTS["elastic_transform"]).tolist() == stated
    order = re.search(r"15 for reporting: ([\w, ]+)\.", (shared / "methods/corruptions.md").read_text())
    assert order and tuple(order[1].split(", ")) == corruption.CORRUPTIONS


def test_noise_has_the_stated_size():
    grey = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    spread = corrupted("gaussian_noise", 5, grey).double().std() / 255
    assert spread == pytest.approx(0.10, rel=0.02)
    assert corrupted("speckle_noise", 5, grey).double().std() / 255 == pytest.approx(0.2 * 128 / 255, rel=0.02)
    # Counts have the variance of their mean: x / photons.
    assert corrupted("shot_noise", 5, grey).double().std() / 255 == pytest.approx((128 / 255 / 50) ** 0.5, rel=0.02)
    hit = corrupted("impulse_noise", 5, grey)
    share = [(hit == level).double().mean().item() for level in (0, 255)]
    assert share == pytest.approx([0.035, 0.035], rel=0.05)


def test_gaussians_are_those_of_scipy():
    x = torch.rand(2, 3, 12, 17, dtype=torch.float64, generator=seeded(0))
    for sigma, truncate, border, theirs in ((0.7, 4.0, "replicate", "nearest"), (6.4, 3.0, "symmetric", "reflect")):
        found = ops._smoothed(x, sigma, truncate, border)
        expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), truncate=truncate, mode=theirs)
        torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-12, rtol=0)


def test_motion_blur_is_that_of_a_loop_over_pixels():
    images, angle = pictures(3, 12), torch.tensor([30.0, -45.0, -100.0], dtype=torch.float64)
    found = ops.motion_blur(images, angle, 4, 1.5)
    weights = [math.exp(-(step**2) / (2 * 1.5**2)) for step in range(9)]
    for b in range(3):
        turn = math.radians(angle[b])
        for y in range(12):
            for x in range(12):
                total = 0.0
                for step, weight in enumerate(weights):
                    row = min(max(y + math.ceil(step * math.sin(turn) - 0.5), 0), 11)
                    column = min(max(x + math.ceil(step * math.cos(turn) - 0.5), 0), 11)
                    total += weight * images[b, 0, row, column].item()
                assert abs(found[b, 0, y, x].item() - total / sum(weights)) <= 0.5 + 1e-9


def test_elastic_is_an_affine_map_and_a_displacement():
    images = pictures(2, 16)
    corners = torch.rand(2, 3, 2, generator=seeded(1), dtype=torch.float64) * 3 - 1.5
    field = torch.rand(2, 2, 16, 16, generator=seeded(2), dtype=torch.float64) * 2 - 1
    found = ops.elastic_transform(images, corners, field, 2.0, 1.1)
    for b in range(2):
        points = np.array([[13, 13], [13, 3], [3, 3]], float)
        target = points + corners[b].numpy()
        ahead = np.linalg.solve(np.c_[points, np.ones(3)], target)  # (x, y, 1) to (x', y')
        matrix, shift = ahead[:2].T[::-1, ::-1], ahead[2][::-1]  # by rows and columns
        back = np.linalg.inv(matrix)
        smooth = [2.0 * ndimage.gaussian_filter(field[b, k].numpy(), 1.1, truncate=3, mode="reflect") for k in (0, 1)]
        rows, columns = np.mgrid[:16, :16]
        for channel in range(3):
            plane = images[b, channel].numpy() / 255
            # SciPy's mode "mirror" is OpenCV's BORDER_REFLECT_101.
            moved = ndimage.affine_transform(plane, back, -back @ shift, order=1, mode="mirror")
            there = ndimage.map_coordinates(moved, [rows + smooth[0], columns + smooth[1]], order=1, mode="reflect")
            assert np.abs(found[b, channel].numpy() - np.floor(there.clip(0, 1) * 255)).max() <= 1
    still = ops.elastic_transform(images, corners * 0, field, 0.0, 0.0)
    assert (still.int() - images.int()).abs().max() <= 1


def test_clouds_are_those_of_a_loop_over_squares_and_diamonds():
    draws = torch.rand(2, 8, 8, generator=seeded(0), dtype=torch.float64)
    found = ops.plasma_fractal(draws, 1.75)
    for b in range(2):
        height, step, scale = np.zeros((8, 8)), 8, 100.0
        noise = 2 * draws[b].numpy() - 1
        while step >= 2:
            half = step // 2
            for y in range(half, 8, step):
                for x in range(half, 8, step):
                    near = [height[(y + a) % 8, (x + c) % 8] for a in (-half, half) for c in (-half, half)]
                    height[y, x] = sum(near) / 4 + scale**2 * noise[y, x]
            for y in range(0, 8, half):
                for x in range((y + half) % step, 8, step):
                    near = [height[(y + a) % 8, (x + c) % 8] for a, c in ((half, 0), (-half, 0), (0, half), (0, -half))]
                    height[y, x] = sum(near) / 4 + scale**2 * noise[y, x]
            step, scale = half, scale / 1.75
        expected = (height - height.min()) / (height.max() - height.min())
        np.testing.assert_allclose(found[b].numpy(), expected, atol=1e-12)


def test_snow_falls_from_both_sides_over_bleached_pixels():
    images = pictures(2)
    angle = torch.tensor([-90.0, -60.0], dtype=torch.float64)
    none = torch.zeros(2, 32, 32, dtype=torch.float64)
    bleached = ops.snow(images, none, angle, 1.0, 0.5, 8, 3, 0.9)
    x = images.double() / 255
    grey = torch.einsum("bchw,c->bhw", x, torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[:, None]
    expected = (0.9 * x + 0.1 * torch.maximum(x, 1.5 * grey + 0.5)).clamp(0, 1) * 255
    assert (bleached - expected).abs().max() < 1 + 1e-9
    flakes = none.clone()
    flakes[:, 9, 12], flakes[:, 20, 5] = 0.9, 0.4  # the second one is below the threshold
    fallen = ops.snow(images * 0, flakes, angle, 1.0, 0.5, 8, 3, 0.9)
    plain = ops.snow(images * 0, none, angle, 1.0, 0.5, 8, 3, 0.9)
    lit = (fallen > plain)[:, 0]
    # Straight up, a flake is a line of its own column below where it looks, and its mirror image.
    assert lit[0].any(0).nonzero()[:, 0].tolist() == [12, 19]
    assert torch.equal(lit, lit.flip(1, 2))


def test_jpeg_and_frost():
    images = pictures(2)
    for quality in (80, 40):
        file = io.BytesIO()
        Image.fromarray(images[1].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        decoded = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert torch.equal(ops.jpeg_compression(images, quality)[1], decoded)
    texture = torch.rand(2, 3, 32, 32, generator=seeded(4), dtype=torch.float64)
    expected = (0.75 * images.double() / 255 + 0.45 * texture).clamp(0, 1) * 255
    assert (ops.frost(images, texture, 0.75, 0.45) - expected).abs().max() < 1 + 1e-9


def test_a_set_is_made_once_kept_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(corruption, "_CHUNK", 3)
    images, labels = pictures(7), torch.arange(7) % 3
    folder = corruption.kept_folder(tmp_path, "photos", images, labels)
    made = list(corruption.open_set(folder, "gaussian_noise", labels, images))
    assert len(made) == 5 and all(each.shape == images.shape for each in made)
    assert torch.equal(torch.stack(made), corruption.make_set(images, "gaussian_noise"))
    stored = np.load(folder / "gaussian_noise.npy")
    assert stored.shape == (35, 32, 32, 3) and np.array_equal(stored[14], made[2][0].permute(1, 2, 0).numpy())
    assert np.load(folder / "labels.npy").tolist() == labels.tolist() * 5
    assert sorted(path.name for path in folder.iterdir()) == ["gaussian_noise.npy", "labels.npy"]
    monkeypatch.setattr(corruption, "make_set", lambda *_: pytest.fail("made a second time"))
    again = list(corruption.open_set(folder, "gaussian_noise", labels, images))
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    others = {
        corruption.kept_folder(tmp_path, "photos", *pair) for pair in ((images, labels + 1), (255 - images, labels))
    }
    assert folder not in others and len(others) == 2
    assert corruption.kept_folder(tmp_path, "photos", images, labels, seed=1) != folder


def test_files_that_do_not_fit_are_refused(tmp_path):
    images, labels = pictures(2), torch.tensor([0, 1])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        next(corruption.open_set(tmp_path / "file" / "kept", "contrast", labels, images))
    with pytest.raises(FileNotFoundError, match="expected the files of CIFAR-C"):
        next(corruption.open_set(tmp_path, "fog", labels))
    list(corruption.open_set(tmp_path, "contrast", labels, images))
    with pytest.raises(ValueError, match="labels of the clean test set, in its order"):
        next(corruption.open_set(tmp_path, "contrast", labels.flip(0)))
    with pytest.raises(ValueError, match=r"expected uint8 \(15, H, W, 3\)"):
        next(corruption.open_set(tmp_path, "contrast", torch.zeros(3, dtype=torch.int64)))
    np.save(tmp_path / "fog.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"fog.npy is no array of numbers"):
        next(corruption.open_set(tmp_path, "fog", labels))


def test_wrong_input_is_named():
    images = pictures(1)
    with pytest.raises(ValueError, match=r"name in .*gaussian_noise"):
        corrupted("rain", 1, images)
    with pytest.raises(ValueError, match="severity of at most 5, got 6"):
        corrupted("fog", 6, images)
    with pytest.raises(ValueError, match=r"square images of 3 channels"):
        corrupted("fog", 1, images[:, :1])
    with pytest.raises(TypeError, match=r"dtype uint8, got torch.float32"):
        corrupted("fog", 1, images.float())
    with pytest.raises(ValueError, match="S a power of two"):
        ops.plasma_fractal(torch.rand(1, 6, 6), 2.0)
