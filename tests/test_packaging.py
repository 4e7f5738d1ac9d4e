"""What a user installs: dependencies, version, package data, the README."""

from __future__ import annotations

import ast
import configparser
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import mixaug
from helpers import imports_and_classes
from processes import run_script

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

# Import name to distribution, where they differ; omegaconf is hydra-core's own configuration library.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "griffe": "mkdocstrings",
    "hydra": "hydra-core",
    "mkdocs": "mkdocs-material",
    "omegaconf": "hydra-core",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def run(*arguments: str, **environment: str) -> str:
    """Standard output of a fresh interpreter; its error output is in the failure."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    """The wheel or sdist that pip would build of a source tree, made by the build backend itself."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / done.stdout.splitlines()[-1]


def declared(section: str = "options", option: str = "install_requires") -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    requirements = [line for line in config[section][option].splitlines() if line.strip()]
    return {re.match(r"[A-Za-z0-9._-]+", line.strip())[0].lower() for line in requirements}


def imported(path: Path) -> set[str]:
    """Top-level names of all absolute imports in a file, those inside functions included."""
    names = set()
    for node in imports_and_classes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def examples(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_import_brings_torch_and_numpy_alone_and_takes_well_under_a_second_beyond_them():
    code = (
        "import json, sys, time\n"
        "import mixaug\n"
        "assert 'torch' not in sys.modules and mixaug.__version__, 'the package alone is to import nothing'\n"
        "import numpy, torch, torch.utils.data\n"
        "before, start = set(sys.modules), time.process_time()\n"
        # Whatever is imported first knows every policy.
        "from mixaug.registry import list_policies\n"
        "assert 'cutmix' in list_policies() and mixaug.create('cutmix') and set(mixaug.__all__) <= set(dir(mixaug))\n"
        "assert all(hasattr(mixaug, name) for name in mixaug.__all__) and not hasattr(mixaug, 'nothing')\n"
        "seconds = time.process_time() - start\n"
        "brought = sorted({name.split('.')[0] for name in set(sys.modules) - before})\n"
        # A card runs a step, and torch's compiler takes longer to import than torch itself.
        "assert '3 forward in a training step' in str(mixaug.describe('adamixup')), str(mixaug.describe('adamixup'))\n"
        "assert 'torch._dynamo' not in sys.modules, 'a card is to import no compiler'\n"
        "print(json.dumps([seconds, *brought]))\n"
    )
    seconds, *brought = json.loads(run("-c", code))
    assert set(brought) - set(sys.stdlib_module_names) <= {"mixaug", "numpy", "torch"}
    # CPU time, a second try if need be: another process on the machine must not decide.
    assert seconds < 1.0 or json.loads(run("-c", code))[0] < 1.0


def test_version_matches_the_installed_metadata():
    try:
        installed = importlib.metadata.version("mixaug")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("mixaug is not installed here: its checkout is on the path")
    assert mixaug.__version__ == installed


def test_citation_and_metadata_name_the_same_version():
    assert f"\nversion: {mixaug.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_third_party_import_is_declared():
    # torch brings Triton where it is built for CUDA, and the kernels are not touched elsewhere.
    of_users = declared() | declared("options.extras_require", "train") | {"triton"}
    # Tools serve a checkout, build the documentation and may run the tests.
    of_tools = of_users | declared("options.extras_require", "docs") | declared("options.extras_require", "test")
    own = {path.name for path in ROOT.glob("tools/*") if path.is_dir()}
    # An adapter imports the framework of the loop that it stands in, which whoever uses it has installed.
    allowed = set(sys.stdlib_module_names) | {"mixaug", "transformers"} | own
    missing = {}
    for path in [*ROOT.glob("mixaug/**/*.py"), *ROOT.glob("tools/**/*.py")]:
        known = of_users if path.is_relative_to(ROOT / "mixaug") else of_tools
        for name in imported(path) - allowed:
            if DISTRIBUTIONS.get(name, name) not in known:
                missing.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert not missing


def test_dev_holds_every_other_extra():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    (line,) = extras["dev"].split()
    assert set(re.search(r"\[(.*)\]", line)[1].split(",")) == set(extras) - {"dev"}


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which mixaug is installed from its wheel, which was built from its sdist; no checkout is near.

    Made once, whichever of the test processes comes first.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "installation"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            install(folder)
            (folder / "done").touch()
    return folder


def install(folder: Path) -> None:
    source = folder / "source"
    for name in ("mixaug", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.unpack_archive(build("sdist", source, folder), folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = build("wheel", unpacked, folder)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = ("-m", "pip", "--disable-pip-version-check", "--python", str(python), "install")
    # A checkout on the path is no installation either.
    options = ("--quiet", "--no-index", "--no-deps", "--no-cache-dir", "--no-compile", "--ignore-installed")
    run(*pip, *options, str(wheel), PYTHONPATH="")
    # What mixaug stands on is taken from the environment of the tests: its .pth files, a checkout among them, are not.
    # Packages that travelled to a machine with a GPU lie in a folder `site`.
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    below = [path for path in sys.path if Path(path).name in ("site-packages", "site")]
    (site / "below.pth").write_text("\n".join(below))


def test_wheel_holds_every_module_and_every_data_file_and_the_configs(installation):
    (wheel,) = installation.glob("*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    places = {"mixaug": ROOT / "mixaug", "mixaug/configs": ROOT / "configs"}
    expected = {
        f"{place}/{path.relative_to(folder)}"
        for place, folder in places.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == expected
    assert {"mixaug/py.typed", "mixaug/configs/train.yaml", "mixaug/configs/policy/cutmix.yaml"} <= shipped


DIGITS = ("data=digits", "data.train_size=50", "batch_size=50", "eval_batch_size=2000")
ONE_EPOCH = ("policy=cutmix", *DIGITS, "epochs=1", "device=cpu", "threads=1")


def installed_says(installation: Path, where: Path, *arguments: str) -> str:
    """What the installed command prints in an empty folder; of a checkout it must not know."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(installation / "venv" / "bin" / "mixaug"), *arguments],
        cwd=where,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(ROOT) not in done.stdout
    return done.stdout


def left_by_a_run(where: Path) -> None:
    (folder,) = (where / "runs").glob("cutmix-*")
    assert json.loads((folder / "result.json").read_text())["policy"] == "cutmix"
    assert str(ROOT) not in (folder / "environment.json").read_text()


def ranked(where: Path) -> None:
    pages = sorted(path.name for path in (where / "runs" / "leaderboard").iterdir())
    assert pages == ["leaderboard.csv", "leaderboard.html", "leaderboard.md"]


def test_an_installed_command_trains_from_an_empty_folder(installation, tmp_path):
    for package in ("hydra", "rich", "sklearn"):
        pytest.importorskip(package)
    assert installed_says(installation, tmp_path, "--version") == f"mixaug {mixaug.__version__}\n"
    assert list(tmp_path.iterdir()) == []
    assert "finished" in installed_says(installation, tmp_path, "train", *ONE_EPOCH)
    left_by_a_run(tmp_path)


# More interpreters that import torch and what is around it; a benchmark also starts a fork server that does.
@pytest.mark.slow
@pytest.mark.parametrize(
    "commands",
    [
        [("benchmark", *ONE_EPOCH)],
        [("train", *ONE_EPOCH), ("leaderboard", "runs", "--out", "runs/leaderboard")],
    ],
    ids=["benchmark", "train and leaderboard"],
)
def test_installed_commands_rank_from_an_empty_folder(installation, tmp_path, commands):
    for command in commands:
        said = installed_says(installation, tmp_path, *command)
    assert "leaderboard.html" in said
    left_by_a_run(tmp_path)
    ranked(tmp_path)


@pytest.mark.slow
def test_an_installed_benchmark_starts_commands_of_its_own(installation, tmp_path):
    assert "_target_: mixaug.policies.CutMix" in installed_says(
        installation, tmp_path, "train", "--cfg", "job", "policy=cutmix"
    )
    # launch=command: each run of the grid is a `mixaug train` of its own.
    assert "finished cutmix" in installed_says(installation, tmp_path, "benchmark", *ONE_EPOCH, "launch=command")
    left_by_a_run(tmp_path)
    ranked(tmp_path)


def test_plugin_package_is_found_once_installed(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "tests" / "example_plugin", source)
    target = tmp_path / "site"
    # A wheel of Python files alone is installed where it is unpacked.
    zipfile.ZipFile(build("wheel", source, tmp_path)).extractall(target)
    code = (
        "import importlib, sys, torch, mixaug, pytest\n"
        "from mixaug import registry\n"
        "assert 'stripes' not in mixaug.list_policies()\n"
        # The tests' fork server has mixaug imported. As in a new interpreter, plug-ins were not asked for yet.
        "registry._entry_points_loaded = False\n"
        f"sys.path.insert(0, {str(target)!r})\n"
        "importlib.invalidate_caches()\n"
        "assert 'mixaug_stripes' not in sys.modules, 'plugins are loaded when asked for'\n"
        "assert 'stripes' in mixaug.list_policies()\n"
        "policy = mixaug.create('stripes', period=8)\n"
        "images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 16, 5)\n"
        "mixed = policy(images, torch.arange(6), generator=torch.Generator().manual_seed(0))\n"
        "own = mixed.inputs == images\n"
        "assert (own | (mixed.inputs == images[mixed.partner])).all()\n"
        "others = mixed.partner != torch.arange(6)\n"
        "assert others.any() and torch.equal(own[others].float().mean((1, 2, 3)), mixed.lam[others])\n"
        "print(mixaug.describe('stripes').paper)\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(source / 'tests')!r}]))\n"
    )
    (tmp_path / "use.py").write_text(code)
    done = run_script(tmp_path / "use.py", cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "package of its own" in done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("code", examples(README), ids=["own_loop"])
def test_readme_example_runs(code):
    if "timm" in imported_of(code):
        pytest.importorskip("timm", reason="this example needs timm")
    exec(compile(code, str(README), "exec"), {"__name__": "__main__"})


def test_examples_of_objectives_run():
    code = "".join(examples(ROOT / "docs" / "objectives" / "README.md"))
    check = (
        "teacher = mixaug.networks.Frozen(mixaug.models.create('cifar_resnet8', num_classes=10))\n"
        "step = mixaug.MixStep(model, policy, Consistency(), networks={'teacher': teacher})\n"
        "loss, logs = step(images, labels)\n"
        "assert {'mixed', 'agreement', 'accuracy'} <= set(logs)\n"
        "torch.testing.assert_close(logs['mixed'] + logs['agreement'], loss.detach())\n"
    )
    exec(compile(code + check, "docs/objectives/README.md", "exec"), {"__name__": "example"})


def test_contributing_example_runs(tmp_path):
    # In a process of its own, for it registers a policy.
    code = "".join(examples(ROOT / "CONTRIBUTING.md"))
    # Somebody may have made a policy of this name, as the page proposes.
    free = "import mixaug.registry\nmixaug.registry._registered.pop('halfmix', None)\n"
    check = (
        "assert torch.equal(mixed.lam, torch.full((4,), 0.5))\n"
        "assert mixaug.describe('halfmix').defaults['left'] == 0.5\n"
    )
    (tmp_path / "example.py").write_text(free + code + check)
    done = run_script(tmp_path / "example.py")
    assert done.returncode == 0, done.stderr


def imported_of(code: str) -> set[str]:
    return set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE))
