"""Published figures stand beside a row only when everything agrees."""

import csv
from importlib import resources
from itertools import product

import pytest

import mixaug
from mixaug.engine.config import list_choices
from mixaug.leaderboard import published
from mixaug.leaderboard.published import METHODS, PROTOCOLS, figures, match

AGREEING = {
    "policy": "cutmix",
    "policy_options": {"alpha": 0.2, "per": "batch"},
    "model": "cifar_resnet18",
    "data": "cifar100",
    "data_options": {},
    "protocol": "openmixup_cifar",
    "epochs": 200,
}


def test_the_file_is_the_collected_one(shared, root):
    ours = root / "mixaug/leaderboard/published/classification.csv"
    assert ours.read_bytes() == (shared / "leaderboard/classification.csv").read_bytes()


def test_match_equals_the_line_of_the_file(root):
    with (root / "mixaug/leaderboard/published/classification.csv").open() as file:
        (line,) = [
            line for line in csv.DictReader(file)
            if (line["source"], line["dataset"], line["backbone"], line["method"], line["epochs"])
            == ("OpenMixup", "CIFAR-100", "ResNet-18", "CutMix", "200")
        ]  # fmt: skip
    found = published.match(**AGREEING)
    assert found.mark == ""
    assert found.figure.value == float(line["value"])
    assert "median of last 10" in found.figure.citation
    sheets = published.match(**{**AGREEING, "data": "image_sheets", "data_options": {"labels": "fine"}})
    assert sheets.figure == found.figure


@pytest.mark.parametrize(("change", "mark"), [
    ({"epochs": 5}, "other epochs"),
    ({"protocol": "default"}, "other protocol"),
    ({"policy_options": {"alpha": 1.0, "per": "batch"}}, "other alpha"),
    ({"policy_options": {"alpha": 0.2, "per": "sample"}}, "other options"),
    ({"policy_options": {"alpha": 0.2, "per": "batch", "labeling": "ratio"}}, "other options"),
    ({"departures": ["optimizer.lr=0.5"]}, "other settings"),
    ({"departures": ["objective=regmixup"], "policy_options": {"alpha": 10.0}}, "other settings"),
    ({"model": "resnet18"}, "other model"),
    ({"departures": None}, "settings unknown"),
    ({"model": "cifar_resnet8"}, "no published figure"),
    ({"policy": "patchmix"}, "no published figure"),
    ({"policy": "transmix"}, "no published figure"),
    ({"policy": "tokenmix"}, "no published figure"),
    ({"policy": "adautomix"}, "other protocol"),
    ({"policy": "snapmix", "model": "resnet50", "data": "cub"}, "other protocol"),
    ({"policy": "alignmix"}, "other epochs"),
    ({"policy": "puzzlemix"}, "not like for like"),
    ({"policy": "puzzlemix", "epochs": 5}, "other epochs"),
    ({"policy": "automix", "departures": ["optimizer.lr=0.5"]}, "not like for like"),
    ({"policy": "manifoldmix", "policy_options": {"alpha": 0.2, "per": "batch"}}, "other alpha"),
    ({"policy": "manifoldmix", "policy_options": {"alpha": 2.0, "stages": ["input"]}}, "other options"),
    ({"data": "digits"}, "no published figure"),
    ({"data": "image_sheets", "data_options": {"labels": "coarse"}}, "other data"),
    ({"data": "image_sheets", "data_options": {"labels": "fine", "classes": 10}}, "other data"),
])  # fmt: skip
def test_anything_else_is_marked(change, mark):
    found = published.match(**{**AGREEING, **change})
    assert found.figure is None
    assert found.mark == mark


def test_every_name_in_the_tables_exists():
    backbones = {figure.backbone for figure in published.figures()}
    methods = {figure.method for figure in published.figures()}
    assert set(published.METHODS) <= set(mixaug.list_policies())
    for name in published.METHODS.values():
        assert set(name.published) <= methods
    assert set(published.MODELS.values()) <= backbones
    for policy, name in published.METHODS.items():
        assert set(name.alpha) | set(name.options) <= set(mixaug.describe(policy).defaults)


