"""`Pooled`: partners from the whole training set, for any policy, with labels that follow the batch's own."""

import copy
import pickle

import pytest
import torch
from scipy import stats
from torch import nn

import mixaug
from helpers import index_images, seeded
from mixaug import OneOf, Pooled, Sometimes
from mixaug.losses import MixedCrossEntropy, MixedSquaredError
from mixaug.pairing import LabelKernel, Local, Nearest

N, B = 40, 6
#: Images that name their row; batches are the first rows, so any later value is a partner from outside.
IMAGES = index_images(N, 3, 8, 8)
INPUTS = torch.randn(N, 5, generator=seeded(0))
LABELS = torch.randn(N, 1, generator=seeded(1))
OWN = torch.arange(B)


def blended(first, second, lam):
    lam = lam.reshape(-1, *[1] * (first.ndim - 1))
    return lam * first + (1 - lam) * second


# --- what a batch looks like --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixup", "cmixup", "knn_mixup", "local_mixup", "regmix"])
def test_blends_with_rows_of_the_set(name):
    policy = Pooled(name, INPUTS, LABELS)
    for seed in range(5):
        mixed = policy(INPUTS[:B], LABELS[:B], generator=seeded(seed), rows=OWN)
        rows = mixed.plan.pool_rows
        assert mixed.inputs.shape == (B, 5)
        assert len(mixed) == B
        assert torch.equal(mixed.labels, torch.cat([LABELS[:B], LABELS[rows]]))
        assert mixed.sources[:, 0].tolist() == list(range(B))
        alone = mixed.sources[:, 1] == OWN
        assert torch.equal(mixed.sources[:, 1], torch.where(alone, OWN, OWN + B))
        partners = torch.where(alone[:, None], INPUTS[:B], INPUTS[rows])
        torch.testing.assert_close(mixed.inputs, blended(INPUTS[:B], partners, mixed.lam))
        labels = torch.where(alone[:, None], LABELS[:B], LABELS[rows])
        torch.testing.assert_close(mixed.targets(), blended(LABELS[:B], labels, mixed.lam))


def test_partners_come_from_the_whole_set_and_from_no_permutation():
    policy = Pooled("mixup", INPUTS, LABELS)
    g, counts = seeded(2), torch.zeros(N)
    repeats = 0
    for _ in range(500):
        rows = policy(INPUTS[:B], LABELS[:B], generator=g).plan.pool_rows
        counts += torch.bincount(rows, minlength=N)
        repeats += len(rows.unique()) < B
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert repeats > 0


@pytest.mark.parametrize("pairing", [LabelKernel(0.5), LabelKernel(1.2, kernel="tophat"), Nearest(3, by="labels")])
def test_the_pairing_is_that_of_the_whole_set(pairing):
    policy = Pooled(mixaug.create("mixup", pairing=pairing), INPUTS, LABELS)
    anchor, rows = 7, []
    for seed in range(50):
        mixed = policy(
            INPUTS[anchor].expand(100, -1).clone(),
            LABELS[anchor].expand(100, -1).clone(),
            generator=seeded(seed),
            rows=torch.full((100,), anchor),
        )
        rows.append(mixed.plan.pool_rows)
    counts = torch.bincount(torch.cat(rows), minlength=N).double()
    if isinstance(pairing, Nearest):
        expected = torch.zeros(N, dtype=torch.float64)
        expected[(LABELS - LABELS[anchor]).abs()[:, 0].argsort()[1:4]] = 5000 / 3
    else:
        expected = 5000 * mixaug.functional.label_kernel(LABELS, pairing.bandwidth, kernel=pairing.kernel)[anchor]
    assert (counts[expected == 0] == 0).all()
    large = expected > 5
    assert stats.chisquare(counts[large], expected[large] * counts[large].sum() / expected[large].sum()).pvalue > 1e-4


