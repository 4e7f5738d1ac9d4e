"""The contract that every policy of mixaug keeps. A new policy is tested here by being registered."""

import copy
import io
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mixaug
import mixaug.models
from helpers import index_images, ours, seeded

POLICIES = ours()
MODEL_FREE = ours(mixaug.list_policies(needs=()))
#: The weights of a sample's labels need not sum to one; each stays below two.
UNNORMALISED = {"snapmix", "tokenmix"}
PER = ["sample", "batch", "pair"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8]
every_policy = pytest.mark.parametrize("name", POLICIES)
#: Of the features that policies are given.
CHANNELS = 8
BACKBONE = mixaug.models.create("cifar_resnet8", num_classes=10)


def make(name, per=None):
    known = mixaug.describe(name).defaults
    options = {} if per is None or "per" not in known else {"per": per}
    if "channels" in known and known["channels"] is None:
        # A mixer for given features, without a model to find out from.
        options["channels"] = CHANNELS
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            policy = mixaug.create(name, **options)
            if "channels" not in options and type(policy).on_attach is not mixaug.Policy.on_attach:
                policy.attach(mixaug.models.create("cifar_resnet8", num_classes=10))
            return policy
    except ValueError as error:
        if per == "pair" and "not mutual" in str(error):
            pytest.skip("its pairing is not mutual, and says so: no two samples share draws")
        raise


def least_labels(policy, count, device="cpu"):
    """What a policy cannot do without: None, or class ids where it pairs by labels."""
    return torch.arange(count, device=device) % 3 if policy.needs_labels else None


def told(policy, images):
    """Signals for a policy that asks for some: made up, or a model where it mixes inside one."""
    if policy.needs <= {"hidden"}:
        return {"signals": BACKBONE} if policy.needs else {}
    count, device, size = len(images), images.device, images.shape[2:]
    if len(size) != 2:
        return {"signals": mixaug.Signals()}

    def made(*shape):
        return torch.rand(count, *shape, generator=seeded(99)).to(device)

    grid = [min(side, 7) for side in size]
    signals = mixaug.Signals(
        saliency=made(*size),
        cam=made(*grid),
        attention=made(*grid),
        features=made(CHANNELS, *grid),
        outputs=made(10),
        pooled=made(8),
    )
    return {"signals": signals}


def pictures(batch=6, channels=3, size=(12, 18), dtype=torch.float32, device="cpu"):
    images = torch.rand(batch, channels, *size, generator=seeded(11))
    images = (images * 255).round().to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)
    return images.to(device)


def spatial_ranks(policy):
    ranks = policy.spatial or (1, 2, 3)
    for member in getattr(policy, "policies", []):
        ranks = tuple(rank for rank in ranks if rank in spatial_ranks(member))
    return ranks


@every_policy
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_dtype_layout_and_input_are_kept(name, dtype, layout, device):
    images = pictures(dtype=dtype, device=device)
    if layout == "channels_last":
        images = images.to(memory_format=torch.channels_last)
    before = images.clone()
    labels = torch.arange(6, device=device)
    policy = make(name)
    mixed = policy(images, labels, generator=seeded(1, device), **told(policy, images))
    assert mixed.inputs.dtype == dtype
    assert mixed.inputs.shape == images.shape
    assert mixed.inputs.device == images.device
    assert mixed.inputs.stride() == images.stride()
    assert torch.equal(images, before), "the caller's tensor changed"
    assert mixed.labels is labels
    assert mixed.weights.dtype == torch.float32
    assert mixed.sources.dtype == torch.int64


