"""`Policy`, `OneOf` and `Sometimes`."""

import math

import pytest
import torch
from torch import nn

import mixaug
from helpers import index_images, seeded
from mixaug.plan import Blend
from mixaug.policies import CutMix, Mixup

IMAGES = torch.rand(6, 3, 8, 10, generator=seeded(0))
LABELS = torch.arange(6)


def is_mixup(mixed):
    return mixed.mask is None


def test_policy_is_draw_then_apply():
    policy = mixaug.create("cutmix")
    mixed = policy(IMAGES, LABELS, generator=seeded(1))
    plan = policy.draw(IMAGES, LABELS, generator=seeded(1))
    assert torch.equal(policy.apply(IMAGES, plan), mixed.inputs)
    assert torch.equal(plan.weights, mixed.weights)


def test_a_new_policy_is_one_method():
    class Fixed(mixaug.Policy):
        def sample(self, batch, partner, draws):
            return Blend(partner=partner, lam=self.ratio(draws).float())

    mixed = Fixed(ratio=0.25, pairing="shift")(IMAGES, LABELS)
    torch.testing.assert_close(mixed.inputs, 0.25 * IMAGES + 0.75 * IMAGES.roll(1, 0))
    assert torch.equal(mixed.weights, torch.tensor([0.25, 0.75]).expand(6, 2))


def test_what_a_subclass_forgets_is_named():
    with pytest.raises(TypeError, match="does not define sample"):
        mixaug.Policy()(IMAGES)
    with pytest.raises(TypeError, match=r"apply expects \(images, plan\)"):
        Mixup().apply(IMAGES)


def test_a_policy_that_needs_signals_says_which():
    class Guided(Mixup):
        needs = frozenset({"saliency"})

    with pytest.raises(ValueError, match=r"needs saliency of the model: train through mixaug.MixStep"):
        Guided()(IMAGES)
    assert Guided()(IMAGES, signals=mixaug.Signals()).inputs.shape == IMAGES.shape
    with pytest.raises(TypeError, match=r"expects signals as mixaug.Signals, mixaug.ModelSignals or a model, got dict"):
        Guided()(IMAGES, signals={})
    with pytest.raises(ValueError, match="images but saliency of 3 samples"):
        Guided()(IMAGES, signals=mixaug.Signals(saliency=torch.rand(3, 8, 8)))


def test_batch_entries_must_be_named_and_fit():
    policy = CutMix()
    with pytest.raises(ValueError, match=r"name the entries to mix, images first, as in keys=\['image'\]"):
        policy({"image": IMAGES})
    with pytest.raises(ValueError, match=r"as in keys=\['image'\]"):
        policy({"id": ["a"] * 8, "image": IMAGES})
    for nested in ({"inputs": {"image": IMAGES}}, [[IMAGES, LABELS], [IMAGES, LABELS]]):
        with pytest.raises(TypeError, match=r"expects a tensor, dict, list or tuple of tensors, got .*; nested inputs"):
            policy(nested)
    with pytest.raises(ValueError, match=r"keys names 'x', but the batch has \['image'\]"):
        policy({"image": IMAGES}, keys=["x"])
    with pytest.raises(TypeError, match="expects entry 'id' as a tensor, got list"):
        policy({"image": IMAGES, "id": [1]}, keys=["image", "id"])
    with pytest.raises(ValueError, match="must end in the images' size"):
        policy({"image": IMAGES, "small": IMAGES[..., :4, :5]}, keys=["image", "small"])
    with pytest.raises(ValueError, match="entry 'short' has shape"):
        policy({"image": IMAGES, "short": IMAGES[:2]}, keys=["image", "short"])
    with pytest.raises(ValueError, match="images is a tensor"):
        policy(IMAGES, keys=["image"])
    with pytest.raises(TypeError, match="expects a tensor, dict, list or tuple"):
        policy("images")


def test_out_must_not_be_the_images():
    with pytest.raises(ValueError, match="images' own memory; pass inplace=True"):
        Mixup()(IMAGES, out=IMAGES)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "resizemix", "fmix"])
def test_unwritable_targets_are_refused_before_anything_changes(name):
    policy, buffer = mixaug.create(name), torch.rand(7, 3, 8, 10, generator=seeded(1))
    before = buffer.clone()
    with pytest.raises(ValueError, match="images' own memory"):
        policy(buffer[:6], out=buffer[1:])
    with pytest.raises(ValueError, match="share their memory; clone"):
        policy(buffer[:1].expand(4, -1, -1, -1), inplace=True)
    with pytest.raises(ValueError, match="no gradient flows"):
        policy(buffer.clone().requires_grad_(), inplace=True)
    assert torch.equal(buffer, before)
    halves = torch.rand(8, 3, 8, 10, generator=seeded(2))
    first = halves[:4].clone()
    policy(halves[:4], out=halves[4:])
    assert torch.equal(halves[:4], first)
    with torch.no_grad():
        assert policy(IMAGES.clone().requires_grad_(), inplace=True).inputs.shape == IMAGES.shape