def test_a_copy_keeps_pixels_of_exactly_two_rows():
    policy = Pooled("cutmix", IMAGES, torch.arange(N) % 10)
    outside = False
    for seed in range(5):
        mixed = policy(IMAGES[:B], torch.arange(B), generator=seeded(seed))
        rows = mixed.plan.pool_rows
        own = mixed.inputs == OWN.reshape(B, 1, 1, 1)
        other = mixed.inputs == rows.reshape(B, 1, 1, 1)
        assert (own | other).all()
        kept = own[:, 0].flatten(1).float().mean(1)
        torch.testing.assert_close(kept[rows != OWN], mixed.lam[rows != OWN])
        assert mixed.mask.shape == (B, 1, 8, 8)
        torch.testing.assert_close(mixed.mask.mean((1, 2, 3)), mixed.lam)
        outside |= bool((mixed.inputs >= B).any())
        dense = mixed.targets(10)
        assert dense.shape == (B, 10)
        for i in range(B):
            one_hot = nn.functional.one_hot(mixed.labels, 10).float()
            torch.testing.assert_close(dense[i], mixed.lam[i] * one_hot[i] + (1 - mixed.lam[i]) * one_hot[B + i])
    assert outside


def test_none_leaves_everything_as_it_is():
    mixed = Pooled("none", INPUTS, LABELS)(INPUTS[:B], LABELS[:B], generator=seeded(3))
    assert torch.equal(mixed.inputs, INPUTS[:B])
    assert torch.equal(mixed.targets(), LABELS[:B])
    assert torch.equal(mixed.sources, OWN[:, None].expand(B, 2))


@pytest.mark.parametrize("name", ["mixup", "cutmix", "cmixup", "knn_mixup"])
def test_a_batch_of_one(name):
    images, labels = (IMAGES, LABELS) if name == "cutmix" else (INPUTS, LABELS)
    policy, changed = Pooled(name, images, labels), 0
    for seed in range(10):
        mixed = policy(images[3:4], labels[3:4], generator=seeded(seed), rows=torch.tensor([3]))
        assert mixed.inputs.shape == images[3:4].shape
        assert mixed.sources.tolist() == [[0, 1]]
        changed += not torch.equal(mixed.inputs, images[3:4])
    assert changed > 5


def test_samples_within_no_limit_stay_unmixed():
    zero = mixaug.create("regmix", limits=lambda x, y: (y[:, 0] > -0.5).long() * 3, k_max=3)
    mixed = Pooled(zero, INPUTS, LABELS)(INPUTS[:B], LABELS[:B], generator=seeded(4), rows=OWN)
    still = LABELS[:B, 0] <= -0.5
    assert still.any()
    assert not still.all()
    assert torch.equal(mixed.inputs[still], INPUTS[:B][still])
    torch.testing.assert_close(mixed.targets()[still], LABELS[:B][still])
    assert torch.equal(mixed.sources[:, 1] == OWN, still)


def test_a_step_hands_on_the_rows_that_a_policy_asks_for():
    def made():
        return Pooled(mixaug.create("cmixup", include_self=False, bandwidth=0.2), INPUTS, LABELS)

    torch.manual_seed(0)
    model = nn.Linear(5, 1)
    loss, _ = mixaug.MixStep(model, made(), MixedSquaredError())(INPUTS[:B], LABELS[:B], rows=OWN, generator=seeded(6))
    mixed = made()(INPUTS[:B], LABELS[:B], rows=OWN, generator=seeded(6))
    torch.testing.assert_close(loss, (model(mixed.inputs) - mixed.targets()).square().mean())


def test_own_rows_are_left_out_where_asked():
    for policy in (
        mixaug.create("cmixup", include_self=False, bandwidth=0.2),
        mixaug.create("knn_mixup"),
        mixaug.create("local_mixup", include_self=False, by="labels"),
    ):
        pooled = Pooled(policy, INPUTS, LABELS)
        for seed in range(20):
            mixed = pooled(INPUTS[:B], LABELS[:B], generator=seeded(seed), rows=OWN)
            mixed_with = mixed.plan.pool_rows
            assert ((mixed_with != OWN) | (mixed.sources[:, 1] == OWN) | isinstance(policy.pairing, Local)).all()
    with pytest.raises(ValueError, match="pass rows="):
        Pooled(mixaug.create("cmixup", include_self=False), INPUTS, LABELS)(INPUTS[:B], LABELS[:B])


