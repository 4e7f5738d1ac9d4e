"""AttentiveMix beyond the contract: which cells are kept, the frozen network, and what it must leave alone."""

import copy
import io
import pickle
from fractions import Fraction

import pytest
import torch
from torch import nn

import mixaug
from helpers import index_images, seeded
from mixaug import functional as F
from mixaug import models
from mixaug.losses import MixedCrossEntropy
from mixaug.policies.attentivemix import cells_to_size

IMAGES = torch.randn(6, 3, 32, 32, generator=seeded(0))
LABELS = torch.arange(6) % 4


class Grid(nn.Module):
    """A network whose last map is the mean brightness of 4 x 4 cells, times the number of the channel."""

    def __init__(self, grid=4):
        super().__init__()
        self.layer = nn.AdaptiveAvgPool2d(grid)
        self.scale = nn.Parameter(torch.ones(2))
        self.norm = nn.BatchNorm2d(2)
        self.sizes, self.modes, self.dtypes = [], [], []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[2:]))
        self.modes.append(self.training)
        self.dtypes.append(images.dtype)
        return self.norm(self.layer(images.mean(1, keepdim=True)) * self.scale[:, None, None]).mean((2, 3))


def small_model(seed=0, name="cifar_resnet8"):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.create(name, num_classes=4)


def slow_cells(attention, k):
    cells = torch.zeros_like(attention, dtype=torch.bool)
    for row, chosen in zip(attention, cells, strict=True):
        order = sorted(range(row.numel()), key=lambda n: (-row.flatten()[n].item(), n))
        for n in order[:k]:
            chosen[n // row.shape[1], n % row.shape[1]] = True
    return cells[:, None]


@pytest.mark.parametrize("shape", [(5, 7, 7), (3, 4, 6), (2, 1, 1), (4, 1, 9)], ids=str)
def test_cells_against_slow_twin(shape):
    # Few different values: many ties, of which the first in reading order are kept.
    attention = torch.randint(0, 5, shape, generator=seeded(1)).float()
    count = shape[1] * shape[2]
    for k in range(1, count + 1):
        got = F.attentive_cells(attention, k)
        assert torch.equal(got, slow_cells(attention, k))
        assert (got.flatten(1).sum(1) == k).all()
    each = torch.randint(1, count + 1, (shape[0],), generator=seeded(2))
    got = F.attentive_cells(attention, each)
    for row, k in enumerate(each.tolist()):
        assert torch.equal(got[row], slow_cells(attention[row : row + 1], k)[0])


def test_constant_maps_and_numbers_that_are_none():
    flat = F.attentive_cells(torch.full((2, 3, 3), 0.5), 4)
    assert flat[0, 0].flatten().tolist() == [True] * 4 + [False] * 5
    attention = torch.tensor([[[torch.nan, 1.0, torch.inf], [0.0, -torch.inf, torch.nan]]])
    assert F.attentive_cells(attention, 3)[0, 0].tolist() == [[False, True, True], [True, False, False]]
    assert F.attentive_cells(torch.full((1, 2, 2), torch.nan), 1).sum() == 1


def test_mean_over_channels_in_single_precision():
    features = torch.full((1, 3, 1, 2), 60000.0, dtype=torch.float16)
    attention = F.feature_attention(features)
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention, torch.full((1, 1, 2), 60000.0), rtol=1e-3, atol=0)
    features = torch.rand(2, 5, 3, 4, generator=seeded(3))
    torch.testing.assert_close(F.feature_attention(features), sum(features.unbind(1)) / 5)
    assert torch.equal(F.feature_attention(features, "last"), features[:, 4])


@pytest.mark.parametrize("size", [(28, 28), (30, 31), (5, 9), (1, 1), (224, 33)], ids=str)
@pytest.mark.parametrize("grid", [(7, 7), (4, 6), (1, 1)], ids=str)
def test_cells_cover_pixels_whether_or_not_they_divide(size, grid):
    numbers = torch.arange(grid[0] * grid[1]).reshape(1, *grid)
    got = cells_to_size(numbers, size)[0]
    rows = [int(Fraction(y * grid[0], size[0])) for y in range(size[0])]
    columns = [int(Fraction(x * grid[1], size[1])) for x in range(size[1])]
    assert got.tolist() == [[row * grid[1] + column for column in columns] for row in rows]
    if all(pixels % cells == 0 for pixels, cells in zip(size, grid, strict=True)):
        expected = nn.functional.interpolate(numbers[None].float(), size, mode="nearest")[0, 0]
        assert torch.equal(got.float(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(28, 28), (30, 31), (1, 1), (150, 160)], ids=str)
