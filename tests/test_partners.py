"""Where partners come from: streams, views, the batch before, a memory; labels, replay and state follow."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import mixaug
import mixaug.models
from helpers import index_images, seeded
from mixaug import Batch, MixStep, OneOf, Sometimes
from mixaug.losses import MixedCrossEntropy
from mixaug.pairing import Shift
from mixaug.partners import Memory, Partners, PartnerSource, PreviousBatch, PseudoLabel, Stream, View
from mixaug.partners.joining import resolved

B, K = 6, 5
#: Images that name their row; those from outside begin at 100.
IMAGES = index_images(B, 3, 8, 8)
OUTSIDE = index_images(B + 2, 3, 8, 8) + 100
LABELS, THEIRS = torch.arange(B) % K, torch.arange(B + 2) % 3
OWN = torch.arange(B)


def with_outliers(labels=LABELS, theirs=THEIRS):
    return Batch(IMAGES, labels, streams={"outliers": Batch(OUTSIDE, theirs)})


def shown(mixed):
    """(B,) share of each image's pixels that are the sample's own."""
    own = mixed.inputs == OWN.reshape(B, 1, 1, 1)
    other = mixed.inputs == OWN.reshape(B, 1, 1, 1) + 100
    assert (own | other).all()
    return own[:, 0].flatten(1).float().mean(1)


class Tiny(nn.Module):
    def __init__(self, outputs=K):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer1, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, outputs)

    def forward(self, x):
        return self.head(self.layer1(x / 50).relu().mean((2, 3)))


# --- streams ------------------------------------------------------------------------------------------------------


def test_row_i_of_a_stream_is_the_partner_of_sample_i():
    policy = mixaug.create("cutmix", partners=Stream("outliers"))
    mixed = policy(with_outliers(), generator=seeded(0))
    torch.testing.assert_close(shown(mixed), mixed.lam)
    assert mixed.sources.tolist() == [[i, i + B] for i in range(B)]
    assert torch.equal(mixed.labels, torch.cat([LABELS, THEIRS[:B]]))
    wanted = mixed.lam[:, None] * F.one_hot(LABELS, K) + (1 - mixed.lam[:, None]) * F.one_hot(THEIRS[:B], K)
    torch.testing.assert_close(mixed.targets(K), wanted)
    assert mixed.uniform is None


def test_a_stream_without_labels_spreads_its_share_evenly():
    policy = mixaug.create("cutmix", partners=Stream("outliers", label="uniform"))
    mixed = policy(with_outliers(theirs=None), generator=seeded(1))
    kept = shown(mixed)
    wanted = kept[:, None] * F.one_hot(LABELS, K) + (1 - kept[:, None]) / K
    torch.testing.assert_close(mixed.targets(K), wanted)
    logits = torch.randn(B, K, generator=seeded(2))
    loss = MixedCrossEntropy()(logits, mixed)
    torch.testing.assert_close(loss, F.cross_entropy(logits, wanted))
    # With dense labels the same.
    dense = policy(with_outliers(F.one_hot(LABELS, K).float(), None), generator=seeded(1))
    torch.testing.assert_close(dense.targets(), wanted)


@pytest.mark.parametrize("hard", [False, True])
def test_pseudo_labels_are_what_a_network_says(hard):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, K))
    with torch.no_grad():
        threshold = float(network.eval()(OUTSIDE[:B]).softmax(1).amax(1).sort().values[2:4].mean())
    rule = PseudoLabel(network.train(), temperature=0.5, threshold=threshold, hard=hard)
    policy = mixaug.create("mixup", partners=Stream("outliers", label=rule))
    before = copy.deepcopy(network.state_dict())
    mixed = policy(with_outliers(F.one_hot(LABELS, K).float(), None), generator=seeded(3))
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    logits = network.eval()(OUTSIDE[:B])
    theirs = F.one_hot(logits.argmax(1), K).float() if hard else (logits / 0.5).softmax(1)
    torch.testing.assert_close(
        mixed.targets(), mixed.lam[:, None] * F.one_hot(LABELS, K) + (1 - mixed.lam[:, None]) * theirs
    )
    sure = (logits.softmax(1).amax(1) >= threshold).float()
    assert sure.sum() == 3
    torch.testing.assert_close(mixed.importance, mixed.lam + (1 - mixed.lam) * sure)
    assert not [name for name, _ in policy.named_parameters()]


@pytest.mark.parametrize(
    "name", ["mixup", "fmix", "resizemix", "puzzlemix", "saliencymix", "attentivemix", "snapmix", "manifoldmix"]
)
def test_policies_of_every_kind_take_a_stream_in_a_step(name):
    torch.manual_seed(0)
    model = mixaug.models.create("cifar_resnet8", num_classes=K)
    images, others = (torch.rand(B, 3, 16, 16, generator=seeded(seed)) for seed in (20, 21))
    batch = Batch(images, LABELS, streams={"outliers": Batch(others, THEIRS[:B])})
    policy = mixaug.create(name, partners=Stream("outliers"))
    step = MixStep(model, policy, MixedCrossEntropy())
    loss, logs = step(batch, generator=seeded(22))
    loss.backward()
    assert loss.isfinite()
    assert {"loss", "accuracy"} <= logs.keys()
    mixed = policy(batch, signals=model, generator=seeded(23))
    assert torch.equal(mixed.sources, torch.stack([OWN, OWN + B], 1))
    assert torch.equal(mixed.labels, torch.cat([LABELS, THEIRS[:B]]))
    # What the policy does with these pairs is what it does where both samples lie in one batch.
    joined = Batch(torch.cat([images, others]), torch.cat([LABELS, THEIRS[:B]]))
    joined = resolved(name, joined, model, policy.needs)
    together = policy.plan(joined, seeded(23), torch.cat([OWN + B, OWN]))
    inside = mixed.plan.drawn_stage is not None
    assert torch.equal(mixed.inputs, together.mix(joined.inputs)[: 2 * B if inside else B])
    assert torch.equal(mixed.weights, together.weights[:B])


def test_one_of_and_sometimes_take_partners_for_all():
    for policy in (
        OneOf(["cutmix", "gridmix"], partners=Stream("outliers")),
        OneOf(["cutmix", "none"], per="sample", partners=Stream("outliers")),
        Sometimes("cutmix", 0.5, partners=Stream("outliers")),
    ):
        for seed in range(4):
            mixed = policy(with_outliers(), generator=seeded(seed))
            torch.testing.assert_close(shown(mixed), mixed.lam)
    with pytest.raises(ValueError, match="got CutMix with partners of its own: give them to OneOf"):
        OneOf([mixaug.create("cutmix", partners=Stream("outliers")), "mixup"])


# --- views --------------------------------------------------------------------------------------------------------


def test_a_view_is_chosen_from_by_the_pairing():
    policy = mixaug.create("mixup", pairing=Shift(), partners=View("strong"))
    mixed = policy(Batch(IMAGES, LABELS, views={"strong": IMAGES + 100}), generator=seeded(4))
    partner = mixaug.create("mixup", pairing=Shift())(IMAGES, LABELS, generator=seeded(4)).partner
    lam = mixed.lam.reshape(B, 1, 1, 1)
    torch.testing.assert_close(mixed.inputs, lam * IMAGES + (1 - lam) * (IMAGES[partner] + 100))
    assert torch.equal(mixed.labels[mixed.partner], LABELS[partner])


# --- the batch before ---------------------------------------------------------------------------------------------


def test_labels_of_all_earlier_batches_are_in_the_label():
    policy = mixaug.create("mixup", partners="previous")
    generator, history, target = seeded(5), None, None
    for step in range(5):
        images, labels = IMAGES + 7 * step, (LABELS + step) % K
        mixed = policy(images, labels, generator=generator)
        one_hot = F.one_hot(labels, K).float()
        if step == 0:
            assert torch.equal(mixed.inputs, images)
            history, target = images, one_hot
        else:
            lam = mixed.lam
            history = lam.reshape(B, 1, 1, 1) * images + (1 - lam.reshape(B, 1, 1, 1)) * history
            target = lam[:, None] * one_hot + (1 - lam[:, None]) * target
        torch.testing.assert_close(mixed.inputs, history)
        torch.testing.assert_close(mixed.targets(K), target)
        assert mixed.weights.shape[1] <= step + 2


def test_old_shares_go_to_the_oldest_sample_that_is_kept():
    policy = mixaug.create("mixup", ratio=0.5, partners=PreviousBatch(depth=2))
    for step in range(6):
        mixed = policy(IMAGES, torch.full((B,), step), generator=seeded(6))
    torch.testing.assert_close(mixed.targets(6)[0], torch.tensor([0, 0, 0, 0.25, 0.25, 0.5]))
    assert mixed.labels.shape[0] <= B * 4


def test_a_row_that_the_batch_before_lacks_is_not_mixed():
    policy = mixaug.create("cutmix", partners="previous")
    policy(IMAGES[:4], LABELS[:4], generator=seeded(7))
    mixed = policy(IMAGES, LABELS, generator=seeded(8))
    assert torch.equal(mixed.inputs[4:], IMAGES[4:])
    torch.testing.assert_close(mixed.targets(K)[4:], F.one_hot(LABELS[4:], K).float())
    with pytest.raises(ValueError, match=r"inputs \(6, 3, 8, 8\) torch.float32; this one is \(6, 3, 4, 4\)"):
        policy(IMAGES[..., :4, :4], LABELS)
    policy.partners.forget()
    assert torch.equal(policy(IMAGES[..., :4, :4], LABELS).inputs, IMAGES[..., :4, :4])


@pytest.mark.parametrize("source", [PreviousBatch(), Memory(4), Memory(9, "recent", "other")])
def test_what_a_source_keeps_is_saved_copied_and_moved(source):
    policy = mixaug.create("mixup", partners=source)
    for seed in range(2):
        policy(IMAGES + seed, LABELS, generator=seeded(seed))
    file = io.BytesIO()
    torch.save(policy.state_dict(), file)
    file.seek(0)
    fresh = mixaug.create("mixup", partners=copy.deepcopy(source))
    fresh.partners.forget()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    twins = [fresh, copy.deepcopy(policy), copy.deepcopy(policy).half().float()]
    wanted = policy(IMAGES, LABELS, generator=seeded(9))
    for twin in twins:
        again = twin(IMAGES, LABELS, generator=seeded(9))
        assert torch.equal(again.inputs, wanted.inputs)
        assert torch.equal(again.targets(K), wanted.targets(K))
    assert not list(policy.buffers())
    policy.to("meta")
    assert policy.partners.kept["inputs"].device.type == "meta"


# --- a memory -----------------------------------------------------------------------------------------------------


def test_a_memory_of_recent_samples_holds_the_last_ones():
    policy = mixaug.create("mixup", partners=Memory(4, "recent"))
    first = policy(IMAGES, LABELS, generator=seeded(10))
    assert torch.equal(first.inputs, IMAGES)
    assert sorted(policy.partners.kept["inputs"][:, 0, 0, 0].tolist()) == [2, 3, 4, 5]
    mixed = policy(IMAGES + 50, LABELS, generator=seeded(11))
    partners = (mixed.inputs - mixed.lam.reshape(B, 1, 1, 1) * (IMAGES + 50))[:, 0, 0, 0] / (1 - mixed.lam)
    assert set(partners.round().tolist()) <= {2, 3, 4, 5}
    torch.testing.assert_close(LABELS[partners.round().long()], mixed.labels[B:])


@pytest.mark.parametrize("rule", ["reservoir", "recent"])
def test_a_memory_that_is_not_full_gives_what_it_holds(rule):
    policy = mixaug.create("mixup", ratio=0.0, partners=Memory(500, rule))
    policy(IMAGES + 1, LABELS, generator=seeded(24))
    mixed = policy(IMAGES + 50, LABELS, generator=seeded(25))
    shown = mixed.inputs[:, 0, 0, 0]
    # Of 500 places six are filled, with images of 1 to 6, and the labels are theirs.
    assert set(shown.tolist()) <= {1, 2, 3, 4, 5, 6}
    assert torch.equal(mixed.labels[mixed.partner], LABELS[shown.long() - 1])


def test_a_reservoir_is_a_uniform_sample_of_all_that_came():
    memory, count = Memory(1000), 20_000
    for first in range(0, count, 250):
        numbers = torch.arange(first, first + 250).float()[:, None]
        memory.remember(Batch(numbers), mixaug.batch.unmixed(numbers, None))
        assert len(memory.get_extra_state()["inputs"]) == min(first + 250, 1000)
    held = memory.get_extra_state()["inputs"][:, 0]
    assert len(held.unique()) == 1000
    assert stats.kstest((held / count).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("label", ["same", "other"])
def test_a_memory_may_choose_by_class(label):
    policy = mixaug.create("mixup", partners=Memory(20, label=label))
    policy(IMAGES, torch.tensor([0, 0, 1, 1, 1, 2]), generator=seeded(12))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    mixed = policy(IMAGES, labels, generator=seeded(13))
    partner = mixed.labels[mixed.partner]
    if label == "other":
        assert (partner != labels).all()
        return
    # No sample of class 3 is there, so its row stays as it is.
    assert torch.equal(partner, labels)
    assert mixed.partner[3] == 3
    assert torch.equal(mixed.inputs[3], IMAGES[3])


def test_a_step_of_several_draws_remembers_one():
    policy = mixaug.create("mixup", partners=Memory(50))
    step = MixStep(Tiny(), policy, mixaug.objectives.RankMixup(draws=3))
    for steps in (1, 2):
        step(IMAGES, LABELS, generator=seeded(20))
        assert policy.partners.seen == steps * B


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("source", [lambda: Memory(9), PreviousBatch, lambda: Stream("outliers")])
def test_class_ids_of_any_whole_dtype_are_those_of_int64(source, dtype):
    targets = []
    for own, theirs in ((LABELS, THEIRS), (LABELS.to(dtype), THEIRS.to(dtype))):
        policy = mixaug.create("cutmix", partners=source())
        for seed in (21, 22):
            mixed = policy(with_outliers((own + seed) % K, theirs), generator=seeded(seed))
        targets.append(mixed.targets(K))
    assert (targets[0].count_nonzero(1) == 2).any()
    torch.testing.assert_close(*targets)


def test_the_state_of_a_smaller_memory_is_refused():
    small = mixaug.create("mixup", partners=Memory(4))
    small(IMAGES, LABELS, generator=seeded(23))
    with pytest.raises(ValueError, match="room for 9 samples, the state is of one for 4"):
        mixaug.create("mixup", partners=Memory(9)).load_state_dict(small.state_dict())


def test_the_batch_before_has_no_place_inside_a_model():
    with pytest.raises(ValueError, match="ManifoldMix"):
        mixaug.create("manifoldmix", stages=["layer1"], partners="previous")


# --- the contract of a source -------------------------------------------------------------------------------------


def test_draw_then_apply_is_the_call():
    for source, batch in (
        (Stream("outliers"), with_outliers()),
        (View("strong"), Batch(IMAGES, LABELS, views={"strong": IMAGES + 100})),
    ):
        policy = mixaug.create("cutmix", partners=source)
        mixed = policy(batch, generator=seeded(14))
        plan = policy.draw(batch, generator=seeded(14))
        assert torch.equal(policy.apply(IMAGES, plan), mixed.inputs)
        with pytest.raises(ValueError, match=r"CutMix\.apply expects 12 rows, the batch's own and behind them"):
            policy.apply(IMAGES, mixed.plan)
        both = torch.cat([IMAGES, OUTSIDE[:B] if batch.streams else (IMAGES + 100)])
        assert torch.equal(policy.apply(both, mixed.plan), mixed.inputs)
        assert torch.equal(mixed.apply(both[:, 0].long()), mixed.inputs[:, 0].long())


def test_a_source_of_ones_own():
    class Shifted(PartnerSource):
        """Partners are the batch's own samples, a little brighter."""

        def partners(self, batch, pairing, draws):
            brighter = mixaug.batch.unmixed(batch.inputs + 100, batch.labels)
            return Partners(brighter, torch.arange(len(batch)) + len(batch))

    mixed = mixaug.create("cutmix", partners=Shifted())(IMAGES, LABELS, generator=seeded(15))
    torch.testing.assert_close(shown(mixed), mixed.lam)
    torch.testing.assert_close(mixed.targets(K), F.one_hot(LABELS, K).float())