# --- drawing, replaying -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixup", "cutmix", "cmixup"])
@pytest.mark.parametrize("both", [False, True])
def test_draw_then_apply_is_the_call_and_is_determined(name, both):
    policy = Pooled(name, IMAGES, LABELS, both=both)
    state = torch.get_rng_state()
    mixed = policy(IMAGES[:B], LABELS[:B], generator=seeded(5))
    plan = policy.draw(IMAGES[:B], LABELS[:B], generator=seeded(5))
    assert torch.equal(policy.apply(IMAGES[:B], plan), mixed.inputs)
    assert torch.equal(plan.weights, mixed.weights)
    assert not torch.equal(policy(IMAGES[:B], LABELS[:B], generator=seeded(6)).inputs, mixed.inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_replay_takes_what_belongs_to_both_halves():
    policy = Pooled("cutmix", IMAGES, LABELS)
    mixed = policy(IMAGES[:B], LABELS[:B], generator=seeded(7))
    rows = torch.cat([OWN, mixed.plan.pool_rows])
    maps = IMAGES[:, 0].long() % 5
    replayed = mixed.apply(maps[rows])
    assert torch.equal(replayed, mixed.inputs[:, 0].long() % 5)
    shares = mixed.apply(maps[rows], num_classes=5)
    assert shares.shape == (B, 5, 8, 8)
    assert torch.equal(shares.argmax(1), replayed)
    with pytest.raises(ValueError, match=f"expects {2 * B} rows like the images"):
        mixed.apply(maps[:B])


def test_both_sides_of_each_pair():
    policy = Pooled(mixaug.create("mixup", per="sample"), INPUTS, LABELS, both=True)
    mixed = policy(INPUTS[:B], LABELS[:B], generator=seeded(8))
    partners = INPUTS[mixed.plan.pool_rows]
    assert len(mixed) == 2 * B
    assert mixed.sources.tolist() == [[i, i + B] for i in range(B)] + [[i + B, i] for i in range(B)]
    torch.testing.assert_close(mixed.inputs[:B], blended(INPUTS[:B], partners, mixed.lam[:B]))
    torch.testing.assert_close(mixed.inputs[B:], blended(partners, INPUTS[:B], mixed.lam[B:]))
    assert mixed.targets().shape == (2 * B, 1)
    loss = MixedSquaredError()(mixed.targets(), mixed)
    assert loss < 1e-12


@pytest.mark.parametrize("count", [500, pytest.param(1500, marks=pytest.mark.slow)])
def test_candidates_of_the_batch_are_the_narrower_distribution(count):
    bandwidth = 0.3
    policy = Pooled(mixaug.create("cmixup", bandwidth=bandwidth), INPUTS, LABELS, candidates="batch")
    got, expected = torch.zeros(2 * B), torch.zeros(2 * B, dtype=torch.float64)
    for seed in range(count):
        mixed = policy(INPUTS[:B], LABELS[:B], generator=seeded(seed))
        assert mixed.inputs.shape == (B, 5)
        assert torch.equal(mixed.labels[B:], LABELS[mixed.plan.pool_rows])
        # Of the first anchor: any of the batch and of the B random rows, by the kernel over these 2B.
        got[mixed.sources[0, 1]] += 1
        expected += mixaug.functional.label_kernel(mixed.labels, bandwidth)[0]
    assert ((got - expected).abs() < 5 * expected.sqrt() + 2).all()
    assert got[1:B].sum() > 0


# --- any source of inputs, any device -----------------------------------------------------------------------------


def test_inputs_from_a_function_equal_the_tensor():
    asked = []

    def fetch(rows):
        asked.append(rows)
        return IMAGES[rows]

    for name in ("mixup", "cmixup"):
        lazy = Pooled(name, fetch, LABELS)(IMAGES[:B], LABELS[:B], generator=seeded(9))
        assert torch.equal(asked.pop(), lazy.plan.pool_rows)
        whole = Pooled(name, IMAGES, LABELS)(IMAGES[:B], LABELS[:B], generator=seeded(9))
        assert torch.equal(lazy.inputs, whole.inputs)
    with pytest.raises(ValueError, match="needs the training inputs as one tensor, got a function of rows"):
        Pooled("knn_mixup", fetch, LABELS)


def test_moving_takes_the_set_along_and_leaves_dtypes_alone():
    policy = Pooled("cmixup", INPUTS, LABELS)
    fitted = policy.fitted
    policy.half()
    policy.double()
    policy.to(torch.bfloat16)
    assert (policy.inputs.dtype, policy.labels.dtype) == (torch.float32, torch.float32)
    assert policy.fitted is fitted
    assert policy.to("cpu").fitted is fitted
    # A kernel is fitted anew where the labels went, which a meta tensor has no values for.
    policy = Pooled("mixup", INPUTS, LABELS)
    nn.Sequential(policy).to("meta")
    assert (policy.inputs.device.type, policy.labels.device.type) == ("meta", "meta")
    assert not policy.state_dict()
    assert not list(policy.buffers())


def test_moving_fits_anew_on_the_other_device(device):
    policy = Pooled("cmixup", INPUTS, LABELS).to(device)
    mixed = policy(INPUTS[:B].to(device), LABELS[:B].to(device), generator=seeded(0, device))
    assert mixed.inputs.device.type == device.type
    assert policy.fitted.sampler.place.device.type == device.type


def test_copies_and_pickles_draw_the_same():
    policy = Pooled("cmixup", INPUTS, LABELS)
    expected = policy(INPUTS[:B], LABELS[:B], generator=seeded(10))
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert torch.equal(twin(INPUTS[:B], LABELS[:B], generator=seeded(10)).inputs, expected.inputs)
    moved = pickle.loads(pickle.dumps(expected)).to("cpu")
    rows = torch.cat([OWN, expected.plan.pool_rows])
    assert torch.equal(moved.apply(INPUTS[rows]), expected.inputs)


def test_a_learned_limit_travels_with_the_policy():
    from mixaug.policies.regmix import LimitNetwork

    network = LimitNetwork(INPUTS, LABELS, choices=(0, 2, 4), generator=seeded(11))
    policy = Pooled(mixaug.create("regmix", limits=network), INPUTS, LABELS)
    assert any(key.endswith("layers.0.weight") for key in policy.state_dict())
    mixed = policy(INPUTS[:B], LABELS[:B], generator=seeded(12), rows=OWN)
    assert torch.equal(mixed.sources[:, 1] == OWN, network(INPUTS[:B], LABELS[:B]) == 0)


# --- inside the model ---------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, outputs=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer1, self.layer2, self.head = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, outputs)
        self.seen = []

    def forward(self, x):
        self.seen = [len(x)]
        for layer in (self.layer1, self.layer2):
            x = layer(x).tanh()
            self.seen.append(len(x))
        return self.head(x)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("name", ["manifoldmix", "cmixup"])
def test_hidden_mixing_takes_both_halves_and_gives_one(name, both):
    policy = Pooled(mixaug.create(name, stages=["layer1"]), INPUTS, LABELS, both=both)
    model = Small()
    loss, _ = mixaug.MixStep(model, policy, MixedSquaredError())(INPUTS[:B], LABELS[:B], generator=seeded(13))
    assert model.seen == [2 * B, 2 * B if both else B, 2 * B if both else B]
    loss.backward()
    mixed = policy(INPUTS[:B], LABELS[:B], signals=model, generator=seeded(13))
    assert mixed.inputs.shape == (2 * B, 5)
    assert len(mixed) == (2 * B if both else B)
    first, second = Small().layer1(INPUTS[:B]), Small().layer1(INPUTS[mixed.plan.pool_rows])
    halves = [blended(first, second, mixed.lam[:B])]
    if both:
        halves.append(blended(second, first, mixed.lam[B:]))
    twin = Small()
    outputs = twin.head(twin.layer2(torch.cat(halves).tanh()).tanh())
    torch.testing.assert_close(loss, (outputs - mixed.targets()).square().mean())


@pytest.mark.parametrize("reads", [True, False], ids=["cpu", "as on a gpu"])
def test_hidden_mixing_at_one_of_several_stages(reads, monkeypatch):
    policy = Pooled(mixaug.create("manifoldmix", stages=["input", "layer1", "layer2"]), INPUTS, LABELS)
    if not reads:
        monkeypatch.setattr("mixaug.plan.reads_freely", lambda *tensors: False)
    step = mixaug.MixStep(Small(), policy, MixedSquaredError())
    seen = set()
    for seed in range(12):
        loss, _ = step(INPUTS[:B], LABELS[:B], generator=seeded(seed))
        seen.add(tuple(step.model.seen))
        mixed = policy(INPUTS[:B], LABELS[:B], signals=step.model, generator=seeded(seed))
        stage = mixed.plan.inner.eligible[int(mixed.plan.inner.stage)]
        x = INPUTS[torch.cat([OWN, mixed.plan.pool_rows])]
        half = lambda values, mixed=mixed: blended(values[:B], values[B:], mixed.lam)  # noqa: E731
        x = half(x) if stage == "input" else x
        for name in ("layer1", "layer2"):
            x = getattr(step.model, name)(x)
            x = (half(x) if stage == name else x).tanh()
        torch.testing.assert_close(loss, (step.model.head(x) - mixed.targets()).square().mean())
    assert seen == {(B, B, B), (2 * B, B, B), (2 * B, 2 * B, B)} or seen == {
        (B, B, B),
        (2 * B,) * 2 + (B,),
        (2 * B, B, B),
    }


def test_classification_through_mixstep():
    labels = torch.arange(N) % 4
    model = Small(4)
    step = mixaug.MixStep(model, Pooled("mixup", INPUTS, labels), MixedCrossEntropy())
    loss, scalars = step(INPUTS[:B], labels[:B], generator=seeded(14))
    mixed = step.policy(INPUTS[:B], labels[:B], generator=seeded(14))
    logits = model(mixed.inputs)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, mixed.targets(4)))
    assert 0 <= scalars["accuracy"] <= 1


