"""Options: what a policy offers, and that a wrong value is refused when the policy is made, by name."""

from __future__ import annotations

import ast
import copy
import decimal
import fractions
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import mixaug
import mixaug.models
from helpers import seeded
from mixaug import OneOf, Sometimes
from mixaug.draws import Draws
from mixaug.options import options_of
from mixaug.policies import AutoMix, CutMix, MixPro, RegMix, ResizeMix, SnapMix, TransMix
from mixaug.ratio import Beta, Constant, Uniform
from mixaug.schedule import Cosine
from mixaug.shared_options import SharedOptions

CHANNELS, BATCH, SIZE = 4, 4, (16, 16)
OURS = [name for name in mixaug.list_policies() if mixaug.describe(name).target.__module__.startswith("mixaug.")]
COMBINED: dict[str, Any] = {"OneOf": OneOf, "Sometimes": Sometimes}
OPTIONS = [(name, option) for name in OURS for option in mixaug.describe(name).defaults]
OPTIONS += [(name, option) for name, target in COMBINED.items() for option in options_of(target)]
BACKBONE = mixaug.models.create("cifar_resnet8", num_classes=10)


LEARNED = [name for name in OURS if {"channels", "mixer"} <= set(mixaug.describe(name).defaults)]


class Thing:
    """Something that no option takes."""

    def __repr__(self) -> str:
        return "Thing()"


def three(first: Any, second: Any, third: Any) -> Any:
    return first


NUMBERS = [0, 1, 2, 3, 7, -1, 0.0, 0.5, 1.0, 1.5, -0.5, 2.5, 5e-324, 1e-40, -5e-324, 1e38, 1e300, 10**6, 10**30]
NUMBERS += [-(10**30), 10**5000, float("nan"), float("inf"), -float("inf"), 2j]
OBJECTS = [None, True, False, "", "x", "0.5", "true", b"x", [], (), {}, set(), Thing(), len, print, max, int, Thing]
OBJECTS += [three, lambda: None, np.float32(0.5), np.float64("nan"), np.int64(2), np.bool_(True), np.array([0.2, 0.5])]
OBJECTS += [
    torch.tensor(0.5),
    torch.tensor([1.0, 2.0]),
    torch.float32,
    fractions.Fraction(1, 2),
    decimal.Decimal("0.5"),
]
SEQUENCES = [[0.5], (0.5, 0.2), (0.2, 0.5), (0.0, 0.0), (0.2, float("nan")), (0.2, float("inf")), ("a", "b"), [1, 2, 3]]
SEQUENCES += [
    [None, None],
    (True, False),
    (-1, 2),
    (0.5, 10**30),
    (1, 2),
    (2, 2),
    [[0.1, 0.2]],
    "ab",
    (10**400, 10**401),
]
WRONG: list[Any] = [*NUMBERS, *OBJECTS, *SEQUENCES]

#: What only a batch, the model or networks beside it can decide: how many axes, cells and blocks, which names.
BY_THE_BATCH = {"patch_size", "block_nums", "k", "stage", "channels", "group", "view", "network"}


#: Options with which a policy is quick: each step of its search is a forward and a backward pass.
QUICK: dict[str, dict[str, Any]] = {"supermix": {"max_iter": 2}}


def made(name: str, option: str, value: Any) -> mixaug.Policy:
    others: dict[str, Any] = dict(QUICK.get(name, {}))
    if name in COMBINED:
        return COMBINED[name](**{option: value})
    if name in LEARNED:
        others["channels"] = CHANNELS
    return mixaug.create(name, **{**others, option: value})


