"""PatchUp beyond the contract: holes and shares against loops, labels that the pass tells, real models."""

import copy

import pytest
import torch
from scipy import stats

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import functional as F
from mixaug.losses import MixedCrossEntropy
from mixaug.testing import check_policy

IMAGES = torch.randn(6, 3, 16, 16, generator=seeded(0))
LABELS = torch.arange(6) % 4
PARTNER = torch.tensor([2, 0, 3, 1, 4])
LAM = torch.tensor([0.3, 0.9, 0.0, 1.0, 0.6])
INSIDE = {"stages": ["layer1", "layer2"]}


def tiny(name="cifar_resnet8"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "swin":
            make = pytest.importorskip("timm").models.swin_transformer.SwinTransformer
            return make(img_size=16, patch_size=2, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 1),
                        num_classes=4, drop_path_rate=0.0)  # fmt: skip
        if name == "vit":
            make = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
            return make(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=4)
        return mixaug.models.create(name, 4)


def test_own_options_matter():
    check_policy("patchup", promises=["options"], options={"mode": "hard", "gamma": 0.2})
    check_policy(
        lambda **options: mixaug.create("patchup", stages=["layer1"], **options),
        promises=["options", "per", "combinations"],
        options={"block_size": 1},
    )


@pytest.mark.parametrize("block", [1, 3, 5])
@pytest.mark.parametrize("size", [(7,), (5, 8), (2, 3), (4, 5, 3)])
def test_holes_against_a_loop(block, size):
    seeds = torch.rand(2, 3, *size, generator=seeded(1)) < 0.08
    sides = [min(block, n if n % 2 else n - 1) for n in size]
    expected = torch.zeros_like(seeds)
    for row, channel, *place in seeds.nonzero().tolist():
        around = tuple(slice(max(p - s // 2, 0), p + s // 2 + 1) for p, s in zip(place, sides, strict=True))
        expected[(row, channel, *around)] = True
    assert torch.equal(F.patchup_holes(seeds, block), expected)


def test_the_chance_of_a_seed():
    # Without a border, blocks that do not overlap would cover gamma of the places where a whole block fits.
    assert F.patchup_rate(0.5, 7, (16, 16)) == pytest.approx(0.5 * 16**2 / (7**2 * 10**2))
    assert F.patchup_rate(0.9, 3, (4, 6)) == pytest.approx(0.9 * (4 / (3 * 2)) * (6 / (3 * 4)))
    # On maps as small as a block, or smaller, it is still a chance.
    for size in ((7, 7), (6, 6), (8, 8), (1, 1), (2, 9)):
        assert 0 < F.patchup_rate(1.0, 7, size) <= 1


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_blend_and_share_against_a_loop(soft, rows):
    features = torch.randn(5, 3, 4, 6, generator=seeded(2))
    holes = torch.rand(rows, 3, 4, 6, generator=seeded(3)) < 0.4
    mixed, own = F.patchup(features, PARTNER, holes, LAM if soft else None)
    for i, j in enumerate(PARTNER.tolist()):
        lam, inside = float(LAM[i]) if soft else 0.0, holes[i % rows]
        expected = torch.where(inside, lam * features[i] + (1 - lam) * features[j], features[i])
        torch.testing.assert_close(mixed[i], expected)
        shares = torch.where(inside, lam, 1.0)
        torch.testing.assert_close(own[i], shares.mean())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtype_layout_and_gradients(dtype, layout):
    features = torch.randn(5, 3, 4, 6, generator=seeded(2)).to(dtype).contiguous(memory_format=layout)
    holes = torch.rand(1, 3, 4, 6, generator=seeded(3)) < 0.4
    mixed, _ = F.patchup(features.requires_grad_(), PARTNER, holes, LAM)
    assert (mixed.dtype, mixed.stride()) == (dtype, features.stride())
    expected, _ = F.patchup(features.detach().double(), PARTNER, holes, LAM)
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=2e-2 if dtype.itemsize == 2 else 1e-6)
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda x: F.patchup(x, PARTNER, holes, LAM)[0], features, fast_mode=True)


@pytest.mark.parametrize("options", [{}, {"mode": "hard"}, {"per": "sample"}], ids=str)
def test_labels_are_the_share_of_the_values_that_the_pass_showed(options):
    policy, model = mixaug.create("patchup", **INSIDE, **options), tiny()
    stages = set()
    for seed in range(6):
        mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(seed))
        plan, shown = mixed.plan, []
        (stage,) = plan.stages
        stages.add(stage)

        def hook(module, inputs, output, plan=plan, stage=stage, shown=shown):
            # Features that are one in one sample alone show where its values are.
            for sample in range(6):
                named = torch.zeros_like(output)
                named[sample] = 1
                shown.append(plan.mix_hidden(stage, named)[sample].mean())

        handle = model.get_submodule(stage).register_forward_hook(hook)
        with policy.tap(model, mixed) as seen:
            model(mixed.inputs)
        handle.remove()
        final = policy.relabel(mixed, seen)
        own = torch.stack(shown).detach()
        # A sample that is its own partner shows itself alone.
        other = plan.partner != torch.arange(6)
        torch.testing.assert_close(final.lam[other], own[other])
        torch.testing.assert_close(final.weights.sum(1), torch.ones(6))
        if options.get("per") == "sample":
            assert final.lam.unique().numel() == 6
    assert stages == {"layer1", "layer2"}