# --- several policies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_a_choice_of_policies_shares_the_partners(per):
    policy = Pooled(OneOf(["mixup", "cutmix"], per=per), IMAGES, LABELS)
    kinds = set()
    for seed in range(10):
        mixed = policy(IMAGES[:B], LABELS[:B], generator=seeded(seed))
        rows = mixed.plan.pool_rows
        assert torch.equal(mixed.sources, torch.stack([OWN, OWN + B], 1))
        low, high = torch.minimum(OWN, rows), torch.maximum(OWN, rows)
        flat = mixed.inputs.flatten(1)
        assert (flat >= low[:, None] - 1e-4).all()
        assert (flat <= high[:, None] + 1e-4).all()
        copied = ((flat == OWN[:, None]) | (flat == rows[:, None])).all(1)
        kinds |= set(copied[rows != OWN].tolist())
        torch.testing.assert_close(flat.mean(1), blended(OWN.float(), rows.float(), mixed.lam), atol=1e-4, rtol=0)
    assert kinds == {True, False}


def test_sometimes_keeps_its_policys_pairing():
    # Partners are those of C-Mixup, not any row.
    policy = Pooled(Sometimes(mixaug.create("cmixup", bandwidth=0.05, kernel="tophat"), 0.5), INPUTS, LABELS)
    assert isinstance(policy.pairing, LabelKernel)
    mixed_ones = 0
    for seed in range(30):
        mixed = policy(INPUTS[:B], LABELS[:B], generator=seeded(seed))
        assert ((LABELS[:B] - LABELS[mixed.plan.pool_rows]).abs() < 0.05).all()
        mixed_ones += bool((mixed.lam < 1).any())
    assert 5 < mixed_ones < 25
    never = Pooled(Sometimes("cmixup", 1.0, until=0.5), INPUTS, LABELS)
    never.set_progress(0.7)
    still = never(INPUTS[:B], LABELS[:B], generator=seeded(0))
    assert torch.equal(still.inputs, INPUTS[:B])


