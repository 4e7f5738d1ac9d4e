"""Where autocast has a say: networks run as the caller says, what is drawn and mixed does not change."""

import pytest
import torch
from torch import nn

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import functional as F
from mixaug.ops.precision import callers_precision, full_precision
from mixaug.testing import check_policy
from wrong_policies import Honest

CPU = torch.device("cpu")
HALF = [torch.bfloat16, torch.float16]
IMAGES = torch.rand(6, 3, 32, 32, generator=seeded(0))
LABELS = torch.tensor([0, 3, 1, 4, 2, 0])


def state():
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


def small():
    torch.manual_seed(0)
    return mixaug.models.create("cifar_resnet8", num_classes=5)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_network_inside_goes_back_to_what_the_caller_said(dtype):
    with torch.autocast("cpu", dtype):
        with full_precision(CPU):
            assert not state()[0]
            with full_precision(CPU), callers_precision(CPU):
                assert state() == (True, dtype)
                with full_precision(CPU):
                    assert not state()[0]
            assert not state()[0]
        assert state() == (True, dtype)
        with pytest.raises(RuntimeError, match="inside"), full_precision(CPU):
            raise RuntimeError("inside")
        assert state() == (True, dtype)
    with full_precision(CPU), callers_precision(CPU):
        assert not state()[0], "nobody asked for it"


def test_devices_without_autocast_are_left_alone():
    with full_precision(torch.device("meta")), callers_precision(torch.device("meta")):
        assert mixaug.create("mixup")(torch.empty(4, 3, 8, 8, device="meta")).inputs.shape == (4, 3, 8, 8)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_masks_of_a_few_frequencies(dtype):
    size, shape = (224, 224), F.fourier_noise_shape((224, 224), frequencies=16)
    noise = torch.randn(4, *shape, generator=seeded(1))
    lam, upwards = torch.tensor([0.2, 0.4, 0.5, 0.6]), torch.zeros(4, dtype=torch.bool)
    known = {"decay": 3.0, "round_up": upwards, "frequencies": 16}
    plain = F.fourier_mask(noise, lam, size, **known)
    with torch.autocast("cpu", dtype):
        mask = F.fourier_mask(noise, lam, size, **known)
        mixed = mixaug.create("fmix", frequencies=16)(torch.rand(6, 3, 64, 64), generator=seeded(2))
    assert torch.equal(mask, plain)
    torch.testing.assert_close(mask.float().mean((1, 2, 3)), lam, atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed.mask.mean((1, 2, 3)), mixed.lam, atol=1e-3, rtol=0)


class ByProducts(Honest):
    """Draws with a matrix product, and thinks nothing of autocast."""

    def mask(self, batch, lam, draws):
        mask = super().mask(batch, lam, draws).float()
        columns = torch.full((mask.shape[2], mask.shape[2]), 1 / mask.shape[2], device=mask.device)
        return (mask * lam[:, None, None]) @ columns + 0.001 * mask


def test_a_product_of_a_policy_needs_no_care_of_its_own():
    check_policy(ByProducts, promises=["autocast"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("guidedmix", {}), ("automix", {}), ("adamixup", {}), ("attentivemix", {"network": True, "network_size": 32})],
)
def test_passes_of_networks_stay_in_half_precision(name, options, monkeypatch):
    if "network" in options:
        options = options | {"network": small()}
    step = mixaug.MixStep(small(), mixaug.create(name, **options), mixaug.losses.MixedCrossEntropy())
    seen = []

    def record(module, inputs, output):
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            seen.append(output.dtype)

    hook = nn.modules.module.register_module_forward_hook(record)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = step(IMAGES, LABELS, generator=seeded(3))
        loss.backward()
    finally:
        hook.remove()
    assert len(seen) > 7, "the mixed pass, and at least one more"
    assert set(seen) == {torch.bfloat16}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in step.model.conv1.parameters())


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_partners_of_a_training_set(dtype):
    inputs = torch.randn(40, 5, generator=seeded(4))
    labels = torch.randn(40, 1, generator=seeded(5))
    policy = mixaug.Pooled("cmixup", inputs, labels)
    plain = policy(inputs[:8], labels[:8], generator=seeded(6))
    with torch.autocast("cpu", dtype):
        mixed = policy(inputs[:8], labels[:8], generator=seeded(6))
    for name in ("inputs", "labels", "sources", "weights"):
        assert torch.equal(getattr(mixed, name), getattr(plain, name))


@pytest.mark.parametrize(
    # FMix has matrix products, which autocast would take in half precision.
    "options",
    [pytest.param({"name": "mixup"}, marks=pytest.mark.slow), {"name": "fmix", "frequencies": 4}],
    ids=str,
)
def test_one_graph_under_autocast(options):
    policy = mixaug.create(**options)
    results = []
    torch.compiler.reset()
    for run in (torch.compile(policy, fullgraph=True, backend="aot_eager"), policy):
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(run(IMAGES, LABELS))
    torch.compiler.reset()
    torch.testing.assert_close(results[0].inputs, results[1].inputs, rtol=0, atol=1e-6)
    torch.testing.assert_close(results[0].weights, results[1].weights, rtol=0, atol=1e-6)