@pytest.mark.parametrize("read", [True, False], ids=["read", "not read"])
def test_a_training_step_written_out(read, monkeypatch):
    # Where the stage is not read, as while torch.compile traces, the others keep their values.
    if not read:
        monkeypatch.setattr("mixaug.plan.reads_freely", lambda *tensors: False)
    policy, seen = mixaug.create("patchup"), set()
    for seed in (0, 1, 2, 3, 19):
        model = tiny()
        twin = copy.deepcopy(model)
        loss, _ = mixaug.MixStep(model, policy, MixedCrossEntropy())(IMAGES, LABELS, generator=seeded(seed))
        mixed = policy(IMAGES, LABELS, signals=twin, generator=seeded(seed))
        plan = mixed.plan
        name = plan.eligible[int(plan.stage)]
        seen.add(name)
        if name == "input":
            images, lam = F.cutmix(IMAGES, plan.partner, plan.boxes)
            assert torch.equal(mixed.inputs, images)
            outputs = twin(images)
        else:
            assert torch.equal(mixed.inputs, IMAGES)
            kept = []

            def hook(module, inputs, output, plan=plan, kept=kept):
                holes = plan.holes(output.shape[1:])
                features, own = F.patchup(output, plan.partner, holes, plan.lam)
                kept.append(own)
                return features

            handle = twin.get_submodule(name).register_forward_hook(hook)
            outputs = twin(IMAGES)
            handle.remove()
            lam = kept[0]
        each = [torch.nn.functional.cross_entropy(outputs, y, reduction="none") for y in (LABELS, LABELS[plan.partner])]
        torch.testing.assert_close(loss, (lam * each[0] + (1 - lam) * each[1]).mean())
    assert seen == {"input", "act1", "layer1"}


def test_maps_with_channels_last_and_joined_passes():
    model = tiny("swin")
    policy = mixaug.create("patchup", stages=["layers.0"], block_size=3)
    mixed = policy(IMAGES, LABELS, signals=model, generator=seeded(5))
    features = torch.randn(6, 8, 8, 8, generator=seeded(6))
    first = mixed.plan.mix_hidden("layers.0", features)
    holes = mixed.plan.holes((8, 8, 8))
    expected, own = F.patchup(features.movedim(-1, 1), mixed.partner, holes, mixed.plan.lam)
    torch.testing.assert_close(first, expected.movedim(1, -1))
    with policy.tap(model, mixed) as seen:
        model(mixed.inputs)
    torch.testing.assert_close(policy.relabel(mixed, seen).lam, own)
    # In a pass that clean images share the labels are the same.
    step = mixaug.MixStep(model, policy, mixaug.objectives.RegMixup())
    passes = mixaug.Passes(step, mixaug.Batch(IMAGES, LABELS), seeded(5))
    _, outcome = passes.run(passes.clean, passes.mixed, joined=True)
    torch.testing.assert_close(outcome.batch.lam, own)