def test_members_must_agree_on_the_partners():
    with pytest.raises(
        ValueError, match=r"pairings differ: LabelKernel\(auto, .*, Permutation\. Give OneOf one for all"
    ):
        Pooled(OneOf(["cmixup", "mixup"]), INPUTS, LABELS)
    with pytest.raises(ValueError, match=r"pairings differ: LabelKernel\(1 raw, .*LabelKernel\(2 raw, "):
        Pooled(OneOf([mixaug.create("cmixup", bandwidth=h) for h in (1.0, 2.0)]), INPUTS, LABELS)
    used, new = (mixaug.create("cmixup", bandwidth=1e9) for _ in range(2))
    with pytest.warns(UserWarning, match="so wide"):
        used(INPUTS, LABELS)
    with pytest.warns(UserWarning, match="so wide"):
        Pooled(OneOf([used, new]), INPUTS, LABELS)
    agreed = Pooled(OneOf(["cmixup", "cmixup", "none"]), INPUTS, LABELS)
    assert isinstance(agreed.pairing, LabelKernel)
    told = Pooled(OneOf(["cmixup", "mixup"], pairing="nearest"), INPUTS, LABELS)
    assert isinstance(told.pairing, Nearest)


def test_pooled_is_not_a_member():
    inner = Pooled("mixup", INPUTS, LABELS)
    for around in (lambda: OneOf([inner]), lambda: Sometimes(inner, 1.0), lambda: Pooled(inner, INPUTS, LABELS)):
        with pytest.raises(ValueError, match="got Pooled with partners of its own: give them to"):
            around()


