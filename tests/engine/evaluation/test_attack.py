"""FGSM and PGD: bounds, a slow twin, what is left as it was, models that hide their gradients."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import nn

from helpers import seeded
from mixaug.engine.evaluation import attack
from mixaug.engine.evaluation.draws import sample_integers, sample_order, sample_uniforms

BALL = 8 / 255


def small_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 4)
        )
    return attack.PixelModel(network, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def drawn(count=12):
    generator = seeded(1)
    # Black and white pixels too: the ball is cut off there.
    images = (torch.rand(count, 3, 8, 8, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    return images, torch.randint(4, (count,), generator=generator)


def test_results_stay_in_the_ball_and_in_the_range_and_raise_the_loss():
    model, (images, labels) = small_model(), drawn()
    start = torch.rand(images.shape, generator=seeded(2))
    model.eval()
    before = F.cross_entropy(model(images), labels)
    for found in (attack.fgsm(model, images, labels), attack.pgd(model, images, labels, start=start)):
        assert found.min() >= 0 and found.max() <= 1
        assert (found - images).abs().max() <= BALL + 1e-6
        assert F.cross_entropy(model(found), labels) > before
    assert not found.requires_grad


def test_pgd_is_the_textbook_one_sample_after_the_other():
    model, (images, labels) = small_model().eval(), drawn(3)
    start = torch.rand(images.shape, generator=seeded(2))
    found = attack.pgd(model, images, labels, 0.05, 0.02, 4, start)
    for row in range(3):
        x = (images[row] + (2 * start[row] - 1) * 0.05).clamp(0, 1)
        for _ in range(4):
            x.requires_grad_()
            F.cross_entropy(model(x[None]), labels[row : row + 1]).backward()
            moved = x.detach() + 0.02 * x.grad.sign()
            x = torch.minimum(torch.maximum(moved, images[row] - 0.05), images[row] + 0.05).clamp(0, 1)
        torch.testing.assert_close(found[row], x, atol=1e-6, rtol=0)


def test_normalisation_of_one_number_or_several():
    images = drawn()[0]
    normalised = attack.PixelModel(nn.Identity(), 0.5, 0.25)(images)
    torch.testing.assert_close(normalised, (images - 0.5) / 0.25)
    assert torch.equal(attack.PixelModel(nn.Identity(), None, None)(images), images)


def test_the_model_is_left_as_it_was():
    model, (images, labels) = small_model().train(), drawn()
    model.model[1].eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        attack.pgd(model, images, labels, steps=2)
    assert model.training and model.model[3].training and not model.model[1].training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [p.grad is None for p in parameters] == [True] * (len(parameters) - 1) + [False]
    assert (parameters[-1].grad == 1).all()
    assert not parameters[0].requires_grad
    # Gradients under an autocast around it are those without.
    torch.testing.assert_close(
        _under_autocast(lambda: attack.fgsm(model, images, labels)), attack.fgsm(model, images, labels)
    )


def _under_autocast(call):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return call()


def test_outcomes_depend_on_the_sample_and_not_on_its_batch():
    model, (images, labels) = small_model(), drawn()
    labels = model.eval()(images).argmax(1)
    samples = torch.arange(100, 112)
    whole = attack.thorough_outcomes(model, images, labels, samples, 0.3)
    parts = [
        attack.thorough_outcomes(model, images[k], labels[k], samples[k], 0.3) for k in (slice(0, 5), slice(5, 12))
    ]
    assert {name: torch.cat([part[name] for part in parts]).tolist() for name in whole} == {
        name: value.tolist() for name, value in whole.items()
    }
    means = {name: value.double().mean().item() for name, value in whole.items()}
    assert means["clean"] == 1 and means["pgd_strong"] <= means["pgd"] <= means["noise"]
    usual = attack.outcomes(model, images, labels, samples, 0.3)
    assert all(torch.equal(usual[name], whole[name]) for name in usual) and len(usual) == 3


class Rounding(nn.Module):
    """Right for every image that is bright enough, with a gradient of zero."""

    def forward(self, x):
        score = x.mean((1, 2, 3)).sub(0.5).sign() * 1e3
        return torch.stack([-score, score], 1)


def test_a_model_without_gradients_is_found_out_and_a_linear_one_is_not():
    images = torch.rand(20, 3, 8, 8, generator=seeded(3)) * 0.2 + 0.7
    labels, samples = torch.ones(20, dtype=torch.int64), torch.arange(20)

    def signs(model):
        found = attack.thorough_outcomes(model, images, labels, samples)
        return attack.masking_signs({name: value.double().mean().item() for name, value in found.items()})

    assert signs(Rounding()) == [
        "an attack without bounds leaves samples right",
        "the gradient of some samples is zero in every pixel",
    ]
    linear = attack.PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 0.5, 0.5)
    with torch.no_grad():
        linear.model[1].weight.copy_(torch.tensor([[-0.02], [0.02]]).expand(2, 192))
        linear.model[1].bias.zero_()
    assert signs(linear) == []
    quiet = {"noise": 0.9, "fgsm": 0.5, "pgd": 0.4, "pgd_strong": 0.38, "unbounded": 0.0, "no_gradient": 0.0}
    assert attack.masking_signs(quiet) == []
    assert attack.masking_signs({**quiet, "fgsm": 0.3}) == ["one step does more harm than ten"]
    assert len(attack.masking_signs({**quiet, "noise": 0.3, "pgd_strong": 0.1})) == 2


def test_draws_belong_to_the_sample():
    samples = torch.arange(3000)
    found = sample_uniforms(samples, (2, 3), 5, "start")
    assert kstest(found.flatten().numpy(), "uniform").pvalue > 1e-4
    assert kstest((found[:-1, 0, 0] - found[1:, 0, 0]).remainder(1).numpy(), "uniform").pvalue > 1e-4
    assert kstest((found[:, 0, 0] - found[:, 1, 2]).remainder(1).numpy(), "uniform").pvalue > 1e-4
    mixed = samples.flip(0)[:70]
    assert torch.equal(sample_uniforms(mixed, (2, 3), 5, "start"), found[mixed])
    for others in (sample_uniforms(samples, (2, 3), 6, "start"), sample_uniforms(samples, (2, 3), 5, "order")):
        assert (others == found).double().mean() < 0.01
    whole = sample_integers(samples, 2, 7, 0, "x")
    assert whole.unique().tolist() == list(range(7))
    assert (torch.bincount(whole.flatten()) - 6000 / 7).abs().max() < 4 * (6000 / 7) ** 0.5
    orders = sample_order(samples, 5, 0, "x")
    assert torch.equal(orders.sort(1).values, torch.arange(5).expand(3000, 5))
    assert (torch.bincount(orders[:, 0]) - 600).abs().max() < 4 * 480**0.5


def test_wrong_input_is_named():
    model, (images, labels) = small_model(), drawn()
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\], got values from .* see PixelModel"):
        attack.fgsm(model, images * 2 - 1, labels)
    with pytest.raises(ValueError, match="epsilon between 1e-37 and 1"):
        attack.fgsm(model, images, labels, 8)
    with pytest.raises(ValueError, match="steps as an integer >= 1"):
        attack.pgd(model, images, labels, steps=0)
    with pytest.raises(ValueError, match=r"start \(12, 3, 8, 8\) in \[0, 1\]"):
        attack.pgd(model, images, labels, start=images - 1)
    with pytest.raises(TypeError, match=r"images of dtype float32 or float64, got torch.uint8"):
        attack.fgsm(model, images.byte(), labels)
