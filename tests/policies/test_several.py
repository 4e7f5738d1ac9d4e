"""Mixtures of more than two samples, against loops over samples and sources that are obviously right."""

import pytest
import torch
from scipy import stats

import mixaug
from helpers import seeded
from mixaug.policies.fmix import level_sets
from mixaug.policies.several import paste_regions, shares_of_regions

#: The value of a sample's pixels tells which sample it is.
IMAGES = torch.arange(12.0)[:, None, None, None].expand(12, 3, 13, 17).contiguous()
LABELS = torch.arange(12)
EVERY = ("mixup", "cutmix", "fmix")


def mixed_by(name, **options):
    return mixaug.create(name, sources=4, **options)(IMAGES, LABELS, generator=seeded(3))


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_mixup_is_the_weighted_mean(per):
    mixed = mixed_by("mixup", per=per)
    for row in range(12):
        value = sum(mixed.weights[row, m] * mixed.sources[row, m] for m in range(4))
        torch.testing.assert_close(mixed.inputs[row], value.expand(3, 13, 17))
    torch.testing.assert_close(mixed.weights.sum(1), torch.ones(12))


@pytest.mark.parametrize(("name", "labeling"), [("cutmix", "area"), ("fmix", "area"), ("fmix", "ratio")])
@pytest.mark.parametrize("per", ["sample", "batch"])
def test_regions_divide_the_image_and_labels_count_them(name, labeling, per):
    mixed = mixed_by(name, per=per, labeling=labeling)
    for row in range(12):
        for label in range(12):
            shown = (mixed.inputs[row] == label).float().mean()
            share = sum(mixed.weights[row, m] for m in range(4) if mixed.sources[row, m] == label)
            # As drawn, every source differs by less than a pixel.
            assert abs(shown - share) < (1e-6 if labeling == "area" else 4 / (13 * 17))
    assert torch.equal(mixed.sources[:, 0], LABELS)
    assert mixed.weights.dtype == torch.float32


def test_what_is_replayed_is_the_same_division():
    mixed = mixed_by("cutmix")
    assert torch.equal(mixed.apply(IMAGES[:, :1]), mixed.inputs[:, :1])
    maps = LABELS[:, None, None].expand(12, 13, 17)
    assert torch.equal(mixed.apply(maps), mixed.inputs[:, 0].long())
    torch.testing.assert_close(mixed.mask.flatten(1).mean(1), mixed.weights[:, 0])


def test_boxes_of_several_cover_what_lies_below():
    # The last box is pasted last: it loses nothing, so it is the box of its share, clipped at the border.
    alone = torch.cat([mixed_by("cutmix", alpha=50.0, per="sample").weights[:, 3] for _ in range(1)])
    assert (alone <= 0.3).all() and (alone > 0.02).all()
    areas = torch.stack(
        [mixaug.create("cutmix", sources=3)(IMAGES, LABELS, generator=seeded(s)).weights for s in range(9)]
    )
    torch.testing.assert_close(areas.sum(2), torch.ones(9, 12))


def test_level_sets_against_sorting():
    grey, shares = torch.rand(5, 40, generator=seeded(0)), torch.rand(5, 3, generator=seeded(1))
    shares, offset = shares / shares.sum(1, keepdim=True), torch.rand(5, generator=seeded(2))
    regions = level_sets(grey, shares, offset)
    for row in range(5):
        order = sorted(range(40), key=lambda pixel: -grey[row, pixel].item())
        first = int(shares[row, 0].double() * 40 + offset[row].double())
        second = int(shares[row, :2].double().sum() * 40 + offset[row].double())
        expected = [0] * first + [1] * (second - first) + [2] * (40 - second)
        assert [regions[row, pixel].item() for pixel in order] == expected
    counted = shares_of_regions(regions, 3) * 40
    assert ((counted - shares * 40).abs() < 1 + 1e-4).all()


def test_regions_against_a_loop():
    sources = torch.randint(0, 12, (12, 3), generator=seeded(0))
    sources[:, 0] = LABELS
    regions = torch.randint(0, 3, (12, 13, 17), generator=seeded(1))
    pasted = paste_regions(IMAGES, sources, regions, (13, 17))
    for row in range(12):
        assert torch.equal(pasted[row, 0], sources[row][regions[row]].float())
    with pytest.raises(ValueError, match=r"regions of size \(13, 17\) do not fit a tensor of shape \(12, 3, 8, 17\)"):
        paste_regions(IMAGES[:, :, :8], sources, regions, (13, 17))


@pytest.mark.parametrize("name", EVERY)
def test_shares_are_those_of_a_dirichlet(name):
    images = torch.zeros(2000, 1, 2, 2)
    plan = mixaug.create(name, alpha=0.7, sources=3).draw(images, generator=seeded(0))
    assert stats.kstest(plan.lam.numpy(), stats.beta(0.7, 1.4).cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", EVERY)
def test_two_sources_are_what_they_were(name):
    plain, two = (mixaug.create(name, **o)(IMAGES, LABELS, generator=seeded(5)) for o in ({}, {"sources": 2}))
    assert torch.equal(plain.inputs, two.inputs) and torch.equal(plain.weights, two.weights)


@pytest.mark.parametrize("options", [
    {"ratio": "uniform"}, {"per": "pair"}, {"partners": "previous"}, {"labeling": "remix"}, {"pairing": "reversed"},
    {"pairing": mixaug.pairing.Own()}, {"pairing": mixaug.pairing.Contradicting("biased")},
])  # fmt: skip
@pytest.mark.parametrize("name", EVERY)
def test_what_is_about_pairs_is_refused(name, options):
    with pytest.raises(ValueError, match=f"mixes more than pairs with sources=3, so that {next(iter(options))}="):
        mixaug.create(name, sources=3, **options)


def test_further_refusals():
    for name, options in (("cutmix", {"minmax": (0.2, 0.8)}), ("fmix", {"max_soft": 0.2})):
        with pytest.raises(ValueError, match="leave out sources=3"):
            mixaug.create(name, sources=3, **options)
    with pytest.raises(ValueError, match="Mixup expects sources as an integer >= 2, got 1"):
        mixaug.create("mixup", sources=1)
