"""`Signals`, `ModelSignals`, `MixedSignals`: what a model says of a batch, and that asking leaves no trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mixaug
from helpers import seeded
from mixaug import ModelSignals, Signals, models
from mixaug.ops.activation import class_activation_map
from mixaug.ops.attention import attended, class_attention, received_attention
from mixaug.signals.backbone import attention_blocks, classifier_name, stage_name, token_grid

LABELS = torch.tensor([0, 3, 1, 4])


def images(size=(32, 32), count=4):
    return torch.randn(count, 3, *size, generator=seeded(0))


def vit(**options):
    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
    return VisionTransformer(**(settings | options))


def resnet(num_classes=5):
    torch.manual_seed(0)
    model = models.create("cifar_resnet8", num_classes=num_classes)
    # The head starts near zero; signals are to be told apart.
    nn.init.normal_(model.fc.weight)
    return model


class Leaver(nn.Module):
    """Raises in the middle of a pass."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = model.fc

    def forward(self, x):
        self.global_pool(self.model.forward_features(x))
        raise ArithmeticError("in the model")


def state_of(model):
    return {
        "training": [m.training for m in model.modules()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "grads": [p.grad is None for p in model.parameters()],
        "buffers": {name: value.clone() for name, value in model.named_buffers()},
    }


def assert_untouched(model, before):
    after = state_of(model)
    assert after["training"] == before["training"]
    assert after["hooks"] == before["hooks"]
    assert after["grads"] == before["grads"]
    for name, value in before["buffers"].items():
        assert torch.equal(after["buffers"][name], value), name


def test_saliency_is_the_root_mean_square_gradient():
    model = resnet().eval()
    x = images()
    twin = x.clone().requires_grad_()
    F.cross_entropy(model(twin), LABELS).backward()
    expected = twin.grad.square().mean(1).sqrt()
    model.zero_grad()
    got = ModelSignals(model).of(x, LABELS).saliency()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-9)
    assert got.shape == (4, 32, 32)
    assert not got.requires_grad


def test_asking_in_eval_mode_leaves_no_trace():
    model = resnet().train()
    model.layer2.eval()
    before = state_of(model)
    signals = ModelSignals(model).of(images(), LABELS)
    signals.saliency()
    signals.cam((32, 32))
    signals.attention((32, 32))
    signals.features("layer1", size=(32, 32))
    signals.outputs()
    signals.pooled()
    assert_untouched(model, before)


def test_train_mode_updates_statistics_once_and_no_more():
    model = resnet().train()
    x = images()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin(x)
    signals = ModelSignals(model).of(x, LABELS, frozenset({"cam", "outputs", "pooled"}))
    signals.cam((32, 32), mode="train")
    signals.outputs(mode="train")
    signals.pooled(mode="train")
    for (name, got), expected in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)


def test_what_the_user_froze_stays_frozen_in_train_mode():
    model = resnet().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    before = state_of(model)
    ModelSignals(model).of(images(), LABELS).cam((32, 32), mode="train")
    assert_untouched(model, before)


def test_saliency_of_each_mode_is_its_own():
    model = resnet().train()
    signals = ModelSignals(model).of(images(), LABELS)
    evaluated, trained = signals.saliency(), signals.saliency(mode="train")
    assert not torch.allclose(evaluated, trained)
    assert torch.equal(signals.saliency(), evaluated)


def test_a_compiled_model_stays_compiled_where_no_hook_is_needed():
    torch.compiler.reset()
    model, calls = resnet().eval(), []

    def backend(graph, inputs):
        calls.append(1)
        return graph.forward

    expected = ModelSignals(model).of(images(), LABELS).saliency()
    model.compile(backend=backend)
    torch.testing.assert_close(ModelSignals(model).of(images(), LABELS).saliency(), expected, rtol=1e-4, atol=1e-7)
    assert calls


@pytest.mark.parametrize(("name", "size"), [("davit_tiny", (64, 64)), ("tiny_vit_5m_224", (224, 224))])
def test_attention_between_channels_or_in_windows_gives_way_to_the_last_map(name, size):
    torch.manual_seed(0)
    model = models.create(name, num_classes=5).eval()
    x = images(size, 2)
    energy = model.forward_features(x).square().mean(1).detach()
    got = ModelSignals(model).of(x).attention(size)
    torch.testing.assert_close(got.sum((1, 2)), torch.ones(2), rtol=1e-3, atol=1e-3)
    if name == "davit_tiny":
        torch.testing.assert_close(got, energy / energy.sum((1, 2), keepdim=True), rtol=1e-3, atol=1e-6)


def test_no_saliency_in_inference_mode():
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"forbids; use torch\.no_grad"):
        ModelSignals(resnet()).of(images(), LABELS).saliency()