def test_a_choice_per_sample_cannot_mix_inside_the_model():
    hidden = mixaug.create("manifoldmix", stages=["layer1"])
    with pytest.raises(ValueError, match="cannot choose for each sample between ManifoldMix"):
        Pooled(OneOf([hidden, "mixup"], per="sample"), INPUTS, LABELS)


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Pooled("mixup", INPUTS, LABELS[:9]), "got 40 inputs but 9 labels"),
    (lambda: Pooled("mixup", INPUTS, torch.tensor(3.0)), r"labels \(N, ...\) with N >= 1"),
    (lambda: Pooled("mixup", INPUTS[:0], LABELS[:0]), r"labels \(N, ...\) with N >= 1"),
    (lambda: Pooled("mixup", INPUTS, [1.0] * N), r"labels \(N, ...\)"),
    (lambda: Pooled("mixup", INPUTS, LABELS, candidates="some"), "candidates 'all' or 'batch', got 'some'"),
    (lambda: Pooled("mixup", INPUTS, LABELS, candidates="batch", both=True), "needs candidates='all'"),
    (lambda: Pooled(3, INPUTS, LABELS), "expects policy as a policy or its name, got 3"),
    (lambda: Pooled("mixupp", INPUTS, LABELS), "unknown policy 'mixupp'"),
    (lambda: Pooled(mixaug.create("mixup", pairing="reversed"), INPUTS, LABELS), "Reversed only orders a batch"),
    (lambda: Pooled(mixaug.create("cutmix", per="pair"), INPUTS, LABELS), 'per="pair" shares draws between'),
    (lambda: Pooled("cmixup", INPUTS, torch.ones(N)), "all labels are equal"),
    (lambda: Pooled("cmixup", INPUTS, torch.full((N,), float("nan"))), "row 0 of labels holds NaN"),
    (lambda: Pooled("knn_mixup", INPUTS[:5], LABELS[:5]), "more than k=5 rows"),
])  # fmt: skip
def test_bad_sets_are_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_policy_that_asks_the_model_asks_about_the_partners_too():
    class Told(mixaug.policies.Mixup):
        """Shows the more salient sample alone."""

        needs = frozenset({"outputs"})

        def sample(self, batch, partner, draws):
            asked.append(batch.signals.outputs())
            return super().sample(batch, partner, draws)

    asked, model = [], nn.Linear(5, 3)
    policy = Pooled(Told(), INPUTS, LABELS)
    mixed = policy(INPUTS[:B], LABELS[:B], signals=model, generator=seeded(16))
    torch.testing.assert_close(asked[-1], model(INPUTS[torch.cat([OWN, mixed.plan.pool_rows])]))
    with pytest.raises(ValueError, match=r"Pooled needs \['outputs'\] of partners from outside the batch too"):
        policy(INPUTS[:B], LABELS[:B], signals=mixaug.Signals(outputs=torch.zeros(B, 3)))
    loss, _ = mixaug.MixStep(nn.Linear(5, 1), policy, MixedSquaredError())(INPUTS[:B], LABELS[:B], generator=seeded(17))
    assert loss.isfinite()


