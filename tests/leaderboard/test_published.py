"""Published figures stand beside a row only when everything agrees."""

import csv

import pytest

import mixaug
from mixaug.leaderboard import published

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