def test_hooks_and_modes_come_back_after_an_error():
    model = Leaver(resnet()).train()
    before = state_of(model)
    with pytest.raises(ArithmeticError):
        ModelSignals(model).of(images(), LABELS).cam((32, 32))
    assert_untouched(model, before)
    policy = mixaug.create("mixup")
    policy.reads = frozenset({"pooled"})
    mixed = policy(images(), LABELS)
    with pytest.raises(ArithmeticError), policy.tap(model, mixed):
        model(mixed.inputs)
    assert state_of(model)["hooks"] == 0


@pytest.mark.parametrize("needs", [{"saliency"}, {"saliency", "features", "outputs"}, {"cam", "attention", "pooled"}])
def test_one_pass_answers_everything(needs):
    model, calls = resnet(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    signals = ModelSignals(model).of(images(), LABELS, frozenset(needs))
    ask = {
        "saliency": signals.saliency,
        "cam": lambda: signals.cam((32, 32)),
        "attention": lambda: signals.attention((32, 32)),
        "features": lambda: signals.features(size=(32, 32)),
        "outputs": signals.outputs,
        "pooled": signals.pooled,
    }
    assert not calls, "nothing is computed before it is asked for"
    for name in sorted(needs):
        ask[name]()
        ask[name]()
    assert len(calls) == 1


def test_a_kept_loss_hands_its_gradient_on():
    x = images()
    model, twin = resnet().train(), resnet().train()
    signals = ModelSignals(model).of(x, LABELS)
    saliency = signals.saliency(mode="train", keep_loss=True)
    loss = signals.clean_loss()
    (0.7 * loss + model(x).square().mean()).backward()
    own = x.clone().requires_grad_()
    expected = F.cross_entropy(twin(own), LABELS)
    (0.7 * expected + twin(x).square().mean()).backward()
    torch.testing.assert_close(loss, expected)
    for (name, got), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, other.grad, msg=name, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(saliency, own.grad.square().mean(1).sqrt() / 0.7, rtol=1e-4, atol=1e-7)


def test_saliency_is_finite_in_half_precision():
    x = images()
    exact = ModelSignals(resnet()).of(x, LABELS).saliency()
    with torch.autocast("cpu", torch.bfloat16):
        rough = ModelSignals(resnet()).of(x, LABELS).saliency()
    assert rough.dtype == torch.float32
    assert torch.corrcoef(torch.stack([exact.flatten(), rough.flatten()]))[0, 1] > 0.95


def test_an_overflowing_gradient_is_no_saliency():
    class Steep(nn.Module):
        def forward(self, x):
            pooled = x.mean((2, 3))
            return pooled * torch.tensor([[1.0], [torch.inf], [1e30], [1.0]])

    saliency = ModelSignals(Steep()).of(images(), torch.tensor([0, 1, 2, 0])).saliency()
    assert saliency.isfinite().all()


def test_cam_is_what_the_classifier_sees():
    model = resnet().eval()
    x = images((32, 24))
    with torch.no_grad():
        maps = torch.einsum("bc,bchw->bhw", model.fc.weight[LABELS], model.forward_features(x))
    # The mean over the cells is the logit, but for the bias.
    torch.testing.assert_close(
        maps.mean((1, 2)) + model.fc.bias[LABELS], model(x).detach()[torch.arange(4), LABELS], rtol=1e-4, atol=1e-4
    )
    up = F.interpolate(maps[:, None], (32, 24), mode="bilinear")[:, 0]
    up = up - up.amin((1, 2), keepdim=True)
    got = ModelSignals(model).of(x, LABELS).cam((32, 24))
    torch.testing.assert_close(got, up / up.sum((1, 2), keepdim=True), rtol=1e-4, atol=1e-7)
    soft = F.one_hot(LABELS, 5).float()
    torch.testing.assert_close(ModelSignals(model).of(x, soft).cam((32, 24)), got)


def test_a_constant_map_is_found_where_its_terms_cancel():
    features = torch.randn(2, 512, 1, 1, generator=seeded(1)).abs().expand(2, 512, 7, 7) * (1 + 1e-7 * torch.rand(7, 7))
    weight = torch.randn(3, 512, generator=seeded(2))
    flat = features.mean((2, 3))
    weight = weight - (weight @ flat[0])[:, None] * flat[0] / flat[0].square().sum()
    cam = class_activation_map(features[:1], weight, torch.tensor([1]), (14, 14))
    assert cam.isnan().all()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet10t", (64, 48)),
        ("convnext_atto", (64, 48)),
        ("vit_tiny_patch16_224", (224, 224)),
        ("swin_tiny_patch4_window7_224", (224, 224)),
        ("efficientnet_b0", (64, 48)),
        ("densenet121", (64, 64)),
        ("pvt_v2_b0", (64, 64)),
        ("cait_xxs24_224", (224, 224)),
    ],
)
def test_maps_of_timm_backbones(name, size):
    torch.manual_seed(0)
    model = models.create(name, num_classes=5)
    nn.init.normal_(model.get_classifier().weight)
    signals = ModelSignals(model).of(images(size, 2), LABELS[:2], frozenset({"cam", "attention", "pooled"}))
    cam, attention = signals.cam(size), signals.attention(size)
    assert cam.shape == (2, *size)
    torch.testing.assert_close(cam.sum((1, 2)), torch.ones(2), rtol=1e-3, atol=1e-3)
    assert (attention >= 0).all()
    assert (attention.sum((1, 2)) <= 1.001).all()
    assert (attention.sum((1, 2)) > 0.5).all()
    assert signals.pooled().shape == (2, model.get_classifier().in_features)


