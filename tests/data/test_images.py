"""Image files at every depth, and what a folder of classes may hold beside images."""

import struct

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("PIL")

from PIL import Image

from mixaug.data import FileData, load
from mixaug.data.images import read_rgb

#: Two classes of X-rays of 16 bits; over 257 their means are 25.3 and 173.2.
LOW, HIGH = (np.random.default_rng(0).integers(*bounds, (32, 32)) for bounds in ((2000, 11001), (40000, 49001)))


def tiff(path, values, bits, *, white_is_zero=False, sample_format=1):
    """A TIFF of one strip, written by hand: Pillow writes neither white-is-zero nor signed values."""
    height, width = values.shape
    data = values.tobytes()
    wide, narrow = 4, 3
    entries = [
        *((256, wide, width), (257, wide, height), (258, narrow, bits), (259, narrow, 1)),
        *((262, narrow, 0 if white_is_zero else 1), (273, wide, 8), (277, narrow, 1), (278, wide, height)),
        *((279, wide, len(data)), (339, narrow, sample_format)),
    ]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    count = struct.pack("<H", len(entries))
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + count + directory + b"\0\0\0\0")


def twelve_bits(values):
    """Pairs of values of 12 bits in three bytes."""
    first, second = (values.reshape(-1, 2)[:, k].astype(np.uint32) for k in (0, 1))
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8)
    return packed.reshape(values.shape[0], -1)


