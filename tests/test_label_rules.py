"""Labels by what lies outside the mix: visible objects, class counts, a ratio of their own, one source alone."""

import functools
import pickle

import pytest
import torch
from scipy import stats

import mixaug
from helpers import seeded
from mixaug import labeling
from mixaug.batch import Batch
from mixaug.labeling import Remix, Separate, VisibleObject
from mixaug.preparation import Preparation
from mixaug.testing import check_policy

COUNT, SIZE = 7, (20, 28)
IMAGES = torch.rand(COUNT, 3, *SIZE, generator=seeded(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 2, 1])
COUNTS = [90.0, 30.0, 10.0, 3.0]


def objects(empty=()):
    """A rectangle in every image, 0 or 255; none in some."""
    masks = torch.zeros(COUNT, 1, *SIZE, dtype=torch.uint8)
    for i in range(COUNT):
        if i not in empty:
            masks[i, 0, 2 + i : 9 + i, 3 * i : 3 * i + 8] = 255
    return masks


def drawn(name, labeling, masks, seed=1, **options):
    policy = mixaug.create(name, labeling=labeling, **options)
    batch = Batch(IMAGES, LABELS, metadata={"object_mask": masks})
    return policy.plan(batch, seeded(seed))


def seen(plan, masks):
    """Pixels of own and partner's object that show, from batches in which one sample alone has its object."""
    is_object = (masks[:, 0] > 0).float()

    def shown(sample, source):
        alone = torch.zeros_like(is_object)
        alone[source] = is_object[source]
        return plan.mix(alone)[sample].sum().item()

    return [(shown(i, i), shown(i, j)) for i, j in enumerate(plan.partner.tolist())]


@pytest.mark.parametrize("name", ["cutmix", "fmix", "gridmix", "smoothmix", "mixup", "saliencymix"])
@pytest.mark.parametrize("mode", ["absolute", "relative", 0.25])
def test_object_shares_against_a_count(name, mode):
    masks = objects()
    share = {} if name == "smoothmix" else {"ratio": 0.6}
    plan = drawn(name, VisibleObject(mode), masks, pairing="derangement", **share)
    total = (masks > 0).flatten(1).sum(1).tolist()
    for i, (a, b) in enumerate(seen(plan, masks)):
        relative = (a / total[i], b / total[int(plan.partner[i])])
        shares = [one / (one + other) if one + other else 0.5 for one, other in ((a, b), relative)]
        weight = {"absolute": 1.0, "relative": 0.0}.get(mode, mode)
        expected = weight * shares[0] + (1 - weight) * shares[1]
        assert plan.weights[i].tolist() == pytest.approx([expected, 1 - expected], abs=1e-4)


def test_the_area_has_a_share_where_it_is_asked_for():
    masks = objects()
    whole, none, half = (drawn("cutmix", VisibleObject(foreground=f), masks).weights for f in (1.0, 0.0, 0.5))
    area = drawn("cutmix", "area", masks).weights
    torch.testing.assert_close(none, area)
    torch.testing.assert_close(half, (whole + area) / 2)
    assert not torch.allclose(whole, area, atol=0.05)


def test_images_without_an_object_count_by_their_pixels():
    masks = objects(empty=(0, 1, 2))
    for mode in ("absolute", "relative"):
        plan = drawn("cutmix", VisibleObject(mode), masks, pairing="shift", ratio=0.7, seed=4)
        area, sums = plan.area(), (masks > 0).flatten(1).sum(1)
        inside = seen(plan, masks)
        for i, j in enumerate(plan.partner.tolist()):
            a, b = inside[i]
            if mode == "absolute":
                expected = a / (a + b) if a + b else 0.5
            else:
                own = a / sums[i].item() if sums[i] else area[i].item()
                other = b / sums[j].item() if sums[j] else 1 - area[i].item()
                expected = own / (own + other) if own + other else 0.5
            assert plan.weights[i, 0].item() == pytest.approx(expected, abs=1e-5)
    # As in the authors' code: the own image counts as all seen, the partner as not seen at all.
    plan = drawn("cutmix", VisibleObject("relative", reference=True), masks, pairing="shift", ratio=0.7)
    assert plan.weights[1].tolist() == [1.0, 0.0]
    assert plan.weights[2].tolist() == [1.0, 0.0]
    # Nothing was pasted: the label stays, object or not.
    whole = drawn("cutmix", VisibleObject(), masks, ratio=1.0)
    assert whole.weights.tolist() == [[1.0, 0.0]] * COUNT


def test_masks_of_every_form():
    masks = objects()
    expected = drawn("cutmix", "object", masks).weights
    for form in (masks[:, 0], masks > 0, (masks > 0).float(), (masks > 0).to(torch.int64) * 7):
        assert torch.equal(drawn("cutmix", "object", form).weights, expected)
    # A coarse mask is scaled by nearest neighbour.
    coarse = objects()[:, :, ::2, ::2]
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(drawn("cutmix", "object", coarse).weights, drawn("cutmix", "object", fine).weights)


