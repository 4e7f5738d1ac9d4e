"""Published figures stand beside a row only when everything agrees."""

import csv
from importlib import resources
from itertools import product

import pytest

import mixaug
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
    ({"departures": None}, "settings unknown"),
    ({"model": "cifar_resnet8"}, "no published figure"),
    ({"policy": "patchmix"}, "no published figure"),
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

    for policy in ("none", "mixup", "cutmix", "fmix", "resizemix", "gridmix", "smoothmix", "saliencymix"):
        config = plain(compose([f"policy={policy}", "model=cifar_resnet18", "data=cifar100", "data.root=/x",
                                "protocol=openmixup_cifar"]))  # fmt: skip
        found = published.match(**{**AGREEING, "policy": policy, "policy_options": options(config["policy"])})
        assert found.figure is not None, (policy, found.mark, found.detail)


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


def test_every_shipped_protocol_run_that_is_published_at_its_defaults_matches():
    """Whoever runs a protocol file as it stands gets the figure beside the row, for every method the file sets up."""
    pytest.importorskip("hydra")
    from mixaug.engine.config import compose, list_choices, plain

    runs = {
        ("openmixup_cifar", "cifar_resnet18", "cifar100"): 200,
        ("openmixup_cifar_vit", "deit_small_patch16_224", "cifar100"): 200,
        ("openmixup_tiny_imagenet", "cifar_resnet18", "tiny_imagenet"): 400,
    }
    policies = sorted(set(METHODS) & set(list_choices("policy")) - {"rsb"})
    for (protocol, model, data), epochs in runs.items():
        for policy in policies:
            if policy == "deit" and protocol != "openmixup_cifar_vit":
                continue  # no such row
            overrides = [f"policy={policy}", f"model={model}", f"data={data}", f"protocol={protocol}", "data.root=/d"]
            config = plain(compose(overrides))
            assert config["epochs"] == epochs
            found = match(
                policy=policy,
                policy_options={key: value for key, value in config["policy"].items() if key != "_target_"},
                model=model,
                data=data,
                data_options={k: v for k, v in config["data"].items() if k not in ("_target_", "name")},
                protocol=protocol,
                epochs=epochs,
            )
            assert found.mark == "", (protocol, policy, found)