def save(path, values):
    """Write values of 16 bits in the way that the name says."""
    unsigned = values.astype(np.uint16)
    if path.name.endswith(("white.tif", "signed.tif", "twelve.tif")):
        if "white" in path.name:
            tiff(path, 65535 - unsigned, 16, white_is_zero=True)
        elif "signed" in path.name:
            tiff(path, (values // 2).astype(np.int16), 16, sample_format=2)
        else:
            packed = twelve_bits(values // 16)
            tiff(path, packed, 12)
            raw = bytearray(path.read_bytes())
            place = raw.index(struct.pack("<HHI", 256, 4, 1)) + 8
            raw[place : place + 4] = struct.pack("<I", values.shape[1])
            path.write_bytes(bytes(raw))
    elif path.suffix == ".pgm":
        most = 4095 if "twelve" in path.name else 65535
        scaled = values // 16 if most == 4095 else values
        path.write_bytes(b"P5 %d %d %d\n" % (*values.shape[::-1], most) + scaled.astype(">u2").tobytes())
    elif path.suffix == ".ppm":
        colours = np.repeat(values[:, :, None], 3, 2)
        path.write_bytes(b"P6 %d %d 65535\n" % values.shape[::-1] + colours.astype(">u2").tobytes())
    elif "float" in path.name:
        Image.fromarray(values.astype(np.float32)).save(path)
    elif "32" in path.name:
        Image.fromarray(values.astype(np.int32)).save(path)
    else:
        Image.fromarray(unsigned.astype(">u2") if "big" in path.name else unsigned).save(path)


SIXTEEN = ["grey.png", "grey.tif", "big.tif", "white.tif", "twelve.tif", "grey.pgm", "twelve.pgm", "colour.ppm"]


@pytest.mark.parametrize("name", SIXTEEN)
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    for values, mean in ((LOW, 25.3), (HIGH, 173.2)):
        save(tmp_path / name, values)
        image = read_rgb(tmp_path / name)
        assert image.mode == "RGB"
        got = np.asarray(image).astype(float)
        # Colour keeps its upper byte, and twelve bits end in a step of 16; both are less than one step of eight bits.
        assert np.abs(got - values[:, :, None] / 257).max() <= 1.0
        assert abs(got.mean() - mean) < 0.6
        assert got.std() > 3


@pytest.mark.parametrize("name", ["float.tif", "32.tif", "signed.tif"])
def test_values_of_unknown_range_are_refused(tmp_path, name):
    save(tmp_path / name, HIGH)
    with pytest.raises(ValueError, match=rf"{name}' holds (floating point|signed or 32-bit integer) values.*8 or 16"):
        read_rgb(tmp_path / name)


def folders(root, classes=("cat", "dog"), splits=("train", "val")):
    for split in splits:
        for number, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for sample in range(2):
                save(root / split / name / f"{sample}.png", (LOW, HIGH)[number % 2])
    return root


def test_a_folder_of_deep_images(tmp_path):
    found = load("imagefolder", root=folders(tmp_path), transform="uint8")
    for split in (found.train, found.test):
        means = torch.stack([split[index][0].float().mean() for index in range(4)])
        expected = torch.tensor([values.mean() / 257 for values in (LOW, LOW, HIGH, HIGH)]).float()
        torch.testing.assert_close(means, expected, rtol=0, atol=0.1)
        assert [split[index][1] for index in range(4)] == [0, 0, 1, 1]


def test_signed_values_of_eight_bits_are_refused(tmp_path):
    """Pillow reads them as unsigned ones, in grey and in colour."""
    tiff(tmp_path / "signed.tif", (LOW % 100).astype(np.int8), 8, sample_format=2)
    with pytest.raises(ValueError, match=r"signed.tif' holds signed or 32-bit integer values"):
        read_rgb(tmp_path / "signed.tif")


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_keeps_its_colours(tmp_path):
    colours = np.random.default_rng(1).integers(0, 256, (4, 3)).astype(np.uint8)
    image = Image.fromarray((LOW % 4).astype(np.uint8))
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255, 7]))
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "palette.png")), colours[LOW % 4])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "ppm", "gif"])
def test_files_that_cannot_be_read_are_named(tmp_path, suffix):
    path = tmp_path / f"broken.{suffix}"
    Image.fromarray(LOW.astype(np.uint8)).convert("RGB").save(path)
    whole = path.read_bytes()
    split = FileData([path], [0])
    split[0]
    for content in (whole[: len(whole) // 2], whole[:40], b"", b"no image at all"):
        path.write_bytes(content)
        with pytest.raises(OSError, match=path.name):
            split[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        split[0]


def test_what_notebooks_and_file_systems_leave_behind_is_no_class_and_no_image(tmp_path):
    folders(tmp_path)
    for place in ("train/.ipynb_checkpoints", "train/cat/.ipynb_checkpoints", "val/__MACOSX", "val/dog/@eaDir"):
        (tmp_path / place).mkdir()
        save(tmp_path / place / "0.png", LOW)
    (tmp_path / "train" / "dog" / "._0.png").write_bytes(b"a resource fork")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "val" / "cat" / "more").mkdir()
    save(tmp_path / "val" / "cat" / "more" / "2.png", LOW)
    found = load("imagefolder", root=tmp_path)
    assert found.class_names == ("cat", "dog")
    assert (len(found.train), len(found.test)) == (4, 5)


def test_classes_without_images_are_named_with_their_split(tmp_path):
    folders(tmp_path)
    for sample in range(2):
        (tmp_path / "val" / "dog" / f"{sample}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image of the class\(es\) dog in val, '.*val'; .*allow_empty"):
        load("imagefolder", root=tmp_path)
    found = load("imagefolder", root=tmp_path, allow_empty=True)
    assert found.class_names == ("cat", "dog")
    assert [label for _, label in (found.test[index] for index in range(len(found.test)))] == [0, 0]
    with pytest.raises(TypeError, match="allow_empty to be true or false"):
        load("imagefolder", root=tmp_path, allow_empty="no")
    for split in ("train", "val"):
        (tmp_path / split).rename(tmp_path / f"old {split}")
        (tmp_path / split).mkdir()
        with pytest.raises(FileNotFoundError, match=f"no class folder in {split}, '"):
            load("imagefolder", root=tmp_path)
        (tmp_path / split).rmdir()
        (tmp_path / f"old {split}").rename(tmp_path / split)
