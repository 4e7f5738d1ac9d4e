"""The models for tables and series against their formulas, and backbones with a head for real-valued labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm")
import torch.nn.functional as F  # noqa: E402

import mixaug  # noqa: E402
from mixaug import models  # noqa: E402
from mixaug.models.lstnet import LSTNet  # noqa: E402
from mixaug.models.tabular import MLP, mlp  # noqa: E402

NEW = {"mlp": {"in_chans": 5, "num_classes": 2}, "lstnet": {"in_chans": 3, "num_classes": 3}}
SHAPE = {"mlp": (5,), "lstnet": (3, 60)}


def built(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return models.create(name, **{**NEW[name], **options}).eval()


def noise(name: str, batch: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, *SHAPE[name], generator=torch.Generator().manual_seed(seed))


# --- create -----------------------------------------------------------------------------------------------------------


def test_names_are_listed_and_suggested():
    assert set(NEW) <= set(models.list_models())
    assert models.list_models("lst*") == ["lstnet"]
    with pytest.raises(ValueError, match=r"'lstnett'.*lstnet"):
        models.create("lstnett", 1)


@pytest.mark.parametrize("name", NEW)
def test_options_are_checked(name):
    with pytest.raises(TypeError, match="widht"):
        built(name, widht=3)
    for wrong in ({"num_classes": 0}, {"in_chans": 0}, {"hidden": 0}):
        with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} >= 1"):
            built(name, **wrong)
    with pytest.raises(TypeError, match="expected num_classes to be an int"):
        built(name, num_classes=1.0)


@pytest.mark.parametrize("name", NEW)
def test_every_parameter_learns_and_rows_do_not_meet(name):
    model = built(name)
    x = noise(name)
    out = model(x)
    assert out.shape == (4, model.num_classes)
    out.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    torch.testing.assert_close(model(x[2:3]), out[2:3])
    assert model(x[:0]).shape == (0, model.num_classes)


@pytest.mark.parametrize("name", NEW)
def test_wrong_inputs_are_refused(name):
    model, x = built(name), noise(name)
    for wrong in (x[:, :-1], x.unsqueeze(1), x[0], noise(name).new_zeros(4, 3, 8, 8)):
        with pytest.raises(ValueError, match=rf"{name} expected inputs \(B, {model.in_chans}"):
            model(wrong)


@pytest.mark.parametrize("outputs", [1, 4])
def test_backbones_take_a_regression_head(outputs):
    model = models.create("cifar_resnet8", outputs, in_chans=1)
    images = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.rand(3, outputs, generator=torch.Generator().manual_seed(1))
    step = mixaug.MixStep(model, mixaug.create("mixup"), mixaug.losses.MixedSquaredError())
    loss, _ = step(images, labels)
    loss.backward()
    assert model(images).shape == labels.shape
    assert model.fc.weight.grad.abs().sum() > 0


# --- MLP --------------------------------------------------------------------------------------------------------------


def test_mlp_is_three_linear_layers():
    model = built("mlp").double()
    x = noise("mlp").double()
    weights = dict(model.named_parameters())
    h = x
    for layer in ("layer1.0", "layer2.0"):
        h = h @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        h = torch.where(h > 0, h, 0.1 * h)
    torch.testing.assert_close(model(x), h @ weights["head.weight"].T + weights["head.bias"])
    assert sum(p.numel() for p in model.parameters()) == 5 * 128 + 128 + 128 * 128 + 128 + 128 * 2 + 2
    assert isinstance(mlp(2, 5), MLP)
    assert mlp(1, 5, hidden=7).layer2[0].weight.shape == (7, 7)


def test_mlp_starts_like_torchs_linear_layers():
    torch.manual_seed(3)
    layers = [nn.Linear(5, 128), nn.Linear(128, 128), nn.Linear(128, 1)]
    torch.manual_seed(3)
    model = models.create("mlp", 1, 5)
    for mine, theirs in zip((model.layer1[0], model.layer2[0], model.head), layers, strict=True):
        assert torch.equal(mine.weight, theirs.weight)
        assert torch.equal(mine.bias, theirs.bias)


# --- LSTNet -----------------------------------------------------------------------------------------------------------


def gru(cell: nn.GRU, sequence: torch.Tensor) -> torch.Tensor:
    """Last state of one sample's (steps, features), by the equations of the GRU."""
    state = sequence.new_zeros(cell.hidden_size)
    for step in sequence:
        own = F.linear(step, cell.weight_ih_l0, cell.bias_ih_l0).chunk(3)
        past = F.linear(state, cell.weight_hh_l0, cell.bias_hh_l0).chunk(3)
        reset, update = torch.sigmoid(own[0] + past[0]), torch.sigmoid(own[1] + past[1])
        state = (1 - update) * torch.tanh(own[2] + reset * past[2]) + update * state
    return state


