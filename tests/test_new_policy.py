"""A method is one edit: `tools/new_policy.py` from start to green, and the lists that `make policies` writes."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

import mixaug
from catalogue import derived, pictures
from catalogue.methods import CatalogueError, read_methods, read_modules
from catalogue.scaffold import class_name
from helpers import seeded
from mixaug import gallery, registry

NEW = [
    "configs/policy/sidemix.yaml",
    "docs/policies/sidemix.md",
    "mixaug/policies/sidemix.py",
    "tests/policies/test_sidemix.py",
]
DERIVED = ["README.md", "docs/policies/README.md", "mixaug/functional.py", "mixaug/policies/__init__.py"]
PAPER = "A long title about the two sides of an image and everything that can be learned from either, A Conference 2026"
ARGUMENTS = ["sidemix", "--paper", PAPER, "--arxiv", "2601.01234", "--no-picture"]


def loaded(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tools(root: Path) -> tuple[ModuleType, ModuleType]:
    return loaded(root / "tools/new_policy.py", "new_policy_tool"), loaded(root / "tools/policies.py", "policies_tool")


#: Files of policies that are enough for the lists.
FEW = ["combinations", "cutmix", "deit", "fmix", "learned/__init__", "learned/blocks", "mixup", "patchmix", "pooled"]


@pytest.fixture(scope="module")
def template(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of a few policies: what the lists are made of and the lists, with an empty file for every picture."""
    copied = tmp_path_factory.mktemp("template")
    for path in [*(f"mixaug/policies/{name}.py" for name in FEW), *DERIVED, "mixaug/registry.py", "pyproject.toml"]:
        (copied / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, copied / path)
    derived.update(copied)
    (copied / derived.STRIPS).mkdir(parents=True)
    for method in read_methods(copied):
        (copied / derived.STRIPS / f"{method.name}.png").touch()
    return copied


@pytest.fixture
def checkout(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "checkout")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def made(tools, checkout, capsys) -> tuple[Path, dict[str, bytes], str]:
    """The checkout with a new policy, what it held before, and what the tool said."""
    before = contents(checkout)
    assert tools[0].main(ARGUMENTS, checkout) == 0
    return checkout, before, capsys.readouterr().out


def test_a_new_policy_touches_its_own_files_and_the_lists(made):
    checkout, before, said = made
    after = contents(checkout)
    assert sorted(path for path in after if path not in before) == NEW
    assert sorted(path for path in before if after[path] != before[path]) == DERIVED
    for path in DERIVED:
        old, new = before[path].decode().splitlines(), after[path].decode().splitlines()
        if path == "README.md":
            # The row of its family names it, too.
            ((was, now),) = ((a, b) for a, b in zip(old, new, strict=True) if a != b)
            assert now.replace(", [sidemix](docs/policies/sidemix.md)", "") == was
            continue
        # Every line is what it was; those of the new policy have come between them.
        rest = iter(new)
        assert all(line in rest for line in old), path
        assert 1 <= len(new) - len(old) <= 2, path
    assert derived.stale(checkout) == []
    for path in NEW + DERIVED:
        assert f"wrote {path}\n" in said
    assert all(said.count(path) == 2 for path in NEW), "what was written, and what to edit"
    assert '"sidemix_mask",' in (checkout / "mixaug/functional.py").read_text()
    assert '"SideMix",' in (checkout / "mixaug/policies/__init__.py").read_text()
    assert f"[{PAPER}](https://arxiv.org/abs/2601.01234)" in (checkout / "docs/policies/README.md").read_text()


def test_a_new_policy_is_green_at_once(made, monkeypatch):
    checkout, _, _ = made
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    module = loaded(checkout / "mixaug/policies/sidemix.py", "mixaug.policies.sidemix")
    monkeypatch.setitem(sys.modules, "mixaug.policies.sidemix", module)
    info = mixaug.describe("sidemix")
    assert (info.paper, info.arxiv, info.family) == (PAPER, "2601.01234", "masks")
    config = yaml.safe_load((checkout / "configs/policy/sidemix.yaml").read_text())
    assert config.pop("_target_") == "mixaug.policies.SideMix"
    assert config == dict(info.defaults)
    card = (checkout / "docs/policies/sidemix.md").read_text()
    assert all(f"`{option}" in card for option in info.defaults)
    tests = vars(loaded(checkout / "tests/policies/test_sidemix.py", "test_sidemix"))
    found = [name for name in tests if name.startswith("test_")]
    assert "test_contract" in found and len(found) == 3
    for name in found:
        tests[name]()
    # The tests can fail: a mask of the other side is noticed.
    right = module.sidemix_mask
    monkeypatch.setitem(tests, "sidemix_mask", lambda lam, on_left, size: right(lam, ~on_left, size))
    with pytest.raises(AssertionError):
        tests["test_mask_against_a_loop_over_columns"]()
    monkeypatch.setattr(module, "sidemix_mask", lambda lam, on_left, size: right(lam, ~on_left, size))
    with pytest.raises(AssertionError):
        tests["test_own_columns_lie_on_the_side_that_was_asked_for"]()


