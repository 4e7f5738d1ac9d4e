"""SuperMix beyond the contract: what the search finds, sets of several images, unfinished sets, and whom it asks."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mixaug
from helpers import seeded
from mixaug import functional as F
from mixaug.losses import MixedCrossEntropy


class Quarters(nn.Module):
    """A teacher of four classes: each is as likely as its quarter of the image is bright."""

    def __init__(self, steepness=20.0):
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(steepness))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.steepness * nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)


def quarters(classes, size=8):
    """Images of which one quarter is bright."""
    images = torch.zeros(len(classes), 3, size, size)
    half = size // 2
    for image, place in zip(images, classes, strict=True):
        top, left = place // 2 * half, place % 2 * half
        image[:, top : top + half, left : left + half] = 1.0
    return images


def test_masks_are_quotients_of_sigmoids_also_where_these_are_nothing():
    maps = 4 * torch.randn(2, 3, 4, 4, generator=seeded(0))
    large = nn.functional.interpolate(maps, (9, 6), mode="bilinear").sigmoid()
    torch.testing.assert_close(F.supermix_masks(maps, (9, 6)), large / large.sum(1, keepdim=True))
    sunken = F.supermix_masks(torch.tensor([-500.0, -501.0]).reshape(1, 2, 1, 1), (2, 2))
    torch.testing.assert_close(sunken[0, :, 0, 0], torch.tensor([1.0, -0.0]).softmax(0), rtol=0, atol=1e-5)


def test_mixture_is_the_weighted_sum():
    images = torch.rand(4, 3, 5, 6, generator=seeded(1))
    sources = torch.tensor([[0, 1, 2], [1, 1, 0], [2, 3, 3], [3, 0, 1]])
    masks = torch.rand(4, 3, 5, 6, generator=seeded(2)).softmax(1)
    mixed = F.supermix(images, sources, masks)
    for row in range(4):
        expected = sum(masks[row, k] * images[sources[row, k]] for k in range(3))
        torch.testing.assert_close(mixed[row], expected)
    with pytest.raises(TypeError, match="num_classes"):
        F.supermix(images.long(), sources, masks)


@pytest.mark.parametrize("count", [2, 3])
def test_the_teacher_sees_the_classes_of_every_finished_set(count):
    images = quarters([0, 1, 2, 3, 1, 2])
    teacher = Quarters()
    policy = mixaug.create(
        "supermix", network=teacher, sources=count, alpha=20.0, mask_size=4, sparsity=0.1, pairing="shift"
    )
    mixed = policy(images, torch.arange(6), generator=seeded(3))
    finished = mixed.lam < 1
    assert finished.sum() >= 5
    with torch.no_grad():
        classes, seen = teacher(images).argmax(1), teacher(mixed.inputs).argsort(1, descending=True)
    for row in finished.nonzero()[:, 0].tolist():
        wanted = {classes[source].item() for source in mixed.sources[row].tolist()}
        assert set(seen[row, : len(wanted)].tolist()) == wanted
    kept = ~finished
    assert torch.equal(mixed.inputs[kept], images[kept])
    assert (mixed.weights[kept, 1:] == 0).all()
    torch.testing.assert_close(mixed.weights.sum(1), torch.ones(6))


def test_sets_follow_the_partners():
    policy = mixaug.create("supermix", network=Quarters(), sources=4, mask_size=2, max_iter=1, pairing="shift")
    mixed = policy(quarters([0, 1, 2, 3, 0]), torch.arange(5), generator=seeded(4))
    partner = mixed.sources[:, 1]
    assert torch.equal(mixed.sources[:, 2], partner[partner])
    assert torch.equal(mixed.sources[:, 3], partner[partner[partner]])


def test_shares_are_of_a_dirichlet_distribution():
    images = torch.zeros(4000, 3, 2, 2)
    policy = mixaug.create("supermix", network=Quarters(0.0), sources=3, alpha=2.0, mask_size=1, max_iter=1)
    shares = policy._shares(mixaug.draws.Draws(len(images), images.device, seeded(5))).double()
    torch.testing.assert_close(shares.sum(1), torch.ones(4000, dtype=torch.float64))
    # Each share is Beta(2, 4): mean 1/3, variance 2 * 4 / (6^2 * 7).
    error = (8 / 252 / 4000) ** 0.5
    assert ((shares.mean(0) - 1 / 3).abs() < 4 * error).all()
    torch.testing.assert_close(shares.var(0), torch.full((3,), 8 / 252, dtype=torch.float64), rtol=0.1, atol=0)
    own = mixaug.create("supermix", network=Quarters(), sources=3, ratio=0.4)
    assert (own._shares(mixaug.draws.Draws(5, images.device, seeded(6)))[:, 0] == 0.4).all()


class Levels(nn.Module):
    """A teacher of four classes, each as likely as the mean brightness is near its number."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return -((images.mean((1, 2, 3))[:, None] - torch.arange(4)) ** 2)