def test_own_pixels_are_those_of_the_cells(size, dtype):
    images = index_images(4, 2, *size, dtype=dtype)
    cells = F.attentive_cells(torch.rand(4, 7, 7, generator=seeded(4)), 6)
    mask = cells_to_size(cells[:, 0], size)[:, None]
    mixed, lam = F.attentivemix(images, torch.tensor([1, 2, 3, 0]), cells)
    assert torch.equal(mixed, torch.where(mask, images, images.roll(-1, 0)))
    torch.testing.assert_close(lam, mask.double().mean((1, 2, 3)).float())
    if size == (28, 28):
        torch.testing.assert_close(lam, torch.full((4,), 6 / 49))


def test_the_attentive_image_gets_the_small_weight():
    # Sample i is bright in one cell: it keeps that cell, and the rest is its partner's.
    images = torch.zeros(4, 3, 32, 32)
    for i in range(4):
        images[i, :, 8 * i : 8 * i + 8, 0:8] = 1.0
    policy = mixaug.create("attentivemix", k=1, network=Grid(), network_size=None, pairing="shift")
    mixed = policy(images, LABELS[:4], generator=seeded(5))
    assert (mixed.lam == 1 / 16).all()
    for i in range(4):
        assert mixed.mask[i, 0, 8 * i : 8 * i + 8, 0:8].all()
        assert mixed.inputs[i, 0].sum() == 2 * 64
    counted = mixaug.create("attentivemix", k=1, network=Grid(), labeling="ratio", pairing="shift")
    assert (counted(images, LABELS[:4]).lam == 1 / 16).all()


@pytest.mark.parametrize("per", ["sample", "batch", "pair"])
def test_number_of_cells_from_lam(per):
    count, alpha = 4000, 0.7
    features = torch.rand(count, 2, 5, 5, generator=seeded(6))
    policy = mixaug.create("attentivemix", k=None, alpha=alpha, per=per)
    plan = policy.draw(torch.zeros(count, 1, 10, 10), signals=mixaug.Signals(features=features), generator=seeded(7))
    cells = plan.mask[:, ::2, ::2].flatten(1).sum(1)
    assert torch.equal(cells.float() / 25, plan.area())
    expected = (plan.lam * 25).long().clamp(1, 25).expand(count)
    assert ((cells - expected).abs() <= 1).all(), "lam is kept in single precision: a whole number may fall either way"
    assert (cells != expected).sum() <= 2
    if per == "pair":
        assert torch.equal(cells, cells[plan.partner])
    if per == "sample":
        # P(k) from the distribution of lam, drawn elsewhere.
        beta = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample((400_000,))
        theory = torch.bincount((beta * 25).long().clamp(1, 25), minlength=26) / len(beta)
        got = torch.bincount(cells, minlength=26) / count
        assert (got - theory).abs().max() < 4.5 * (theory.max() / count).sqrt() + 1e-3
    ratio = mixaug.create("attentivemix", k=None, alpha=alpha, per=per, labeling="ratio")
    drawn = ratio.draw(torch.zeros(count, 1, 10, 10), signals=mixaug.Signals(features=features), generator=seeded(7))
    assert torch.equal(drawn.weights[:, 0], plan.lam.expand(count))


def test_network_sees_resized_images_in_eval_mode_and_its_own_dtype():
    network = Grid().train()
    policy = mixaug.create("attentivemix", k=3, network=network, network_size=(20, 24)).train()
    assert policy.needs == frozenset()
    statistics = copy.deepcopy(dict(network.norm.named_buffers()))
    policy(IMAGES.half(), LABELS)
    policy.train()(IMAGES.requires_grad_(), LABELS).inputs.sum().backward()
    IMAGES.requires_grad_(False).grad = None
    assert network.sizes == [(20, 24)] * 2
    assert network.modes == [False] * 2
    assert network.dtypes == [torch.float32] * 2
    for name, value in network.norm.named_buffers():
        assert torch.equal(value, statistics[name])
    assert network.scale.grad is None
    assert not network.scale.requires_grad
    plain = mixaug.create("attentivemix", k=3, network=Grid(), network_size=None)
    plain(IMAGES, LABELS)
    assert plain.network.sizes == [(32, 32)]


