"""Policies by name."""

import importlib.metadata
import re
import warnings
from typing import Any

import pytest
import torch

import mixaug
from helpers import ours
from mixaug import ratio, registry
from mixaug.policies import CutMix, Mixup


@pytest.fixture
def clean(monkeypatch):
    """A registry of these alone, whatever else has been registered, and what a test adds is forgotten after it."""
    mixaug.list_policies()
    names = ("cutmix", "fmix", "mixup", "none", "puzzlemix", "snapmix")
    monkeypatch.setattr(registry, "_registered", {name: registry._registered[name] for name in names})


def test_create_passes_options_on():
    policy = mixaug.create("cutmix", alpha=0.3, per="batch")
    assert isinstance(policy, CutMix)
    assert (policy.alpha, policy.per) == (0.3, "batch")
    assert repr(policy) == "CutMix(alpha=0.3, per='batch')"


def test_shares_and_labels_are_in_the_repr_where_they_were_chosen():
    assert repr(mixaug.create("cutmix", ratio=0.5)) == "CutMix(ratio=Constant(0.5))"
    assert repr(mixaug.create("cutmix", labeling="ratio", ratio="uniform")) == (
        "CutMix(ratio=Uniform(0, 1), labeling='ratio')"
    )
    assert repr(mixaug.create("fmix", labeling="attention")) == "FMix(labeling='attention')"
    assert repr(mixaug.create("mixup", pairing="reversed", per="pair")) == "Mixup(per='pair', pairing='reversed')"
    assert repr(mixaug.create("mixup", per="pair")) == "Mixup(per='pair')"
    for name in ("cutmix", "mixup", "automix", "samix", "mixstyle", "none"):
        assert "pairing=" not in repr(mixaug.create(name)), name
    for name in ("cutmix", "mixup", "automix", "samix", "cmixup"):
        assert "ratio=" not in repr(mixaug.create(name)) and "labeling=" not in repr(mixaug.create(name))


def test_closest_names_are_suggested(clean):
    with pytest.raises(ValueError, match=r"unknown policy 'cutmx'. Did you mean 'cutmix'"):
        mixaug.create("cutmx")
    for name in (None, ["mixup"], b"mixup"):
        with pytest.raises(TypeError, match=r"a policy's name is a text such as 'mixup', got "):
            mixaug.create(name)
    with pytest.raises(ValueError, match=r"expects family as one of .* got \['masks'\]"):
        mixaug.list_policies(family=["masks"])
    with pytest.raises(ValueError, match=r"unknown policy 'zzzzz'. All policies: "):
        mixaug.describe("zzzzz")


def test_unknown_option_lists_the_known_ones():
    with pytest.raises(
        TypeError,
        match=r"policy 'mixup' has no option 'alhpa'; did you mean 'alpha'\? Its options are \['alpha', 'sources'",
    ):
        mixaug.create("mixup", alhpa=1)


def test_describe():
    info = mixaug.describe("cutmix")
    assert info.arxiv == "1905.04899"
    assert "ICCV 2019" in info.paper
    assert info.defaults["alpha"] == 1.0
    assert info.needs == frozenset()
    assert info.target is CutMix
    assert info.family == "cut and paste"
    with pytest.raises(TypeError):
        info.defaults["alpha"] = 2


def test_list_filters(clean):
    @mixaug.register("guided_by_two", paper="x")
    class Guided(Mixup):
        needs = frozenset({"cam", "saliency"})

    assert mixaug.list_policies() == ["cutmix", "fmix", "guided_by_two", "mixup", "none", "puzzlemix", "snapmix"]
    assert mixaug.list_policies("*mix", needs=()) == ["cutmix", "fmix"]
    assert mixaug.list_policies(needs="cam") == ["guided_by_two", "snapmix"]
    assert mixaug.list_policies(needs=["cam", "saliency"]) == ["guided_by_two"]
    assert mixaug.list_policies(needs=["cam", "attention"]) == []
    assert mixaug.list_policies(needs=()) == ["cutmix", "fmix", "mixup", "none"]
    assert mixaug.list_policies("nothing*") == []
    assert mixaug.list_policies(family="guided by the model") == ["puzzlemix", "snapmix"]
    assert mixaug.list_policies("p*", needs="saliency", family="guided by the model") == ["puzzlemix"]
    with pytest.raises(ValueError, match=r"list_policies expects family as one of \['baseline', .* got 'mask'"):
        mixaug.list_policies(family="mask")


