"""Opening a run folder that somebody else made: nothing of theirs runs, whichever tool opens it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig

from mixaug.engine import checkpoint, run
from mixaug.engine.config import compose, list_choices, plain
from mixaug.engine.errors import CheckpointError, ConfigError
from mixaug.engine.pictures import open_run
from mixaug.engine.reading import DamagedFile, read_config, read_object
from mixaug.engine.stored import evaluate_checkpoint
from mixaug.engine.targets import check_targets, foreign_targets, open_config

ROOT = Path(__file__).resolve().parents[2]
TINY = ("data=digits", "data.train_size=100", "batch_size=25", "epochs=2", "threads=1", "device=cpu", "progress=false")
TOOLS = ("evaluate", "gallery", "mixer")
SECTIONS = ("data", "model", "policy", "objective", "optimizer", "schedule", "protocol", "augment", "ema", "mixer")


@pytest.fixture(scope="module")
def config() -> DictConfig:
    """Composed once: most tests look at what becomes of its text."""
    return compose(TINY)


@pytest.fixture
def folder(tmp_path: Path, config: DictConfig) -> Path:
    """A folder with the config of a run and nothing else, which is all that the decision looks at."""
    made = tmp_path / "sent"
    made.mkdir()
    change(made, config)
    return made


def change(folder: Path, config: DictConfig | None = None, **sections: Any) -> None:
    """Write the config of a folder anew, with other sections."""
    path = folder / "config.yaml"
    content = plain(config) if config is not None else yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, **sections}))


def use(tool: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of a tool that opens the folder."""
    spec = importlib.util.spec_from_file_location(f"tool_{tool}", ROOT / "tools" / f"{tool}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = {"gallery": ["--out", str(folder / "sheet.png"), "--run", str(folder)]}.get(tool, [str(folder)])
    return int(module.main([*given, *arguments]))


def writes(path: Path) -> dict[str, Any]:
    """A call that leaves a file, as harmless a proof of execution as there is."""
    return {"_target_": "builtins.open", "file": str(path), "mode": "w"}


# All tools read a folder by the same function, which one of them is to show for what lies deeper.
@pytest.mark.parametrize(
    ("tool", "nested"),
    [
        pytest.param(
            tool,
            nested,
            id=f"{tool}-{'nested' if nested else 'itself'}",
            marks=pytest.mark.slow if nested and tool != TOOLS[0] else (),
        )
        for tool in TOOLS
        for nested in (False, True)
    ],
)
@pytest.mark.parametrize("section", SECTIONS)
def test_no_tool_runs_what_a_folder_names(
    tool: str,
    section: str,
    nested: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    proof = folder / "executed"
    call = writes(proof)
    content = yaml.safe_load((folder / "config.yaml").read_text())[section]
    change(folder, **{section: {**content, "deep": [{"er": [1, {"_partial_": True, "f": call}]}]} if nested else call})
    assert use(tool, folder, monkeypatch) != 0
    said = capsys.readouterr().err
    place = f"{section}.deep[0].er[1].f" if nested else section
    assert f"{place}: builtins.open" in said
    assert "--trust builtins.open" in said
    assert not proof.exists()


@pytest.mark.parametrize("tool", TOOLS)
def test_what_the_reader_trusts_by_name_runs(tool: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The other half of the test above: this very call runs once it is allowed, so its silence there means something.
    torch.save({"config_hash": "x", "model": {}, "epoch": 1}, folder / "last.pt")
    change(folder, data=writes(folder / "executed"))
    with pytest.raises(AttributeError):  # an open file is no data set
        use(tool, folder, monkeypatch, "--trust", "builtins.open")
    assert (folder / "executed").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "builtins.eval", "torch.load", "subprocess.Popen", "torch.utils.collect_env.run", "getattr"),
        *("hydra.utils.get_method", "hydra.utils.get_class", "hydra.utils.instantiate", "functools.partial"),
        # These names begin with mixaug and do not lie in it.
        *("mixaug.losses.torch.load", "mixaug.engine.run.os.system", "mixaug.registry.importlib.import_module"),
        *("mixaug.mixer.pickle.loads", "mixaug.losses.nn.Linear", "mixaug_evil.X", "mixaug.nowhere.X"),
        # These lie in it and write, train, start processes or change the registry.
        *("mixaug.engine.run.write_json", "mixaug.leaderboard.write", "mixaug.leaderboard.launch.CommandLauncher"),
        *("mixaug.engine.train.train", "mixaug.gallery.save", "mixaug.create", "mixaug.register"),
        # These are parts of classes, or no names at all.
        *("mixaug.policies.CutMix.__init__", "mixaug.policies.AutoMix.save_mixer", "mixaug.policies.__builtins__"),
        *("mixaug", "mixaug.", ".mixaug.policies.CutMix", "mixaug..policies.CutMix", "mixaug.policies.CutMix\n", ""),
        *("timm.create_model.__globals__", "timm.models.load_checkpoint"),
    ],
)
def test_names_are_judged_by_where_they_lead(name: str) -> None:
    assert foreign_targets({"policy": {"parts": [{"_target_": name}]}}) == [name]