def test_policies_that_cannot_take_partners_say_so():
    labels = torch.arange(N) % 4
    for name, message in (
        ("guidedmix", "GuidedMix takes no partners from outside the batch"),
        ("automix", "AutoMix takes no partners from outside the batch"),
        ("comixup", "CoMixup takes no partners from outside the batch"),
        (mixaug.create("puzzlemix", clean_weight=1.0), r"PuzzleMix\(clean_weight=1\) adds the loss of the batch alone"),
    ):
        with pytest.raises(ValueError, match=message):
            Pooled(name, IMAGES, labels)
        with pytest.raises(ValueError, match=message):
            Pooled(OneOf(["mixup", name]), IMAGES, labels)


@pytest.mark.parametrize(("change", "message"), [
    ({"labels": None}, "pass labels with the images"),
    ({"labels": LABELS[:B, 0]}, r"labels like those of the training set, \(B, 1,\) torch.float32, got \(6,\)"),
    ({"labels": LABELS[:B].double()}, r"got \(6, 1\) torch.float64"),
    ({"labels": LABELS[: B - 1]}, "got 6 images but 5 labels"),
    ({"images": INPUTS[:B, :4]}, r"gives inputs \(6, 5\) torch.float32 for 6 rows, the batch is \(6, 4\)"),
    ({"images": INPUTS[:B].double()}, "the batch is .* torch.float64"),
    ({"images": INPUTS[:0], "labels": LABELS[:0]}, "empty batch"),
    ({"rows": torch.arange(4)}, r"rows \(6,\) int64, got \(4,\) torch.int64"),
    ({"rows": torch.arange(6).float()}, r"rows \(6,\) int64, got \(6,\) torch.float32"),
    ({"keys": [0]}, "but images is a tensor"),
    ({"inplace": True}, "have no meaning"),
    ({"out": torch.empty(B, 5)}, "have no meaning"),
])  # fmt: skip
def test_bad_batches_are_refused_before_anything_is_drawn(change, message):
    policy, generator = Pooled("cmixup", INPUTS, LABELS), seeded(15)
    state = generator.get_state()
    arguments = {"images": INPUTS[:B], "labels": LABELS[:B], "generator": generator, **change}
    with pytest.raises(ValueError, match=message):
        policy(**arguments)
    if "images" not in change:
        assert torch.equal(generator.get_state(), state)