def test_cells_are_those_of_the_networks_last_map():
    network = small_model(1).eval()
    policy = mixaug.create("attentivemix", k=5, network=copy.deepcopy(network), network_size=64)
    mixed = policy(IMAGES, LABELS, generator=seeded(8))
    resized = nn.functional.interpolate(IMAGES, (64, 64), mode="bilinear")
    with torch.no_grad():
        features = network.forward_features(resized)
    cells = F.attentive_cells(features.mean(1), 5)
    expected, lam = F.attentivemix(IMAGES, mixed.partner, cells)
    assert torch.equal(mixed.inputs, expected)
    assert torch.equal(mixed.lam, lam)
    # Another stage by its name.
    named = mixaug.ModelSignals(copy.deepcopy(network), features="layer1")
    early = mixaug.create("attentivemix", k=5, network=named, network_size=None)(IMAGES, LABELS, generator=seeded(8))
    assert early.lam.unique().tolist() == [pytest.approx(5 / 1024)]


def test_network_is_no_part_of_checkpoints_optimizers_or_training_modes():
    network = Grid()
    step = mixaug.MixStep(small_model(), mixaug.create("attentivemix", network=network), MixedCrossEntropy())
    policy = step.policy
    assert not list(policy.parameters())
    assert not policy.state_dict()
    policy.load_state_dict(torch.load(saved(policy), weights_only=True))
    step.train()
    assert not network.training
    step.apply(lambda module: nn.init.zeros_(module.scale) if hasattr(module, "scale") else None)
    assert (network.scale == 1).all()
    assert policy.to(torch.float64).network.scale.dtype == torch.float64
    policy(IMAGES, LABELS)
    assert network.dtypes[-1] == torch.float64
    for again in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert again.network is not network
        assert torch.equal(
            again(IMAGES, LABELS, generator=seeded(9)).inputs, policy(IMAGES, LABELS, generator=seeded(9)).inputs
        )
    with pytest.raises(ValueError, match=r"network on meta, the images are on cpu: policy.to\('cpu'\)"):
        copy.deepcopy(policy).to("meta")(IMAGES, LABELS)


def saved(policy):
    buffer = io.BytesIO()
    torch.save(policy.state_dict(), buffer)
    buffer.seek(0)
    return buffer


def test_the_model_in_training_cannot_be_the_frozen_network():
    model = small_model()
    for network in (model, nn.Sequential(model.layer1)):
        policy = mixaug.create("attentivemix", network=network)
        with pytest.raises(ValueError, match="must not share parameters with the model in training"):
            mixaug.MixStep(model, policy, MixedCrossEntropy())


def test_works_in_a_collate_function():
    policy = mixaug.create("attentivemix", network=Grid(), network_size=None)
    mixed = mixaug.MixCollate(policy, seed=0)(
        [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    )
    torch.testing.assert_close(mixed.lam, torch.full((6,), 6 / 16))
    with pytest.raises(ValueError, match="needs features of the model"):
        mixaug.MixCollate(mixaug.create("attentivemix"))


@pytest.mark.parametrize("own_network", [True, False], ids=["own network", "model in training"])
def test_one_training_step_by_hand(own_network):
    model, network = small_model(), small_model(1)
    twin = copy.deepcopy(model)
    policy = mixaug.create("attentivemix", network=copy.deepcopy(network) if own_network else None, network_size=None)
    step = mixaug.MixStep(model, policy, MixedCrossEntropy())
    loss, _ = step(IMAGES, LABELS, generator=seeded(10))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())

    asked = network if own_network else twin
    with torch.no_grad():
        features = asked.eval().forward_features(IMAGES)
    again = mixaug.create("attentivemix").draw(
        IMAGES, LABELS, signals=mixaug.Signals(features=features), generator=seeded(10)
    )
    cells = F.attentive_cells(features.mean(1), 6)
    mixed, lam = F.attentivemix(IMAGES, again.partner, cells)
    outputs = twin.train()(mixed)
    own, other = (nn.functional.cross_entropy(outputs, y, reduction="none") for y in (LABELS, LABELS[again.partner]))
    torch.testing.assert_close(loss, (lam * own + (1 - lam) * other).mean())
    for got, expected in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("own_network", [True, False], ids=["own network", "model in training"])