def test_a_family_is_one_of_those_there_are(clean):
    with pytest.raises(ValueError, match=r"register expects family as one of .* or None, got 'blend'"):
        mixaug.register("other", paper="x", family="blend")(Mixup)
    assert "other" not in mixaug.list_policies()
    mixaug.register("other", paper="x")(Mixup)
    assert mixaug.describe("other").family is None


def test_a_printed_description_is_a_card(clean):
    lines = str(mixaug.describe("cutmix")).splitlines()
    assert lines[:13] == [
        "cutmix   Paste one rectangle of the partner into the sample; the label share is the area really kept.",
        "family   cut and paste",
        "paper    CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019",
        "arXiv    https://arxiv.org/abs/1905.04899",
        "inputs   series (B, C, T), images (B, C, H, W), volumes (B, C, D, H, W)",
        "labels   classes or numbers",
        "needs    nothing of the model",
        "passes   1 forward in a training step",
        "cost     1 times the operations of a step without mixing",
        "python   mixaug.create('cutmix'), or from mixaug.policies.cutmix import CutMix",
        "command  mixaug train policy=cutmix",
        "card     docs/policies/cutmix.md: when it helps and hurts",
        "",
    ]
    assert lines[13:15] == [
        "options and their defaults",
        "  alpha=1.0        lam ~ Beta(alpha, alpha); 1.0 is the paper's value for CIFAR and ImageNet.",
    ]
    # What the class says goes before what all policies share; both say which values there are.
    per = next(line for line in lines if line.startswith("  per="))
    assert per.startswith('  per=\'sample\'     "sample" draws for each sample, "batch" once for all, "pair" once')
    assert all(len(line) <= 60 for line in mixaug.describe("cutmix").text(60).splitlines())

    @mixaug.register("a_long_name", paper="a journal")
    class Guided(Mixup):
        """Something."""

        needs = frozenset({"saliency", "cam"})

        def __init__(self, width: str = "w" * 90, depth: str = "d" * 20) -> None:
            super().__init__()

    # No command trains it: the package that brings it has no config here.
    assert str(mixaug.describe("a_long_name")).splitlines()[:7] == [
        "a_long_name  Something.",
        "paper        a journal",
        "inputs       any tensor (B, ...): tables, series, images",
        "labels       classes or numbers",
        "needs        cam, saliency of the model: mixaug.MixStep",
        "passes       1 forward in a training step",
        "cost         1 times the operations of a step without mixing",
    ]
    assert str(mixaug.describe("a_long_name")).splitlines()[-4:] == [
        "",
        "options and their defaults",
        f"  width='{'w' * 90}'",
        f"  depth='{'d' * 20}'",
    ]


def test_names_are_taken_once(clean):
    with pytest.raises(ValueError, match=r"'mixup' is already taken by mixaug.policies.mixup.Mixup"):
        mixaug.register("mixup", paper="x")(CutMix)
    mixaug.register("mixup", paper="x")(Mixup)  # a reloaded module


def test_options_handed_on_to_the_base_are_options_too(clean):
    @mixaug.register("narrow", paper="x")
    class Narrow(Mixup):
        def __init__(self, width: int = 3, alpha: float = 0.7, **shared):
            super().__init__(alpha=alpha, **shared)
            self.width = width

    defaults = mixaug.describe("narrow").defaults
    assert list(defaults)[:2] == ["width", "alpha"]
    assert (defaults["alpha"], defaults["per"]) == (0.7, mixaug.describe("mixup").defaults["per"])
    assert set(defaults) == {"width", *mixaug.describe("mixup").defaults}
    assert mixaug.create("narrow", per="batch", width=5).per == "batch"
    assert repr(mixaug.create("narrow", per="batch", width=5)) == "Narrow(width=5, per='batch')"
    with pytest.raises(TypeError, match="has no option 'depth'"):
        mixaug.create("narrow", depth=1)


def test_what_a_class_supplies_to_its_base_is_not_an_option(clean):
    class Strong(Mixup):
        def __init__(self, strength: float, /, per: str = "sample"):
            super().__init__(per=per)

    @mixaug.register("strong", paper="x")
    class Stronger(Strong):
        def __init__(self, width: int = 3, **shared):
            super().__init__(1.0, **shared)

    assert dict(mixaug.describe("strong").defaults) == {"width": 3, "per": "sample"}
    assert mixaug.create("strong", per="batch").per == "batch"


def test_keywords_that_are_not_called_shared_are_not_followed(clean):
    @mixaug.register("kept", paper="x")
    class Kept(Mixup):
        def __init__(self, width: int = 3, **notes):
            super().__init__()

    assert dict(mixaug.describe("kept").defaults) == {"width": 3}


