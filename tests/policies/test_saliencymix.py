"""SaliencyMix beyond the contract: the detector against a loop, peaks, what float images mean."""

import pytest
import torch

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug.ops import saliency as on_cpu
from mixaug.policies import saliencymix

PARTNER = torch.tensor([1, 2, 3, 0])


def slow_saliency(image):
    """The detector of one (3, H, W) uint8 RGB image, pixel by pixel with Python integers."""
    red, green, blue = (image[c].tolist() for c in range(3))
    height, width = image.shape[1:]
    grey = [[(3735 * blue[y][x] + 19235 * green[y][x] + 9798 * red[y][x] + 16384) >> 15 for x in range(width)]
            for y in range(height)]  # fmt: skip

    def mirrored(place, side):
        place = abs(place)
        return 2 * side - 2 - place if place >= side else place

    for _ in range(2):
        grey = [[(sum((2 - abs(dy)) * (2 - abs(dx)) * grey[mirrored(y + dy, height)][mirrored(x + dx, width)]
                      for dy in (-1, 0, 1) for dx in (-1, 0, 1)) + 8) >> 4
                 for x in range(width)] for y in range(height)]  # fmt: skip
    on = [[0] * width for _ in range(height)]
    off = [[0] * width for _ in range(height)]
    for reach in (12, 24, 48, 28, 56, 112):
        for y in range(height):
            for x in range(width):
                rows = range(max(0, y - reach + 1), min(height, y + reach + 1))
                columns = range(max(0, x - reach + 1), min(width, x + reach + 1))
                total = sum(grey[v][u] for v in rows for u in columns) - grey[y][x]
                mean = total / (len(rows) * len(columns) - 1)
                on[y][x] += int(max(grey[y][x] - mean, 0))
                off[y][x] += int(max(mean - grey[y][x], 0))

    def full(values):
        largest = max(max(max(row) for row in values), 1)
        return [[int(255 * value / largest) for value in row] for row in values]

    on, off = full(on), full(off)
    return torch.tensor([[(on[y][x] + off[y][x]) % 256 for x in range(width)] for y in range(height)])


def test_detector_against_slow_twin():
    images = torch.randint(0, 256, (2, 3, 9, 14), dtype=torch.uint8, generator=seeded(0))
    got = F.fine_grained_saliency(images)
    assert got.dtype == torch.uint8
    for row in range(2):
        # A float32 quotient and an exact one may fall on two sides of a whole number.
        difference = (got[row].long() - slow_saliency(images[row])).abs() % 255
        assert difference.max() <= 1
        assert (difference == 0).double().mean() > 0.95


def test_bright_object_is_salient_and_attracts_the_box():
    images = torch.full((4, 3, 64, 64), 60, dtype=torch.uint8)
    for row, (y, x) in enumerate([(10, 10), (10, 50), (50, 10), (50, 50)]):
        images[row, :, y - 4 : y + 4, x - 4 : x + 4] = 250
    saliency = F.fine_grained_saliency(images)
    assert saliency[0, 6:14, 6:14].float().mean() > 3 * saliency[0].float().mean()
    for dtype in (torch.uint8, torch.float32):
        given = images if dtype == torch.uint8 else (images.float() / 255 - 0.5) / 0.2
        mixed = mixaug.create("saliencymix", ratio=0.8, mean=0.5, std=0.2)(given, generator=seeded(1))
        for row, partner in enumerate(mixed.partner.tolist()):
            if partner != row:
                y, x = [(10, 10), (10, 50), (50, 10), (50, 50)][partner]
                assert mixed.mask[row, 0, y, x] == 0, "the partner's bright square is not in the box"


def test_peak_is_the_first_maximum():
    saliency = torch.zeros(3, 4, 5, dtype=torch.uint8)
    saliency[0, 2, 3] = saliency[0, 2, 1] = saliency[0, 3, 0] = 7
    saliency[1, 0, 4] = 1
    assert F.saliency_peak(saliency).tolist() == [[2, 1], [0, 4], [0, 0]]


def test_places_on_a_cpu_are_the_peaks_of_the_maps():
    noise = torch.rand(3, 3, 40, 57, generator=seeded(8))
    dots = torch.full((2, 3, 33, 64), 0.4)
    dots[0, :, 30, 50] = dots[0, :, 4, 9] = dots[1, :, 20, 3] = 1
    batches = [noise, noise.double(), noise.half(), noise.contiguous(memory_format=torch.channels_last), noise[:, :1]]
    batches += [dots, torch.cat([noise, noise], 1), torch.full((2, 3, 5, 7), 0.3), noise[..., :1, :1], 2 * noise - 0.5]
    batches += [(255 * noise).to(torch.uint8), (2 * noise).to(torch.uint8), noise.reshape(3, 3, 285, 8)]
    for images in batches:
        for statistics in ((None, None), (0.4, 0.3)):
            for channels in ("rgb", "bgr"):
                saliency = F.fine_grained_saliency(F.eight_bit_images(images, *statistics), channels=channels)
                centers = saliencymix._salient_centers(images, *statistics, channels)
                assert torch.equal(centers, F.saliency_peak(saliency))