def test_its_picture_is_drawn_and_no_other(made, monkeypatch):
    checkout, before, _ = made
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    loaded(checkout / "mixaug/policies/sidemix.py", "mixaug.policies.sidemix")
    assert derived.missing_strips(checkout) == ["sidemix"]
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=seeded(0))
    gallery.draw_strips(derived.missing_strips(checkout), checkout / derived.STRIPS, images)
    assert derived.missing_strips(checkout) == []
    after = contents(checkout)
    assert after[f"{derived.STRIPS}/sidemix.png"].startswith(b"\x89PNG")
    assert all(after[path] == held for path, held in before.items() if path.endswith(".png"))


def test_what_is_written_passes_the_linter_and_the_formatter(tools, checkout):
    pytest.importorskip("ruff")
    # The longest names and a title with quotation marks; names that sort first and last among the others.
    assert tools[0].main([*ARGUMENTS[:-1], "--no-picture"], checkout) == 0
    for name, paper in (("a" * 30, 'On "halves"'), ("zzmix", "unpublished"), ("two_sided9", PAPER + " " + PAPER)):
        assert tools[0].main([name, "--paper", paper, "--no-picture"], checkout) == 0
    written = [str(path.relative_to(checkout)) for path in checkout.rglob("*.py")]
    for command in (["check", "--no-cache", "--select", "E,F,W,I,B,UP,RUF022"], ["format", "--no-cache", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *written], cwd=checkout, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cutmix"], r"'cutmix' is taken: mixaug/policies/cutmix.py exists"),
        (["pooled"], r"'pooled' is taken: mixaug/policies/pooled.py exists"),
        (["learned"], r"'learned' is taken: mixaug/policies/learned exists"),
        (["fourier"], r"there is a function fourier_mask"),
        (["half-mix"], r"named in lower case by an identifier .* got 'half-mix'"),
        (["HalfMix"], r"named in lower case by an identifier .* got 'HalfMix'"),
        (["lambda"], r"named in lower case by an identifier .* got 'lambda'"),
        (["../halfmix"], r"named in lower case by an identifier .* got '../halfmix'"),
        (["a" * 31], r"at most 30 letters"),
        (["cut_mix"], r"class CutMix is taken by policy 'cutmix'; name another with --class"),
        (["halfmix", "--class", "halfMix"], r"named in CamelCase .* got 'halfMix'"),
        (["halfmix", "--family", "mask"], r"family is one of baseline, blends, .* got 'mask'"),
        (["halfmix", "--arxiv", "arXiv:1905.04899"], r"an arXiv id reads like 1905.04899, got 'arXiv:1905.04899'"),
        (["halfmix", "--paper", " "], r"paper is a title and a venue in one line"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_before_anything_is_written(tools, checkout, capsys, arguments, says):
    before = contents(checkout)
    assert tools[0].main(arguments, checkout) == 2
    said = capsys.readouterr()
    assert re.search(says, said.err), said.err
    assert said.out == ""
    assert contents(checkout) == before


@pytest.mark.parametrize("path", NEW)
def test_a_file_that_exists_is_never_overwritten(tools, checkout, capsys, path):
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text("# somebody's work\n")
    if path.startswith("mixaug/"):
        (checkout / path).write_text('"""A helper."""\n')
    before = contents(checkout)
    assert tools[0].main(ARGUMENTS, checkout) == 2
    assert f"{path} exists" in capsys.readouterr().err
    assert contents(checkout) == before


def test_nothing_is_left_behind_where_a_list_cannot_be_written(tools, checkout, capsys):
    readme = checkout / "README.md"
    readme.write_text(readme.read_text().replace(derived.LAST, ""))
    before = contents(checkout)
    assert tools[0].main(ARGUMENTS, checkout) == 2
    assert "README.md has lost the line '<!-- end of policies -->'" in capsys.readouterr().err
    assert contents(checkout) == before


@pytest.mark.parametrize(
    ("name", "cls"), [("halfmix", "HalfMix"), ("half_mix", "HalfMix"), ("cmixup", "CMixup"), ("patch2d", "Patch2d")]
)
def test_class_is_named_after_the_policy(name, cls):
    assert class_name(name) == cls


# -- the lists -----------------------------------------------------------------------------------------------------


def test_lists_are_written_anew_whatever_stands_between_the_markers(tools, checkout, capsys, monkeypatch):
    before = contents(checkout)
    for path, marker in (("README.md", derived.FIRST), ("mixaug/functional.py", derived.BEGIN)):
        text = (checkout / path).read_text()
        (checkout / path).write_text(text.replace(f"{marker}\n", f"{marker}\nsomething else\n"))
    assert tools[1].main(["--check"], checkout) == 1
    assert capsys.readouterr().err.splitlines() == [
        "mixaug/functional.py is out of date or missing: make policies",
        "README.md is out of date or missing: make policies",
    ]
    assert tools[1].main([], checkout) == 0
    assert capsys.readouterr().out.splitlines() == ["wrote mixaug/functional.py", "wrote README.md"]
    assert contents(checkout) == before
    assert tools[1].main(["--check"], checkout) == 0
    assert tools[1].main([], checkout) == 0
    assert capsys.readouterr().out == ""


def test_a_removed_policy_leaves_the_lists(tools, checkout):
    (checkout / "mixaug/policies/patchmix.py").unlink()
    assert tools[1].main(["--no-pictures"], checkout) == 0
    for path in DERIVED:
        assert "patchmix" not in (checkout / path).read_text()


def test_pictures_that_are_missing_or_asked_for_are_drawn(tools, checkout, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(pictures, "draw", lambda root, names: asked.append((root, names)) or [])
    for name in ("fmix", "cutmix"):
        (checkout / derived.STRIPS / f"{name}.png").unlink()
    for arguments in ([], ["--draw", "mixup"], ["--no-pictures"]):
        assert tools[1].main(arguments, checkout) == 0
    assert asked == [(checkout, ["cutmix", "fmix"]), (checkout, ["cutmix", "fmix", "mixup"]), (checkout, [])]
    assert tools[1].main(["--check"], checkout) == 1
    assert "docs/images/policies/cutmix.png is out of date or missing" in capsys.readouterr().err
    assert tools[1].main(["--draw", "cutmx"], checkout) == 2
    assert "no policy of mixaug is named 'cutmx'" in capsys.readouterr().err
    assert len(asked) == 3


GOOD = '''"""A method."""

__all__ = ["Good", "good_mask"]


def good_mask(): ...


def helper(): ...


@register("good", paper="A paper | with a bar, 2026", family="masks")
class Good(Policy):
    """What it does | in a line.

    More.
    """
'''


def test_what_a_file_offers_is_read_without_running_it(checkout):
    (checkout / "mixaug/policies/good.py").write_text(GOOD)
    (module,) = [m for m in read_modules(checkout) if m.name == "mixaug.policies.good"]
    assert module.functions == ("good_mask",)
    assert (module.method.target, module.method.summary) == ("Good", "What it does | in a line.")
    rows = derived.render(checkout)
    assert "| What it does \\| in a line. | A paper \\| with a bar, 2026 |\n" in rows[derived.INDEX]
    assert "| A mask of another shape decides, pixel by pixel, which image shows. | " in rows[derived.README]
    assert ", [good](docs/policies/good.md), " in rows[derived.README]
    listed = ast.literal_eval(ast.parse(rows[derived.FUNCTIONAL]).body[-1].value)
    assert "good_mask" in listed and "helper" not in listed


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"Good", "good_mask"', '"Good", "bad_mask"', "__all__ names 'bad_mask', which the file does not define"),
        ('"Good", "good_mask"', '"good_mask"', "__all__ does not name 'Good', the policy that the file registers"),
        ('__all__ = ["Good", "good_mask"]', "", "name the policy and its pure functions in __all__"),
        ('"good",', '"better",', "registered by the name of its file, got 'better'"),
        ('family="masks"', 'family="mask"', "expects family as one of .* got 'mask'"),
        (', family="masks"', "", "expects family as one of .* got None"),
        ('paper="A paper | with a bar, 2026"', "paper=PAPER", "expects paper written out as text"),
        ('    """What', '    x = """What', "Good needs a docstring"),
        ("class Good", "class Good(", "invalid syntax|was never closed"),
        ("good_mask", "cutmix", "two files offer a function 'cutmix'"),
    ],
)
def test_a_file_that_says_too_little_is_named(checkout, old, new, says):
    assert old in GOOD
    (checkout / "mixaug/policies/good.py").write_text(GOOD.replace(old, new))
    before = contents(checkout)
    with pytest.raises(CatalogueError, match=says) as caught:
        derived.update(checkout)
    assert "good.py" in str(caught.value) or "two files" in says
    assert contents(checkout) == before