def test_torchvision_models_are_understood():
    import torchvision

    torch.manual_seed(0)
    residual = torchvision.models.resnet18(num_classes=5)
    signals = ModelSignals(residual).of(images((64, 64), 2), LABELS[:2])
    assert signals.cam((64, 64)).sum((1, 2)).tolist() == pytest.approx([1, 1], abs=1e-4)
    transformer = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    x = images(count=2)
    got = ModelSignals(transformer).of(x, LABELS[:2]).attention((32, 32))
    block = transformer.encoder.layers[-1]
    found = []
    block.ln_1.register_forward_hook(lambda m, i, o: found.append(o))
    transformer(x)
    _, weights = block.self_attention(found[0], found[0], found[0], need_weights=True)
    torch.testing.assert_close(got.flatten(1), weights[:, 0, 1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"reg_tokens": 3}, {"qk_norm": True}, {"class_token": False, "global_pool": "avg"}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_equals_that_of_an_unfused_block(options, dtype):
    model = vit(**options).to(dtype).train()
    x = images().to(dtype)
    got = ModelSignals(model).of(x).attention((32, 32), mode="train")
    attention = model.blocks[-1].attn
    assert attention.fused_attn
    attention.fused_attn = False
    found = []
    attention.attn_drop.register_forward_pre_hook(lambda _m, inputs: found.append(inputs[0].float().mean(1)))
    model(x)
    prefix = model.num_prefix_tokens
    rows = found[0][:, 0] if prefix else found[0].mean(1)
    close = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.01}
    torch.testing.assert_close(got.flatten(1), rows[:, prefix:], **close)


def test_attention_functions_against_the_full_matrix():
    query, key = torch.randn(2, 3, 11, 4, generator=seeded(1)), torch.randn(2, 3, 11, 4, generator=seeded(2))
    matrix = (query @ key.transpose(-2, -1) * 0.5).softmax(-1).mean(1)
    torch.testing.assert_close(class_attention(query, key, 0.5, 2), matrix[:, 0, 2:])
    torch.testing.assert_close(class_attention(query, key, 0.5, 2, token=1), matrix[:, 1, 2:])
    torch.testing.assert_close(received_attention(query, key, 0.5, 2), matrix[:, 2:, 2:].mean(1))
    values = torch.rand(2, 11, generator=seeded(3))
    torch.testing.assert_close(attended(query, key, 0.5, values), (matrix @ values[..., None])[..., 0])


def test_models_without_readable_attention_give_their_last_map():
    model = resnet().eval()
    x = images((32, 24))
    energy = model.forward_features(x).square().mean(1).detach()
    torch.testing.assert_close(
        ModelSignals(model).of(x).attention((32, 24)), energy / energy.sum((1, 2), keepdim=True), rtol=1e-4, atol=1e-7
    )
    assert attention_blocks(model) == []
    assert attention_blocks(models.create("swin_tiny_patch4_window7_224", num_classes=5)) == []
    assert attention_blocks(models.create("eva02_tiny_patch14_224", num_classes=5)) == []
    assert attention_blocks(vit()) == ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]


def test_a_block_can_be_chosen():
    model, x = vit().eval(), images()
    last = ModelSignals(model).of(x).attention((32, 32))
    first = ModelSignals(model, block=0).of(x).attention((32, 32))
    assert not torch.allclose(first, last)
    with pytest.raises(ValueError, match="block 7 does not exist; there are 3"):
        ModelSignals(model, block=7).of(x).attention((32, 32))