def test_places_where_sums_wrap_around(monkeypatch):
    # Few values: many ties, and images whose largest sums wrap around, so that no byte is 255.
    brighter, darker = torch.randint(0, 7, (2, 500, 2, 3), dtype=torch.int16, generator=seeded(9)).unbind()
    number = torch.arange(500, dtype=torch.float64).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 3)

    def differences(images, statistics, is_rgb):
        rows = images[:, 0, 0, 0].long()
        yield slice(0, len(rows)), brighter[rows].numpy(), darker[rows].numpy()

    monkeypatch.setattr(on_cpu, "_differences", differences)
    monkeypatch.setattr(on_cpu, "eight_bits", lambda images, statistics: images)
    shares = [255 * sums.long() // sums.long().amax((1, 2), keepdim=True).clamp(min=1) for sums in (brighter, darker)]
    saliency = (shares[0] + shares[1]) % 256
    largest = saliency.amax((1, 2))
    assert ((largest > 0) & (largest < 255)).sum() > 50
    first = torch.tensor([row.flatten().tolist().index(row.max()) for row in saliency])
    assert torch.equal(on_cpu.salient_places(number, None, True), first)


def test_float_images_become_the_pixels_they_were():
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=seeded(2))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)
    shape = (1, 3, 1, 1)
    images = (pixels.float() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert torch.equal(F.eight_bit_images(images, mean, std), pixels)
    stretched = F.eight_bit_images(images)
    assert stretched.flatten(1).amin(1).tolist() == [0] * 4
    assert stretched.flatten(1).amax(1).tolist() == [255] * 4


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("side", [40, 300])
def test_an_images_map_does_not_depend_on_its_neighbours(channels, side):
    # A CPU takes several small images at once, 81 of this size: 90 end within the second such block.
    count = 90 if side == 40 else 2
    contrast = torch.linspace(0.02, 1, count).reshape(-1, 1, 1, 1)
    images = torch.rand(count, channels, side, side, generator=seeded(7)) * contrast + 3 * contrast
    pixels = F.eight_bit_images(images)
    saliency = F.fine_grained_saliency((pixels * contrast).to(torch.uint8))
    for row in range(0, count, 13):
        alone = F.eight_bit_images(images[row : row + 1])
        assert torch.equal(alone[0], pixels[row])
        dimmed = (alone * contrast[row]).to(torch.uint8)
        assert torch.equal(F.fine_grained_saliency(dimmed)[0], saliency[row])


def test_constant_and_grey_images_and_other_channels():
    assert F.fine_grained_saliency(torch.full((1, 3, 16, 16), 9, dtype=torch.uint8)).sum() == 0
    grey = torch.randint(0, 256, (1, 1, 16, 16), dtype=torch.uint8, generator=seeded(3))
    assert torch.equal(F.fine_grained_saliency(grey), F.fine_grained_saliency(grey.expand(1, 3, 16, 16)))
    assert torch.equal(F.fine_grained_saliency(grey), F.fine_grained_saliency(grey.expand(1, 5, 16, 16)))
    rgb = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=seeded(4))
    assert torch.equal(F.fine_grained_saliency(rgb), F.fine_grained_saliency(rgb.flip(1), channels="bgr"))


def test_one_box_for_the_batch_follows_the_first_partner():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=seeded(5))
    plan = mixaug.create("saliencymix", per="batch", ratio=0.7, pairing="shift").draw(images)
    peak = F.saliency_peak(F.fine_grained_saliency(images[3:4]))
    assert torch.equal(plan.boxes, F.cutmix_boxes(torch.tensor([0.7]).double(), peak, (32, 32)))


def test_own_share_never_falls_below_lam_by_more_than_the_rounding():
    images = torch.randint(0, 256, (256, 1, 32, 32), dtype=torch.uint8, generator=seeded(6))
    plan = mixaug.create("saliencymix").draw(images, generator=seeded(7))
    assert (plan.area() >= plan.lam - 1e-6).all(), "sides are truncated and clipped, never enlarged"


def test_bad_arguments():
    with pytest.raises(TypeError, match="make them with eight_bit_images"):
        F.fine_grained_saliency(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="mean and std together"):
        mixaug.create("saliencymix", mean=0.5)
    with pytest.raises(ValueError, match="one positive std"):
        mixaug.create("saliencymix", mean=0.5, std=0.0)
    with pytest.raises(ValueError, match="of 3 channels for images of 1"):
        mixaug.create("saliencymix", mean=(0.5,) * 3, std=(0.2,) * 3)(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="'rgb' or 'bgr'"):
        mixaug.create("saliencymix", channels="hsv")
