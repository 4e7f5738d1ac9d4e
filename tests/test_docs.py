"""Pages of docs/: their examples run, their links lead somewhere, and the site is built without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import mixaug
from mixaug import labeling

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
#: Pages each of whose examples is complete.
COMPLETE = ("start.md", "moments.md")
EXAMPLES = [
    pytest.param(code, id=f"{page}-{number}")
    for page in COMPLETE
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), flags=re.M | re.S))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code: str) -> None:
    if "timm" in code or "mixaug.models" in code:
        pytest.importorskip("timm", reason="this example needs timm")
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})


def test_the_example_of_padded_recordings_runs_and_lengths_are_those_of_the_longer_source() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "loading.md").read_text(), flags=re.M | re.S)
    (code,) = [block for block in blocks if "extent_keys" in block]
    lengths = (800, 500, 650, 300)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    names: dict[str, object] = {
        "torch": torch,
        "mixaug": mixaug,
        "MixCollate": mixaug.MixCollate,
        "DataLoader": torch.utils.data.DataLoader,
        "data": [{"wave": torch.ones(length), "label": number} for number, length in enumerate(lengths)],
        "model": lambda *inputs: seen.append(inputs),
    }
    torch.manual_seed(0)
    exec(compile(code, "example", "exec"), names)
    ((waves, told),) = seen
    assert waves.shape == (4, 1, 800) and sorted(told.tolist()) != sorted(lengths)
    # Ones mixed with ones, or with padding, are above zero as far as the longer source reaches.
    assert torch.equal((waves[:, 0] > 0).sum(1), told)


@cache
def headings(page: Path) -> set[str]:
    """The anchors of a page, as sites and GitHub make them of its headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    found = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))])


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        # In code, an index before a call reads like a link.
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            if not target.exists() or (anchor and anchor not in headings(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_the_site_has_every_page_in_its_menu() -> None:
    yaml = pytest.importorskip("yaml", reason="the configuration of the site is YAML")
    menu = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    cards = set(DOCS.glob("policies/[a-z]*.md"))  # tools/docs_site.py puts them there
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path not in cards}
    assert {page for page in pages if f"'{page}'" not in menu} == set()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs, the docs extra")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    card = (tmp_path / "policies" / "cutmix.html").read_text()
    assert "mixaug train policy=cutmix" in card and "images/policies/cutmix.png" in card
    assert 'id="mixaug.registry.create"' in (tmp_path / "reference" / "core.html").read_text()


def test_every_labeling_has_a_row() -> None:
    table = (ROOT / "docs" / "labeling.md").read_text().partition("| name |")[2].partition("\n\n")[0]
    firsts = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(name for row in firsts for name in re.findall(r"`(\w+)`", row)) == sorted(labeling.NAMED)