def test_protocol_configs_agree_with_the_published_runs():
    # The protocols set what a published figure needs; a run under them is marked for its epochs at most.
    from mixaug.engine.build import options
    from mixaug.engine.config import compose, plain

    policies = ("none", "mixup", "cutmix", "fmix", "resizemix", "gridmix", "smoothmix", "saliencymix", "manifoldmix")
    for policy in policies:
        config = plain(compose([f"policy={policy}", "model=cifar_resnet18", "data=cifar100", "data.root=/x",
                                "protocol=openmixup_cifar"]))  # fmt: skip
        found = published.match(**{**AGREEING, "policy": policy, "policy_options": options(config["policy"])})
        assert found.figure is not None, (policy, found.mark, found.detail)


# The backbone of each published table, as docs/protocols.md describes it. ResNet-18 at 32 pixels has a stem of its own.
MEANT = {
    ("openmixup_cifar", "cifar_resnet18", "CIFAR-10"),
    ("openmixup_cifar", "cifar_resnet18", "CIFAR-100"),
    ("openmixup_cifar", "cifar_resnext50_32x4d", "CIFAR-10"),
    ("openmixup_cifar", "cifar_resnext50_32x4d", "CIFAR-100"),
    ("openmixup_cifar", "cifar_wrn28_8", "CIFAR-100"),
    ("openmixup_cifar_vit", "deit_small_patch16_224", "CIFAR-100"),
    ("openmixup_cifar_vit", "swin_tiny_patch4_window7_224", "CIFAR-100"),
    ("openmixup_cifar_vit", "cifar_convnext_tiny", "CIFAR-100"),
    ("openmixup_tiny_imagenet", "cifar_resnet18", "Tiny-ImageNet"),
    ("openmixup_tiny_imagenet", "cifar_resnext50_32x4d", "Tiny-ImageNet"),
}


def test_a_figure_stands_beside_the_models_that_its_protocol_means_and_no_other():
    """Every protocol with every model and data set, at every length that anything was published at."""
    lengths = sorted({figure.epochs for figure in figures() if figure.epochs})
    models = sorted({*list_choices("model"), *published.MODELS})
    names = {entry.data: entry.published for entry in published.DATA}
    found, marks = set(), set()
    for protocol, model, data, epochs in product(list_choices("protocol"), models, names, lengths):
        options = {"labels": "fine"} if data == "image_sheets" else {}
        told = match(
            policy="none",
            policy_options={},
            model=model,
            data=data,
            data_options=options,
            protocol=protocol,
            epochs=epochs,
        )
        if told.figure is not None:
            found.add((protocol, model, names[data]))
        if told.mark == "other model":
            marks.add((protocol, model, names[data]))
    assert found == MEANT
    # These have a backbone of the same published name, and another stem.
    assert {(protocol, model) for protocol, model, _ in marks} == {
        ("openmixup_cifar", "resnet18"),
        ("openmixup_cifar", "resnext50_32x4d"),
        ("openmixup_cifar_vit", "convnext_tiny"),
        ("openmixup_tiny_imagenet", "resnet18"),
        ("openmixup_tiny_imagenet", "resnext50_32x4d"),
    }


def test_the_models_of_a_protocol_are_no_part_of_a_runs_config():
    from mixaug.engine.config import compose

    assert "models" not in compose(["protocol=openmixup_cifar", "data=cifar100", "data.root=/x"]).protocol


def test_the_switch_of_two_policies_compares_both_alphas():
    deit = {
        "policy": "deit",
        "model": "deit_small_patch16_224",
        "data": "cifar100",
        "data_options": {},
        "protocol": "openmixup_cifar_vit",
        "epochs": 200,
    }
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "per": "batch"}
    assert match(policy_options=options, **deit).figure.value == 75.92
    assert match(policy_options={**options, "mixup_alpha": 1.0}, **deit).mark == "other alpha"