def test_missing_and_wrong_masks_are_named():
    policy = mixaug.create("cutmix", labeling="object")
    with pytest.raises(ValueError, match=r"'object_mask' of every sample, the batch has metadata \[\]: pass Batch\("):
        policy.plan(Batch(IMAGES, LABELS), seeded(1))
    with pytest.raises(ValueError, match=r"object_mask \(7, H, W\) or \(7, 1, H, W\), got \(7, 2, 20, 28\)"):
        drawn("cutmix", "object", objects().expand(-1, 2, -1, -1))
    for options, message in (
        ({"mode": "both"}, "got 'both'"),
        ({"mode": 1.5}, r"mode in \[0, 1\], got 1.5"),
        ({"foreground": -1}, r"foreground in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            VisibleObject(**options)


def slow_remix(lam, own, other, kappa, tau):
    if own / other >= kappa and lam < tau:
        return 0.0
    if own / other <= 1 / kappa and 1 - lam < tau:
        return 1.0
    return lam


@pytest.mark.parametrize(("kappa", "tau"), [(3.0, 0.5), (1.5, 0.8), (1.0, 0.3)])
@pytest.mark.parametrize("dense", [False, True])
def test_remix_against_the_rule(kappa, tau, dense):
    labels = torch.nn.functional.one_hot(LABELS, 4).float() if dense else LABELS
    changed = 0
    for seed in range(12):
        mixed = mixaug.create("cutmix", labeling=Remix(COUNTS, kappa, tau))(IMAGES, labels, generator=seeded(seed))
        area, partner = mixed.plan.area().tolist(), mixed.partner.tolist()
        for i, j in enumerate(partner):
            expected = slow_remix(area[i], COUNTS[LABELS[i]], COUNTS[LABELS[j]], kappa, tau)
            assert mixed.weights[i].tolist() == pytest.approx([expected, 1 - expected])
            changed += expected != area[i]
    assert changed > 5


def test_remix_counts_soft_labels_and_takes_a_labeling():
    soft = torch.rand(COUNT, 4, generator=seeded(2)).softmax(1)
    mixed = mixaug.create("mixup", labeling=Remix(COUNTS), pairing="shift", ratio=0.4)(IMAGES, soft)
    counts = (soft * torch.tensor(COUNTS)).sum(1).tolist()
    expected = [slow_remix(0.4, counts[i], counts[i - 1], 3.0, 0.5) for i in range(COUNT)]
    assert mixed.lam.tolist() == pytest.approx(expected)
    # The drawn share and not the area decides, where that is the labeling below.
    by_draw = Remix(COUNTS, labeling=mixaug.labeling.Drawn())
    mixed = mixaug.create("cutmix", labeling=by_draw, ratio=0.4)(IMAGES, LABELS, generator=seeded(3))
    for i, j in enumerate(mixed.partner.tolist()):
        assert mixed.lam[i].item() == pytest.approx(slow_remix(0.4, COUNTS[LABELS[i]], COUNTS[LABELS[j]], 3.0, 0.5))
    assert pickle.loads(pickle.dumps(by_draw)).class_counts == COUNTS


def test_remix_names_what_is_wrong():
    policy = mixaug.create("mixup", labeling=Remix(COUNTS))
    with pytest.raises(ValueError, match="pass labels with the images"):
        policy(IMAGES)
    with pytest.raises(ValueError, match=r"class ids in \[0, 4\), got values from 0 to 9"):
        policy(IMAGES, LABELS * 3)
    with pytest.raises(ValueError, match=r"labels \(B, 4\), got \(7, 5\)"):
        policy(IMAGES, torch.ones(7, 5))
    for options, kind, message in (
        ({"class_counts": []}, ValueError, "class_counts as positive numbers"),
        ({"class_counts": [3, 0]}, ValueError, "class_counts as positive numbers"),
        ({"class_counts": COUNTS, "kappa": 0.5}, ValueError, "expects kappa between 1"),
        ({"class_counts": COUNTS, "tau": 2}, ValueError, r"tau in \[0, 1\]"),
        ({"class_counts": COUNTS, "labeling": mixaug.labeling.Attention()}, TypeError, "which Attention reads"),
    ):
        with pytest.raises(kind, match=message):
            Remix(**options)


def test_labels_with_a_ratio_of_their_own():
    policy, g = mixaug.create("mixup", labeling="separate", alpha=1.0), seeded(5)
    batches = [policy(IMAGES, LABELS, generator=g) for _ in range(150)]
    label, image = (torch.cat([part(mixed) for mixed in batches]) for part in (lambda m: m.lam, lambda m: m.plan.lam))
    assert stats.kstest(label.numpy(), "uniform").pvalue > 1e-4
    assert abs(torch.corrcoef(torch.stack([label, image]))[0, 1]) < 4 / len(label) ** 0.5
    # The images are those of the policy without it.
    plain = mixaug.create("mixup")(IMAGES, LABELS, generator=seeded(6))
    mixed = policy(IMAGES, LABELS, generator=seeded(6))
    assert torch.equal(mixed.inputs, plain.inputs)
    # As often as the policy draws, and whatever distribution.
    once = mixaug.create("cutmix", labeling=Separate(0.8), per="batch", ratio=0.5)(IMAGES, LABELS, generator=seeded(7))
    torch.testing.assert_close(once.weights, torch.tensor([[0.8, 0.2]]).expand(COUNT, 2))
    narrow = mixaug.create("mixup", labeling=Separate("beta", alpha=50.0), per="sample")
    assert narrow(IMAGES, LABELS, generator=seeded(8)).lam.sub(0.5).abs().max() < 0.3
    # Where nothing was mixed in, the label stays.
    assert mixaug.create("mixup", labeling="separate", ratio=1.0)(IMAGES, LABELS).lam.tolist() == [1.0] * COUNT
    with pytest.raises(ValueError, match="takes alpha for ratio='beta' alone"):
        Separate("uniform", alpha=2.0)


@pytest.mark.parametrize(("rule", "weights"), [("own", [1.0, 0.0]), ("partner", [0.0, 1.0])])
def test_one_source_alone(rule, weights):
    for name in ("mixup", "cutmix"):
        mixed = mixaug.create(name, labeling=rule)(IMAGES, LABELS, generator=seeded(9))
        assert mixed.weights.tolist() == [weights] * COUNT


@pytest.mark.parametrize("labeling", ["separate", "own", Remix([9.0, 2.0, 1.0, 1.0, 5.0, 3.0, 1.0])], ids=str)
def test_rules_keep_the_promises_of_a_policy(labeling):
    make = functools.partial(mixaug.create, "cutmix", labeling=labeling)
    promises = ["form", "randomness", "repeats", "combinations", "autocast", "module", "device"]
    check_policy(make, promises=promises)


def test_a_coin_shows_one_of_the_two():
    mixed = mixaug.create("mixup", ratio="bernoulli")(IMAGES, LABELS, generator=seeded(10))
    assert set(mixed.lam.tolist()) == {0.0, 1.0}
    expected = torch.where(mixed.lam[:, None, None, None] == 1, IMAGES, IMAGES[mixed.partner])
    assert torch.equal(mixed.inputs, expected)
    policy, g = mixaug.create("mixup", ratio=mixaug.ratio.Bernoulli(0.3)), seeded(11)
    kept = sum(int(policy(IMAGES, LABELS, generator=g).lam.sum()) for _ in range(100))
    assert stats.binomtest(kept, 100 * COUNT, 0.3).pvalue > 1e-4


def test_remix_counts_the_classes_before_training_where_nobody_says_them() -> None:
    labels = torch.tensor([0] * 12 + [1] * 3 + [2])
    images = torch.rand(16, 3, 4, 4)
    policy = mixaug.create("cutmix", labeling="remix")
    with pytest.raises(ValueError, match="does not know how frequent the classes are: pass class_counts, or call"):
        policy(images, labels)
    nothing = None
    preparation = Preparation(lambda split: (images, labels), nothing, 4, 0.1, nothing, torch.Generator())
    policy.prepare(preparation)
    told = mixaug.create("cutmix", labeling=Remix([12, 3, 1]))
    got, expected = (one(images, labels, generator=seeded(3)) for one in (policy, told))
    assert torch.equal(got.weights, expected.weights)
    assert not torch.equal(got.weights, mixaug.create("cutmix")(images, labels, generator=seeded(3)).weights)
    kept = mixaug.create("cutmix", labeling=Remix([5, 5, 5]))
    kept.prepare(preparation)
    assert kept.labeling.class_counts == [5, 5, 5]
    missing = mixaug.create("cutmix", labeling="remix")
    for wrong in ("area", 1, labeling.ClassActivation):
        with pytest.raises(TypeError, match=r"Remix expects labeling as a Labeling object, such as Area\(\), got"):
            Remix(labeling=wrong)
    with pytest.raises(ValueError, match="class_counts as positive numbers"):
        missing.prepare(Preparation(lambda split: (images, labels * 2), nothing, 4, 0.1, nothing, torch.Generator()))


@pytest.mark.parametrize("name", ["mixup", "regmix", "manifoldmix", "nfm", "moex", "mixstyle", "alignmix", "cmixup"])
def test_labelings_that_weigh_a_mask_are_refused_where_there_is_none(name):
    weighing = [label for label, made in labeling.NAMED.items() if getattr(made(), "weighs_mask", False)]
    assert weighing == ["attention", "progressive", "token_labels", "cam", "content", "saliency"]
    for label in weighing:
        with pytest.raises(ValueError, match=rf"has no mask, .* so labeling='{label}' has nothing to weigh"):
            mixaug.create(name, labeling=label)
        assert mixaug.create("cutmix", labeling=label).labeling.weighs_mask
    with pytest.raises(ValueError, match=r"labeling=<?.*Remix.* has nothing to weigh"):
        mixaug.create(name, labeling=Remix([1, 2], labeling=labeling.ClassActivation()))
    # An object that is blended shows a share of its pixels, and the class counts of the pair are there in any case.
    for label in set(labeling.NAMED) - set(weighing):
        mixaug.create(name, labeling=label)