@every_policy
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_any_batch_size(name, per, batch, device):
    images = pictures(batch, device=device)
    policy = make(name, per)
    labels = torch.arange(batch, device=device)
    mixed = policy(images, labels, generator=seeded(2, device), **told(policy, images))
    assert mixed.inputs.shape == images.shape
    assert mixed.inputs.isfinite().all()
    assert mixed.sources.shape == mixed.weights.shape
    assert torch.equal(mixed.sources[:, 0], torch.arange(batch, device=device))
    assert ((mixed.sources >= 0) & (mixed.sources < batch)).all()
    assert ((mixed.weights >= 0) & (mixed.weights <= (2 if name in UNNORMALISED else 1))).all()
    torch.testing.assert_close(mixed.targets(batch).sum(1), mixed.weights.sum(1))
    if batch == 1:
        assert torch.equal(mixed.inputs, images)
        assert mixed.lam.tolist() == [1.0]


@every_policy
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 5), (2, 2), (33, 8), (130, 140)], ids=str)
def test_any_image_size(name, size, device):
    # The last size lies above the border where CPU copies go by slices.
    images = pictures(4, size=size, device=device)
    policy = make(name)
    try:
        mixed = policy(images, torch.arange(4, device=device), generator=seeded(3, device), **told(policy, images))
    except ValueError as error:
        if policy.needs and any(
            way_out in str(error) for way_out in ("fit", "choose k in 1 to", "do, or crop or resize")
        ):
            pytest.skip("it cannot take this size, and says which it can")
        raise
    assert mixed.inputs.shape == images.shape
    assert mixed.inputs.isfinite().all()


@every_policy
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_signals_images_and_volumes(name, rank, device):
    policy = make(name)
    images = pictures(5, size=(6, 8, 10)[:rank], device=device)
    if rank not in spatial_ranks(policy):
        with pytest.raises(ValueError, match=r"expects images \(B, C, "):
            policy(images, least_labels(policy, 5, device))
        return
    mixed = policy(images, least_labels(policy, 5, device), generator=seeded(4, device), **told(policy, images))
    assert mixed.inputs.shape == images.shape
    assert mixed.mask is None or mixed.mask.shape == (5, 1, *images.shape[2:])


@every_policy
@pytest.mark.parametrize("per", PER)
def test_same_seed_same_bits_and_global_state_untouched(name, per, device):
    images, labels = pictures(device=device), torch.arange(6, device=device)
    state = torch.get_rng_state()
    policy = make(name, per)
    signals = told(policy, images)
    results = [make(name, per)(images, labels, generator=seeded(5, device), **signals) for _ in range(2)]
    assert torch.equal(results[0].inputs, results[1].inputs)
    assert torch.equal(results[0].weights, results[1].weights)
    assert torch.equal(results[0].sources, results[1].sources)
    assert torch.equal(state, torch.get_rng_state())
    layout = policy(images.to(memory_format=torch.channels_last), labels, generator=seeded(5, device), **signals)
    torch.testing.assert_close(layout.inputs, results[0].inputs, rtol=0, atol=1e-6)
    assert torch.equal(layout.weights, results[0].weights)


@every_policy
def test_default_generator_follows_the_global_seed(name, device):
    images = pictures(device=device)
    results = []
    for _ in range(2):
        torch.manual_seed(6)
        policy = make(name)
        results.append(policy(images, least_labels(policy, 6, device), **told(policy, images)).inputs)
    assert torch.equal(*results)


@every_policy
@pytest.mark.parametrize("per", PER)
def test_pixels_come_from_the_sources(name, per, device):
    images = index_images(7, 3, 12, 18).to(device)
    policy = make(name, per)
    mixed = policy(images, least_labels(policy, 7, device), generator=seeded(7, device), **told(policy, images))
    own = images[mixed.sources].amin(1), images[mixed.sources].amax(1)
    assert (mixed.inputs >= own[0] - 1e-5).all()
    assert (mixed.inputs <= own[1] + 1e-5).all()


@every_policy
def test_gradient_reaches_every_source(name, device):
    images = pictures(6, device=device).requires_grad_()
    policy = make(name)
    mixed = policy(images, least_labels(policy, 6, device), generator=seeded(8, device), **told(policy, images))
    mixed.inputs.sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    # Every mixed pixel is a weighted mean of source pixels, so the gradients add up to the pixel count,
    # but for what a shrunken partner leaves unread or reads twice.
    assert images.grad.sum().item() == pytest.approx(images.numel(), rel=1e-4)


