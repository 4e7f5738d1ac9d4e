"""Options and fixtures for all tests. `pytest --device cuda` runs the tests that take `device` on the GPU."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

# The process that hands out the tests to others imports no torch.
if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
#: What the extras bring. A machine that is lent for its GPU may lack some, and what needs them is skipped there.
EXTRAS = (
    *("PIL", "accelerate", "hydra", "hypothesis", "lightning", "matplotlib", "omegaconf", "pyarrow", "rich", "scipy"),
    *("sklearn", "submitit", "tensorboard", "timm", "torchmetrics", "torchvision", "transformers", "yaml"),
)
# A package of its own, with tests of its own: tests/test_packaging.py installs it and runs them.
collect_ignore = ["example_plugin"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device for the tests that take one: cpu (default), cuda, cuda:1")


def pytest_configure(config: pytest.Config) -> None:
    if hands_out(config) and config.getoption("--device") == "cpu":
        return
    # Collection makes hundreds of thousands of objects that live to the end: to look for garbage among them is in vain.
    if not hands_out(config):
        gc.disable()
    import torch

    # Without a GPU, Triton's kernels are run by its interpreter. The variable is read when Triton is first imported.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
        # For a GPU that may come, `torch.manual_seed` would write down each time where it was called from.
        for module in (torch.cuda.random, torch.xpu.random, torch.mtia):
            module._lazy_call = lambda call, **kinds: None
        # Each operator on tensors that pretend to lie on a GPU would look for the driver anew.
        assert callable(torch.cuda._device_count_nvml), "torch looks for the driver in another way now"
        torch.cuda._device_count_nvml = lambda: 0
    # Tests run in parallel processes, and sums over several threads would depend on the machine.
    torch.set_num_threads(1)
    device = torch.device(config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device {device}: this machine or this build of torch has no CUDA device")


def hands_out(config: pytest.Config) -> bool:
    """Whether this process runs no test itself: pytest-xdist's other processes do."""
    return bool(getattr(config.option, "numprocesses", None)) and not hasattr(config, "workerinput")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    # Tests that start processes come first: they are long, and one worker's fork server serves most of them.
    items.sort(key=lambda item: not starts_processes(getattr(item, "module", None)))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@cache
def lacks(text: str) -> str | None:
    """Why what failed with this message is skipped: a package of an extra is not installed here."""
    found = re.search(r"No module named '(\w+)", text)
    if found is None or found[1] not in EXTRAS or importlib.util.find_spec(found[1]) is not None:
        return None
    return f"Skipped: needs {found[1]}, which is not installed here"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report: Any = yield
    reason = lacks(str(report.longrepr)) if report.outcome == "failed" else None
    if reason is not None:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, reason)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    missing = call.excinfo is not None and isinstance(call.excinfo.value, ModuleNotFoundError)
    reason = lacks(str(call.excinfo.value)) if missing and report.outcome == "failed" else None
    if reason is not None:
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, reason)
    return report


@cache
def starts_processes(module: ModuleType | None) -> bool:
    """Whether a test module has anything of `processes.py`."""
    values = vars(module).values() if module is not None else ()
    return any(getattr(value, "__module__", getattr(value, "__name__", "")) == "processes" for value in values)


def pytest_collection_finish(session: pytest.Session) -> None:
    keep_out_of_collections()
    if not hands_out(session.config) and any(starts_processes(getattr(item, "module", None)) for item in session.items):
        import processes

        processes.start_server()
    # Tensors do not wait for a collection, and each one looks at all that tests have made since they began.
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    end_loaders()
    # A library that a test has imported lives to the end as well, and some training loops often collect garbage.
    if len(sys.modules) > kept_out[0] + 100:
        keep_out_of_collections()


def end_loaders() -> None:
    """End workers of loaders that an error has left half read: the collection that finds them waits 5 s for each."""
    if not multiprocessing.active_children():
        return
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    for one in gc.get_objects():
        if type(one) is _MultiProcessingDataLoaderIter:
            one.__del__()


kept_out = [0]
"""How many modules there were when garbage was looked for among all objects for the last time."""


def keep_out_of_collections() -> None:
    """No later collection of garbage looks at what there is now."""
    gc.collect()
    gc.freeze()
    kept_out[0] = len(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def quick_compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Configs are composed from files that are merged once and read by libyaml; git and the digits are asked once."""
    config = sys.modules.get("mixaug.engine.config")
    if config is None:
        yield
        return
    import omegaconf

    from mixaug.engine import reading, run
    from quick_compose import FOLDER, quick

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "composed"
    folder.mkdir(exist_ok=True)
    loader = reading.yaml_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        patch.setattr(config, "_hydra_compose", quick)
        patch.setattr(omegaconf._utils, "get_yaml_loader", lambda: loader)
        patch.setattr(run, "_git_commit", cache(run._git_commit))
        if importlib.util.find_spec("sklearn") is not None:
            import sklearn.datasets

            patch.setattr(sklearn.datasets, "load_digits", cache(sklearn.datasets.load_digits))
        yield


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device named on the command line."""
    import torch

    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def generator(device: torch.device) -> torch.Generator:
    """A generator with seed 0 on the device under test."""
    import helpers

    return helpers.seeded(0, device)


@pytest.fixture
def seeded() -> Callable[..., torch.Generator]:
    """`seeded(seed, device="cpu")`, for tests that need several streams."""
    import helpers

    return helpers.seeded


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference material: $MIXAUG_SHARED, or `shared` in or beside the checkout; skips without it."""
    named = os.environ.get("MIXAUG_SHARED")
    candidates = [Path(named)] if named else [ROOT / "shared", ROOT.parent / "shared"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip(f"needs the shared folder, looked for {' and '.join(map(str, candidates))}; set MIXAUG_SHARED")