def test_labels_lie_beside_the_images():
    with pytest.raises(ValueError, match="images on cpu but labels on meta"):
        Mixup()(IMAGES, LABELS.to("meta"))


class TestOneOf:
    @pytest.mark.parametrize("per", ["sample", "batch"])
    def test_choices_follow_the_probabilities(self, per):
        policy = mixaug.OneOf([Mixup(ratio=0.5), "none", Mixup(ratio=0.25)], [2, 1, 1], per=per)
        generator, lam = seeded(3), []
        for _ in range(1000 if per == "batch" else 200):
            mixed = policy(IMAGES, generator=generator)
            lam.append(mixed.lam if per == "sample" else mixed.lam[:1])
        lam = torch.cat(lam)
        for value, share in [(0.5, 0.5), (1.0, 0.25), (0.25, 0.25)]:
            got = (lam == value).double().mean()
            assert abs(got - share) < 4 * math.sqrt(share * (1 - share) / len(lam))

    def test_each_sample_is_mixed_by_one_member(self):
        images = index_images(64, 3, 8, 10)
        policy = mixaug.OneOf([Mixup(), CutMix(), "none"], per="sample")
        mixed = policy(images, torch.arange(64), generator=seeded(4))
        constant = mixed.inputs.flatten(1).amax(1) == mixed.inputs.flatten(1).amin(1)
        expected = (images[mixed.sources].flatten(2).mean(2) * mixed.weights).sum(1)
        torch.testing.assert_close(mixed.inputs.flatten(1).mean(1), expected, rtol=1e-5, atol=1e-4)
        assert 10 < int(constant.sum()) < 60
        torch.testing.assert_close(mixed.mask.mean((1, 2, 3)), mixed.lam, rtol=0, atol=1e-6)

    def test_select_on_a_device_equals_each_member(self):
        # The path that a GPU takes: every member draws, `where` selects.
        policy = mixaug.OneOf([Mixup(per="batch"), CutMix(per="batch")], per="sample", pairing="reversed")
        mixed = policy(IMAGES, generator=seeded(5))
        members = [plan.mix(IMAGES) for plan in mixed.plan.plans]
        for row, choice in enumerate(mixed.plan.choice.tolist()):
            assert torch.equal(mixed.inputs[row], members[choice][row])
            assert torch.equal(mixed.weights[row], mixed.plan.plans[choice].weights[row])
        assert torch.equal(mixed.partner, torch.arange(5, -1, -1))
        assert {0, 1} == set(mixed.plan.choice.tolist())

    def test_per_pair_shares_the_choice(self):
        policy = mixaug.OneOf([Mixup(per="pair"), CutMix(per="pair")], per="pair")
        for seed in range(10):
            mixed = policy(IMAGES, generator=seeded(seed))
            assert torch.equal(mixed.partner[mixed.partner], torch.arange(6))
            assert torch.equal(mixed.lam, mixed.lam[mixed.partner])
            if hasattr(mixed.plan, "choice"):
                assert torch.equal(mixed.plan.choice, mixed.plan.choice[mixed.partner])

    def test_the_repr_names_the_pairing_that_acts(self):
        inner = mixaug.OneOf([Mixup(pairing="halves"), CutMix()], pairing="derangement")
        three = Mixup(sources=3, pairing="derangement", alpha=0.5)
        shared = mixaug.OneOf([Mixup(pairing="shift"), inner, three], pairing="reversed")
        lines = [line.strip() for line in repr(mixaug.Sometimes(shared, 0.5)).splitlines() if "=" in line]
        assert lines == [
            "probability=0.5, until=None, per='batch'",
            "probabilities=[0.3333, 0.3333, 0.3333], per='batch', pairing='reversed'",
            "probabilities=[0.5, 0.5], per='batch'",
            # The third of three samples still comes from the policy's own pairing.
            "(2): Mixup(alpha=0.5, sources=3, pairing='derangement')",
        ]
        for seed in range(8):
            mixed = shared(IMAGES, generator=seeded(seed))
            assert torch.equal(mixed.sources[:, 1], torch.arange(5, -1, -1)), seed
        # The same policies elsewhere, each with its own.
        assert "pairing='shift'" in repr(mixaug.OneOf([*shared.policies])) and "shift" in repr(shared.policies[0])
        assert "pairing='halves'" not in repr(inner) and "pairing='derangement'" in repr(inner)
        assert repr(mixaug.Sometimes(Mixup(pairing="shift"), 0.5)).count("pairing=") == 1
        by_pairs = repr(mixaug.Sometimes(Mixup(pairing="shift"), 0.5, per="pair"))
        assert "per='pair', pairing='random_pairs'" in by_pairs and "shift" not in by_pairs

    def test_nested_and_by_name(self):
        policy = mixaug.OneOf([mixaug.Sometimes("mixup", 0.0), mixaug.OneOf(["none", "none"])])
        assert torch.equal(policy(IMAGES).inputs, IMAGES)

    @pytest.mark.parametrize(("arguments", "message"), [
        (([],), "at least one policy"),
        (("mixup",), "sequence of at least one policy"),
        ((["mixup", "cutmix"], [1]), "expects 2 probabilities"),
        ((["mixup", "cutmix"], [0, 0]), "not all zero"),
        ((["mixup", "cutmix"], [-1, 2]), "not negative"),
        (([3],), "OneOf expects each of policies as a policy or its name, got 3"),
        ((["mixu"],), "Did you mean 'mixup'"),
    ])  # fmt: skip
    def test_bad_members(self, arguments, message):
        with pytest.raises((ValueError, TypeError), match=message):
            mixaug.OneOf(*arguments)

    def test_needs_are_joined(self):
        class Guided(Mixup):
            needs = frozenset({"cam"})

        policy = mixaug.OneOf([Guided(), "mixup"])
        assert policy.needs == {"cam"}
        with pytest.raises(ValueError, match="needs cam"):
            policy(IMAGES)