def test_a_search_that_cannot_end_leaves_the_samples_alone_and_one_that_has_ended_stops():
    # Nothing between 0 and 2 is near both: 1 is nearer.
    images = torch.tensor([0.0, 2.0])[:, None, None, None].expand(2, 3, 4, 4).contiguous()
    teacher = Levels()
    policy = mixaug.create("supermix", network=teacher, mask_size=2, max_iter=3, pairing="shift")
    mixed = policy(images, torch.arange(2), generator=seeded(7))
    assert torch.equal(mixed.inputs, images)
    assert mixed.weights.tolist() == [[1, 0], [1, 0]]
    assert teacher.calls == 1 + 4, "the clean images, and the mixture before and after every step"
    quick = Quarters()
    sets, target = torch.tensor([[0, 1], [1, 0]]), torch.eye(4)[:1].repeat(2, 1)
    assert F.supermix_search(quarters([0, 0]), sets, target, quick, mask_size=2)[1].all()
    assert quick.calls == 2


def test_what_a_network_gives_that_is_no_number_approves_of_nothing():
    images = quarters([0, 1])
    policy = mixaug.create("supermix", network=Quarters(float("inf")), mask_size=2, max_iter=2, pairing="shift")
    mixed = policy(images, torch.arange(2), generator=seeded(12))
    assert torch.equal(mixed.inputs, images)


class Operators(TorchDispatchMode):
    """Names of the operators that are run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_back_and_no_work_is_done_sample_by_sample():
    policy = mixaug.create("supermix", network=Quarters(), sources=3, mask_size=4, max_iter=2, pairing="shift")
    counts = []
    for count in (8, 12):
        images = torch.rand(count, 3, 8, 8, generator=seeded(10))
        with Operators() as operators:
            policy(images, torch.arange(count), generator=seeded(11))
        counts.append(len(operators.names))
        assert not any("_local_scalar_dense" in name or "nonzero" in name for name in operators.names)
    assert counts[0] == counts[1]


def test_reference_waits_for_classes_of_no_share():
    # Both images are of class 3; the largest two entries of the target are 3 and, by torch, some other.
    target = torch.eye(4)[3:].repeat(2, 1)
    arguments = (quarters([3, 3]), torch.tensor([[0, 1], [1, 0]]), target, Quarters())
    assert F.supermix_search(*arguments, mask_size=2, max_iter=2)[1].all()
    other = target[0].topk(2).indices.tolist()
    other.remove(3)
    seen = Quarters()(quarters([3]))[0].topk(2).indices.tolist()
    expected = other[0] in seen
    assert F.supermix_search(*arguments, mask_size=2, max_iter=2, reference=True)[1].tolist() == [expected] * 2


def test_asks_the_model_in_training_without_changing_it():
    images, labels = torch.rand(4, 3, 8, 8, generator=seeded(8)), torch.arange(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    policy = mixaug.create("supermix", mask_size=2, max_iter=2)
    with pytest.raises(ValueError, match="needs outputs of the model"):
        policy(images, labels)
    with pytest.raises(ValueError, match="a network whose gradients it can follow"):
        policy(images, labels, signals=mixaug.Signals(outputs=torch.eye(4)))
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    step.train()
    before = model[1].running_mean.clone()
    mixed = policy(images, labels, signals=model, generator=seeded(9))
    assert torch.equal(model[1].running_mean, before)
    assert model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not mixed.inputs.requires_grad
    loss, _ = step(images, labels, generator=seeded(9))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        policy(images, labels, signals=model)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        policy(images, labels, signals=model)


def test_bad_arguments():
    with pytest.raises(ValueError, match="3 images expects labeling 'ratio' or 'area', got 'cam'"):
        mixaug.create("supermix", sources=3, labeling="cam")
    with pytest.raises(ValueError, match="sources as an integer >= 2"):
        mixaug.create("supermix", sources=1)
    with pytest.raises(TypeError, match=r"network as a torch\.nn\.Module"):
        mixaug.create("supermix", network="resnet50")
    with pytest.raises(ValueError, match=r"sources \(B, K\) and target \(B, classes\)"):
        F.supermix_search(torch.zeros(2, 3, 4, 4), torch.zeros(3, 2), torch.zeros(2, 4), Quarters())


class Boxed(nn.Module):
    """A model whose outputs are objects with ``logits``, as those of Hugging Face are."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return SimpleNamespace(logits=self.model(images))


def test_outputs_may_be_objects_with_logits():
    images, labels = torch.rand(4, 3, 8, 8, generator=seeded(8)), torch.arange(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    for options in ({"network": model}, {}):
        plain, boxed = (
            mixaug.create(
                "supermix", mask_size=2, max_iter=2, **({"network": make(options["network"])} if options else {})
            )(images, labels, signals=None if options else mixaug.ModelSignals(make(model)), generator=seeded(9))
            for make in (lambda given: given, Boxed)
        )
        assert torch.equal(plain.inputs, boxed.inputs) and torch.equal(plain.weights, boxed.weights)
