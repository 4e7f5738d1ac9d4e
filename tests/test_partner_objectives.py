"""Objectives that are made of a choice of partners: SelecMix, CoWA, FerKD, DualMix and CoT."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mixaug
from helpers import seeded
from mixaug import Batch, MixStep
from mixaug.draws import Draws
from mixaug.losses import MixedCrossEntropy, supervised_contrastive_loss
from mixaug.networks import Auxiliary, Frozen
from mixaug.objectives import (
    Composition,
    CoT,
    CoWA,
    DualMix,
    FerKD,
    SelecMix,
    balanced_share,
    calibrated_labels,
    minority_pairs,
    mixture_confidence,
)
from mixaug.pairing import ClassPairs
from mixaug.partners import Stream, TrainingSet
from mixaug.preparation import Inspection

IMAGES = torch.randn(8, 3, 6, 6, generator=seeded(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 3])
PAIRS = torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1]])


def linear(outputs=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.ReLU(), nn.Linear(6, outputs))


def inspection(model, images=IMAGES):
    with torch.no_grad():
        features = model[:3](images)
        return Inspection("train", model[3](features), features, LABELS, model[3].weight, model[3].bias)


def step_of(name):
    """A step of each objective, with the parts that it goes with; the same for every call."""
    model = linear(5 if name == "cot" else 4)
    if name == "selecmix":
        beside = {"biased": Auxiliary(linear(5, seed=1))}
        return MixStep(model, mixaug.create("selecmix"), SelecMix(clean=0.5), networks=beside)
    if name == "cowa":
        return MixStep(model, mixaug.create("mixup"), CoWA())
    if name == "ferkd":
        beside = {"teacher": Frozen(linear(seed=1))}
        return MixStep(model, mixaug.create("selfmix", view="second"), FerKD(low=0.25), networks=beside)
    if name == "dualmix":
        return MixStep(model, mixaug.create("mixup"), DualMix(size=20))
    torch.manual_seed(2)
    composition = Composition(PAIRS, torch.randn(3, 4), torch.randn(2, 4), nn.Linear(8, 5))
    policy = mixaug.create("manifoldmix", stages=["3"], pairing=ClassPairs(minority_pairs(PAIRS, torch.ones(4))))
    return MixStep(model, policy, CoT(), networks={"composition": Auxiliary(composition)})


def trained(step, optimizer, first, last):
    losses = []
    for number in range(first, last):
        if number % 3 == 0 and step.objective.refresh_every:
            step.objective.on_refresh(inspection(step.model))
        batch = Batch(IMAGES, LABELS, rows=torch.arange(8), views={"second": IMAGES.flip(3)})
        loss, _ = step(batch, generator=seeded(number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step.after_step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", ["selecmix", "cowa", "ferkd", "dualmix", "cot"])
def test_each_trains_and_goes_on_from_its_state(name):
    whole, half, resumed = (step_of(name) for _ in range(3))
    each = [torch.optim.SGD(step.parameters(), lr=0.05, momentum=0.9) for step in (whole, half, resumed)]
    start = copy.deepcopy(whole.model.state_dict())
    losses = trained(whole, each[0], 0, 7)
    assert all(math.isfinite(loss) for loss in losses)
    assert all(not torch.equal(value, start[key]) for key, value in whole.model.state_dict().items())
    trained(half, each[1], 0, 4)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    each[2].load_state_dict(copy.deepcopy(each[1].state_dict()))
    assert trained(resumed, each[2], 4, 7) == losses[4:]
    ends = whole.state_dict()
    assert all(torch.equal(value, ends[key]) for key, value in resumed.state_dict().items() if torch.is_tensor(value))


# -- SelecMix ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [None, 0.7])
def test_the_contrastive_loss_is_that_of_a_loop(q):
    rows = F.normalize(torch.randn(8, 5, generator=seeded(1), dtype=torch.float64), dim=1)
    total = 0.0
    for i in range(8):
        others = [j for j in range(8) if j != i]
        scale = sum(math.exp(float(rows[i] @ rows[j]) / 0.3) for j in others)
        log_p = {j: float(rows[i] @ rows[j]) / 0.3 - math.log(scale) for j in others}
        same = [j for j in others if LABELS[j] == LABELS[i]]
        factor = {j: 1.0 if q is None else q * math.exp(log_p[j]) ** q for j in same}
        total -= sum(factor[j] * log_p[j] for j in same) / max(len(same), 1)
    torch.testing.assert_close(supervised_contrastive_loss(rows, LABELS, 0.3, q).item(), total / 8)


def test_a_single_sample_has_no_contrast_and_a_gradient_of_zero():
    rows = torch.ones(1, 3, requires_grad=True)
    loss = supervised_contrastive_loss(rows, torch.zeros(1).long())
    loss.backward()
    assert loss == 0
    assert torch.equal(rows.grad, torch.zeros(1, 3))
    for bad, message in (
        ((torch.ones(2, 3), torch.zeros(2)), "labels as integer"),
        ((torch.ones(2, 3), torch.zeros(3).long()), r"labels \(2,\), got \(3,\)"),
        ((torch.ones(2), torch.zeros(2).long()), r"embeddings \(B, D\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            supervised_contrastive_loss(*bad)


def test_selecmix_trains_both_networks_each_by_its_own_loss():
    step = step_of("selecmix")
    loss, logs = step(IMAGES, LABELS, generator=seeded(0))
    mixed = step.policy(IMAGES, LABELS, generator=seeded(0))
    embeddings = F.normalize(step.networks["biased"](IMAGES), dim=1)
    expected = {
        "mixed": F.cross_entropy(step.model(mixed.inputs), LABELS[mixed.partner]),
        "clean": 0.5 * F.cross_entropy(step.model(IMAGES), LABELS),
        "biased": supervised_contrastive_loss(embeddings, LABELS, 0.2, 0.7),
    }
    for name, value in expected.items():
        torch.testing.assert_close(logs[name], value.detach(), msg=name)
    torch.testing.assert_close(loss, sum(expected.values()))
    loss.backward()
    ours = [parameter.grad for parameter in step.networks["biased"].parameters()]
    theirs = torch.autograd.grad(expected["biased"], list(step.networks["biased"].parameters()))
    torch.testing.assert_close(ours, list(theirs))


def test_samples_without_a_partner_can_be_left_out():
    beside = {"biased": Auxiliary(linear(5, seed=1))}
    policy = mixaug.create("selecmix", mode="same_label")
    step = MixStep(linear(), policy, SelecMix(alone=0.0), networks=beside)
    _, logs = step(IMAGES, LABELS, generator=seeded(0))
    mixed = policy(IMAGES, LABELS, generator=seeded(0))
    each = F.cross_entropy(step.model(mixed.inputs), LABELS, reduction="none")
    # Row 7 alone is of class 3.
    torch.testing.assert_close(logs["mixed"], each[:7].sum().detach() / 8)
    with pytest.raises(ValueError, match="the policy does not look at it"):
        MixStep(linear(), mixaug.create("mixup"), SelecMix(), networks=beside)
    # A frozen network would stay as it is without a word; with nothing to train it may be one.
    frozen = {"biased": Frozen(linear(5, seed=1))}
    with pytest.raises(ValueError, match=r"networks\['biased'\] as Frozen, which nothing trains.*networks.Auxiliary"):
        MixStep(linear(), mixaug.create("selecmix"), SelecMix(), networks=frozen)
    assert MixStep(linear(), mixaug.create("selecmix"), SelecMix(biased=0.0), networks=frozen)


# -- CoWA --------------------------------------------------------------------------------------------------------------


def test_confidence_is_that_of_densities_by_a_library():
    features = torch.randn(40, 3, generator=seeded(2), dtype=torch.float64)
    probabilities = torch.randn(40, 4, generator=seeded(3), dtype=torch.float64).mul(2).softmax(1)
    found = mixture_confidence(features, probabilities)
    points, shares = F.normalize(features, dim=1), probabilities
    spread = torch.full_like(shares, 0.25)
    for _ in range(2):
        joint = []
        for k in range(4):
            mean = (shares[:, k, None] * points).sum(0) / shares[:, k].sum()
            apart = points - mean
            outer = torch.einsum("n,ni,nj->ij", spread[:, k], apart, apart) / spread[:, k].sum()
            density = torch.distributions.MultivariateNormal(mean, outer + 1e-6 * torch.eye(3, dtype=torch.float64))
            joint.append(density.log_prob(points) + shares[:, k].sum().log())
        log = torch.stack(joint, 1).log_softmax(1)
        shares = spread = log.exp()
    torch.testing.assert_close(found.shares, shares)
    first, second = log.sort(1, descending=True).values[:, :2].T
    lpg = (first - second) / (first - second).max()
    ppl = probabilities[torch.arange(40), shares.argmax(1)]
    torch.testing.assert_close(found.lpg, lpg)
    torch.testing.assert_close(found.jmds, lpg * ppl)


@pytest.mark.parametrize("classes", [2, 5])
def test_a_class_that_nobody_is_of_is_never_told(classes):
    probabilities = torch.zeros(20, classes)
    probabilities[:, 1:3] = torch.rand(20, min(classes - 1, 2), generator=seeded(4)) + 0.1
    probabilities = probabilities / probabilities.sum(1, keepdim=True)
    found = mixture_confidence(torch.randn(20, 3, generator=seeded(5)), probabilities)
    assert set(found.labels.tolist()) <= {1, 2}
    assert ((found.jmds >= 0) & (found.jmds <= 1)).all()
    assert found.shares.isfinite().all()


def test_cowa_never_looks_at_labels():
    step, losses = step_of("cowa"), []
    step.objective.on_refresh(inspection(step.model))
    for labels in (LABELS, 3 - LABELS, None):
        loss, _ = step(Batch(IMAGES, labels, rows=torch.arange(8)), generator=seeded(0))
        losses.append(loss.detach())
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    told = step.objective.told
    mixed = step.policy(IMAGES, told["labels"], generator=seeded(0))
    trust = mixed.lam * told["scores"] + (1 - mixed.lam) * told["scores"][mixed.partner]
    each = MixedCrossEntropy(reduction="none")(step.model(mixed.inputs), mixed)
    torch.testing.assert_close(losses[0], (trust * each).mean().detach(), rtol=1e-4, atol=1e-6)
    step.objective.warm = 1
    warm, _ = step(Batch(IMAGES, rows=torch.arange(8)), generator=seeded(0))
    torch.testing.assert_close(warm.detach(), losses[0] * 1e-6)


def test_what_cowa_lacks_is_said():
    step = step_of("cowa")
    with pytest.raises(ValueError, match="looks its pseudo-labels up by the rows"):
        step(IMAGES, LABELS)
    with pytest.raises(ValueError, match=r"no pseudo-labels yet: call objective\.on_refresh"):
        step(Batch(IMAGES, rows=torch.arange(8)))
    with pytest.raises(ValueError, match="CoWA knows pseudo-labels of the batch's own rows"):
        MixStep(linear(), mixaug.create("mixup", partners=Stream("more")), CoWA())
    with pytest.raises(ValueError, match="two classes or more"):
        mixture_confidence(torch.ones(3, 2), torch.ones(3, 1))


# -- FerKD -------------------------------------------------------------------------------------------------------------


def test_labels_are_corrected_where_the_teacher_is_not_sure():
    told = torch.tensor([[0.05, 0.9, 0.05], [0.5, 0.3, 0.2], [0.98, 0.01, 0.01]])
    labels, easy = calibrated_labels(told, torch.tensor([0, 0, 0]), low=0.1, high=0.95, eps=0.2)
    torch.testing.assert_close(labels, torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.98, 0.01, 0.01]]))
    assert easy.tolist() == [False, False, True]
    # By its largest probability the teacher is sure of the first crop, wrong as it is.
    labels, easy = calibrated_labels(told, F.one_hot(torch.tensor([0, 0, 0]), 3), low=0.6, by="largest", eps=0.0)
    torch.testing.assert_close(labels, torch.tensor([[0.05, 0.9, 0.05], [1.0, 0.0, 0.0], [0.98, 0.01, 0.01]]))
    assert easy.tolist() == [False, False, True]
    for options, message in (({"low": 0.9, "high": 0.1}, "low and high"), ({"eps": 2}, "eps"), ({"by": "x"}, "by")):
        with pytest.raises(ValueError, match=message):
            calibrated_labels(told, torch.tensor([0, 0, 0]), **options)


@pytest.mark.parametrize("kind", ["teacher", "view", "stored"])
def test_a_crops_label_is_the_teachers_for_that_crop(kind):
    teacher = linear(seed=1)
    views = {"second": IMAGES.flip(3)}
    metadata = {"image_id": torch.tensor([0, 0, 1, 1, 2, 2, 3, 4]), "told": teacher(IMAGES).detach().softmax(1)}
    policy = mixaug.create("selfmix", **({"view": "second"} if kind == "view" else {}))
    objective = FerKD(low=0.2, high=0.4, easy="drop", stored="told" if kind == "stored" else None)
    networks = {} if kind == "stored" else {"teacher": Frozen(teacher)}
    step = MixStep(linear(), policy, objective, networks=networks)
    batch = Batch(IMAGES, LABELS, metadata=metadata, views=views)
    loss, _ = step(batch, generator=seeded(1))
    mixed = policy(batch, generator=seeded(1))
    crops = torch.cat([IMAGES, views["second"]]) if kind == "view" else IMAGES
    labels = LABELS.repeat(2) if kind == "view" else LABELS
    table, easy = calibrated_labels(teacher(crops).detach().softmax(1), labels, 0.2, 0.4)
    assert 0 < int(easy.sum()) < len(easy)
    target = (mixed.weights[..., None] * table[mixed.sources]).sum(1)
    counts = (mixed.weights * (~easy).float()[mixed.sources]).sum(1)
    each = F.cross_entropy(step.model(mixed.inputs), target, reduction="none")
    torch.testing.assert_close(loss, (counts * each).mean())


def test_ferkd_refuses_partners_whose_labels_nobody_corrects():
    with pytest.raises(ValueError, match="partners are those of the batch, or of a view"):
        partners = Stream("more")
        MixStep(linear(), mixaug.create("mixup", partners=partners), FerKD(), networks={"teacher": Frozen(linear())})


# -- DualMix -----------------------------------------------------------------------------------------------------------


def test_the_share_of_a_label_moves_to_the_rarer_class():
    lam = torch.tensor([0.3, 0.3, 0.0, 1.0])
    share = balanced_share(lam, torch.tensor([2.0, 6.0, 6.0, 6.0]), torch.tensor([2.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(share, torch.tensor([0.3, 0.05 / 0.75, 0.0, 1.0]))


def test_dualmix_replays_and_mixes_new_with_old():
    asked = []

    def share(lam, count, other_count):
        asked.append((lam, count, other_count))
        return torch.full_like(lam, 0.25)

    step = MixStep(linear(), mixaug.create("mixup"), DualMix(size=6, share=share))
    _, logs = step(IMAGES[:4], LABELS[:4], generator=seeded(0))
    # Nothing is old yet.
    assert set(logs) == {"loss", "accuracy", "clean", "enmix"}
    torch.testing.assert_close(logs["clean"], F.cross_entropy(step.model(IMAGES[:4]), LABELS[:4]).detach())
    _, logs = step(IMAGES[4:], LABELS[4:], generator=seeded(1))
    generator = seeded(1)
    chosen = (Draws(4, IMAGES.device, generator).uniform(per="sample") * 4).long()
    inputs, labels = torch.cat([IMAGES[4:], IMAGES[chosen]]), torch.cat([LABELS[4:], LABELS[chosen]])
    torch.testing.assert_close(logs["clean"], F.cross_entropy(step.model(inputs), labels).detach())
    mixed = step.policy(inputs, labels, generator=generator)
    torch.testing.assert_close(logs["enmix"], MixedCrossEntropy()(step.model(mixed.inputs), mixed).detach())
    [(lam, count, other_count)] = asked
    assert count.tolist() == [float((labels == label).sum()) for label in labels[:4]]
    assert other_count.tolist() == [float((labels == label).sum()) for label in labels[4:]]
    both = lam[:, None, None, None] * inputs[:4] + (1 - lam)[:, None, None, None] * inputs[4:]
    log = step.model(both).log_softmax(1)
    rows = torch.arange(4)
    expected = -(0.25 * log[rows, labels[:4]] + 0.75 * log[rows, labels[4:]]).mean()
    torch.testing.assert_close(logs["adpmix"], expected.detach())
    assert step.objective.memory.seen == 8


def test_enmix_mixes_what_is_augmented():
    step = MixStep(linear(), mixaug.create("mixup"), DualMix(adpmix=0.0, augment=lambda inputs, generator: inputs * 2))
    _, logs = step(IMAGES, LABELS, generator=seeded(0))
    mixed = step.policy(IMAGES, LABELS, generator=seeded(0))
    torch.testing.assert_close(logs["enmix"], MixedCrossEntropy()(step.model(mixed.inputs * 2), mixed).detach())


def test_what_dualmix_cannot_join_is_refused():
    with pytest.raises(ValueError, match="neither partners nor metadata"):
        MixStep(linear(), mixaug.create("lisa"), DualMix())
    with pytest.raises(ValueError, match="labels as class ids"):
        MixStep(linear(), mixaug.create("mixup"), DualMix())(IMAGES, F.one_hot(LABELS, 4).float())
    with pytest.raises(TypeError, match="DualMix expects share"):
        DualMix(share=lambda lam: lam)


# -- CoT ---------------------------------------------------------------------------------------------------------------


def test_rare_attributes_of_the_object_are_partners_more_often():
    counts = torch.tensor([4, 1, 5, 7])
    shares = minority_pairs(PAIRS, counts)
    expected = torch.tensor([[0, 1, 0.2, 0], [0.25, 0, 0.2, 0], [0.25, 1, 0, 0], [0, 0, 0, 1.0]])
    torch.testing.assert_close(shares, expected / expected.sum(1, keepdim=True))
    labels = torch.arange(4).repeat_interleave(counts)
    source = TrainingSet(torch.arange(17.0)[:, None], labels)
    policy = mixaug.create("mixup", pairing=ClassPairs(shares), partners=source)
    own = torch.zeros(4000, dtype=torch.int64)
    mixed = policy(torch.zeros(4000, 1), own, generator=seeded(0))
    found = torch.bincount(mixed.labels[mixed.partner], minlength=4) / 4000
    assert ((found - shares[0]).abs() < 4 * 0.5 / 4000**0.5).all()
    # An attribute without images is nobody's partner.
    assert minority_pairs(PAIRS, torch.tensor([4, 0, 5, 7]))[0].tolist() == [0, 0, 1, 0]
    with pytest.raises(ValueError, match=r"pairs \(P, 2\) and counts \(P,\)"):
        minority_pairs(PAIRS, counts[:2])


def test_cot_weighs_the_true_pairs_too():
    step = step_of("cot")
    _, logs = step(IMAGES, LABELS, generator=seeded(0))
    composition = step.networks["composition"].network
    words = torch.cat([composition.object_words[PAIRS[:, 1]], composition.attribute_words[PAIRS[:, 0]]], 1)
    concepts = F.normalize(composition.network(words), dim=1)
    own = F.normalize(step.model(IMAGES), dim=1) @ concepts.T / 0.1
    torch.testing.assert_close(logs["clean"], F.cross_entropy(own, LABELS).detach())
    with pytest.raises(TypeError, match=r"networks=\{'composition': Auxiliary\(mixaug"):
        MixStep(linear(), mixaug.create("mixup"), CoT(), networks={"composition": linear()})
    with pytest.raises(ValueError, match="labels as class ids"):
        step(IMAGES, F.one_hot(LABELS, 4).float())