def test_features_by_name_by_number_and_last():
    model, x = resnet().eval(), images()
    signals = ModelSignals(model).of(x)
    maps = [signals.features(stage, size=(32, 32)) for stage in ("layer2", 2, -2, None)]
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[0], maps[2])
    assert torch.equal(maps[3], model.forward_features(x).detach())
    tokens = ModelSignals(vit().eval()).of(images((32, 32))).features(size=(32, 32))
    assert tokens.shape == (4, 24, 4, 4)
    assert stage_name(vit(), -1) == "blocks.2"
    with pytest.raises(ValueError, match=r"stage 9 does not exist; the model has 4 stages"):
        stage_name(resnet(), 9)
    with pytest.raises(ValueError, match=r"no module 'layer9'; its modules include"):
        stage_name(resnet(), "layer9")


def test_tokens_of_images_that_are_not_square():
    assert token_grid(None, 24, (32, 48)) == (4, 6)
    assert token_grid(None, 49, (7, 7)) == (7, 7)
    with pytest.raises(ValueError, match="15 image tokens do not form a grid over images of 64 x 64"):
        token_grid(None, 15, (64, 64))
    with pytest.raises(ValueError, match="VisionTransformer drops patches in training"):
        ModelSignals(vit(patch_drop_rate=0.5)).of(images()).attention((32, 32), mode="train")
    across_channels = models.create("xcit_nano_12_p16_224", num_classes=5)
    assert all(name.startswith("cls_attn_blocks") for name in attention_blocks(across_channels))
    model = vit(img_size=(32, 48)).eval()
    assert ModelSignals(model).of(images((32, 48))).attention((32, 48)).shape == (4, 4, 6)


def test_models_that_lack_a_part_say_the_way_out():
    class Odd(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    signals = ModelSignals(Odd()).of(images(), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ValueError, match=r"no linear classifier to be found.*Signals\(cam=...\)"):
        signals.cam((32, 32))
    with pytest.raises(ValueError, match=r"name the module that puts it out, MixStep\(model, policy, .*signals=mixaug"):
        signals.attention((32, 32))
    assert signals.saliency().shape == (4, 32, 32)
    hidden = models.create("mobilenetv3_small_050", num_classes=5)
    with pytest.raises(ValueError, match=r"takes 1024 channels, but its last feature map has 288"):
        ModelSignals(hidden).of(images((64, 64)), LABELS).cam((64, 64))
    assert classifier_name(models.create("convnext_atto", num_classes=5)) == "head.fc"


def test_labels_and_dtypes_that_a_pass_needs():
    model = resnet()
    with pytest.raises(ValueError, match="saliency is that of the true labels: pass labels"):
        ModelSignals(model).of(images()).saliency()
    with pytest.raises(TypeError, match=r"does not take images of torch.uint8"):
        ModelSignals(model).of(images().to(torch.uint8), LABELS).saliency()
    with pytest.raises(ValueError, match=r"labels \(4,\) torch.float32 beside outputs \(4, 5\) needs a loss"):
        ModelSignals(model).of(images(), LABELS.float()).saliency()
    one = resnet(num_classes=1)
    with pytest.raises(ValueError, match=r"labels \(4, 1\) torch.float32 beside outputs \(4, 1\) needs a loss"):
        ModelSignals(one).of(images(), LABELS.float()[:, None]).saliency()
    squared = ModelSignals(model, loss=lambda outputs, labels: (outputs[:, 0] - labels).square().mean())
    assert squared.of(images(), LABELS.float()).saliency().shape == (4, 32, 32)


def test_given_signals():
    saliency = torch.rand(4, 8, 8, generator=seeded(1))
    given = Signals(
        saliency=saliency, cam=torch.ones(4, 2, 2), attention=torch.rand(4, 16), features={"a": saliency[:, None]}
    )
    assert torch.equal(given.saliency(), saliency)
    assert given.cam((8, 8)).isnan().all(), "a constant map says nothing"
    assert given.attention((8, 8)).shape == (4, 4, 4)
    assert given.features("a", size=(8, 8)).shape == (4, 1, 8, 8)
    with pytest.raises(ValueError, match=r"has features of \['a'\], but stage 'b' is asked for"):
        given.features("b", size=(8, 8))
    with pytest.raises(ValueError, match=r"asks for outputs, which these Signals lack: pass Signals\(outputs=...\)"):
        given.outputs()
    with pytest.raises(ValueError, match="kept by ModelSignals only"):
        given.saliency(keep_loss=True)
    with pytest.raises(
        TypeError, match=r"expects saliency as \(B, H, W\) gradient magnitudes, floating point, got list"
    ):
        Signals(saliency=[1.0])
    with pytest.raises(ValueError, match=r"tensors of one batch, got batch sizes \[3, 4\]"):
        Signals(saliency=saliency, attention=torch.rand(3, 16))