def test_options_end_where_nothing_is_handed_on(clean):
    @mixaug.register("closed", paper="x")
    class Closed(Mixup):
        def __init__(self, width: int = 3):
            super().__init__()

    assert dict(mixaug.describe("closed").defaults) == {"width": 3}


def test_options_need_defaults(clean):
    with pytest.raises(ValueError, match="option 'alpha' needs a default"):

        @mixaug.register("strict", paper="x")
        def strict(alpha):
            return Mixup(alpha)


def test_a_broken_plugin_is_reported_and_takes_nothing_away(clean, monkeypatch):
    broken = importlib.metadata.EntryPoint("broken", "no_such_module_at_all", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken])
    monkeypatch.setattr(registry, "_entry_points_loaded", False)
    with pytest.warns(UserWarning, match=r"plug-in 'broken' \(no_such_module_at_all\) failed to load"):
        assert "mixup" in mixaug.list_policies()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixaug.list_policies()


def test_lists_know_what_a_step_takes(clean):
    @mixaug.register("of_classes", paper="x")
    class OfClasses(Mixup):
        """It refuses numbers as labels, and runs its model twice more in a step."""

        needs = frozenset({"outputs"})

        def sample(self, batch, partner, draws):
            if batch.labels.is_floating_point():
                raise ValueError("expects class ids")
            for mode in ("train", "eval"):
                batch.signals.outputs(mode=mode)
            return super().sample(batch, partner, draws)

    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    card = mixaug.describe("of_classes")
    assert (card.passes, card.tasks) == (3.0, ("classification",))
    assert (torch.equal(state, torch.get_rng_state()), torch.get_num_threads()) == (True, threads)
    assert mixaug.list_policies(task="classification") == mixaug.list_policies()
    assert "of_classes" not in mixaug.list_policies(task="regression")
    # PuzzleMix and SnapMix look at the clean images before the mixed pass.
    assert mixaug.list_policies(passes=1) == ["cutmix", "fmix", "mixup", "none"]
    assert mixaug.list_policies("*mix", passes=2) == ["cutmix", "fmix", "puzzlemix", "snapmix"]
    assert mixaug.list_policies(passes=3, needs="outputs") == ["of_classes"]
    # Two passes without gradients, of a third each.
    assert 1.6 < card.cost < 1.75
    assert mixaug.list_policies(cost=1) == ["cutmix", "fmix", "mixup", "none"]
    for wrong, says in (
        ({"task": "ranking"}, "task as one of"),
        ({"passes": 0}, "at least 1"),
        ({"passes": "1"}, "'1'"),
        ({"cost": 0.5}, "cost as a number of at least 1"),
    ):
        with pytest.raises(ValueError, match=rf"list_policies expects .*{says}"):
            mixaug.list_policies(**wrong)


def test_a_probability_is_for_sometimes(clean):
    with pytest.raises(TypeError, match=r"has no option 'p'.*mixaug.Sometimes\('cutmix', 0.5\)"):
        mixaug.create("cutmix", p=0.5)
    policy = mixaug.Sometimes("cutmix", 0.5)
    assert policy.probability == 0.5


def test_a_card_says_of_every_option_what_it_means():
    for name in ours():
        card = mixaug.describe(name)
        assert list(card.options) == list(card.defaults)
        silent = [option for option, text in card.options.items() if len(text) < 8]
        assert not silent, (name, silent)
        # Marks of the docstrings are not shown, nor is what stands in the next section.
        assert not any(mark in text for text in card.options.values() for mark in ("``", ":class:", "Raises:")), name


# Where an option of one's own draws in place of the shared ones, the card says so, and what lets those act.
LETTING: dict[str, tuple[str, dict[str, Any]]] = {
    "attentivemix": ("k=None alone", {"k": None}),
    "cowmix": ("share=None alone", {"share": None}),
    "recursivemix": ("with partners of the batch alone", {"partners": "batch", "omega": 0}),
}


def test_a_card_offers_nothing_that_the_policy_refuses():
    for name in ours():
        options = mixaug.describe(name).options
        for option in ("per", "ratio", "labeling", "pairing"):
            for value in re.findall(r'"([a-z]+)"', re.split(" with per=|; where", options.get(option, ""))[0]):
                if option == "ratio" and value not in ratio.NAMED:
                    # A mode of the policy, of which the text speaks too.
                    continue
                try:
                    mixaug.create(name, **{option: value})
                except ValueError:
                    condition, letting = LETTING[name]
                    assert condition in options[option], (name, option)
                    mixaug.create(name, **{option: value}, **letting)
