"""Labels that only the mixed pass can tell: attention, progressive attention, labels that travel with tokens."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import functional
from mixaug.labeling import Attention, Progressive, TokenLabels
from mixaug.losses import MixedCrossEntropy
from mixaug.plan import Blend
from mixaug.signals import BlockAttention, MixedSignals, ModelSignals, Signals

vision_transformer = pytest.importorskip("timm.models.vision_transformer", reason="needs the train extra")

LABELINGS = ["attention", "progressive", "token_labels"]
CLASSES = 5


def make_vit(kind="class", size=(32, 32), **options):
    """A small transformer; trained it is not, but its attention is far from even."""
    from timm.models.deit import VisionTransformerDistilled

    made = {
        "class": {},
        "average": {"class_token": False, "global_pool": "avg"},
        "class and average": {"global_pool": "avg"},
        "registers": {"reg_tokens": 3},
        "normalised": {"qk_norm": True},
        "distilled": {},
    }[kind]
    of = VisionTransformerDistilled if kind == "distilled" else vision_transformer.VisionTransformer
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = {"img_size": size, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
        model = of(**sizes, **made, **options)
        for name, parameter in model.named_parameters():
            if "qkv" in name or "pos_embed" in name or name.startswith("head"):
                nn.init.normal_(parameter, std=0.5)
    return model.train()


def pictures(count=6, size=(32, 32), seed=0):
    return torch.randn(count, 3, *size, generator=seeded(seed)), torch.arange(count) % CLASSES


def eager_attention(model, images):
    """(blocks, B, heads, N, N): what the model multiplies its values with when it uses no fused kernel."""
    model, found = copy.deepcopy(model), []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0].detach()))
    model(images)
    return torch.stack(found)


def drawn(policy, model, images, labels, seed=3):
    """The mixed batch with its first weights, what its pass showed, and the batch with the final weights."""
    source = ModelSignals(model)
    clean = source.of(images, labels, policy.needs)
    mixed = policy(images, labels, signals=clean, generator=seeded(seed))
    with policy.tap(source, mixed, clean) as seen:
        model(mixed.inputs)
    return mixed, seen, policy.relabel(mixed, seen)


def slow_attention_share(attention, mask):
    """Token by token: attention on the own side over all attention."""
    count, rows, columns = attention.shape
    mask = mask.expand(count, *mask.shape[1:])
    shares = []
    for b in range(count):
        own = other = 0.0
        for i in range(rows):
            for j in range(columns):
                m = float(mask[b, i * mask.shape[1] // rows, j * mask.shape[2] // columns])
                own += m * float(attention[b, i, j])
                other += (1 - m) * float(attention[b, i, j])
        shares.append(own / (own + other))
    return torch.tensor(shares)


@pytest.mark.parametrize(
    ("size", "grid"), [((32, 32), (4, 4)), ((20, 30), (4, 6)), ((17, 23), (5, 7)), ((3, 2), (6, 4))]
)
@pytest.mark.parametrize("soft", [False, True])
def test_attention_share_against_a_loop(size, grid, soft):
    attention = torch.rand(4, *grid, generator=seeded(1)) ** 3
    mask = torch.rand(4, *size, generator=seeded(2))
    mask = mask if soft else mask < 0.6
    share = functional.attention_lam(attention, mask)
    torch.testing.assert_close(share, slow_attention_share(attention, mask))
    lam = torch.rand(4, generator=seeded(3))
    torch.testing.assert_close(functional.attention_lam(attention, mask, lam), (share + lam) / 2)
    torch.testing.assert_close(functional.attention_lam(attention, mask, lam, attention_share=1.0), share)
    torch.testing.assert_close(functional.attention_lam(attention, mask, lam, attention_share=0.0), lam)


def test_attention_share_takes_every_form_of_the_same_mask():
    attention = torch.rand(5, 4, 6, generator=seeded(4))
    mask = torch.rand(5, 20, 30, generator=seeded(5)) < 0.5
    expected = functional.attention_lam(attention, mask)
    tokens = functional.mask_at_tokens(mask, (4, 6))
    assert tokens.dtype == torch.bool
    for form in (mask[:, None], mask.to(torch.uint8), mask.double(), tokens, tokens.flatten(1)):
        assert torch.equal(functional.attention_lam(attention, form), expected)
    assert torch.equal(functional.attention_lam(attention.flatten(1), mask), expected)
    # The scale of the attention has no say, nor its precision a large one.
    torch.testing.assert_close(functional.attention_lam(attention * 1e-30, mask), expected)
    torch.testing.assert_close(functional.attention_lam(attention.half(), mask), expected, rtol=0, atol=1e-3)
    one = functional.attention_lam(attention, mask[:1])
    assert torch.equal(one, functional.attention_lam(attention, mask[:1].expand(5, -1, -1)))


def test_tokens_are_read_at_their_first_pixel():
    # floor(i 32 / 7): the sheet's case of a side that is no multiple of the grid.
    mask = torch.arange(32).expand(1, 32, 32)
    assert functional.mask_at_tokens(mask, (7, 7))[0, 0].tolist() == [0, 4, 9, 13, 18, 22, 27]
    for side in range(1, 40):
        for count in range(1, 12):
            got = functional.mask_at_tokens(torch.arange(side).expand(1, 1, side), (1, count))
            assert got.flatten().tolist() == [i * side // count for i in range(count)]


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_attention_without_a_meaning_leaves_the_area(value):
    attention = torch.rand(3, 4, 4, generator=seeded(6))
    attention[1] = value
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[:, :, :2] = True
    lam = torch.tensor([0.2, 0.3, 0.4])
    got = functional.attention_lam(attention, mask, lam)
    assert got[1] == lam[1]
    assert functional.attention_lam(attention, mask)[1] == 0.25
    assert got.isfinite().all()
    assert (got[[0, 2]] != lam[[0, 2]]).all()


def test_attention_of_one_side_alone():
    attention = torch.rand(2, 4, 4, generator=seeded(7))
    assert functional.attention_lam(attention, torch.ones(1, 8, 8)).tolist() == [1, 1]
    assert functional.attention_lam(attention, torch.zeros(1, 8, 8)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("attention", "mask", "lam", "error", "match"),
    [
        (torch.ones(2, 16).long(), torch.ones(2, 8, 8), None, TypeError, "floating-point attention"),
        (torch.ones(2, 16, 1, 1), torch.ones(2, 8, 8), None, ValueError, r"attention \(B, N\) or \(B, h, w\)"),
        (torch.ones(2, 16), torch.ones(3, 8, 8), None, ValueError, "for attention"),
        (torch.ones(2, 16), torch.ones(2, 3, 8, 8), None, ValueError, r"mask expects \(R, 1, H, W\)"),
        (torch.ones(2, 15), torch.ones(2, 8, 8), None, ValueError, "15 image tokens do not form a grid"),
        (torch.ones(2, 16), torch.ones(2, 15), None, ValueError, r"got \(2, 15\) per token"),
        (torch.ones(2, 16), torch.ones(2, 16), torch.ones(3), ValueError, r"lam \(2,\) or \(1,\)"),
        (torch.ones(2, 16), torch.ones(2, 16), torch.ones(2).long(), TypeError, "floating-point lam"),
    ],
)
def test_attention_lam_says_what_is_wrong(attention, mask, lam, error, match):
    with pytest.raises(error, match=match):
        functional.attention_lam(attention, mask, lam)


def test_progressive_factor_by_its_definition():
    logits = torch.randn(6, 7, generator=seeded(8)) * 3
    targets = torch.rand(6, 7, generator=seeded(9))
    predicted = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = (predicted * targets).sum(1) / (predicted.norm(dim=1) * targets.norm(dim=1))
    torch.testing.assert_close(functional.progressive_factor(targets, logits), expected)
    # An even prediction and the target of one class of K: 1 / sqrt(K).
    even = functional.progressive_factor(torch.eye(9), torch.zeros(9, 9))
    torch.testing.assert_close(even, torch.full((9,), 1 / 3))
    torch.testing.assert_close(functional.progressive_factor(predicted, logits), torch.ones(6))
    with pytest.raises(ValueError, match="of one shape"):
        functional.progressive_factor(targets, logits[:, :3])


def test_progressive_weight_goes_from_area_to_attention():
    attention, mask = torch.rand(4, 16, generator=seeded(10)), torch.rand(4, 16, generator=seeded(11)) < 0.5
    lam, targets = torch.full((4,), 0.5), torch.eye(4)
    share = functional.attention_lam(attention, mask)
    good = functional.progressive_lam(attention, mask, lam, targets, 40 * targets)
    torch.testing.assert_close(good, share)
    bad = functional.progressive_lam(attention, mask, lam, targets, 40 * targets.roll(1, 0))
    torch.testing.assert_close(bad, lam)
    even = functional.progressive_lam(attention, mask, lam, targets, torch.zeros(4, 4))
    torch.testing.assert_close(even, (share + lam) / 2)
    broken = functional.progressive_lam(attention, mask, lam, targets, torch.full((4, 4), float("inf")))
    assert torch.equal(broken, lam)


def random_attention(blocks, count, tokens, seed):
    return torch.randn(blocks, count, tokens, tokens, generator=seeded(seed), dtype=torch.float64).mul(2).softmax(-1)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_one_number_for_each_token_equals_a_row_of_classes(prefix):
    attentions = random_attention(4, 3, prefix + 9, 12)
    own = torch.rand(3, 9, generator=seeded(13))
    lam = own.mean(1)
    first = F.one_hot(torch.tensor([0, 1, 2]), 4).double()
    second = F.one_hot(torch.tensor([3, 0, 2]), 4).double()
    start = torch.cat([lam[:, None].expand(-1, prefix), own], 1)[..., None].double()
    rows = start * first[:, None] + (1 - start) * second[:, None]
    for attention in attentions:
        rows = (attention @ rows + rows) / 2
    shares = functional.token_label_shares(list(attentions), own, lam, prefix)[..., None].double()
    torch.testing.assert_close(shares * first[:, None] + (1 - shares) * second[:, None], rows, rtol=0, atol=1e-6)
    mean = functional.token_label_share(list(attentions), own, lam, prefix, pooled=True)
    torch.testing.assert_close(mean, shares[:, prefix:, 0].mean(1).float())
    if prefix:
        assert torch.equal(functional.token_label_share(list(attentions), own, lam, prefix), shares[:, 0, 0].float())
    else:
        with pytest.raises(ValueError, match="pass pooled=True"):
            functional.token_label_share(list(attentions), own, lam, 0)


def test_labels_travel_through_queries_and_keys_as_through_matrices():
    blocks = [BlockAttention(*torch.randn(2, 3, 2, 10, 8, generator=seeded(s)), 0.4, 1) for s in range(3)]
    matrices = [(b.query @ b.key.transpose(-2, -1) * b.scale).softmax(-1).mean(1) for b in blocks]
    own, lam = torch.rand(3, 3, 3, generator=seeded(14)), torch.rand(3, generator=seeded(15))
    expected = functional.token_label_shares(matrices, own, lam)
    torch.testing.assert_close(functional.token_label_shares(blocks, own, lam), expected)
    # Queries of the class token alone: the others keep their labels.
    last = BlockAttention(blocks[0].query[:, :, :1], blocks[0].key, 0.4, 1)
    shares = functional.token_label_shares([last], own, lam)
    assert torch.equal(shares[:, 1:], own.flatten(1))
    torch.testing.assert_close(shares[:, 0], functional.token_label_shares(matrices[:1], own, lam)[:, 0])


def test_token_labels_say_what_is_wrong():
    attentions, own, lam = list(random_attention(2, 3, 10, 16)), torch.rand(3, 9), torch.rand(3)
    with pytest.raises(ValueError, match="block 1 is"):
        functional.token_label_shares([attentions[0], attentions[1][:, :4, :4]], own, lam)
    with pytest.raises(ValueError, match="token_mask"):
        functional.token_label_shares(attentions, own[:2], lam)
    with pytest.raises(TypeError, match="floating-point lam"):
        functional.token_label_shares(attentions, own, lam.long())
    broken = [torch.full((3, 10, 10), float("nan"))]
    assert torch.equal(functional.token_label_share(broken, own, lam), lam)


KINDS = ["class", "average", "class and average", "registers", "normalised", "distilled"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
def test_weights_from_the_pass_equal_those_of_eager_attention(kind, size):
    model, (images, labels) = make_vit(kind, size), pictures(size=size)
    prefix, grid = model.num_prefix_tokens, (size[0] // 8, size[1] // 8)
    for labeling in LABELINGS:
        policy = mixaug.create("cutmix", labeling=labeling)
        mixed, seen, final = drawn(policy, model, images, labels)
        attention, mask, area = eager_attention(model, mixed.inputs).mean(2), mixed.mask, mixed.lam
        rows = attention[-1][:, 0, prefix:] if model.has_class_token else attention[-1].mean(1)
        if labeling != "token_labels":
            assert model.training
            torch.testing.assert_close(seen.attention(size), rows.unflatten(1, grid), rtol=0, atol=1e-5)
        share = slow_attention_share(rows.unflatten(1, grid), mask[:, 0])
        if labeling == "attention":
            expected = (share + area) / 2
        elif labeling == "progressive":
            rho = F.cosine_similarity(mixed.targets(CLASSES, 0.1), model(mixed.inputs).softmax(1).detach())
            expected = rho * share + (1 - rho) * area
        else:
            tokens = F.avg_pool2d(mask, 8).flatten(1)
            w = torch.cat([area[:, None].expand(-1, prefix), tokens], 1)
            for block in attention:
                w = ((block @ w[..., None])[..., 0] + w) / 2
            expected = w[:, 0] if model.has_class_token and model.global_pool == "token" else w[:, prefix:].mean(1)
        torch.testing.assert_close(final.lam, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(final.weights.sum(1), torch.ones(len(images)))
        assert (final.lam - area).abs().max() > 1e-3
        assert torch.equal(mixed.lam, area), "the batch as it was mixed has changed"
        assert torch.equal(policy.relabel(final, seen).weights, final.weights)


@pytest.mark.parametrize("labeling", LABELINGS)
def test_fused_attention_stays_on(labeling, monkeypatch):
    model, (images, labels) = make_vit(), pictures()
    fused, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a[2].shape) or fused(*a, **k))
    step = mixaug.MixStep(model, mixaug.create("cutmix", labeling=labeling), MixedCrossEntropy())
    step(images, labels, generator=seeded(0))
    # One pass, no second one; where labels travel, one product more for each block.
    assert len(calls) == len(model.blocks) * (2 if labeling == "token_labels" else 1)
    assert all(block.attn.fused_attn for block in model.blocks)


@pytest.mark.parametrize("labeling", LABELINGS)
def test_weights_are_constants_of_the_loss(labeling):
    images, labels = pictures()
    model, policy, objective = make_vit(), mixaug.create("cutmix", labeling=labeling), MixedCrossEntropy()
    loss, scalars = mixaug.MixStep(model, policy, objective)(images, labels, generator=seeded(3))
    loss.backward()
    _, _, final = drawn(policy, model, images, labels)
    assert not final.weights.requires_grad
    again = make_vit()
    written_out = objective(again(final.inputs), final)
    written_out.backward()
    torch.testing.assert_close(loss, written_out)
    assert set(scalars) == {"loss", "accuracy"}
    for parameter, expected in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
    hooks = [h for m in model.modules() for h in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]]
    assert not hooks


@pytest.mark.parametrize("labeling", LABELINGS)
@pytest.mark.parametrize("name", ["cutmix", "fmix", "resizemix", "gridmix", "smoothmix", "patchmix", "maskmix"])
@pytest.mark.parametrize("per", ["sample", "batch", "pair"])
def test_any_cut_mask(name, labeling, per):
    model, (images, labels) = make_vit(size=(24, 40)), pictures(size=(24, 40))
    policy = mixaug.create(name, labeling=labeling, per=per)
    mixed, _, final = drawn(policy, model, images, labels)
    assert final.weights.shape == (6, 2)
    assert ((final.weights >= 0) & (final.weights <= 1)).all()
    torch.testing.assert_close(mixed.lam, mixed.mask.mean((1, 2, 3)), rtol=0, atol=1e-5)
    assert (final.lam - mixed.lam).abs().max() > 1e-4


class Blending(mixaug.Policy):
    """A policy of which nobody said that it has no mask."""

    def sample(self, batch, partner, draws):
        return Blend(partner=partner, lam=self.ratio(draws).float())


@pytest.mark.parametrize("labeling", LABELINGS)
def test_a_blend_keeps_its_weights(labeling):
    model, (images, labels) = make_vit(), pictures()
    mixed, _, final = drawn(Blending(labeling=labeling), model, images, labels)
    assert torch.equal(final.weights, mixed.weights)
    alone = mixaug.create("cutmix", labeling=labeling)(images[:1], labels[:1], signals=model)
    assert alone.weights.tolist() == [[1, 0]]


@pytest.mark.parametrize("labeling", LABELINGS)
def test_half_precision_pass(labeling):
    model, (images, labels) = make_vit(), pictures()
    policy = mixaug.create("cutmix", labeling=labeling)
    _, _, exact = drawn(policy, model, images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _, final = drawn(policy, model, images, labels)
        loss, _ = mixaug.MixStep(model, policy, MixedCrossEntropy())(images, labels, generator=seeded(3))
    assert final.weights.dtype == torch.float32
    assert torch.equal(mixed.sources, exact.sources)
    torch.testing.assert_close(final.lam, exact.lam, rtol=0, atol=0.03)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("labeling", ["attention", "progressive"])
def test_a_convolutional_network_has_a_substitute(labeling):
    model = mixaug.models.create("cifar_resnet8", num_classes=CLASSES).train()
    images, labels = pictures()
    mixed, _, final = drawn(mixaug.create("cutmix", labeling=labeling), model, images, labels)
    assert final.weights.isfinite().all()
    assert (final.lam - mixed.lam).abs().max() > 1e-3
    # Mean square of the last map, as it says.
    found = []
    copied = copy.deepcopy(model)
    copied.global_pool.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0].detach()))
    outputs = copied(mixed.inputs).detach()
    share = functional.attention_lam(found[0].square().mean(1), mixed.mask)
    rho = functional.progressive_factor(mixed.targets(CLASSES, 0.1), outputs) if labeling == "progressive" else 0.5
    torch.testing.assert_close(final.lam, mixed.lam + rho * (share - mixed.lam))


def test_token_labels_name_the_model_that_has_none():
    model = mixaug.models.create("cifar_resnet8", num_classes=CLASSES)
    with pytest.raises(ValueError, match="no global attention whose queries and keys"):
        mixaug.MixStep(model, mixaug.create("cutmix", labeling="token_labels"), MixedCrossEntropy())


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_only_what_was_drawn_with_it_is_relabelled(per):
    model, (images, labels) = make_vit(), pictures(8)
    choice = mixaug.OneOf([mixaug.create("mixup", per="batch"), mixaug.create("transmix")], [0.5, 0.5], per=per)
    seen_kinds = set()
    for seed in range(12):
        mixed, seen, final = drawn(choice, model, images, labels, seed)
        if per == "sample":
            cut = mixed.plan.choice == 1
        else:
            cut = torch.tensor(mixed.plan.route == (1,)).expand(8)
        expected = mixed.lam.clone()
        if cut.any():
            mask = mixed.mask
            attention = functional.attention_lam(seen.attention((32, 32)), mask, mixed.lam)
            expected = torch.where(cut, attention, expected)
        torch.testing.assert_close(final.lam, expected)
        seen_kinds |= set(cut.tolist())
        if not cut.any():
            assert torch.equal(final.weights, mixed.weights)
    assert seen_kinds == {True, False}


def test_given_attention_relabels_without_a_model():
    images, labels = pictures()
    attention = torch.rand(6, 4, 4, generator=seeded(20))
    policy = mixaug.create("cutmix", labeling="attention")
    mixed = policy(images, labels, signals=Signals(attention=attention), generator=seeded(21))
    final = policy.relabel(mixed, Signals(attention=attention))
    torch.testing.assert_close(final.lam, functional.attention_lam(attention, mixed.mask, mixed.lam))


def test_options_and_errors():
    assert create_labeling("attention").attention_share == 0.5
    assert create_labeling("progressive").label_smoothing == 0.1
    assert isinstance(create_labeling("token_labels"), TokenLabels)
    with pytest.raises(ValueError, match=r"attention_share in \[0, 1\]"):
        Attention(1.5)
    with pytest.raises(ValueError, match="'mixed' or 'own'"):
        Progressive("clean")
    with pytest.raises(ValueError, match=r"label_smoothing in \[0, 1\]"):
        Progressive(label_smoothing=-0.1)
    policy = mixaug.create("cutmix", labeling="attention")
    assert pickle.loads(pickle.dumps(policy)).labeling.attention_share == 0.5
    with pytest.raises(ValueError, match="needs attention of the model"):
        policy(*pictures())
    with pytest.raises(ValueError, match=r"expects images \(B, C, H, W\), got shape \(4, 3, 9\)"):
        policy(torch.rand(4, 3, 9), signals=Signals(attention=torch.rand(4, 9)))


def create_labeling(name):
    return mixaug.create("cutmix", labeling=name).labeling


def test_progressive_needs_classes_and_the_clean_signals():
    model, (images, labels) = make_vit(), pictures()
    policy = mixaug.create("cutmix", labeling="progressive")
    with pytest.raises(ValueError, match="no labels"):
        drawn(policy, model, images, None)
    with pytest.raises(TypeError, match=r"float labels of shape \(6,\) are numbers"):
        drawn(policy, model, images, torch.rand(6))
    dense = F.one_hot(labels, CLASSES).float()
    torch.testing.assert_close(
        drawn(policy, model, images, dense)[2].weights, drawn(policy, model, images, labels)[2].weights
    )
    own = mixaug.create("cutmix", labeling=Progressive("own"))
    mixed = own(images, labels, signals=model)
    with own.tap(model, mixed) as seen:
        model(mixed.inputs)
    assert isinstance(seen, MixedSignals)
    with pytest.raises(ValueError, match="own images' attention"):
        own.relabel(mixed, seen)
