"""Crop and flip against padding and slicing one image at a time; normalisation against the formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixaug.loading import Normalize, crop_and_flip, normalize
from mixaug.ops import parts


def slow_twin(
    images: Tensor, rows: Tensor, offsets: Tensor | None, flips: Tensor | None, padding: int, mode: str
) -> Tensor:
    height, width = images.shape[2:]
    torch_mode = "constant" if mode == "zeros" else "reflect"
    out = []
    for place, row in enumerate(rows.tolist()):
        padded = F.pad(images[row].float(), (padding,) * 4, mode=torch_mode)
        y, x = (padding, padding) if offsets is None else offsets[place].tolist()
        window = padded[:, y : y + height, x : x + width]
        out.append(window.flip(2) if flips is not None and flips[place] else window)
    return torch.stack(out).to(images.dtype)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(("size", "padding"), [((8, 8), 2), ((5, 9), 4), ((7, 3), 2), ((1, 4), 0), ((6, 6), 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_pad_and_slice(mode, size, padding, dtype, flip, seeded):
    g = seeded(1)
    images = torch.randint(1, 256, (11, 3, *size), generator=g).to(dtype)
    rows = torch.randint(11, (40,), generator=g)
    offsets = torch.randint(2 * padding + 1, (40, 2), generator=g)
    flips = torch.rand(40, generator=g) < 0.5 if flip else None
    ours = crop_and_flip(images, rows, offsets, flips, padding=padding, padding_mode=mode)
    assert torch.equal(ours, slow_twin(images, rows, offsets, flips, padding, mode))
    assert ours.dtype == dtype


def test_every_offset_of_every_corner():
    images = torch.arange(1, 13, dtype=torch.uint8).view(1, 1, 3, 4)
    for mode in ("zeros", "reflect"):
        offsets = torch.cartesian_prod(torch.arange(5), torch.arange(5))
        rows = torch.zeros(25, dtype=torch.long)
        ours = crop_and_flip(images, rows, offsets, padding=2, padding_mode=mode)
        assert torch.equal(ours, slow_twin(images, rows, offsets, None, 2, mode))


def test_zero_padding_of_large_padding_is_all_black():
    images = torch.full((1, 1, 2, 2), 9, dtype=torch.uint8)
    out = crop_and_flip(images, torch.tensor([0]), torch.tensor([[0, 0]]), padding=5)
    assert not out.any()


def test_infinite_pixel_at_the_edge_does_not_leak():
    images = torch.full((1, 1, 2, 2), torch.inf)
    out = crop_and_flip(images, torch.tensor([0]), torch.tensor([[0, 0]]), padding=1)
    assert torch.equal(out[0, 0], torch.tensor([[0.0, 0.0], [0.0, torch.inf]]))


def test_only_flip_and_nothing():
    images = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    rows = torch.tensor([1, 0, 1])
    flips = torch.tensor([True, False, False])
    expected = torch.stack([images[1].flip(2), images[0], images[1]])
    assert torch.equal(crop_and_flip(images, rows, None, flips), expected)
    copy = crop_and_flip(images, rows)
    assert torch.equal(copy, images[rows])
    copy.zero_()
    assert images.any()


def test_channels_last_images():
    images = torch.randint(256, (3, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, offsets = torch.tensor([2, 0]), torch.tensor([[1, 2], [0, 0]])
    expected = crop_and_flip(images, rows, offsets, padding=1)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(crop_and_flip(last, rows, offsets, padding=1), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding_mode": "edge"}, "padding_mode one of"),
        ({"padding": -1}, "padding >= 0"),
        ({"padding": 4, "padding_mode": "reflect"}, "reflects at most"),
        ({"offsets": torch.zeros(2, 3, dtype=torch.long)}, "offsets"),
        ({"flips": torch.zeros(2)}, "flips"),
        ({"images": torch.zeros(4, 4)}, "images"),
    ],
)
def test_bad_arguments(options, message):
    arguments = {"images": torch.zeros(2, 1, 4, 4), "rows": torch.tensor([0, 1]), **options}
    with pytest.raises(ValueError, match=message):
        crop_and_flip(**arguments)


class TestNormalize:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

    def reference(self, images: Tensor) -> Tensor:
        unit = images.double() / (255 if images.dtype == torch.uint8 else 1)
        mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (self.mean, self.std))
        return (unit - mean) / std

    @pytest.mark.parametrize("source", [torch.uint8, torch.float32, torch.float64, torch.float16])
    @pytest.mark.parametrize("target", [None, torch.float32, torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("memory_format", [None, torch.channels_last])
    def test_equals_formula(self, source, target, memory_format, seeded):
        images = torch.randint(256, (4, 3, 5, 6), generator=seeded(0)).to(source)
        if source != torch.uint8:
            images = images / 255
        before = images.clone()
        out = Normalize(self.mean, self.std, target, memory_format)(images)
        wanted = target or (torch.float32 if source == torch.uint8 else source)
        assert out.dtype == wanted
        assert out.is_contiguous(memory_format=memory_format or torch.contiguous_format)
        assert torch.equal(images, before)
        tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(wanted, 2e-6)
        torch.testing.assert_close(out.double(), self.reference(images), rtol=tolerance, atol=tolerance)

    def test_a_memory_format_fits_the_images(self):
        with pytest.raises(TypeError, match="memory_format expects one of torch, such as"):
            Normalize(memory_format="channels_last")
        for memory_format, images in (
            (torch.channels_last, torch.rand(4, 3)),
            (torch.channels_last_3d, torch.rand(4, 3, 2, 2)),
        ):
            with pytest.raises(ValueError, match=r"memory_format=torch\.channels_last.* with [45] axes, got shape"):
                Normalize(0.5, 0.2, memory_format=memory_format)(images)

    @pytest.mark.parametrize("target", [None, torch.bfloat16])
    @pytest.mark.parametrize("memory_format", [None, torch.channels_last, torch.preserve_format])
    def test_some_images_at_once_give_what_all_at_once_give(self, target, memory_format, seeded, monkeypatch):
        plain = torch.randint(256, (7, 3, 5, 6), generator=seeded(0)).to(torch.uint8)
        kinds = {
            "contiguous": plain,
            "channels_last": plain.contiguous(memory_format=torch.channels_last),
            "expanded": plain[:1].expand(7, -1, -1, -1),
            "floats": plain / 255,
            "few": plain[:2],
            "none": plain[:0],
        }
        # Two images of 5 x 6 pixels with three channels in float32.
        monkeypatch.setattr(parts, "BYTES_AT_ONCE", 2 * 3 * 5 * 6 * 4)
        for kind, images in kinds.items():
            found = Normalize(self.mean, self.std, target, memory_format)(images)
            with monkeypatch.context() as patch:
                patch.setattr(normalize, "reads_freely", lambda *tensors: False)
                whole = Normalize(self.mean, self.std, target, memory_format)(images)
            assert torch.equal(found, whole), kind
            assert (found.dtype, found.stride()) == (whole.dtype, whole.stride()), kind

    def test_statistics_of_bytes_are_told(self):
        images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"in units of 0\.\.1, got mean=\[125\.3.*divide both by 255"):
            Normalize([125.3, 123.0, 113.9], [63.0, 62.1, 66.7])(images)
        # Floats may have any values.
        assert Normalize(125.0, 60.0)(images + 125.0).eq(0).all()

    def test_half_precision_is_cast_last(self):
        images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
        full = Normalize(0.5, 0.2)(images)
        assert torch.equal(Normalize(0.5, 0.2, torch.bfloat16)(images), full.bfloat16())

    def test_without_numbers(self):
        images = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
        assert torch.equal(Normalize()(images), images)
        torch.testing.assert_close(Normalize(dtype=torch.float32)(images), images.float() / 255)
        half = images.half()
        assert torch.equal(Normalize(dtype=torch.float32)(half), half.float())

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"std": 0.0}, ValueError, "std expects positive"),
            ({"std": (0.1, -1.0)}, ValueError, "std expects positive"),
            ({"mean": float("nan")}, ValueError, "mean expects finite"),
            ({"mean": ()}, ValueError, "mean expects finite"),
            ({"mean": "0.5"}, ValueError, "mean expects finite"),
            ({"std": ["x"]}, ValueError, "std expects finite"),
            ({"std": object()}, ValueError, "std expects finite"),
            ({"dtype": "float32"}, TypeError, "dtype expects a torch.dtype"),
            ({"mean": (0.1, 0.2), "std": (0.1, 0.2, 0.3)}, ValueError, "mean has 2 numbers, but std has 3"),
            ({"mean": 0.5, "dtype": torch.uint8}, TypeError, "dtype expects"),
            ({"dtype": torch.int32}, TypeError, "dtype expects"),
        ],
    )
    def test_bad_options(self, options, error, message):
        with pytest.raises(error, match=message):
            Normalize(**options)

    def test_bad_images(self):
        with pytest.raises(ValueError, match=r"3 numbers, but the images have shape \(2, 1, 4, 4\)"):
            Normalize(self.mean, self.std)(torch.zeros(2, 1, 4, 4))
        with pytest.raises(TypeError, match=r"got torch\.int64"):
            Normalize(0.5)(torch.zeros(2, 1, 4, 4, dtype=torch.int64))
        with pytest.raises(TypeError, match="keeps uint8"):
            Normalize(dtype=torch.uint8)(torch.zeros(2, 1, 4, 4))