def test_step_under_autocast(own_network):
    policy = mixaug.create("attentivemix", **({"network": small_model(1), "network_size": 40} if own_network else {}))
    step = mixaug.MixStep(small_model(), policy, MixedCrossEntropy())
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = step(IMAGES.to(memory_format=torch.channels_last), LABELS, generator=seeded(11))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_built_from_a_configuration():
    pytest.importorskip("hydra")
    from mixaug.engine import build
    from mixaug.engine.config import compose

    network = "{_target_: mixaug.models.create, name: cifar_resnet8, num_classes: 10}"
    policy = build.build_policy(
        compose(["policy=attentivemix", f"policy.network={network}", "policy.network_size=null"])
    )
    assert policy.network.get_classifier().out_features == 10
    assert policy(IMAGES, LABELS).lam.unique().numel() == 1
    assert build.build_policy(compose(["policy=attentivemix"])).needs == {"features"}


def test_images_of_one_pixel():
    images = torch.rand(3, 3, 1, 1, generator=seeded(12))
    mixed = mixaug.create("attentivemix", network=Grid(3), network_size=6)(images, LABELS[:3], generator=seeded(13))
    # All cells share the pixel: the first one covers it.
    assert set(mixed.lam.tolist()) <= {0.0, 1.0}
    kept = mixed.mask.reshape(-1, 1, 1, 1).bool()
    assert torch.equal(mixed.inputs, torch.where(kept, images, images[mixed.partner]))


def test_more_cells_than_there_are():
    features = mixaug.Signals(features=torch.rand(6, 2, 2, 2))
    with pytest.raises(ValueError, match=r"k=6 cells of 2 x 2 = 4: choose k in 1 to 4"):
        mixaug.create("attentivemix")(IMAGES, signals=features)
    assert (mixaug.create("attentivemix", k=4)(IMAGES, signals=features).lam == 1).all()


def test_bad_arguments():
    cells = torch.ones(6, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"cells of dtype torch.bool"):
        F.attentivemix(IMAGES, torch.arange(6), cells.float())
    for wrong in (cells[:, 0], cells[:4], cells.expand(6, 2, 4, 4)):
        with pytest.raises(ValueError, match=r"cells \(6, 1, h, w\)"):
            F.attentivemix(IMAGES, torch.arange(6), wrong)
    with pytest.raises(ValueError, match=r"k in \[1, 16\]"):
        F.attentive_cells(torch.rand(2, 4, 4), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"k as a number or \(2,\) int64"):
        F.attentive_cells(torch.rand(2, 4, 4), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"attention \(B, h, w\), got \(2, 16\)"):
        F.attentive_cells(torch.rand(2, 16), 3)
    with pytest.raises(TypeError, match=r"features \(B, C, h, w\) floating point, got torch.int64"):
        F.feature_attention(torch.ones(2, 3, 4, 4, dtype=torch.int64))
    policy = mixaug.create("attentivemix", network=Grid())
    with pytest.raises(TypeError, match=r"does not take torch.uint8: normalise"):
        policy(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    assert policy.network.sizes == []


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"k": 0}, ValueError, "k as an integer >= 1"),
    ({"k": 2.5}, ValueError, "k as an integer >= 1"),
    ({"k": True}, ValueError, "k as an integer >= 1"),
    ({"attention": "max"}, ValueError, "AttentiveMix expects attention"),
    ({"network": "resnet50"}, TypeError, r"timm.create_model\(name, pretrained=True\)"),
    ({"network_size": 0}, ValueError, "network_size as a"),
    ({"network_size": (1, 2, 3)}, ValueError, "network_size as a"),
    ({"alpha": -1.0}, ValueError, "expects alpha as a positive"),
])  # fmt: skip
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        mixaug.create("attentivemix", **options)


@pytest.mark.parametrize("options", [{"alpha": 0.5}, {"ratio": 0.5}, {"per": "batch"}])
def test_draws_that_a_number_of_cells_does_not_need_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"draws no share with k=6: leave out {name}={value!r}, or take k=None"):
        mixaug.create("attentivemix", **options)
    mixaug.create("attentivemix", k=None, **options)
    with pytest.raises(ValueError, match=r"draws no share with k=6: leave out alpha=0\.5, or take k=None"):
        mixaug.create("attentivemix", alpha=0.5, per="pair")
