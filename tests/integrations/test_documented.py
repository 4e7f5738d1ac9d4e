"""The examples of docs/integrations.md, each run as it stands there, and a long one of an objective's page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"
MARK = "<!-- the test suite runs this example -->\n```python\n"
EXAMPLES = {
    re.findall(r"^## (.*)$", before, re.MULTILINE)[-1]: rest.partition("\n```")[0]
    for before, rest in (
        (PAGE.read_text()[: match.start()], PAGE.read_text()[match.end() :])
        for match in re.finditer(re.escape(MARK), PAGE.read_text())
    )
}
NEEDS = {
    "Lightning": ["lightning"],
    "Hugging Face Trainer": ["transformers", "accelerate"],
    "accelerate": ["accelerate"],
}


def test_every_loop_has_an_example():
    sections = re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)
    assert list(EXAMPLES) == sections
    assert len(sections) == 5


@pytest.mark.parametrize("section", EXAMPLES)
def test_example_runs(section, tmp_path, monkeypatch):
    for package in NEEDS.get(section, []):
        pytest.importorskip(package, reason=f"needs {package}")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(EXAMPLES[section], f"{PAGE.name}: {section}", "exec"), {"__name__": "example"})


@pytest.mark.slow
def test_the_example_of_attributes_and_objects_runs(monkeypatch, capsys):
    page = PAGE.parent / "objectives" / "cot.md"
    example = page.read_text().partition(MARK)[2].partition("\n```")[0]
    monkeypatch.setattr("sys.argv", ["cot.py", "1", "0"])
    exec(compile(example.replace("EPOCHS = 60", "EPOCHS = 2"), page.name, "exec"), {"__name__": "example"})
    said = capsys.readouterr().out.split()
    assert said[::2] == ["seen", "rare", "unseen"]
    assert float(said[1]) > 100 / 30  # better than a guess among the pairs of training