@every_policy
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(12, 18), (130, 140)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16], ids=str)
def test_out_and_inplace_equal_a_fresh_result(name, per, layout, size, dtype, device):
    images = pictures(5, size=size, dtype=dtype, device=device)
    if layout == "channels_last":
        images = images.to(memory_format=torch.channels_last)
    policy = make(name, per)
    plan = policy.draw(images, least_labels(policy, 5, device), generator=seeded(9, device), **told(policy, images))
    fresh = policy.apply(images, plan)
    out = torch.empty_like(images)
    assert policy.apply(images, plan, out=out) is out
    assert torch.equal(out, fresh)
    own = images.clone()
    assert policy.apply(own, plan, inplace=True) is own
    assert torch.equal(own, fresh)


@every_policy
def test_plan_replays(name, device):
    images = pictures(6, device=device)
    policy = make(name)
    mixed = policy(images, torch.arange(6, device=device), generator=seeded(10, device), **told(policy, images))
    torch.testing.assert_close(mixed.apply(images), mixed.inputs, rtol=0, atol=0)
    label_map = torch.arange(6, device=device)[:, None, None].expand(6, 12, 18).contiguous()
    shares = mixed.apply(label_map, num_classes=6)
    assert shares.shape == (6, 6, 12, 18)
    torch.testing.assert_close(shares.sum(1), torch.ones(6, 12, 18, device=device))
    chosen = torch.nn.functional.one_hot(mixed.sources, 6).amax(1)
    assert (shares.amax((2, 3)) <= chosen + 1e-6).all(), "a class that none of the sources has"
    try:
        copied = mixed.apply(label_map)
    except TypeError as error:
        assert "num_classes" in str(error)
    else:
        assert copied.dtype == torch.int64
        assert (copied[:, None] == mixed.sources[:, :, None, None]).any(1).all()


@every_policy
def test_travels_between_processes_and_devices(name, device):
    policy, images = make(name), pictures(4, device=device)
    mixed = policy(images, torch.arange(4, device=device), generator=seeded(12, device), **told(policy, images))
    again = pickle.loads(pickle.dumps(mixed)).to(device)
    assert torch.equal(again.inputs, mixed.inputs)
    assert torch.equal(again.apply(mixed.inputs), mixed.apply(mixed.inputs))


@every_policy
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_no_value_is_read_back_to_the_host(name, per, dtype, monkeypatch):
    # A policy that copies a model must not copy the mode of its fake tensors.
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    # A fake CUDA tensor has no values: `.item()`, boolean indexing and host round trips raise.
    with FakeTensorMode():
        images = torch.empty(6, 3, 32, 48, dtype=dtype, device="cuda")
        labels = torch.empty(6, dtype=torch.int64, device="cuda")
        with torch.device("cuda"):
            policy = make(name, per)
        mixed = policy(images, labels, **told(policy, images))
        assert mixed.inputs.device.type == "cuda"
        assert mixed.weights.device.type == "cuda"
        mixed.targets(10)


@every_policy
def test_labels_in_every_form(name, device):
    images = pictures(4, device=device)
    soft = torch.rand(4, 3, generator=seeded(13)).to(device)
    for labels in (None, torch.tensor([0, 1, 2, 1], dtype=torch.int32, device=device), soft, soft[:, 0]):
        if labels is None and make(name).needs_labels:
            with pytest.raises(ValueError, match="pairs by labels: pass labels"):
                make(name)(images)
            continue
        policy = make(name)
        mixed = policy(images, labels, generator=seeded(14, device), **told(policy, images))
        assert mixed.labels is labels
    dense = make(name)(images, soft, generator=seeded(14, device), **told(policy, images))
    expected = (soft[dense.sources] * dense.weights[..., None]).sum(1)
    torch.testing.assert_close(dense.targets(3), expected)


