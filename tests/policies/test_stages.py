"""What holds for every policy that acts behind stages of a model: no waiting for a GPU, compiled models, own stages."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mixaug
import mixaug.models
from helpers import seeded
from mixaug.losses import MixedCrossEntropy
from mixaug.policies.stages import StagePolicy
from mixaug.testing.surface import _Operators

INSIDE = {
    "manifoldmix": {"stages": ["layer1"]},
    "mixstyle": {"stages": ["layer1"], "probability": 1.0},
    "moex": {"stage": "layer1"},
    "nfm": {"stages": ["layer1"]},
    "patchup": {"stages": ["layer1"]},
}
#: Operators that mix one map: a GPU starts a kernel for most of them.
FEW = {"manifoldmix": 5, "mixstyle": 25, "moex": 22, "nfm": 72, "patchup": 48}
IMAGES = torch.randn(6, 3, 16, 16, generator=seeded(0))
LABELS = torch.arange(6) % 4


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("name", INSIDE)
def test_no_value_is_read_back_and_few_operators_run(name, per):
    options = INSIDE[name] if name == "moex" else {**INSIDE[name], "per": per}
    counts = []
    with FakeTensorMode():
        for count in (6, 9):
            images = torch.empty(count, 3, 16, 16, device="cuda")
            plan = mixaug.create(name, **options).draw(images, signals=mixaug.Signals())
            features = torch.empty(count, 8, 9, 9, device="cuda")
            with _Operators() as operators:
                mixed = plan.mix_hidden("layer1", features)
            assert (mixed.device.type, mixed.shape) == ("cuda", features.shape)
            counts.append(operators.count)
    assert counts[0] == counts[1] <= FEW[name]


def test_a_policy_without_stages_of_its_own_says_so():
    class Nowhere(StagePolicy):
        def sample(self, batch, partner, draws):
            return self.draw_stage(batch, draws)

    with pytest.raises(TypeError, match=r"Nowhere does not define default_stages\(model\)"):
        Nowhere().draw(IMAGES, signals=mixaug.Signals())


def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mixaug.models.create("cifar_resnet8", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["patchup", "mixstyle", "moex", "nfm"])
def test_compiled_models_give_the_same(name):
    torch.compiler.reset()
    plain, quick = (mixaug.MixStep(tiny(), mixaug.create(name), MixedCrossEntropy()) for _ in range(2))
    quick.model.compile(backend="aot_eager")
    for seed in range(3):
        losses = []
        for step in (plain, quick):
            step.zero_grad()
            loss, _ = step(IMAGES, LABELS, generator=seeded(seed))
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
        for got, expected in zip(quick.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-5)
    torch.compiler.reset()
