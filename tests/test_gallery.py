"""The picture sheet of all policies, and that of a model's signals."""

import copy
import dataclasses
import importlib.util

import pytest
import torch

import mixaug
from helpers import ours, seeded
from mixaug import gallery, models, registry
from mixaug.plan import Blend, MaskBlend

IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=seeded(0))
NAMES = ours()


@pytest.fixture(scope="module")
def tool(request):
    path = request.config.rootpath / "tools" / "gallery.py"
    spec = importlib.util.spec_from_file_location("gallery_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_pairs_mix_the_two_images(name):
    batches = gallery.mixed_pairs(name, IMAGES, (0.2, 0.8))
    assert len(batches) == 2
    for share, mixed in zip((0.2, 0.8), batches, strict=True):
        assert mixed.inputs.dtype == torch.uint8
        if name != "none":
            assert mixed.sources[:, 1].tolist() == [1, 0]
        if name in ("mixup", "fmix"):
            assert mixed.lam[0].item() == pytest.approx(share)


# What any policy makes of two images is seen above; here is drawn, which takes a tenth of a second for each.
@pytest.mark.parametrize("shown", [NAMES[::5], pytest.param(NAMES, marks=pytest.mark.slow)], ids=["a fifth", "all"])
def test_sheet_shows_every_policy_with_its_label_share(shown):
    figure = gallery.sheet(shown, IMAGES, (0.3, 0.6))
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    names = [axes.get_ylabel().split("\n")[0] for axes in figure.axes if axes.get_ylabel()]
    assert names == shown
    for name in shown:
        for mixed in gallery.mixed_pairs(name, IMAGES, (0.3, 0.6)):
            own = sum(w for w, s in zip(mixed.weights[0].tolist(), mixed.sources[0].tolist(), strict=True) if s == 0)
            assert f"{own:.2f} own" in texts
    bars = [patch for axes in figure.axes for patch in axes.patches]
    own, partner = (sum(bar.get_width() for bar in bars[start::2]) for start in (0, 1))
    assert own + partner == pytest.approx(2 * len(shown))


def test_tool_writes_the_sheet_and_a_strip_for_each(tool, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "all.png"), "--strips", str(tmp_path / "one"), "--size", "32"]
    assert tool.main([*arguments, "--policies", "mixup", "cutmix"]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["all.png", "cutmix.png", "mixup.png"]
    assert tool.main([*arguments, "--policies", "cutmx"]) == 2
    assert "Did you mean 'cutmix'" in capsys.readouterr().err


def test_a_row_has_a_picture_of_each_policy(tool, tmp_path, capsys):
    figure = gallery.row(["mixup", "none"], IMAGES, share=0.3)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["an image", "its partner", "mixup", "none"]
    texts = ["its own label", "the partner's label", "0.30 own", "1.00 own"]
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == texts
    # The bars below the two images are the key: whole, and in the colours of the mixed ones.
    bars = [[(bar.get_width(), bar.get_facecolor()) for bar in axes.patches] for axes in figure.axes]
    [(one, own)], [(other, partner)], mixed, _ = bars
    assert one == other == 1 and own != partner
    assert mixed == [(pytest.approx(0.3), own), (pytest.approx(0.7), partner)]
    path = tmp_path / "row.png"
    assert tool.main(["--row", "--policies", "cutmix", "--size", "32", "--out", str(path)]) == 0
    assert path.is_file() and capsys.readouterr().out == f"wrote {path}\n"
    with pytest.raises(SystemExit):
        tool.main(["--row", "--only", "cutmix", "--strips", str(tmp_path)])
    assert "leave out --only" in capsys.readouterr().err


def test_tool_draws_one_strip_and_touches_nothing_else(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "one" / "cutmix.png"
    other.parent.mkdir()
    other.write_bytes(b"as it was")
    assert tool.main(["--only", "mixup", "--strips", "one", "--size", "32"]) == 0
    assert capsys.readouterr().out.split() == ["wrote", "one/mixup.png"]
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["cutmix.png", "mixup.png"]
    assert other.read_bytes() == b"as it was"
    for wrong in (["--only", "mixup"], ["--only", "mixup", "--strips", "one", "--policies", "cutmix"]):
        with pytest.raises(SystemExit):
            tool.main(wrong)
        assert "--only says which" in capsys.readouterr().err


def test_a_strip_has_the_same_bytes_whatever_was_drawn_before(tmp_path):
    names = ["fmix", "automix"]
    first = [path.read_bytes() for path in gallery.draw_strips(names, tmp_path / "first", IMAGES)]
    torch.manual_seed(1234)
    gallery.draw_strips(["saliencymix"], tmp_path, IMAGES)
    again = [path.read_bytes() for path in gallery.draw_strips(names[::-1], tmp_path / "again", IMAGES)]
    assert first == again[::-1]
    assert first[0] != first[1]
    with pytest.raises(ValueError, match="unknown policy 'fmx'"):
        gallery.draw_strips(["mixup", "fmx"], tmp_path / "none", IMAGES)
    assert not (tmp_path / "none").exists()


def test_photographs_are_real_and_square():
    images = gallery.photographs(40)
    assert images.shape == (2, 3, 40, 40)
    assert images.dtype == torch.uint8
    assert images.float().std() > 20


# -- learned mixers ------------------------------------------------------------------------------------------------


class GivenFeatures(mixaug.Policy):
    """A mask by a random network on given features, as automix has it."""

    needs = frozenset({"features"})
    spatial = (2,)

    def __init__(self, ratio: float | str = "beta", channels: int | None = None) -> None:
        super().__init__(ratio=ratio)
        assert channels is not None
        self.block = torch.nn.Conv2d(channels, 1, 1)

    def mixer_parameters(self):
        return list(self.block.parameters())

    def sample(self, batch, partner, draws):
        mask = self.block(batch.ask("GivenFeatures").features(size=batch.size)).sigmoid()
        mask = torch.nn.functional.interpolate(mask, batch.size)[:, 0]
        return MaskBlend(partner=partner, lam=self.ratio(draws), mask=mask, size=batch.size)


class OwnNetwork(mixaug.Policy):
    """A share by a network that is made when the policy meets its model, as adamixup has it."""

    needs = frozenset({"pooled"})
    spatial = (2,)

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha=alpha)
        self.network = None

    def on_attach(self, signals):
        self.network = copy.deepcopy(signals.inner)

    def mixer_parameters(self):
        return [] if self.network is None else list(self.network.parameters())

    def sample(self, batch, partner, draws):
        return Blend(partner=partner, lam=self.network(batch.images)[:, 0].sigmoid())


@pytest.fixture
def learned(monkeypatch):
    for name, target in (("given_features", GivenFeatures), ("own_network", OwnNetwork)):
        info = dataclasses.replace(
            mixaug.describe("mixup"),
            name=name,
            target=target,
            needs=target.needs,
            defaults=registry._defaults(name, target),
        )
        monkeypatch.setitem(registry._registered, name, info)
    return ["given_features", "own_network"]


def test_mixers_that_have_learned_nothing_are_drawn_and_say_so(learned):
    state = torch.get_rng_state()
    for name in learned:
        one, two = (gallery.mixed_pairs(name, IMAGES, (0.2, 0.8), seed=3) for _ in range(2))
        assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(one, two, strict=True))
        assert one[0].inputs.dtype == torch.uint8
        own, partner = IMAGES.float(), IMAGES.flip(0).float()
        share = one[0].mask if name == "given_features" else one[0].lam.reshape(2, 1, 1, 1)
        expected = share * own + (1 - share) * partner
        torch.testing.assert_close(one[0].inputs.float(), expected, rtol=0, atol=0.51)
        assert not one[0].weights.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    figure = gallery.sheet([*learned, "mixup", "smmix"], IMAGES, (0.3,))
    marked = [axes.get_ylabel().split("\n")[0] for axes in figure.axes if "untrained" in axes.get_ylabel()]
    assert marked == learned