@pytest.mark.parametrize("target", [None, 3, ["os.system"], {"_target_": "os.system"}])
def test_a_target_that_is_no_name_is_refused(target: object) -> None:
    with pytest.raises(ConfigError, match="must be a full name"):
        check_targets({"model": {"_target_": target}}, "config.yaml")


@pytest.mark.parametrize(
    "call",
    [
        {"_target_": "mixaug.models.create", "name": "resnet18", "checkpoint_path": "theirs.pt"},
        {"_target_": "mixaug.models.create", "name": "resnet18", "pretrained_cfg": {"url": "http://example.org"}},
        {"_target_": "mixaug.models.create", "name": "resnet18", "pretrained_cfg_overlay": {"file": "theirs.pt"}},
        {"_target_": "timm.create_model", "model_name": "hf-hub:some/body"},
        {"_target_": "timm.create_model", "model_name": "local-dir:/theirs"},
        {"_target_": "timm.create_model", "name": "resnet18", "model_name": "local-dir:/theirs"},
        {"_target_": "timm.create_model", "_args_": ["resnet18", True, {"file": "theirs.pt"}]},
    ],
)
def test_a_model_is_not_read_from_where_the_folder_says(call: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="elsewhere"):
        check_targets({"policy": {"network": call}}, "config.yaml")
    check_targets({"policy": {"network": call}}, "config.yaml", [call["_target_"]])


@pytest.mark.parametrize("group", ["data", "model", "policy", "objective", "optimizer", "schedule"])
def test_everything_that_ships_opens_without_a_word(group: str) -> None:
    for choice in list_choices(group):
        content = yaml.safe_load((ROOT / "configs" / group / f"{choice}.yaml").read_text())
        assert foreign_targets({group: content}) == []
    network = {"_target_": "timm.create_model", "model_name": "resnet50", "pretrained": True}
    assert foreign_targets({"policy": {"network": network}}) == []
    assert (
        foreign_targets({"policy": {"_target_": "mixaug.OneOf", "labeling": {"_target_": "mixaug.policies.CutMix"}}})
        == []
    )


def test_a_registered_policy_of_another_package_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    import mixaug
    from mixaug import registry

    class Elsewhere(mixaug.policies.CutMix):
        """A policy that an installed package registers."""

    Elsewhere.__module__, Elsewhere.__qualname__ = "some_package.policies", "Elsewhere"
    assert foreign_targets({"policy": {"_target_": "some_package.policies.Elsewhere"}})
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    mixaug.register("elsewhere", paper="None")(Elsewhere)
    assert foreign_targets({"policy": {"_target_": "some_package.policies.Elsewhere"}}) == []


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "${policy._target_}", "${now:%Y}", "a ${b} c", "???"])
def test_interpolations_are_refused_unresolved(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "os.system")
    for section in ({"_target_": text}, {"name": text}, {text: 1}):
        change(folder, model=section)
        with pytest.raises(DamagedFile, match="interpolation"):
            open_config(folder)


def test_the_advice_can_be_pasted_into_a_shell(folder: Path) -> None:
    change(folder, model={"_target_": "x; touch owned"})
    with pytest.raises(ConfigError, match="--trust 'x; touch owned' on"):
        open_config(folder)