def test_a_joined_pass_takes_a_batch_whose_partners_came_from_outside():
    torch.manual_seed(0)
    step = MixStep(Tiny(), mixaug.create("mixup", partners=Stream("outliers")), mixaug.objectives.RegMixup(eta=1.0))
    loss, _ = step(with_outliers(), generator=seeded(16))
    mixed = mixaug.create("mixup", partners=Stream("outliers"))(with_outliers(), generator=seeded(16))
    model = Tiny()
    expected = F.cross_entropy(model(IMAGES), LABELS) + F.cross_entropy(model(mixed.inputs), mixed.targets(K))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: mixaug.create("mixup", partners="stream"), "Mixup got unknown partners 'stream'; expected one of"),
    (lambda: mixaug.create("mixup", partners=3), "expects partners as a name or an object of mixaug.partners, got 3"),
    (lambda: Stream("outliers", label="none"), "label 'own', 'uniform' or a rule, got 'none'"),
    (lambda: Stream(3), "Stream expects a name, got 3"),
    (lambda: View(""), "View expects a name, got ''"),
    (lambda: PseudoLabel(len), "network as a torch.nn.Module"),
    (lambda: PseudoLabel(nn.Identity(), threshold=2.0), "threshold"),
    (lambda: PseudoLabel(nn.Identity(), hard="false"), "PseudoLabel expects hard as True or False, got 'false'"),
    (lambda: PreviousBatch(0), "depth"),
    (lambda: Memory(0), "size"),
    (lambda: Memory(3, "oldest"), "rule 'reservoir' or 'recent', got 'oldest'"),
    (lambda: Memory(3, label="all"), "label"),
    (lambda: mixaug.create("snapmix", partners="previous"), r"SnapMix asks the model for \['cam'\]"),
    (lambda: mixaug.create("puzzlemix", partners=Stream("x", label="uniform")), "partners of Stream have none"),
    (lambda: mixaug.create("automix", partners="previous"), "has no option 'partners'"),
    (lambda: mixaug.MixCollate(mixaug.create("mixup", partners="previous")), "PreviousBatch keeps earlier samples"),
])  # fmt: skip
def test_sources_that_cannot_work_are_refused_when_they_are_made(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize(("batch", "message"), [
    (Batch(IMAGES, LABELS), r"from the stream 'outliers', the batch has \[\]: pass Batch\(images, labels, streams="),
    (Batch(IMAGES, LABELS, streams={"outliers": Batch(OUTSIDE[:4], THEIRS[:4])}), "each of 6 samples, .* has 4"),
    (Batch(IMAGES, LABELS, streams={"outliers": Batch(OUTSIDE)}), "has no labels: pass them, or choose"),
    (Batch(IMAGES, LABELS, streams={"outliers": Batch(OUTSIDE[..., :4], THEIRS)}), r"inputs \(6, 3, 8, 4\)"),
    (Batch(IMAGES, LABELS, streams={"outliers": Batch(OUTSIDE, THEIRS.float())}), "labels .*float32, the batch"),
])  # fmt: skip
def test_batches_that_lack_the_partners_are_refused_before_anything_is_drawn(batch, message):
    generator = seeded(17)
    state = generator.get_state()
    with pytest.raises(ValueError, match=message):
        mixaug.create("mixup", partners=Stream("outliers"))(batch, generator=generator)
    assert torch.equal(generator.get_state(), state)


def test_what_cannot_be_mixed_with_partners_from_outside_is_refused():
    policy = mixaug.create("mixup", partners=Stream("outliers"))
    with pytest.raises(ValueError, match="inplace= and out= have no meaning"):
        policy(with_outliers(), inplace=True)
    with pytest.raises(ValueError, match=r"mixes one entry, got keys=\['a', 'b'\]"):
        policy(Batch({"a": IMAGES, "b": IMAGES}, LABELS), keys=["a", "b"])
    with pytest.raises(ValueError, match="got a Batch, which holds labels and rows, and labels or rows beside it"):
        policy(with_outliers(), LABELS)
    mixed = policy(
        Batch({"a": IMAGES, "b": IMAGES}, LABELS, streams=with_outliers().streams), keys=["a"], generator=seeded(18)
    )
    assert torch.equal(mixed.inputs["a"], policy(with_outliers(), generator=seeded(18)).inputs)
    assert mixed.inputs["b"] is IMAGES


@pytest.mark.parametrize(
    "source", [View("second"), PreviousBatch(), Memory(8)], ids=lambda source: type(source).__name__
)
def test_pairs_of_the_batch_do_not_share_draws_with_partners_from_elsewhere(source):
    with pytest.raises(ValueError, match=rf'per="pair" shares draws .*, and partners of {type(source).__name__} come'):
        mixaug.create("mixup", per="pair", partners=source)
