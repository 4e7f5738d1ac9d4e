"""Configs are read by libyaml with OmegaConf's rules, which decide what is a number and what a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

# The tests read all their configs by the fast loader; OmegaConf's own is taken before they do.
from omegaconf._utils import get_yaml_loader

from mixaug.engine.reading import yaml_loader

TEXTS = (
    "a: 1e-4", "a: 1.5e3", "a: 1E5", "a: 0o17", "a: 017", "a: 0x1F", "a: 1_000", "a: .5", "a: 5.", "a: .inf", "a: .nan",
    "a: yes", "a: no", "a: on", "a: true", "a: ~", "a: null", "a:", "a: 2026-11-28", "a: 12:30:45", "a: '1'",
    'a: "x\\ny"',
    "a: [1, 2.0, x]", "a: {b: 1}", "base: &b {x: 1}\nc:\n  <<: *b\n  y: 2", "1: a\n2: b",
    "a: |\n  two\n  lines", "a: +1",
)  # fmt: skip


def test_both_loaders_read_alike() -> None:
    rules = get_yaml_loader()
    for one in TEXTS:
        ours, theirs = yaml.load(one, Loader=yaml_loader()), yaml.load(one, Loader=rules)
        assert repr(ours) == repr(theirs), one


def test_both_loaders_refuse_a_key_that_is_there_twice() -> None:
    for loader in (get_yaml_loader(), yaml_loader()):
        with pytest.raises(yaml.constructor.ConstructorError, match="duplicate key a"):
            yaml.load("a: 1\na: 2", Loader=loader)


def test_both_loaders_read_the_shipped_configs_alike(root: Path) -> None:
    rules = get_yaml_loader()
    files = sorted((root / "configs").rglob("*.yaml"))
    assert len(files) > 100
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert repr(yaml.load(text, Loader=yaml_loader())) == repr(yaml.load(text, Loader=rules)), file