class TestSometimes:
    @pytest.mark.parametrize("per", ["sample", "batch"])
    def test_probability(self, per):
        policy, generator, count = mixaug.Sometimes(Mixup(ratio=0.5), 0.3, per=per), seeded(6), 0
        rounds = 200 if per == "sample" else 1000
        for _ in range(rounds):
            lam = policy(IMAGES, generator=generator).lam
            count += int((lam == 0.5).sum()) if per == "sample" else int(lam[0] == 0.5)
        total = rounds * (6 if per == "sample" else 1)
        assert abs(count / total - 0.3) < 4 * math.sqrt(0.21 / total)

    def test_stops_after_a_fraction_of_training(self):
        policy = mixaug.OneOf([mixaug.Sometimes(Mixup(ratio=0.5), until=0.6)])
        with pytest.raises(RuntimeError, match=r"call policy.set_progress\(step / total_steps\)"):
            policy(IMAGES)
        for fraction, lam in [(0.0, 0.5), (0.59, 0.5), (0.6, 1.0), (1.0, 1.0), (0.1, 0.5)]:
            policy.set_progress(fraction)
            assert policy(IMAGES).lam.tolist() == [lam] * 6
        assert torch.equal(policy(IMAGES, generator=seeded(0)).sources[:, 0], torch.arange(6))

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"probability in \[0, 1\], got 1.5"):
            mixaug.Sometimes("mixup", 1.5)
        with pytest.raises(ValueError, match=r"until in \(0, 1\], got 0"):
            mixaug.Sometimes("mixup", until=0)
        with pytest.raises(ValueError, match=r"fraction in \[0, 1\], got 2"):
            Mixup().set_progress(2)


class TestMixStep:
    def test_is_mix_forward_loss(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(240, 6))
        objective = mixaug.losses.MixedCrossEntropy()
        step = mixaug.MixStep(model, mixaug.create("mixup"), objective)
        loss, logs = step(IMAGES, LABELS, generator=seeded(7))
        mixed = mixaug.create("mixup")(IMAGES, LABELS, generator=seeded(7))
        expected = nn.functional.cross_entropy(model(mixed.inputs), mixed.targets(6))
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert model[1].weight.grad.abs().sum() > 0
        assert set(logs) == {"loss", "accuracy"}
        assert not logs["loss"].requires_grad

    def test_traces_as_one_graph(self):
        torch.compiler.reset()
        model = nn.Sequential(nn.Flatten(), nn.Linear(240, 6))
        step = mixaug.MixStep(model, mixaug.create("deit"), mixaug.losses.MixedCrossEntropy(label_smoothing=0.1))
        loss, logs = torch.compile(step, fullgraph=True, backend="eager")(IMAGES, LABELS)
        loss.backward()
        assert model[1].weight.grad.isfinite().all()
        torch.testing.assert_close(loss.detach(), logs["loss"])

    def test_regression_outputs_have_no_accuracy(self):
        step = mixaug.MixStep(nn.Linear(4, 1), mixaug.create("mixup"), lambda out, mixed: out.sum())
        assert set(step(torch.rand(5, 4), torch.rand(5))[1]) == {"loss"}

    def test_refuses_what_is_no_policy(self):
        with pytest.raises(TypeError, match=r"mixaug.create"):
            mixaug.MixStep(nn.Identity(), "mixup", None)