def test_blocks_cover_as_much_as_theory_says():
    # The middle of a large map is covered unless none of b^2 positions is a seed.
    policy = mixaug.create("patchup", stages=["layer1"], gamma=0.6, block_size=5, mode="hard", per="sample")
    plan = policy.draw(IMAGES.expand(6, 3, 16, 16), signals=mixaug.Signals(), generator=seeded(7))
    holes = plan.holes((200, 15, 15))[:, :, 7, 7].flatten()
    covered = 1 - (1 - F.patchup_rate(0.6, 5, (15, 15))) ** 25
    assert stats.binomtest(int(holes.sum()), holes.numel(), covered).pvalue > 1e-4
    # Each sample and channel has blocks of its own.
    whole = plan.holes((4, 15, 15)).flatten(0, 1)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 24


def test_one_of_several_and_sometimes_relabel_too():
    step = mixaug.MixStep(
        tiny(), mixaug.OneOf([mixaug.create("patchup", **INSIDE), "cutmix"], per="sample"), MixedCrossEntropy()
    )
    passes = mixaug.Passes(step, mixaug.Batch(IMAGES, LABELS), seeded(8))
    drawn = passes.mixed
    done = passes.run(drawn).batch
    choice, blocks = drawn.plan.choice, drawn.plan.plans[0]
    (stage,) = blocks.stages
    own = blocks.own_share({stage: {"layer1": (16, 16, 16), "layer2": (32, 8, 8)}[stage]})
    assert 0 < choice.sum() < 6
    torch.testing.assert_close(done.lam[choice == 0], own.expand(6)[choice == 0])
    assert torch.equal(done.lam[choice == 1], drawn.lam[choice == 1])


def test_tokens_and_vectors_are_refused():
    # The default draws the input in one of three batches: the step must not wait for the two others.
    for stages in (None, ["input", "blocks.0"]):
        with pytest.raises(ValueError, match=r"PatchUp mixes blocks of maps, but module 'blocks.0' .* puts out tokens"):
            mixaug.MixStep(tiny("vit"), mixaug.create("patchup", stages=stages), MixedCrossEntropy())
    step = mixaug.MixStep(tiny("vit"), mixaug.create("patchup", stages=["norm"]), MixedCrossEntropy())
    with pytest.raises(ValueError, match=r"PatchUp mixes blocks of maps, but module 'norm' puts out \(6, 17, 16\)"):
        step(IMAGES, LABELS)
    with pytest.raises(ValueError, match="nothing was mixed behind module 'layer1'"):
        policy = mixaug.create("patchup", stages=["layer1"])
        mixed = policy(IMAGES, LABELS, signals=tiny())
        with policy.tap(tiny(), mixed) as seen:
            pass
        policy.relabel(mixed, seen)


@pytest.mark.parametrize(("options", "message"), [
    ({"mode": "firm"}, "expects mode 'soft' or 'hard', got 'firm'"),
    ({"gamma": 0.0}, r"gamma in \(0, 1\], got 0.0"),
    ({"block_size": 4}, "block_size as an odd integer, got 4"),
    ({"block_size": 0}, "block_size as an integer >= 1"),
    ({"mode": "hard", "alpha": 1.0}, r"draws no share: leave out alpha=1.0"),
    ({"mode": "hard", "ratio": "uniform"}, r"and ratio='uniform'"),
])  # fmt: skip
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("patchup", **options)