def test_a_single_text_is_no_collection_of_names(folder: Path) -> None:
    with pytest.raises(TypeError, match="allow_targets expects a collection"):
        open_config(folder, "builtins.open")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x", "anchor"),
        ("a: !!python/object/apply:os.system [ls]", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: " + "[" * 500 + "]" * 500, "levels"),
        ("a: [" + "1," * 20_000 + "]", "values"),
        ("a: '" + "x" * 300_000 + "'", "bytes"),
        ("- 1", "mapping"),
        ("1: 2", "keys"),
        ("a: [", "cannot be read"),
        ("seed: " + "9" * 30, "64 bits"),
    ],
    ids=["alias", "tag", "binary", "deep", "long", "large", "list", "key", "cut", "integer"],
)
def test_a_damaged_config_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DamagedFile, match=f"config.yaml.*{said}"):
        read_config(tmp_path / "config.yaml")


def test_a_config_that_was_written_reads_as_it_was(tmp_path: Path, tiny: Callable[..., DictConfig]) -> None:
    config = tiny("policy=deit", "schedule.warmup_lr=1e-05")
    run.prepare(tmp_path / "run", config, torch.device("cpu"), 1)
    assert read_config(tmp_path / "run" / "config.yaml") == plain(config)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes as files are POSIX's")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(DamagedFile, match=r"result\.json is not an ordinary file"):
        read_object(tmp_path / "result.json")


def test_a_cut_result_is_named_by_whoever_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "none-cifar_resnet8" / "result.json"
    path.parent.mkdir()
    path.write_text('{"status": "fin')
    with pytest.raises(ValueError, match=rf"{path.parent.name}.*result\.json cannot be read"):
        run.read_json(path)


class Runs:
    """Pickled, it makes whoever loads it leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["last.pt", "previous.pt", "best.pt"])
def test_a_checkpoint_is_data_alone(name: str, folder: Path) -> None:
    proof = folder / "executed"
    content = {"config_hash": "x", "model": Runs(proof), "epoch": 1}
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save(content, folder / name)
        with pytest.raises(CheckpointError):
            evaluate_checkpoint(folder / name)
        if name != "best.pt":
            with pytest.raises(CheckpointError):
                open_run(folder, "cpu")
    assert not proof.exists()
    with contextlib.suppress(RuntimeError):  # the file is what it is meant to be
        torch.load(folder / name, weights_only=False)
    assert proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"model": 3},
        {"model": {"x": 3}},
        {"model": None},
        {"model": {}, "policy": {}, "epoch": "one"},
        {"model": {}, "policy": []},
        {"ema": {"x": torch.zeros(1)}},
    ],
)
def test_a_checkpoint_of_another_kind_is_named(content: dict[str, Any], folder: Path) -> None:
    checkpoint.save(folder / "last.pt", {"config_hash": "x", **content})
    with pytest.raises(CheckpointError, match=r"last\.pt|the checkpoint in"):
        evaluate_checkpoint(folder)
    with pytest.raises(CheckpointError, match="the checkpoint in"):
        open_run(folder, "cpu")


@pytest.mark.parametrize("missing", ["data", "model", "policy", "choices", "epochs", "batch_size"])
def test_a_config_without_its_parts_is_named(missing: str, folder: Path) -> None:
    path = folder / "config.yaml"
    content = yaml.safe_load(path.read_text())
    for value in (None, "text", [1]):
        path.write_text(json.dumps({**content, missing: value}))
        with pytest.raises(ConfigError, match=missing):
            open_config(folder)


def test_composing_is_the_readers_own_word(tmp_path: Path) -> None:
    # A command line may name any class, as ever; to open the folder of such a run, the class has to be allowed again.
    config = compose([f"root={tmp_path}", "model._target_=some_package.Model"])
    run.prepare(tmp_path / "run", config, torch.device("cpu"), 1)
    with pytest.raises(ConfigError, match=r"--trust some_package\.Model"):
        open_config(tmp_path / "run")
    assert open_config(tmp_path / "run", ["some_package.Model"]).model._target_ == "some_package.Model"