@every_policy
def test_dict_and_tuple_batches(name, device):
    images, extra = pictures(4, device=device), pictures(4, channels=1, device=device)
    policy = make(name)
    labels, signals = least_labels(policy, 4, device), told(policy, images)
    alone = policy(images, labels, generator=seeded(15, device), **signals)
    batch = {"image": images, "depth": extra, "id": ["a", "b", "c", "d"]}
    mixed = policy(batch, labels, generator=seeded(15, device), keys=["image", "depth"], **signals)
    assert torch.equal(mixed.inputs["image"], alone.inputs)
    assert torch.equal(mixed.inputs["depth"], alone.apply(extra))
    assert mixed.inputs["id"] is batch["id"]
    pair = policy((images, extra), labels, generator=seeded(15, device), keys=[0], **signals)
    assert torch.equal(pair.inputs[0], alone.inputs)
    assert pair.inputs[1] is extra


@every_policy
def test_bad_batches_are_refused_before_anything_is_drawn(name, device):
    policy, images = make(name), pictures(4, device=device)
    labels, signals = least_labels(policy, 4, device), told(policy, images)
    generator = seeded(16, device)
    state = generator.get_state()
    with pytest.raises(ValueError, match="empty batch"):
        policy(images[:0], generator=generator)
    with pytest.raises(ValueError, match="4 images but 3 labels"):
        policy(images, torch.arange(3, device=device), generator=generator)
    with pytest.raises(TypeError, match=r"one_hot"):
        policy(images, torch.ones(4, 3, dtype=torch.int64, device=device), generator=generator)
    with pytest.raises(TypeError, match="dtype"):
        policy(images.long(), generator=generator)
    with pytest.raises(TypeError, match="complex64"):
        policy(images.to(torch.complex64), generator=generator)
    with pytest.raises(ValueError, match="not both"):
        policy(images, labels, generator=seeded(1, device), inplace=True, out=images.clone(), **signals)
    with pytest.raises(ValueError, match="expects out of shape"):
        policy(images, labels, generator=seeded(1, device), out=images[:2].clone(), **signals)
    if policy.spatial is not None:
        with pytest.raises(ValueError, match=r"expects images \(B, C, "):
            policies = getattr(policy, "policies", [policy])
            for member in policies:
                if member.spatial is not None:
                    member(images.flatten(1), generator=generator)
    assert torch.equal(state, generator.get_state())


@every_policy
def test_module_behaviour(name):
    policy = make(name)
    copy.deepcopy(policy)
    seen = []
    torch.nn.Sequential(policy).apply(lambda module: seen.append(module))
    assert policy in seen, "nn.Module.apply must walk through policies"
    buffer = io.BytesIO()
    torch.save(policy.state_dict(), buffer)
    buffer.seek(0)
    policy.load_state_dict(torch.load(buffer, weights_only=True))
    assert name in mixaug.list_policies()
    info = mixaug.describe(name)
    assert info.paper
    assert info.summary
    assert mixaug.create(name, **info.defaults)


@pytest.mark.parametrize("name", MODEL_FREE)
@pytest.mark.parametrize("per", PER)
def test_traces_as_one_graph(name, per):
    # All policies share one `forward`, of which the compiler keeps a few versions: start anew each time.
    torch.compiler.reset()
    images, labels = pictures(6), torch.arange(6)
    traced = torch.compile(make(name, per), fullgraph=True, backend="aot_eager")
    mixed = traced(images, labels)
    replayed = mixed.plan.mix(images)
    torch.testing.assert_close(mixed.inputs, replayed, rtol=0, atol=1e-5)
    assert mixed.targets(6).shape == (6, 6)


@pytest.mark.gpu
@every_policy
@pytest.mark.parametrize("per", PER)
def test_no_synchronisation_on_a_gpu(name, per):
    images, labels = pictures(8, device="cuda"), torch.arange(8, device="cuda")
    policy, generator = make(name, per), seeded(17, "cuda")
    signals = told(policy, images)
    policy(images, labels, generator=generator, **signals)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        policy(images, labels, generator=generator, **signals)
    finally:
        torch.cuda.set_sync_debug_mode("default")