# -- signals of a model --------------------------------------------------------------------------------------------


def cnn(classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.create("cifar_resnet8", num_classes=classes, in_chans=3).train()


def vit(classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
        return models.create("vit_tiny_patch16_224", num_classes=classes, in_chans=3, **small).train()


PICTURES = torch.rand(4, 3, 16, 16, generator=seeded(1))
LABELS = torch.tensor([0, 3, 1, 3])


def headings(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


#: With each network no policy, and policies with a mask, without one, with signals of their own and inside the model.
SIGNAL_SHEETS = {(None, cnn), ("manifoldmix", cnn), ("puzzlemix", cnn), (None, vit), ("mixup", vit), ("transmix", vit)}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param(name, make, marks=() if (name, make) in SIGNAL_SHEETS else pytest.mark.slow)
        for name in (None, "mixup", "cutmix", "puzzlemix", "snapmix", "transmix", "manifoldmix")
        for make in (cnn, vit)
    ],
)
def test_signal_sheet_of_any_model_and_policy(make, name):
    model = make()
    policy = None if name is None else mixaug.create(name, **({"stages": [-1]} if name == "manifoldmix" else {}))
    figure = gallery.signal_sheet(model, PICTURES, LABELS, policy, class_names=list("abcde"), title="a run")
    attention = "attention" if make is vit else "feature energy"
    signals = ["saliency", "class activation", attention]
    masks = ["own share"] if name in ("cutmix", "puzzlemix", "snapmix", "transmix") else []
    assert headings(figure) == ["image", *([] if name is None else ["partner"]), *signals] + (
        [] if name is None else ["mixed", *masks]
    )
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["a", "d", "b", "d"]
    figure.canvas.draw()


def test_signal_sheet_shows_the_models_own_signals_and_the_policys_own_draw():
    model, policy = cnn(), mixaug.create("cutmix")
    figure = gallery.signal_sheet(model, PICTURES, LABELS, policy, seed=5)
    mixed = policy(PICTURES, LABELS, generator=seeded(5))
    model.eval()
    signals = mixaug.ModelSignals(model).of(PICTURES, LABELS)
    saliency, cam = signals.saliency(), signals.cam((16, 16))
    columns = len(headings(figure))
    for row in range(len(PICTURES)):
        cells = figure.axes[row * columns : (row + 1) * columns]
        image, partner, *maps, shown, mask = [cell.images[-1].get_array() for cell in cells]
        assert torch.allclose(torch.as_tensor(image), PICTURES[row].permute(1, 2, 0))
        assert torch.allclose(torch.as_tensor(partner), PICTURES[int(mixed.partner[row])].permute(1, 2, 0))
        assert torch.allclose(torch.as_tensor(shown), mixed.inputs[row].permute(1, 2, 0))
        assert torch.equal(torch.as_tensor(mask.data), mixed.mask[row, 0])
        for drawn, expected in zip(maps[:2], (saliency[row], cam[row]), strict=True):
            torch.testing.assert_close(torch.as_tensor(drawn.data), expected / expected.max(), rtol=1e-4, atol=1e-5)
        assert [text.get_text() for text in cells[-2].texts] == [f"{mixed.lam[row].item():.2f} own"]


def test_label_shares_are_those_after_the_mixed_pass():
    model, policy = vit(), mixaug.create("transmix")
    figure = gallery.signal_sheet(model, PICTURES, LABELS, policy)
    model.eval()
    mixed = policy(PICTURES, LABELS, signals=model, generator=seeded(0))
    with torch.no_grad(), policy.tap(model, mixed) as seen:
        model(mixed.inputs)
    after = policy.relabel(mixed, seen)
    assert not torch.allclose(after.lam, mixed.lam)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == [f"{lam:.2f} own" for lam in after.lam.tolist()]


def test_label_shares_of_another_sum_are_both_said():
    texts = [
        text.get_text()
        for axes in gallery.signal_sheet(cnn(), PICTURES, LABELS, mixaug.create("snapmix")).axes
        for text in axes.texts
    ]
    assert any("partner" in text for text in texts)


@pytest.mark.parametrize("name", ["snapmix", "puzzlemix", "attentivemix"])
def test_a_sheet_leaves_model_and_random_numbers_as_they_were(name):
    model, policy = cnn(), mixaug.create(name)
    model.bn1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    gallery.signal_sheet(model, PICTURES, LABELS, policy)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert policy.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_undisturbed_puts_back_what_was_changed_after_an_error_too():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    mean, state = model[1].running_mean, torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), gallery.undisturbed(model):
        assert not model[1].training
        model[1].running_mean.add_(1)
        model[1].running_var = torch.full((2,), 7.0)
        torch.rand(3)
        assert not torch.is_grad_enabled()
        raise RuntimeError("stop")
    assert model[1].running_mean is mean
    assert torch.equal(mean, torch.zeros(2))
    assert torch.equal(model[1].running_var, torch.ones(2))
    assert model[1].training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_a_linear_classifier_shows_what_it_has():
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 5, 3)

        def forward(self, images):
            return self.layer(images).mean((2, 3))

    assert headings(gallery.signal_sheet(Bare(), PICTURES, LABELS)) == ["image", "saliency", "feature energy"]


def test_images_on_screen_are_those_before_normalisation():
    from mixaug.loading import Normalize

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    normal = Normalize(mean, std)(IMAGES)
    torch.testing.assert_close(gallery.on_screen(normal, mean, std), IMAGES.float() / 255, rtol=0, atol=1e-6)
    grey = gallery.on_screen(torch.full((1, 2, 4, 4), 0.25))
    assert grey.shape == (1, 3, 4, 4)
    assert torch.all(grey == 0.25)


def test_a_sheet_refuses_what_it_cannot_show():
    with pytest.raises(TypeError, match=r"floating point, got torch\.uint8"):
        gallery.signal_sheet(cnn(), IMAGES, LABELS[:2])
    with pytest.raises(ValueError, match=r"labels .* got \(4, 3, 16, 16\) and \(3,\)"):
        gallery.signal_sheet(cnn(), PICTURES, LABELS[:3])