def signals_for(policy: mixaug.Policy) -> Any:
    # Partners from outside the batch are asked about as well, for which finished signals are none.
    if "hidden" in policy.needs or (policy.needs and policy.partners is not None):
        return BACKBONE
    if not policy.needs:
        return None
    generator = seeded(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(BATCH, *shape, generator=generator)

    return mixaug.Signals(
        saliency=drawn(*SIZE), cam=drawn(4, 4), attention=drawn(4, 4), features=drawn(CHANNELS, 4, 4),
        outputs=drawn(10), pooled=drawn(8),
    )  # fmt: skip


def names_of(name: str) -> list[str]:
    """How a message may call a policy: by its name or its class; a preset, which is a function, by its name alone."""
    if name in COMBINED:
        return [name]
    target = mixaug.describe(name).target
    return [name, target.__name__]


def draws_two_batches(policy: mixaug.Policy) -> None:
    images = torch.rand(BATCH, 3, *SIZE, generator=seeded(2))
    labels = torch.arange(BATCH) % 3
    if type(policy).on_attach is not mixaug.Policy.on_attach and not hasattr(policy, "channels"):
        policy.attach(BACKBONE)
    for seed in (3, 4):
        batch = mixaug.Batch(
            images, labels, metadata={name: torch.arange(BATCH) % 2 for name in ("domain", "image_id")}
        )
        mixed = policy(batch, signals=signals_for(policy), generator=seeded(seed))
        assert mixed.inputs.shape == images.shape
        assert mixed.inputs.isfinite().all()
        assert mixed.weights.isfinite().all()


def refused_or_works(name: str, option: str, value: Any) -> None:
    try:
        policy = made(name, option, value)
    except (TypeError, ValueError) as error:
        text = str(error)
        assert any(one in text for one in names_of(name)), f"no name of the policy: {text}"
        assert option in text, f"no name of the option: {text}"
        return
    if option in {"until", "momentum", "momentum_end"} or name == "adamixup":
        policy.set_progress(0.5)
    try:
        draws_two_batches(policy)
    except ValueError as error:
        if option not in BY_THE_BATCH:
            raise
        # It says which option does not fit, or what was asked for.
        asked = str(tuple(value)) if isinstance(value, list) else str(value)
        assert option in str(error) or asked in str(error), str(error)


@pytest.mark.parametrize("count", [200, pytest.param(600, marks=pytest.mark.slow)])
def test_a_wrong_value_is_refused_by_name_or_works(count):
    @settings(max_examples=count, derandomize=True, database=None, deadline=None)
    @given(st.sampled_from(OPTIONS), st.sampled_from(range(len(WRONG))))
    def of_any_option(place, index):
        refused_or_works(*place, WRONG[index])

    of_any_option()


@pytest.mark.parametrize(("name", "options", "message"), [
    ("cutmix", {"minmax": 0.5}, r"CutMix expects minmax as \(low, high\), 0 <= low < high <= 1, got 0.5"),
    ("resizemix", {"scope": 0.5}, r"ResizeMix expects scope as \(low, high\), 0 <= low < high <= 1, got 0.5"),
    ("gridmix", {"crop_area": 0.5}, r"GridMix expects crop_area as \(low, high\), 0 < low <= high <= 1, got 0.5"),
    ("gridmix", {"n_holes": (2, 10**9)}, r"GridMix expects n_holes as .* <= 65536, got"),
    ("mixup", {"ratio": -0.5}, r"Mixup expects ratio as a share in \[0, 1\], got -0.5"),
    ("mixup", {"ratio": len}, "Mixup expects ratio as a name or a share .* Ratio, called with .draws.*built-in"),
    ("mixup", {"pairing": len}, r"Mixup expects pairing as a name or a Pairing, called with \(batch, draws\), got"),
    ("mixup", {"pairing": three}, r"Mixup expects pairing .* but <function three.*> takes \(first"),
    ("mixup", {"pairing": mixaug.pairing.Nearest}, "Mixup expects pairing as an object, got the class Nearest"),
    ("mixup", {"labeling": len}, r"Mixup expects labeling as a name or a Labeling, called with \(plan, batch\)"),
    ("mixup", {"labeling": lambda plan, batch: None}, "Mixup expects labeling .* has no 'needs'"),
    ("mixup", {"alpha": 5e-324}, r"Mixup expects alpha between 1e-37 and 1e\+37, which float32 can compute with"),
    ("mixup", {"alpha": 10**5000}, "Mixup expects alpha between .*, got a whole number of 16610 bits"),
    ("maskmix", {"patch_size": float("inf")}, "MaskMix expects patch_size as an integer >= 1, got inf"),
    ("alignmix", {"iterations": 10**30}, r"AlignMix expects iterations of at most 10000, got 1000.*: a larger"),
    ("comixup", {"iterations": 10**30}, "CoMixup expects iterations of at most 1000, got"),
    ("alignmix", {"reference": "false"}, "AlignMix expects reference as True or False, got 'false'"),
    ("cmixup", {"alpha": 0}, "^cmixup expects alpha as a positive finite number, got 0"),
    ("cmixup", {"per": "row"}, "^cmixup expects per"),
    ("cmixup", {"stages": ["layer1"], "ratio": 2}, r"^cmixup expects ratio as a share in \[0, 1\], got 2"),
    ("knn_mixup", {"labeling": "size"}, "^knn_mixup got an unknown labeling 'size'"),
    ("local_mixup", {"ratio": len}, "^local_mixup expects ratio"),
    ("lisa", {"alpha": -1}, "^lisa expects alpha"),
    ("selective_mixup", {"label": "none"}, "^selective_mixup expects label"),
    ("rsb", {"cutmix_alpha": 0}, "rsb expects cutmix_alpha as a positive finite number, got 0"),
    ("sumix", {"policy": "cutmx"}, r"SUMix expects policy as a policy or its name, got an unknown policy"),
])  # fmt: skip
def test_what_a_refusal_says(name, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        mixaug.create(name, **options)


BOTH = [name for name in OURS if {"alpha", "ratio"} <= set(mixaug.describe(name).defaults)]
# What lets a ratio act where the defaults draw none.
LETTING: dict[str, dict[str, Any]] = {
    "attentivemix": {"k": None, "network": torch.nn.Identity()},
    "cowmix": {"share": None},
    "resizemix": {"rule": "beta"},
    "supermix": {"network": torch.nn.Identity()},
}


@pytest.mark.parametrize("name", BOTH)
def test_an_alpha_that_draws_nothing_is_refused(name: str) -> None:
    default = mixaug.describe(name).defaults["alpha"]
    letting = LETTING.get(name, {})
    for ratio in ("uniform", 0.3, Beta(2.0, 3.0)):
        with pytest.raises(ValueError, match=r"leave .*alpha|alpha=.* has no effect"):
            mixaug.create(name, alpha=default + 0.25, ratio=ratio, **letting)
    with pytest.raises(ValueError, match=r"leave .*alpha|alpha=.* has no effect|alpha as a"):
        mixaug.create(name, alpha=Cosine(1.0, 0.5), ratio="uniform", **letting)
    # A config that spells out all defaults says nothing by alpha.
    made = mixaug.create(name, alpha=default, ratio="uniform", **letting)
    assert isinstance(made.ratio, Uniform)
    drawn = mixaug.create(name, alpha=default + 0.25, ratio="beta", **letting)
    assert isinstance(drawn.ratio, Beta) and drawn.ratio.alpha == default + 0.25


def test_an_alpha_that_draws_something_beside_the_ratio_is_taken() -> None:
    three = {"network": torch.nn.Identity(), "sources": 3}
    assert mixaug.create("supermix", alpha=0.5, ratio="uniform", **three).alpha == 0.5
    assert mixaug.create("regmix", limits="learned", alpha=0.5, ratio="uniform").alpha == 0.5


def test_a_policy_of_ones_own_is_refused_an_alpha_by_its_own_default() -> None:
    class Own(mixaug.Policy):
        def __init__(self, alpha: float = 0.2, **shared: Any) -> None:
            super().__init__(alpha=alpha, **shared)

    assert isinstance(Own(ratio="midpoint").ratio, Constant)
    with pytest.raises(ValueError, match=r"Own draws nothing .* alpha=1.0 has no effect: .* has alpha_acts_always"):
        Own(alpha=1.0, ratio="midpoint")

    class Fixed(mixaug.Policy):
        def __init__(self) -> None:
            super().__init__(alpha=3.0, ratio="uniform")

    class Handing(CutMix):
        def __init__(self, beta: float = 0.3, **shared: Any) -> None:
            super().__init__(beta, **shared)

    # Nobody who makes these chose an alpha.
    assert isinstance(Fixed().ratio, Uniform)
    assert isinstance(Handing(ratio="uniform").ratio, Uniform)
    assert isinstance(copy.deepcopy(Handing(beta=2.0, ratio="uniform")).ratio, Uniform)

    class Near(RegMix):
        def __init__(self, alpha: float = 0.5, **shared: Any) -> None:
            super().__init__(alpha, **shared)

    assert isinstance(Near(ratio="uniform").ratio, Uniform)
    for wrong in (lambda: Near(alpha=2.0, ratio="uniform"), lambda: Near(2.0, ratio="uniform")):
        with pytest.raises(ValueError, match=r"RegMix draws nothing .* alpha=2.0 has no effect"):
            wrong()

    class Drawing(Own):
        alpha_acts_always = True

    assert Drawing(alpha=1.0, ratio="midpoint").alpha == 1.0


def test_numbers_of_numpy_and_fractions_count_as_numbers():
    policy = CutMix(np.float32(0.5))
    assert (type(policy.alpha), policy.alpha) == (float, 0.5)
    assert CutMix(minmax=(np.float64(0.25), fractions.Fraction(3, 4))).minmax == (0.25, 0.75)
    assert mixaug.create("patchmix", patch_size=np.int64(4)).patch_size == 4
    assert mixaug.create("alignmix", reference=np.bool_(True)).reference is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", [1e-37, 1e-20, 1e20, 1e37])
def test_the_smallest_and_largest_alpha_draw_shares(alpha, dtype, monkeypatch):
    # As on a device without float64.
    monkeypatch.setattr("mixaug.draws.wide_dtype", lambda device: dtype)
    lam = mixaug.ratio.Beta(alpha)(Draws(20_000, torch.device("cpu"), seeded(5)))
    assert lam.dtype == dtype
    assert ((lam >= 0) & (lam <= 1)).all()
    # Bernoulli(1/2) in the one limit, 1/2 in the other.
    assert abs(float(lam.mean()) - 0.5) < 4 * 0.5 / 20_000**0.5
    assert (lam.sub(0.5).abs() > 0.49).all() if alpha < 1 else torch.allclose(lam, torch.full_like(lam, 0.5))


SHARED = {"alpha": 1.0, "ratio": "beta", "pairing": None, "labeling": "area", "per": "sample", "partners": None}


class TestSharedOptions:
    def test_a_class_says_where_it_differs(self):
        assert options_of(CutMix) == {"minmax": None, "sources": 2, **SHARED}
        assert options_of(SnapMix) == {**SHARED, "alpha": 5.0, "mode": "train", "labeling": None, "per": "batch"}
        assert options_of(ResizeMix).keys() == {"rule", "scope", "interpolation", *SHARED} - {"ratio"}
        assert options_of(AutoMix).items() >= {"alpha": 2.0, "labeling": "ratio", "per": "batch"}.items()
        assert options_of(OneOf).keys() == {"policies", "probabilities", "pairing", "per", "partners"}
        assert options_of(Sometimes).keys() == {"policy", "probability", "until", "per", "partners"}

    @pytest.mark.parametrize(("target", "options", "message"), [
        (ResizeMix, {"ratio": 0.5}, r"ResizeMix has no option 'ratio'; its options are \['alpha', 'rule', 'scope'"),
        (TransMix, {"labeling": "area"}, r"TransMix has no option 'labeling'; its options are \['alpha', 'attention_"),
        (TransMix, {"minmax": None}, "TransMix has no option 'minmax'"),
        (MixPro, {"reference_labels": True}, "MixPro has no option 'reference_labels'"),
        (RegMix, {"pairing": "shift"}, "RegMix has no option 'pairing'"),
        (CutMix, {"labelling": "area"}, r"option 'labelling'; did you mean 'labeling'\? Its options are \['alpha', '"),
        (AutoMix, {"epochs": 3}, "AutoMix has no option 'epochs'"),
        (mixaug.policies.NoMix, {"per": "batch"}, r"NoMix has no option 'per'; its options are \[\]"),
        (OneOf, {"alpha": 1.0}, "OneOf has no option 'alpha'"),
        (Sometimes, {"probabilities": [1.0]}, "Sometimes has no option 'probabilities'"),
    ])  # fmt: skip
    def test_what_is_not_offered_is_refused_by_name(self, target, options, message):
        with pytest.raises(TypeError, match=message):
            target(**options)

    def test_every_option_that_is_described_is_taken(self):
        for name in OURS:
            info = mixaug.describe(name)
            assert isinstance(info.target(**info.defaults), mixaug.Policy)

    def test_alpha_goes_by_position_and_by_name(self):
        assert CutMix(0.5).alpha == CutMix(alpha=0.5).alpha == 0.5
        by_name = mixaug.create("resizemix", alpha=0.5, rule="beta", scope=(0.2, 0.7), per="batch")
        assert repr(ResizeMix(0.5, "beta", (0.2, 0.7), per="batch")) == repr(by_name)

    def test_a_family_of_ones_own(self):
        class Base(mixaug.Policy):
            shared_defaults: ClassVar = {"per": "batch", "labeling": "ratio"}
            not_offered = ("alpha", "ratio")

            def __init__(self, width: int = 3, **shared):
                super().__init__(**shared)
                self.width = width

        class Child(Base):
            shared_defaults: ClassVar = {"per": "pair"}
            not_offered = ("pairing",)

            def __init__(self, ratio: float = 0.5, **shared):
                super().__init__(**shared)

        class Open(mixaug.Policy):
            def __init__(self, **anything):
                super().__init__()
                self.anything = anything

        assert options_of(Child) == {"ratio": 0.5, "width": 3, "labeling": "ratio", "per": "pair", "partners": None}
        assert (Child().per, type(Child().labeling).__name__) == ("pair", "Drawn")
        with pytest.raises(TypeError, match=r"Child has no option 'alpha'; its options are \['ratio', 'width', 'lab"):
            Child(alpha=1.0)
        assert Open(whatever=3).anything == {"whatever": 3}

    def test_a_subclass_keeps_the_new_names_of_its_base(self):
        class Base(mixaug.Policy):
            renamed: ClassVar = {"breadth": "width"}

            def __init__(self, width: int = 3, **shared):
                super().__init__(**shared)
                self.width = width

        class Child(Base):
            renamed: ClassVar = {"tall": "height"}

            def __init__(self, height: int = 1, **shared):
                super().__init__(**shared)
                self.height = height

        class Keeps(Base):
            def __init__(self, breadth: int = 7):
                super().__init__(width=breadth + 1)

        with pytest.warns(DeprecationWarning) as warned:
            made = Child(breadth=5, tall=2)
        assert [str(one.message).split(";")[0] for one in warned] == [
            "Child: the option 'breadth' is now called 'width'",
            "Child: the option 'tall' is now called 'height'",
        ]
        assert {one.filename for one in warned} == {__file__}
        assert (made.width, made.height) == (5, 2)
        assert list(options_of(Child))[:2] == ["height", "width"]
        # An option that the subclass itself takes by that name is no old name.
        assert Keeps(breadth=7).width == 8

    def test_copies_and_pickles(self):
        for policy in (CutMix(0.5, per="batch"), mixaug.create("snapmix", mode="eval")):
            for again in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
                assert repr(again) == repr(policy)


@pytest.mark.slow
def test_a_type_checker_knows_the_options(tmp_path):
    code = tmp_path / "options.py"
    code.write_text(
        "from mixaug.policies import AutoMix, CutMix, ResizeMix\n"
        'CutMix(0.5, per="batch", labeling="ratio")\n'
        'AutoMix(2.0, stage="layer3", per="sample")\n'
        'CutMix(labelling="area")\n'
        'CutMix(per="epoch")\n'
        "AutoMix(epochs=3)\n"
        "ResizeMix(ratio=0.5)\n"
        'AutoMix(partners="previous")\n'
        'ResizeMix(per="batch", pairing="shift")\n'
    )
    found = subprocess.run([sys.executable, "-m", "mypy", str(code)], capture_output=True, text=True).stdout
    wrong = [line.split(":")[1] for line in found.splitlines() if ": error:" in line]
    assert wrong == ["4", "5", "6", "7", "8"], found


def typed_options(path, name):
    """The entries of the dictionary that a class's ``**shared`` unpacks; None where it is that of another file."""
    classes = {node.name: node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)}
    for function in classes[name].body:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__" and function.args.kwarg is not None:
            (unpacked,) = [node.id for node in ast.walk(function.args.kwarg.annotation) if isinstance(node, ast.Name)][
                1:
            ]
            if unpacked not in classes:
                return set(SharedOptions.__optional_keys__) if unpacked == "SharedOptions" else None
            return {base.id.removeprefix("Takes").lower() for base in classes[unpacked].bases}
    return None


def test_type_checkers_know_what_is_not_offered():
    seen, wrong = 0, {}
    policies = [mixaug.Policy]
    for policy in policies:
        policies += policy.__subclasses__()
        # Classes that another test has made from a template are in no file any more.
        there = getattr(sys.modules.get(policy.__module__), policy.__name__, None) is policy
        if not there or not policy.__module__.startswith("mixaug.policies") or "__init__" not in vars(policy):
            continue
        typed = typed_options(Path(inspect.getfile(policy)), policy.__name__)
        if typed is not None:
            hidden = {option for base in policy.__mro__ for option in vars(base).get("not_offered", ())}
            taken = set(inspect.signature(policy.__init__).parameters)
            offered = set(SharedOptions.__optional_keys__) - hidden
            if typed - taken != offered - taken:
                wrong[policy.__name__] = sorted(typed ^ offered)
            seen += 1
    assert wrong == {}
    assert seen > 20


@pytest.mark.parametrize("label", [10, -1])
@pytest.mark.parametrize("name", ["comixup", "guidedmix", "puzzlemix", "snapmix", "sumix", "automix", "adamixup"])
def test_labels_out_of_range_are_named_by_policies_that_look_at_the_model(name, label):
    torch.manual_seed(0)
    model = mixaug.models.create("cifar_resnet8", num_classes=10)
    step = mixaug.MixStep(model, mixaug.create(name), mixaug.losses.MixedCrossEntropy())
    with pytest.raises(ValueError, match=r"class ids in \[0, 10\)"):
        step(torch.rand(4, 3, 32, 32, generator=seeded(6)), torch.tensor([0, 1, label, 3]))


def test_smmix_names_labels_out_of_range():
    torch.manual_seed(0)
    model = mixaug.models.create("vit_tiny_patch16_224", num_classes=10, img_size=32)
    step = mixaug.MixStep(model, mixaug.create("smmix"), mixaug.losses.MixedCrossEntropy())
    with pytest.raises(ValueError, match=r"class ids in \[0, 10\)"):
        step(torch.rand(4, 3, 32, 32, generator=seeded(6)), torch.tensor([0, 1, 10, 3]))


def test_a_label_that_the_loss_ignores_passes_the_saliency():
    torch.manual_seed(0)
    model = mixaug.models.create("cifar_resnet8", num_classes=10)
    policy = mixaug.create("puzzlemix")
    mixed = policy(torch.rand(4, 3, 32, 32, generator=seeded(6)), torch.tensor([0, -100, 2, 3]), signals=model)
    assert mixed.inputs.isfinite().all()


RENAMED = [
    ("automix", "mask_lam", "mask_weight", 0.2),
    ("samix", "mask_lam_end", "mask_weight_end", 0.05),
    ("automix", "lam_margin", "min_lam", 0.2),
    ("adautomix", "lam_margin", "min_lam", 0.2),
    ("adautomix", "clean_lam", "clean_weight", 0.4),
    ("samix", "clean_lam", "clean_weight", 0.4),
    ("puzzlemix", "clean_lam", "clean_weight", 0.4),
    ("comixup", "clean_lam", "clean_weight", 0.4),
    ("guidedmix", "clean_lam", "clean_weight", 0.4),
]


@pytest.mark.parametrize(("name", "old", "new", "value"), RENAMED)
def test_the_old_name_of_an_option_works_with_a_warning(name, old, new, value):
    target = mixaug.describe(name).target
    assert new in mixaug.describe(name).defaults
    assert old not in mixaug.describe(name).defaults
    for make in (target, lambda **options: mixaug.create(name, **options)):
        with pytest.warns(DeprecationWarning, match=f"{old!r} is now called {new!r}") as warned:
            policy = make(**{old: value})
        assert [one.filename for one in warned] == [__file__]
        assert getattr(policy, new) == value
        assert f"{new}={value}" in repr(policy)
        with pytest.raises(TypeError, match=f"got {new!r} and {old!r}, which is its old name"):
            make(**{old: value, new: value})
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
        assert getattr(policy, old) == value
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
        setattr(policy, old, 0.3)
    assert getattr(policy, new) == 0.3
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match=f"{new} as a number that is not negative"):
        target(**{old: -1.0})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("attentivemix", {"network_size": 112}, "without a network asks .*, so network_size=112 has no effect"),
        ("regmix", {"k_max": 4}, "without limits takes k partners, so k_max=4 has no effect"),
        ("regmix", {"limits": "learned", "k": 4}, "as many partners as they say, so k=4 has no effect"),
        ("regmix", {"learning_steps": 10}, "learns no limits, so learning_steps=10 has no effect"),
        ("sumix", {"policy": CutMix(), "alpha": 0.7}, "that is made already, so alpha=0.7 has no effect"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create(name, **options)
    # Configs spell out the defaults.
    (last,) = list(options)[-1:]
    mixaug.create(name, **{**options, last: mixaug.describe(name).defaults[last]})


ACTING: dict[str, dict[str, list[Any]]] = {
    "puzzlemix": {
        "beta": [0.0],
        "gamma": [0.0, 5.0],
        "eta": [0.0, 2.0],
        "n_labels": [2, 6],
        "neigh_size": [1, 2],
        "transport": [False],
        "t_eps": [0.0, 0.1],
        "t_size": [1],
        "block_nums": [(4,)],
    },
    "comixup": {
        "beta": [0.0],
        "gamma": [0.0, 5.0],
        "eta": [0.0, 5.0],
        "omega": [0.0, 1.0],
        "dirichlet": [0.1, 50.0],
        "threshold": [0.0, 1.0],
        "iterations": [1, 8],
        "soft_penalty": [True],
        "part_size": [4],
        "block_num": [2, 8],
    },
}


@pytest.mark.parametrize(("name", "common"), [("puzzlemix", {"block_nums": (8,)}), ("comixup", {})])
def test_every_option_of_a_solver_changes_what_it_finds(name: str, common: dict[str, Any]) -> None:
    images = torch.rand(8, 3, 32, 32, generator=seeded(0))
    coarse = torch.rand(8, 1, 8, 8, generator=seeded(1))
    signals = mixaug.Signals(saliency=F.interpolate(coarse, size=(32, 32), mode="bilinear")[:, 0] ** 4)

    def found(**options: Any) -> torch.Tensor:
        policy = mixaug.create(name, **{**common, **options})
        mixed = policy(images, torch.arange(8), signals=signals, generator=seeded(3)).inputs
        assert isinstance(mixed, torch.Tensor)
        return mixed

    usual = found()
    for option, values in ACTING[name].items():
        assert not any(torch.equal(found(**{option: value}), usual) for value in values), option


def test_what_is_no_distribution_is_told_when_the_policy_is_made() -> None:
    with pytest.raises(TypeError, match=r"CutMix expects ratio as a distribution of lam, got the schedule Cosine"):
        mixaug.create("cutmix", ratio=Cosine(0.2, 0.8))
    for zero in (0, 0.0):
        with pytest.raises(ValueError, match=r"Mixup expects alpha as a positive finite number, got 0.*policy 'none'"):
            mixaug.create("mixup", alpha=zero)
    with pytest.raises(ValueError, match=r"not from lam: leave out ratio='uniform', or minmax"):
        mixaug.create("cutmix", minmax=(0.2, 0.8), ratio="uniform")
    for name in ("cmixup", "knn_mixup", "local_mixup", "regmix", "lisa", "selective_mixup", "selfmix"):
        with pytest.raises(ValueError, match=r"expects per 'sample' or 'batch', got 'pair'"):
            mixaug.create(name, per="pair")