@pytest.mark.parametrize(
    ("kernel", "skip", "highway", "steps"), [(6, 24, 24, 60), (3, 4, 5, 14), (1, 2, 7, 7), (2, 0, 3, 9)]
)
def test_lstnet_is_its_formula(kernel, skip, highway, steps):
    """Sample by sample, in the shapes of the authors' code: an image of steps by series, then sequences."""
    model = built("lstnet", kernel=kernel, skip=skip, highway=highway, hidden=4, hidden_rnn=3, hidden_skip=2).double()
    x = torch.randn(2, 3, steps, generator=torch.Generator().manual_seed(1)).double()
    conv = model.layer1.conv
    expected = []
    for sample in x:
        image = sample.T[None, None]
        features = F.conv2d(image, conv.weight.transpose(1, 2)[:, None], conv.bias).relu()[0, :, :, 0].T
        states = [gru(model.rnn, features)]
        if skip:
            periods = (steps - kernel) // skip
            recent = features[len(features) - periods * skip :]
            states += [gru(model.skip_rnn, recent[phase::skip]) for phase in range(skip)]
        raw = sample[:, steps - highway :] @ model.highway.weight[0] + model.highway.bias
        expected.append(model.head(torch.cat(states)) + raw)
    torch.testing.assert_close(model(x), torch.stack(expected))


def test_lstnet_has_the_published_size_for_exchange_rates():
    model = models.create("lstnet", 8, 8)
    conv = 50 * 8 * 6 + 50
    recurrent = 3 * 50 * (50 + 50 + 2) + 3 * 5 * (50 + 5 + 2)
    head = (50 + 24 * 5) * 8 + 8
    assert sum(p.numel() for p in model.parameters()) == conv + recurrent + head + 24 + 1
    assert model.layer1.dropout.p == model.dropout.p == 0.2
    assert model.eval()(torch.zeros(2, 8, 168)).shape == (2, 8)


def test_lstnet_takes_any_long_enough_window():
    model = built("lstnet")
    for steps in (30, 31, 168):
        assert model(torch.zeros(2, 3, steps)).shape == (2, 3)
    with pytest.raises(ValueError, match="steps >= 30"):
        model(torch.zeros(2, 3, 29))
    with pytest.raises(ValueError, match="steps >= 40"):
        built("lstnet", highway=40)(torch.zeros(2, 3, 39))


def test_lstnet_without_highway_has_any_number_of_outputs():
    with pytest.raises(ValueError, match="num_classes equal to in_chans, got 1 and 3"):
        built("lstnet", num_classes=1)
    assert built("lstnet", num_classes=1, highway=0)(noise("lstnet")).shape == (4, 1)
    for wrong in ({"kernel": 0}, {"skip": -1}, {"highway": -1}, {"dropout": 1.0}, {"hidden_rnn": 0}):
        with pytest.raises(ValueError, match=f"expected {next(iter(wrong))}"):
            built("lstnet", **wrong)


def test_lstnet_dropout_acts_in_training_alone():
    model, x = built("lstnet"), noise("lstnet")
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


# --- hidden mixing ----------------------------------------------------------------------------------------------------


def mixed_twice(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, mixaug.MixedBatch, torch.Tensor]:
    model, x = built(name), noise(name)
    policy = mixaug.create("cmixup", bandwidth=4.0, stages=["layer1"])
    labels = torch.arange(8.0).view(4, 2)[:, :1].expand(-1, model.num_classes)
    mixed = policy(x, labels, signals=model, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), policy.tap(model, mixed):
        out = model(mixed.inputs)
    return model, x, mixed.lam.view(-1, 1), mixed, out


def test_mlp_mixes_after_layer1():
    model, x, lam, mixed, out = mixed_twice("mlp")
    h = model.layer1(x)
    torch.testing.assert_close(out, model.head(model.layer2(lam * h + (1 - lam) * h[mixed.partner])))
    assert not torch.allclose(out, model(x))


def test_lstnet_mixes_features_and_what_the_highway_reads():
    """As the authors of C-Mixup do: convolve both samples, mix, and feed the highway with mixed raw inputs."""
    model, x, lam, mixed, out = mixed_twice("lstnet")
    lam = lam.unsqueeze(-1)
    features = model.layer1(x)[0]
    blend = lam * features + (1 - lam) * features[mixed.partner]
    raw = lam * x + (1 - lam) * x[mixed.partner]

    class Blended(nn.Module):
        highway = model.layer1.highway

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return blend, x[..., -self.highway :]

    plain = LSTNet(3, 3).eval()
    plain.load_state_dict(model.state_dict())
    plain.layer1 = Blended()
    torch.testing.assert_close(out, plain(raw))
    assert not torch.allclose(out, plain(x), atol=1e-4)  # an unmixed highway gives another forecast