def test_a_function_of_inputs_that_gives_something_else():
    for fetch, message in [
        (lambda rows: IMAGES[rows[:-1]], r"gives inputs \(5, 3, 8, 8\) torch.float32 for 6 rows"),
        (lambda rows: [IMAGES[row] for row in rows], "a tensor from its function of inputs, got list"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            Pooled("mixup", fetch, LABELS)(IMAGES[:B], LABELS[:B])


def test_apply_wants_its_own_plan():
    policy = Pooled("mixup", INPUTS, LABELS)
    plan = policy.draw(INPUTS[:B], LABELS[:B], generator=seeded(16))
    torch.testing.assert_close(
        policy.apply(INPUTS[:B], plan), policy.apply(INPUTS[torch.cat([OWN, plan.pool_rows])], plan)
    )
    with pytest.raises(ValueError, match="have no meaning"):
        policy.apply(INPUTS[:B], plan, inplace=True)
    with pytest.raises(ValueError, match="generator is on cpu"):
        Pooled("mixup", INPUTS.to("meta"), LABELS.to("meta"))(
            INPUTS[:B].to("meta"), LABELS[:B].to("meta"), generator=seeded(0)
        )
    visited = []
    policy.apply(lambda module: visited.append(type(module).__name__))
    assert visited == ["Mixup", "TrainingSet", "Pooled"]


def test_rows_that_the_training_set_does_not_have_are_refused():
    inputs, labels = torch.randn(10, 2, generator=seeded(50)), torch.randn(10, 1, generator=seeded(51))
    policy = mixaug.Pooled("knn_mixup", inputs, labels)
    with pytest.raises(ValueError, match=r"rows in \[0, 10\), got 3 to 10"):
        policy(inputs[:2], labels[:2], rows=torch.tensor([3, 10]))


def test_one_entry_of_a_dict_or_tuple_is_mixed_and_a_collate_function_may_do_it():
    policy = mixaug.Pooled("cmixup", INPUTS, LABELS)
    alone = policy(INPUTS[:4], LABELS[:4], generator=seeded(52))
    batch = {"x": INPUTS[:4], "name": list("abcd")}
    mixed = policy(batch, LABELS[:4], generator=seeded(52), keys=["x"])
    assert torch.equal(mixed.inputs["x"], alone.inputs)
    assert mixed.inputs["name"] is batch["name"]
    with pytest.raises(ValueError, match="mixes one entry"):
        policy((INPUTS[:4], INPUTS[:4]), LABELS[:4], keys=[0, 1])
    samples = torch.utils.data.TensorDataset(INPUTS, LABELS)
    for workers in (0, 1):
        loader = torch.utils.data.DataLoader(
            samples, batch_size=6, num_workers=workers, collate_fn=mixaug.MixCollate(policy, seed=0)
        )
        found = next(iter(loader))
        assert found.inputs.shape == (6, *INPUTS.shape[1:])
        assert torch.equal(found.labels[:6], LABELS[:6])
        assert found.targets().shape == (6, *LABELS.shape[1:])


def test_what_is_no_training_set_is_refused_at_once():
    with pytest.raises(TypeError, match="inputs as a tensor or a function of rows, got list"):
        mixaug.Pooled("cmixup", [1, 2], LABELS)
    with pytest.raises(TypeError, match="rows as an int64 tensor, got list"):
        mixaug.Pooled("knn_mixup", INPUTS, LABELS)(INPUTS[:2], LABELS[:2], rows=[0, 1])


def test_limits_that_are_a_function_count_at_most_all_others():
    few = mixaug.create("regmix", limits=lambda x, y: torch.full((len(x),), 32), k_max=32)
    policy = mixaug.Pooled(few, INPUTS[:6], LABELS[:6])
    mixed = policy(INPUTS[:6], LABELS[:6], generator=seeded(53), rows=torch.arange(6))
    assert (mixed.plan.pool_rows != torch.arange(6)).all()


@pytest.mark.parametrize("name", ["cmixup", "knn_mixup", "local_mixup", "regmix"])
def test_what_a_policy_pairs_by_is_in_its_repr(name):
    assert "pairing=" in repr(mixaug.create(name))
    assert "pairing=" not in repr(mixaug.create("mixup"))