def test_no_run_could_stand_beside_two_figures():
    for rules, method in product(PROTOCOLS.values(), METHODS.values()):
        keys = [
            (figure.dataset, figure.backbone, figure.method, figure.epochs, figure.alpha)
            for figure in figures()
            if figure.source == rules.source
            and figure.table.startswith(rules.tables)
            and figure.method in method.published
        ]
        assert len(keys) == len(set(keys))


def test_the_shipped_file_is_whole():
    text = resources.files("mixaug.leaderboard").joinpath("published/classification.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 1389
    assert len(figures()) == sum(row["metric"] == "top1" for row in rows) == 1293
    readme = resources.files("mixaug.leaderboard").joinpath("published/README.md").read_text("utf-8")
    for source in {row["source"] for row in rows}:
        assert f"| {source} |" in readme
        assert f"| {sum(row['source'] == source for row in rows)} |" in readme


UNLIKE = {"alignmix", "attentivemix", "automix", "comixup", "puzzlemix", "samix", "transmix"}
SIMPLE = {"none", "mixup", "cutmix", "fmix", "gridmix", "resizemix", "saliencymix", "smoothmix"}
MANIFOLD = SIMPLE | {"manifoldmix"}
PUBLISHED = {
    ("openmixup_cifar", "cifar_resnet18", "cifar100", 200): MANIFOLD | (UNLIKE - {"alignmix", "transmix"}),
    ("openmixup_cifar", "cifar_resnet18", "cifar100", 1200): MANIFOLD | (UNLIKE - {"transmix"}),
    ("openmixup_cifar", "cifar_wrn28_8", "cifar100", 400): MANIFOLD | (UNLIKE - {"alignmix", "transmix"}),
    ("openmixup_cifar", "cifar_resnext50_32x4d", "cifar10", 400): MANIFOLD
    | (UNLIKE - {"alignmix", "comixup", "transmix"}),
    ("openmixup_cifar_vit", "deit_small_patch16_224", "cifar100", 200): SIMPLE
    | {"deit"}
    | (UNLIKE - {"alignmix", "comixup"}),
    ("openmixup_cifar_vit", "cifar_convnext_tiny", "cifar100", 600): MANIFOLD
    | {"deit"}
    | (UNLIKE - {"alignmix", "comixup", "transmix"}),
    ("openmixup_tiny_imagenet", "cifar_resnet18", "tiny_imagenet", 400): MANIFOLD | (UNLIKE - {"transmix"}),
}


def test_methods_that_cannot_be_compared_are_those_that_say_why():
    assert {policy for policy, name in METHODS.items() if name.unlike} == UNLIKE


@pytest.mark.parametrize(("protocol", "model", "data", "epochs"), PUBLISHED)
def test_every_shipped_protocol_run_is_matched_or_says_why_not(root, protocol, model, data, epochs):
    """Whoever runs a protocol file as it stands gets the figure beside the row, or the reason why there is none."""
    pytest.importorskip("hydra")
    from omegaconf import OmegaConf

    from mixaug.engine.config import matching_values

    rules = OmegaConf.to_container(OmegaConf.load(root / f"configs/protocol/{protocol}.yaml").protocol)
    for policy in sorted(METHODS):
        values = matching_values(rules, {"policy": policy, "model": model, "data": data})
        told = {key.removeprefix("policy."): v for key, v in values.items() if key.startswith(("policy.", "mixer."))}
        found = match(
            policy=policy,
            policy_options=told,
            model=model,
            data=data,
            data_options={},
            protocol=protocol,
            epochs=epochs,
        )
        if policy not in PUBLISHED[protocol, model, data, epochs]:
            assert found.mark in ("no published figure", "other epochs", "other protocol"), (policy, found)
        elif policy in UNLIKE:
            assert (found.figure, found.mark, found.detail) == (None, "not like for like", METHODS[policy].unlike)
        else:
            assert found.mark == "", (policy, found)
