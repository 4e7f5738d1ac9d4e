"""Where the parts of other people's models are found, and which policies train with which of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import backbones as tool
import mixaug
from helpers import seeded
from mixaug.losses import MixedCrossEntropy
from mixaug.signals import backbone

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("transformers", reason="needs transformers")

#: Middle stage, its channels, stages mixed by Manifold Mixup, last map (True: its input), classifier, number of
#: tokens before the image's: from the models' own code.
PARTS = {
    "timm/resnet10t": ("layer3", 256, ("layer1", "layer2"), ("global_pool", True), "fc", 0),
    "timm/vit_tiny": ("blocks.1", 32, ("blocks.0", "blocks.1"), ("norm", False), "head", 1),
    "torchvision/resnet18": ("layer3", 256, ("layer1", "layer2"), ("avgpool", True), "fc", 0),
    "torchvision/vit": (
        "encoder.layers.encoder_layer_0",
        32,
        ("encoder.layers.encoder_layer_0",),
        ("encoder.ln", False),
        "heads.head",
        1,
    ),
    "torchvision/swin": ("features.5", 64, ("features.1", "features.3"), ("avgpool", True), "head", 0),
    "torchvision/convnext_tiny": (
        "features.5",
        384,
        ("features.1", "features.3"),
        ("avgpool", True),
        "classifier.2",
        0,
    ),
    "torchvision/efficientnet_b0": (
        "features.5",
        112,
        ("features.2", "features.3"),
        ("avgpool", True),
        "classifier.1",
        0,
    ),
    "torchvision/mobilenet_v3_small": (
        "features.8",
        48,
        ("features.1", "features.3"),
        ("avgpool", True),
        "classifier.3",
        0,
    ),
    "torchvision/densenet121": (
        "features.denseblock3",
        1024,
        ("features.denseblock1", "features.denseblock2"),
        ("features.norm5", False),
        "classifier",
        0,
    ),
    "transformers/vit": ("vit.layers.0", 32, ("vit.layers.0",), ("vit.layernorm", False), "classifier", 1),
    "transformers/deit": ("deit.layers.0", 32, ("deit.layers.0",), ("deit.layernorm", False), "classifier", 2),
    "transformers/resnet": (
        "resnet.encoder.stages.2",
        16,
        ("resnet.encoder.stages.0", "resnet.encoder.stages.1"),
        ("resnet.pooler", True),
        "classifier.1",
        0,
    ),
    "nn.Sequential": ("4", 16, ("1", "4"), ("8", True), "10", 0),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_found(name):
    with torch.device("meta"):
        model = tool.BACKBONES[name]()
    middle, channels, mixed, last, classifier, prefix = PARTS[name]
    assert backbone.middle_stage(model) == middle
    assert backbone.stage_channels(model, middle) == channels
    assert mixaug.create("manifoldmix").hidden_stages(mixaug.ModelSignals(model)) == mixed
    assert backbone.last_map(model) == last
    assert backbone.classifier_name(model) == classifier
    assert backbone.prefix_tokens(model) == prefix
    assert backbone.channels_last(model) == (name == "torchvision/swin")


@pytest.mark.parametrize("policy", ["alignmix", "automix", "puzzlemix", "transmix"])
def test_policies_train_with_a_hugging_face_model(policy):
    assert tool.trains("transformers/vit", policy) == ""


def test_attention_of_a_hugging_face_model_is_what_it_returns_itself():
    torch.manual_seed(0)
    model = tool.BACKBONES["transformers/deit"]().eval()
    model.set_attn_implementation("eager")
    images = torch.rand(2, 3, 96, 96, generator=seeded(0))
    attentions = model(images, output_attentions=True).attentions[-1]
    got = mixaug.ModelSignals(model).of(images).attention((96, 96))
    # The class token's row; behind it lies the token of distillation.
    torch.testing.assert_close(got, attentions.mean(1)[:, 0, 2:].unflatten(1, (6, 6)))


def test_saliency_takes_an_output_object_or_the_users_loss_of_one():
    torch.manual_seed(0)
    model = tool.BACKBONES["transformers/vit"]().eval()
    images, labels = torch.rand(2, 3, 96, 96, generator=seeded(0), requires_grad=True), torch.tensor([0, 1])
    loss = nn.functional.cross_entropy(model(images).logits, labels)
    (gradient,) = torch.autograd.grad(loss, images)
    expected = gradient.square().mean(1).sqrt()
    for own in (None, lambda outputs, labels: nn.functional.cross_entropy(outputs.logits, labels)):
        got = mixaug.ModelSignals(model, loss=own).of(images, labels).saliency()
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["resnet10t", pytest.param("efficientnet_b0", marks=pytest.mark.slow)])
@pytest.mark.parametrize("policy", ["automix", "samix", "manifoldmix", "alignmix"])
def test_checkpointed_activations_change_nothing(name, policy):
    images, labels = torch.rand(4, 3, 48, 48, generator=seeded(0)), torch.arange(4)
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=5, drop_rate=0.0)
        model.set_grad_checkpointing(checkpointing)
        options = {"input_probability": 0.0} if policy == "alignmix" else {}
        options = {"stages": ["layer2"]} if (policy, name) == ("manifoldmix", "resnet10t") else options
        step = mixaug.MixStep(model, mixaug.create(policy, **options), MixedCrossEntropy())
        loss, _ = step(images, labels, generator=seeded(1))
        loss.backward()
        found.append((loss.detach(), next(model.parameters()).grad))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("alignmix", "counts the stages of Linear, in which none were found"),
        ("manifoldmix", "ManifoldMix found no stages in Linear"),
        ("tlalign", "TLAlign: Linear has no global attention"),
        ("transmix", "TransMix: the last feature map of Linear was not found"),
    ],
)
def test_what_the_model_lacks_is_said_when_the_step_is_made(policy, message):
    with pytest.raises(ValueError, match=message):
        mixaug.MixStep(nn.Linear(4, 3), mixaug.create(policy), MixedCrossEntropy())


@pytest.mark.parametrize("wrapper", [nn.DataParallel])
def test_a_wrapped_model_is_refused(wrapper):
    with pytest.raises(ValueError, match="wrap the step, not the model"):
        mixaug.MixStep(wrapper(nn.Conv2d(3, 4, 1)), mixaug.create("automix"), MixedCrossEntropy())


def test_a_sharded_model_is_refused():
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model = fully_shard(nn.Conv2d(4, 4, 1), mesh=init_device_mesh("cpu", (2,)))
        with pytest.raises(ValueError, match="shard the step, not the model"):
            mixaug.MixStep(model, mixaug.create("puzzlemix"), MixedCrossEntropy())
        model = FullyShardedDataParallel(nn.Conv2d(4, 4, 1), device_id=torch.device("cpu"))
        with pytest.raises(ValueError, match="wrap the step, not the model"):
            mixaug.MixStep(model, mixaug.create("puzzlemix"), MixedCrossEntropy())
        # Parts that are sharded when the step is there already.
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        step = mixaug.MixStep(model, mixaug.create("puzzlemix"), MixedCrossEntropy())
        mesh = init_device_mesh("cpu", (1,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(step, mesh=mesh)
        with pytest.raises(ValueError, match=r"PuzzleMix runs parts of the model .* shard the step alone"):
            step(torch.rand(4, 3, 8, 8), torch.arange(4) % 3)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_table_is_what_the_models_do():
    assert tool.table() in (ROOT / "docs" / "backbones.md").read_text(), "run python tools/backbones.py"
