"""The command `mixaug`: what it offers, what it says of a wrong line, folders of one's own, completion."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("hydra", reason="the command needs the train extra")

from omegaconf import OmegaConf

import mixaug
from helpers import ours
from mixaug import cli
from mixaug.commands import COMMANDS, completion, evaluate, leaderboard, policies
from mixaug.commands.arguments import STATUSES, status_of, status_of_all
from mixaug.engine.config import compose, config_hash, with_config_dir
from mixaug.engine.errors import (
    CheckpointError,
    ConfigError,
    LoadingError,
    RunFolderError,
    RunHeld,
    TrainingDiverged,
)
from mixaug.engine.evaluation.families import FAMILIES
from mixaug.engine.explained import no_setting
from mixaug.leaderboard import FORMATS, STATISTICS
from mixaug.leaderboard.collect import read_run
from mixaug.leaderboard.command import departures, regenerate

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """The exit code of a command line, what it prints on a terminal of 120 columns, and what it complains about."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of config files of one's own, with a space in its name."""
    folder = tmp_path / "my configs"
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "mine.yaml").write_text("_target_: mixaug.policies.CutMix\nalpha: 0.25\n")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "small.yaml").write_text("# @package _global_\nepochs: 3\ngrid: {policy: [none, mine]}\n")
    return folder


def test_help_of_the_whole_and_of_each_command(say: Say) -> None:
    code, shown, _ = say("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"  {name} " in shown and cli.summary(name) in shown
        code, of_command, _ = say(name, "--help")
        assert code == 0 and f"usage: mixaug {name}" in of_command, name
        assert all(line in of_command for line in STATUSES.splitlines()), name
    assert say()[0] == 2
    assert say("--version")[1] == f"mixaug {mixaug.__version__}\n"


def test_every_command_is_a_tool_of_a_checkout(root: Path) -> None:
    # `mixaug policies` and `tools/policies.py`, which writes lists of a checkout, share their name alone.
    for name in set(COMMANDS) - {"completion", "policies"}:
        assert f"from mixaug.commands.{name} import main" in (root / "tools" / f"{name}.py").read_text()


@pytest.mark.parametrize("line", [["--help"], ["train", "--cfg", "job"], ["completion", "query", "mixaug train pol"]])
def test_what_needs_no_torch_does_not_import_it(line: list[str]) -> None:
    code = "import sys; from mixaug import cli; cli.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, *line], check=True, capture_output=True, timeout=120)


def test_a_wrong_line_is_told(say: Say) -> None:
    assert say("benchmrk") == (2, "", "mixaug: unknown command 'benchmrk'; did you mean 'benchmark'?\n")
    for word in ("xyz", "xyz=cutmix"):
        code, _, complaint = say(word)
        assert code == 2 and all(name in complaint for name in COMMANDS)
        assert "stands behind" not in complaint
    for words in (
        ["policy=cutmix"],
        ["+data.root=my photos", "seed=1"],
        ["experiment=photos", "policy=mixup"],
        ["policy=x"],
    ):
        code, _, complaint = say(*words)
        assert code == 2 and f"stands behind its command, mixaug train {shlex.join(words)}; the commands" in complaint
    for group in ("data", "experiment"):
        assert f"there is no {group}=foto; did you mean photos?" in say("train", "--cfg", "job", f"{group}=foto")[2]
    for option in ("--config-path", "--config-name"):
        code, _, complaint = say("train", option, "x")
        assert code == 2 and "--config-dir" in complaint
    assert "mixaug completion bash" in say("train", "--shell-completion", "install=bash")[2]
    assert "leave out --multirun" in say("benchmark", "--multirun", "seed=0,1")[2]
    code, _, complaint = say("train", "--cfg", "job", "--package", "polcy")
    assert code == 2 and "'polcy'" in complaint
    code, _, complaint = say("train", "--cfg", "job", "policy=mixpu")
    assert code == 2 and "mixpu" in complaint


WRONG = {
    "train policy=cutmixx": (2, "there is no policy=cutmixx; did you mean cutmix"),
    "train experiment=nope": (2, "there is no experiment=nope; there is cifar100_coarse, "),
    "train policy": (2, "cannot read 'policy': expected key=value"),
    "train policy=": (2, "there is no policy=; there is adamixup,"),
    "train policy=3": (2, "cannot read policy=3: a group takes the name of one of its files"),
    "train policy=[a": (2, "cannot read 'policy=[a': expected key=value"),
    "train polcy=cutmix": (2, "there is no setting polcy; did you mean policy?"),
    "train policy=cutmix policy.alpah=2": (2, "there is no setting policy.alpah; did you mean policy.alpha"),
    "train policy=cutmix policy.p=0.5": (2, "policy.p; a share of the batches is no policy.<setting> but a file of "),
    "train policy=mixstyle policy.p=0.5": (2, "there is no setting policy.p; did you mean policy.probability?"),
    "train optimizer.decay=0.5": (2, "there is no setting optimizer.decay; it is optimizer.weight_decay"),
    "train mix_prob=0.5": (2, "there is no setting mix_prob; a share of the batches is no policy.<setting> but a file"),
    "train policy=cutmix policy.alhpa=0.5": (2, "error: there is no setting policy.alhpa; did you mean policy.alpha?"),
    # A name that sections have is that of a section's setting, whatever the command.
    "train lr=0.2": (2, "error: there is no setting lr; did you mean mixer.lr or optimizer.lr?"),
    "benchmark lr=0.2 policy=none": (2, "error: there is no setting lr; did you mean mixer.lr or optimizer.lr?"),
    "search lr=0.2 budget=1m": (2, "error: there is no setting lr; did you mean mixer.lr or optimizer.lr?"),
    "train search=images": (2, "error: there is no setting search; it is an argument of mixaug search"),
    "benchmark search.eta=2": (2, "error: there is no setting search.eta; it is an argument of mixaug search"),
    "train network=resnet18": (2, "there is no setting network; it is model=..., of timm model=timm model.name=..."),
    "benchmark checkpoint=a": (2, "there is no setting checkpoint; it is init_from=runs/<run>"),
    "train +xyzzy=1": (2, "error: there is no setting xyzzy; mixaug train --cfg job prints all"),
    "train jobs=2": (2, "there is no setting jobs; it is an argument of mixaug benchmark and mixaug search"),
    "train experiment=phots": (2, "there is no experiment=phots; did you mean photos?"),
    "benchmark experiment=phots": (2, "there is no experiment=phots; did you mean photos?"),
    "search experiment=phots budget=1m": (2, "there is no experiment=phots; did you mean photos?"),
    "search experiment=photos": (2, "budget is missing: how long may training take in all? budget=30m"),
    "search budgt=60m": (2, "error: there is no setting budgt; did you mean budget?"),
    "search budget=60m clok=cpu": (2, "there is no setting clok; did you mean clock?"),
    "search budget=60m sarch=images": (2, "there is no setting sarch; did you mean search?"),
    "benchmark jbos=2": (2, "there is no setting jbos; did you mean jobs?"),
    "benchmark rot=out": (2, "there is no setting rot; did you mean root?"),
    "benchmark +jobs=2": (2, "+jobs=2: jobs is no setting of a run; give jobs=value"),
    "train policy=cutmix policy.alpha.x=2": (2, "policy.alpha is a value and has no settings of its own"),
    "train policy={a:1}": (2, "there is no setting policy.a"),
    "train seed=0,1": (2, "seed=0,1 gives several values: add --multirun"),
    "train seed=range(3)": (2, "seed=range(3) gives several values: add --multirun"),
    "train --multirun seed=0,x root=out": (2, "seed must be an integer of at least 0, got 'x'"),
    "train --multirun policy=none,mixupp root=out": (2, "there is no policy=mixupp; did you mean mixup"),
    "train policy=none --multirun hydra/launcher=nope": (2, "there is no hydra/launcher=nope; there is basic"),
    "train model.name=${foo}": (2, "Interpolation key 'foo' not found"),
    "train data=cifar10": (2, "give data.root=..."),
    "train data=cifar10 data.root=/nowhere root=out": (2, "the folder '/nowhere' does not exist. Expected in it: "),
    "train policy=cutmix policy.alpha=-1 data=digits root=out": (
        2,
        "alpha as a positive finite number, got -1",
    ),
    "train data=digits root=file": (2, "cannot write file/none-cifar_resnet8-digits-s0-"),
    "train --config-dir /nowhere": (2, "--config-dir expects a folder of config files, got '/nowhere'"),
    "train --nope": (2, "mixaug train: error: unrecognized arguments: --nope"),
    "benchmark policy=nope": (2, "there is no policy=nope; did you mean none?"),
    "benchmark seed=0,-1": (2, "seed must be an integer of at least 0, got -1"),
    "benchmark jobs=x": (2, "jobs: expected an integer of at least 1, got 'x'"),
    "benchmark launch=x": (2, "launch: expected fork (where the system has it) or command, got 'x'"),
    "benchmark root=file": (2, "root: expected a folder, got 'file', and 'file' is a file"),
    "search data=digits data.valid_share=0.2 budget=1m out=file": (
        2,
        "error: out: expected a folder, got 'file', and ",
    ),
    "benchmark out=file/x": (2, "out: expected a folder, got 'file/x', and 'file' is a file"),
    "leaderboard /nowhere": (2, "expected a folder of runs, got '/nowhere', which is not a folder"),
    "leaderboard empty": (2, "no run folder below empty"),
    "evaluate /nowhere": (2, "expected a run folder or a checkpoint, and there is nothing at '/nowhere'"),
    "evaluate empty": (2, "empty is no run folder: it has no config.yaml"),
    "evaluate empty --suite all": (2, "empty holds no finished run in classification"),
    "gallery --policies nope": (2, "unknown policy 'nope'"),
    "gallery --policies cutmix --out file/x.png": (2, "cannot write file: a folder was expected, and there is a file"),
    "gallery --policies cutmix --out x.pdf": (
        2,
        "--out expects the name of a PNG, such as runs/gallery.png, got",
    ),
    "gallery --policies cutmix --size 0": (2, "--size expects 16 to 2048 pixels, got 0"),
    "gallery --run /nowhere": (2, "/nowhere is no run folder: it has no config.yaml"),
    "mixer empty": (2, "empty is no run folder: it has no config.yaml"),
    # Values of a wrong kind, out of range, of a file in a folder's place, empty.
    "benchmark out= data=digits": (2, "out: expected a folder, got ''"),
    "search out= budget=1m": (2, "out: expected a folder, got ''"),
    "train device=cuda:x": (2, "device must be auto, cpu, cuda or cuda:<index>, got 'cuda:x'"),
    "train ema=0.9": (2, "ema must be a group of settings, got 0.9"),
    "leaderboard ''": (2, "argument roots: expected a path, got ''"),
    "leaderboard empty --config-dir file": (2, "expected config_dir as a folder of config files, got 'file'"),
    "leaderboard empty --out ''": (2, "argument --out: expected a path, got ''"),
    "evaluate ''": (2, "argument RUN: expected a value, got ''"),
    "evaluate file": (2, "file is no checkpoint of a run: there is no config.yaml beside it"),
    "evaluate empty --device foo": (2, "argument --device: expected auto, cpu, cuda or cuda:<index>, got 'foo'"),
    "evaluate empty --trust model": (
        2,
        "argument --trust: expected a full name such as my_package.MyModel",
    ),
    "evaluate empty --seed 0": (2, "--seed does nothing without --suite"),
    "evaluate empty --suite all --samples 0": (2, "argument --samples: expected a whole number of at least 1, got '0'"),
    "evaluate empty --suite all --seed -1": (2, "argument --seed: expected a whole number from 0 to 922"),
    "evaluate empty --suite all --corrupted file": (2, "--corrupted expects a folder, got 'file'"),
    "evaluate empty --suite all --pictures file": (
        2,
        "--pictures: expected a folder, got 'file'",
    ),
    "evaluate empty --suite all --outliers nope": (2, "mixaug evaluate: there is no data set 'nope'; closest"),
    "evaluate empty --suite geometry --outliers digits": (2, "--outliers does nothing without the family outliers"),
    "evaluate empty --suite geometry --corrupted empty": (2, "--corrupted does nothing without the family corruption"),
    "evaluate empty --suite calibratoin": (2, "got 'calibratoin'; did you mean 'calibration'?"),
    "evaluate empty --suite foo": (2, "mixaug evaluate: --suite expects each family in ['all', 'calibration', "),
    "evaluate empty --suite all --corrupted empty --samples 3": (2, "--corrupted is for the whole test set: leave out"),
    "leaderboard nowhere": (2, "error: expected a folder of runs, got 'nowhere', which is not a folder"),
    "train policy._target_=mixaug.Sometimes": (
        2,
        "error: policy._target_=mixaug.Sometimes would stand in tables under ",
    ),
    "train objective._target_=mixaug.objectives.RegMixup": (2, "under the name of objective=cross_entropy: give it a "),
    "train experiment=diabetes policy=cutmix": (2, "error: policy=cutmix: CutMix works on pixels: it expects images ("),
    "train data=digits data.name=foo": (2, "error: data: there is no data set 'foo'; closest names: photos"),
    "train experiment=digits +data.root=1": (2, "error: data: data set 'digits' has no option 'root'; its options are"),
    "train experiment=digits model=timm model.name=foo": (2, "error: model: there is no model 'foo'; beside those of "),
    "gallery --out ''": (2, "argument --out: expected a path, got ''"),
    "gallery --pick 1 2": (2, "--pick says which images of --sheets: give that too"),
    "gallery --samples 3": (2, "--samples is of --run: give that too"),
    "gallery --run empty --size 64": (2, "--size is of the photographs: leave it out beside --sheets and --run"),
    "gallery --only mixup --strips empty --out x.png": (2, "--only draws no sheet: leave out --out"),
    "gallery --run empty --samples 1": (2, "argument --samples: expected a whole number of at least 2, got '1'"),
    "mixer empty --samples 0": (2, "argument --samples: expected a whole number of at least 2, got '0'"),
    "policies --needs foo": (2, "--needs expects what policies look at, attention, cam, features, hidden, outputs,"),
    "policies --needs atention": (2, "got 'atention'; did you mean 'attention'?"),
    "policies --family maks": (2, "error: --family expects one of baseline, blends, cut and paste, masks, guided"),
    "policies --passes 0": (2, "argument --passes: expected a number of at least 1, got '0'"),
    "policies --cost nan": (2, "argument --cost: expected a number of at least 1, got 'nan'"),
    "policies describe cutmixx": (2, "unknown policy 'cutmixx'. Did you mean 'cutmix'"),
}


@pytest.mark.parametrize("every", [pytest.param(7, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_what_cannot_work_ends_in_one_line_and_leaves_nothing(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for line, (expected, told) in list(WRONG.items())[::every]:
        code, shown, complaint = say(*shlex.split(line))
        *usage, last = complaint.splitlines()
        assert (code, shown) == (expected, ""), line
        assert told in last, (line, complaint)
        # The reader of arguments says how a command is used before it says what was wrong.
        assert not usage or usage[0].startswith("usage: mixaug"), (line, complaint)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"], line


SETTINGS = {
    "policy._target_": "mixaug.policies.CutMix",
    "policy.alpha": 1.0,
    "policy.per": "sample",
    "objective._target_": "mixaug.losses.MixedCrossEntropy",
    "objective.label_smoothing": 0.0,
    "optimizer._target_": "timm.optim.create_optimizer_v2",
    "optimizer.lr": 0.1,
    "mixer.lr": None,
    "ema.decay": None,
    "schedule._target_": "timm.scheduler.create_scheduler_v2",
    "schedule.warmup_epochs": 0,
    "model._target_": "mixaug.models.create",
    "model.name": "mlp",
    "data._target_": "mixaug.data.load",
    "data.name": "imagefolder",
    "data.root": None,
    "augment.flip": False,
    "networks": {},
    "choices.policy": "cutmix",
    "root": "runs",
}


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("policy.alhpa", "; did you mean policy.alpha?"),
        # An option that the file does not list can be added, one that the target does not have cannot.
        ("policy.labeling", " in the config file; +policy.labeling=... adds it"),
        ("policy.labelling", "; did you mean +policy.labeling?"),
        ("policy.xyzzy", "; policy has policy.alpha, policy.per"),
        ("policy.lr", "; did you mean mixer.lr or optimizer.lr?"),
        ("objective.xyzzy", "; objective has objective.label_smoothing"),
        ("optimizer.nesterov", "; optimizer has optimizer.lr; +optimizer.nesterov=... hands it to timm.optim.create_"),
        ("schedule.warmup_epoch", "; did you mean schedule.warmup_epochs?"),
        ("model.drop_rate", "; model has model.name; +model.drop_rate=... hands it to mixaug.models.create"),
        ("data.valid_foldr", "; did you mean +data.valid_folder?"),
        ("data.xyzzy", "; data has data.name, data.root"),
        ("augment.flp", "; did you mean augment.flip?"),
        ("augment.xyzzy", "; augment has augment.flip"),
        ("networks.teacher", "; +networks.teacher=... adds it"),
        ("polcy.alpha", "; did you mean policy.alpha?"),
        ("alpha", "; did you mean policy.alpha?"),
        # Only what is near is asked about; else what there is is told.
        ("resume", "; the same command goes on with an interrupted run"),
        ("schedule.foo", "; schedule has schedule.warmup_epochs"),
        ("schedule.warmup", "; did you mean schedule.warmup_epochs or +schedule.warmup_lr or +schedule.warmup_prefix?"),
        ("augment.reshuffle", "; augment has augment.flip"),
        ("optimizer.learning_rate", "; it is optimizer.lr"),
        ("optimizer.decay", "; it is optimizer.weight_decay"),
        ("network.name", "; it is model=..., of timm model=timm model.name=..."),
        ("lr_scheduler", "; it is schedule=... and its settings"),
        # What is called otherwise elsewhere is no part of a section.
        ("data.output", "; data has data.name, data.root"),
        ("schedule.lr", "; did you mean mixer.lr or optimizer.lr?"),
        ("rehsuffle", "; mixaug train --cfg job prints all"),
        ("rot", "; did you mean root?"),
    ],
)
def test_the_setting_that_was_meant_is_named_and_plus_only_where_it_works(key: str, told: str) -> None:
    said = no_setting(key, SETTINGS)
    expected = f"there is no setting {key}{told}"
    assert said.startswith(expected) if expected.endswith("_") else said == expected


def test_one_rule_of_exit_statuses_for_all_commands(say: Say, root: Path) -> None:
    for name in ("", *COMMANDS):
        # An option that does not exist is a wrong line everywhere.
        assert say(*filter(None, [name]), "--nope")[0] == 2, name
    told = (root / "docs" / "engine.md").read_text()
    for line in STATUSES.splitlines()[1:]:
        number, meaning = line.split(maxsplit=1)
        assert f"| {number} | {meaning} |" in told, line


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), 2),
        (TypeError("x"), 2),
        (FileNotFoundError("x"), 2),
        (NotADirectoryError("x"), 2),
        (OSError(28, "No space left on device"), 1),
        (RunFolderError("x"), 1),
        (CheckpointError("x"), 1),
        (LoadingError("x"), 1),
        (TrainingDiverged("x", 3), 1),
        (MemoryError("x"), 1),
        (RunHeld("x"), 75),
    ],
)
def test_a_status_follows_from_the_error(error: Exception, status: int) -> None:
    assert status_of(error) == status
    # A command that trains nothing was told of the checkpoint that it cannot read.
    assert status_of(error, reads=True) == (2 if isinstance(error, CheckpointError) else status)


def test_a_run_that_cannot_be_opened_is_a_wrong_line_for_what_only_looks_at_it(say: Say, tmp_path: Path) -> None:
    config = OmegaConf.to_yaml(compose(["data=digits", "policy=none", "device=cpu"]))
    for name in ("torn", "unfinished", "damaged"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("a: [1" if name == "damaged" else config)
        (tmp_path / name / "last.pt").write_bytes(b"PK\x03\x04")
    for name in ("torn", "damaged"):
        (tmp_path / name / "result.json").write_text("{}")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    torn, unfinished, damaged = (str(tmp_path / name) for name in ("torn", "unfinished", "damaged"))
    suite = ("--suite", "geometry")
    for line, told in (
        (("evaluate", f"{torn}/last.pt"), "last.pt cannot be read"),
        (("evaluate", torn), "last.pt cannot be read"),
        (("evaluate", torn, *suite), "torn has no checkpoint that can be read"),
        (("evaluate", damaged, *suite), "damaged"),
        (("evaluate", unfinished, *suite), "it is unfinished"),
        (("gallery", "--run", torn, "--out", str(tmp_path / "x.png")), "last.pt cannot be read"),
        (("mixer", torn), "last.pt cannot be read"),
    ):
        code, shown, complaint = say(*line)
        assert (code, shown, complaint.count("\n")) == (2, "", 1) and told in complaint, (line, complaint)
    code, _, complaint = say("evaluate", torn, unfinished, *suite)
    assert code == 2 and "2 of 2 runs were not evaluated" in complaint
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name != ".lock") == before


def test_the_status_over_several_runs_is_a_reason_or_that_one_failed() -> None:
    for statuses, count, expected in (
        ([], 3, 0),
        ([2], 1, 2),
        ([75, 75], 2, 75),
        ([1, 1], 2, 1),
        # One has been evaluated, or they failed for different reasons.
        ([2], 2, 1),
        ([2, 75], 2, 1),
    ):
        assert status_of_all(statuses, count) == expected, (statuses, count)


def test_commands_end_by_the_error_that_they_meet(say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # What each command calls to do its work.
    work = {
        "train policy=none data=digits": "mixaug.engine.train.train",
        "benchmark policy=none data=digits": "mixaug.leaderboard.benchmark.run_grid",
        "search budget=1m": "mixaug.leaderboard.search.run_search",
        f"leaderboard {tmp_path}": "mixaug.leaderboard.collect",
        f"evaluate {tmp_path}": "mixaug.engine.stored.evaluate_checkpoint",
        f"gallery --run {tmp_path} --out {tmp_path}/x.png": "mixaug.engine.pictures.open_run",
        f"mixer {tmp_path}": "mixaug.engine.pictures.open_run",
    }
    (tmp_path / "config.yaml").touch()
    for error, status in ((ConfigError("what was asked"), 2), (OSError("what had begun"), 1)):
        for line, target in work.items():

            def fail(*_: object, error: Exception = error, **__: object) -> None:
                raise error

            with monkeypatch.context() as patched:
                patched.setattr(target, fail)
                code, shown, complaint = say(*line.split())
            assert (code, shown) == (status, "") and str(error) in complaint, line


def test_ctrl_c_ends_a_command_without_a_trace(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(leaderboard, "main", stopped)
    assert say("leaderboard", "x") == (130, "", "mixaug leaderboard: stopped by Ctrl-C\n")


def test_a_missing_extra_is_named(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hydra", None)
    code, _, complaint = say("train", "policy=cutmix")
    assert code == 2 and "pip install 'mixaug[train]'" in complaint


def test_a_reader_of_a_pipe_may_leave_early(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from mixaug import cli; import sys; sys.exit(cli.main(['--help']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_the_printed_config_is_the_one_that_is_trained(say: Say) -> None:
    line = ("protocol=openmixup_cifar", "data=cifar10", "data.root=/nowhere", "policy=cutmix")
    code, shown, _ = say("train", "--cfg", "job", "--package", "policy", *line)
    assert code == 0
    # The protocol's rules set it: Hydra alone would show 1.0.
    assert "alpha: 0.2" in shown.splitlines()


def test_the_policies_as_a_table(say: Say) -> None:
    code, shown, _ = say("policies")
    assert code == 0
    assert {line.split()[0] for line in shown.splitlines() if line[:1].strip()} >= set(ours())
    # Texts are whole, on as many lines as it takes.
    whole = " ".join(shown.split())
    assert all(mixaug.describe(name).summary.replace("``", "") in whole for name in ours())
    _, shown, _ = say("policies", "*mix", "--family", "masks", "--model-free")
    rows = [line.split()[0] for line in shown.splitlines() if line[:1].strip()]
    assert rows == [
        "policy",
        "Masks.",
        "cowmix",
        "fmix",
        "gmix",
        "gridmix",
        "hmix",
        "maskmix",
        "patchmix",
        "smoothmix",
        "mixaug",
    ]
    _, shown, _ = say("policies", "list", "s*", "--needs", "attention", "--task", "classification", "--passes", "2")
    assert [line.split()[0] for line in shown.splitlines() if line[:1].strip()][2:-1] == ["smmix"]
    assert all(len(line) <= 120 for line in shown.splitlines())
    assert say("policies", "nothing*") == (1, "", "no policy is like nothing*\n")
    assert say("policies", "cutmx") == (1, "", "no policy is like cutmx; did you mean cutmix?\n")
    # A pattern is no misspelt name, and a policy that the options leave out is one.
    assert say("policies", "cutmx*") == (1, "", "no policy is like cutmx*\n")
    left_out = (1, "", "no policy is like mixup and fits the options\n")
    assert say("policies", "mixup", "--family", "masks") == left_out
    # What is like none is told beside what is like some.
    code, shown, complaint = say("policies", "cutmix", "mixupp")
    assert (code, complaint) == (1, "no policy is like mixupp; did you mean mixup?\n") and "\ncutmix " in shown
    assert say("policies", "--family", "blend")[0] == 2


def test_a_list_for_numbers_names_what_is_for_images_apart(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    code, shown, _ = say("policies", "--task", "regression", "*mixup")
    lines = shown.splitlines()
    assert code == 0 and all(len(line) <= 90 for line in lines)
    rows = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert {"mixup", "cmixup", "knn_mixup"} <= set(rows) and not {"comixup", "adamixup"} & set(rows)
    assert "These take numbers as labels too, for images (B, C, H, W): adamixup, comixup." in lines
    whole = " ".join(shown.split())
    assert all(mixaug.describe(name).summary in whole for name in ("mixup", "cmixup", "knn_mixup"))
    # What cuts images cuts series as well.
    code, shown, _ = say("policies", "--task", "regression", "cutmix", "c*mixup")
    kinds = "series (B, C, T), images (B, C, H, W), volumes (B, C, D, H, W)"
    assert code == 0 and f"These take numbers as labels too, for {kinds}: cutmix." in " ".join(shown.split())


def test_policies_as_cards(say: Say) -> None:
    code, shown, _ = say("policies", "describe", "cutmix", "fmix")
    assert code == 0
    assert shown == f"{mixaug.describe('cutmix')}\n\n{mixaug.describe('fmix')}\n"
    # Names without a pattern or a filter ask for the same.
    assert say("policies", "cutmix", "fmix")[1] == shown
    assert say("policies", "list", "cutmix")[1].startswith("policy ")
    code, _, complaint = say("policies", "describe", "cutmx")
    assert code == 2 and "Did you mean 'cutmix'" in complaint
    assert say("policies", "describe")[0] == 2
    assert say("policies", "describe", "cutmix", "--task", "regression")[0] == 2


def test_choices_of_the_help_page_are_those_of_the_leaderboard() -> None:
    assert tuple(FAMILIES) == evaluate.FAMILIES
    assert (STATISTICS, tuple(FORMATS)) == (leaderboard.STATISTICS, leaderboard.FORMATS)
    assert policies.ACTIONS == ("list", "describe")


def test_config_files_of_ones_own_join(say: Say, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compose(with_config_dir(["policy=mine"], own)).policy.alpha == 0.25
    monkeypatch.chdir(own.parent)
    code, shown, _ = say("train", "--cfg", "job", "--config-dir", "my configs", "experiment=small", "policy=mine")
    assert code == 0 and "epochs: 3" in shown and "alpha: 0.25" in shown
    with pytest.raises(ConfigError, match="mine"):
        compose(["policy=mine"])
    with pytest.raises(ConfigError, match="expects a folder of config files, got 'nowhere'"):
        with_config_dir([], "nowhere")
    with pytest.raises(ConfigError, match="not both"):
        with_config_dir(["hydra.searchpath=[pkg://other]"], own)


def test_policies_made_of_policies_as_the_page_shows_them(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixaug.engine.build import build_policy
    from mixaug.leaderboard.grid import grid_of
    from mixaug.leaderboard.search.space import read_space

    page = (Path(__file__).resolve().parents[1] / "docs" / "benchmark.md").read_text()
    section = page.partition("### A policy in a share of the batches")[2].partition("\n## ")[0]
    files = re.findall(r"`(my_configs/policy/\w+\.yaml)`.*?```yaml\n(.*?)```", section, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("my_configs/policy").mkdir(parents=True)
    for name, text in files:
        Path(name).write_text(text)

    def made(*overrides: str) -> str:
        return re.sub(r"\s+", " ", repr(build_policy(compose(with_config_dir(list(overrides), "my_configs")))))

    assert len(files) == 3
    assert made("policy=half_cutmix").startswith("Sometimes( probability=0.5, until=None, per='batch'")
    assert "(0): CutMix(alpha=0.2)" in made("policy=half_mild_cutmix", "policy.policy.alpha=0.2")
    assert "(0): CutMix(alpha=0.5)" in made("policy=half_mild_cutmix")
    either = made("policy=either")
    assert either.startswith("OneOf( probabilities=[0.3, 0.7]") and "(0): Mixup() (1): CutMix()" in either
    train, benchmark, search = (shlex.split(line) for line in re.findall(r"^mixaug (.*)$", section, flags=re.MULTILINE))
    code, shown, complaint = say(*train, "epochs=1", "data.train_size=100", "root=runs", "device=cpu")
    assert (code, complaint) == (0, "") and "half_cutmix-cifar_resnet8-digits" in shown
    (folder,) = Path("runs").iterdir()
    assert "probability: 0.25" in (folder / "config.yaml").read_text()
    assert read_run(folder).config["choices"]["policy"] == "half_cutmix"
    # A choice among policies takes the inputs that they take.
    shutil.rmtree("runs")
    rows = ["experiment=diabetes", "policy=half_cutmix", "epochs=1", "root=runs", "device=cpu"]
    code, shown, complaint = say("train", "--config-dir", "my_configs", *rows, "policy.policy=mixup")
    assert (code, complaint) == (0, "") and "half_cutmix-" in shown
    code, _, complaint = say("train", "--config-dir", "my_configs", *rows)
    assert code == 2 and "policy=half_cutmix: CutMix works on pixels" in complaint
    assert benchmark[:3] == ["benchmark", "--config-dir", "my_configs"]
    cells = grid_of(with_config_dir(benchmark[3:], "my_configs")).cells
    assert {cell.config["choices"]["policy"] for cell in cells} == {"none", "cutmix", "half_cutmix"}
    space = read_space([word for word in search[3:] if not word.startswith("budget=")], "my_configs")
    assert [trial.options for trial in space.trials if trial.policy == "half_cutmix"] == [
        {"probability": 0.25},
        {"probability": 0.5},
    ]


@pytest.mark.filterwarnings("ignore:provider=hydra.searchpath")
def test_own_files_never_stand_behind_shipped_ones_unseen(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(own / "policy" / "mine.yaml", own / "policy" / "cutmix.yaml")
    with pytest.raises(ConfigError, match=r"cutmix.yaml has the name of a file of mixaug, policy/cutmix.yaml"):
        compose(with_config_dir(["policy=mine"], own))
    # A package of configs is held to the same.
    (own / "somebody" / "policy").mkdir(parents=True)
    (own / "somebody" / "__init__.py").touch()
    shutil.copy(own / "policy" / "mine.yaml", own / "somebody" / "policy" / "cutmix.yaml")
    monkeypatch.syspath_prepend(own)
    with pytest.raises(ConfigError, match=r"cutmix.yaml has the name of a file of mixaug, policy/cutmix.yaml"):
        compose(["hydra.searchpath=[pkg://somebody]"])
    with pytest.raises(ConfigError, match="no folder of config files at /nowhere"):
        compose(["hydra.searchpath=[file:///nowhere]"])


def test_a_row_made_from_ones_own_files_says_how_it_is_made_again(own: Path, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    config = compose(with_config_dir(["policy=mine", "epochs=2"], own))
    assert "searchpath" not in json.dumps(OmegaConf.to_container(config))
    run = tmp_path / "run"
    run.mkdir()
    OmegaConf.save(config, run / "config.yaml")
    (run / "result.json").write_text(json.dumps({"seed": 0}))
    alone = dataclasses.replace(read_run(run), status="finished", result={"seed": 0})
    beside = dataclasses.replace(alone, config_dir=own)
    assert regenerate([alone]).startswith("# this version cannot compose") and departures(alone) is None
    command = regenerate([beside])
    assert command.startswith(f"mixaug benchmark --config-dir '{own}' policy=mine ") and departures(beside) == []
    assert "--config-dir '<folder>' policy=mine" in regenerate([beside], hide_paths=True)
    again = compose(with_config_dir([*command.split("' ")[1].split()[:-1], "seed=0"], own))
    assert config_hash(again) == config_hash(config)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mixaug tr", ["train"]),
        ("mixaug train policy=cut", ["policy=cutmix"]),
        ("mixaug train optimizer.l", ["optimizer.lr="]),
        ("mixaug train policy=fmix policy.de", ["policy.decay="]),
        ("mixaug train --mul", ["--multirun"]),
        ("mixaug train --cfg ", ["all", "hydra", "job"]),
        ("mixaug train --config-dir ", []),
        ("mixaug benchmark policy=none,cut", ["policy=none,cutmix"]),
        ("mixaug benchmark jobs=2 policy=none,fmix policy.per", ["policy.per="]),
        ("mixaug benchmark st", ["statistic=", "stop_after=", "streams."]),
        ("mixaug search search=im", ["search=images"]),
        ("mixaug search search=regression budget=5m search.policies.cm", ["search.policies.cmixup."]),
        ("mixaug search search.eta=2 search=regression optimizer.l", ["optimizer.lr="]),
        ("mixaug evaluate --weights ", ["auto", "ema", "model"]),
        ("mixaug evaluate --we", ["--weights"]),
        ("mixaug evaluate runs/", []),
        ("mixaug policies describe cut", ["cutmix"]),
        ("mixaug completion ", ["bash", "fish", "query", "zsh"]),
        ("mixaug train no_such_key=1 policy=fm", ["policy=fmix"]),
        ("mixaug nothing ", []),
    ],
)
def test_completion(line: str, expected: list[str]) -> None:
    assert completion.candidates(line) == expected


def test_completion_knows_ones_own_files(own: Path) -> None:
    folder = own.rename(own.parent / "mine")
    assert completion.candidates(f"mixaug train --config-dir {folder} policy=min") == ["policy=mine"]
    assert completion.candidates(f"mixaug train data.root={folder.parent}/mi") == [f"data.root={folder}/"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("breaks", "reply"), [(" =:", "fmix"), (" ", "policy=fmix")])
def test_bash_replaces_what_it_takes_for_the_word(say: Say, tmp_path: Path, breaks: str, reply: str) -> None:
    program = tmp_path / "mixaug"
    program.write_text('#!/bin/sh\n[ "$*" = "completion query mixaug train policy=fm" ] && echo policy=fmix\n')
    program.chmod(0o755)
    script = f"""PATH={tmp_path}:$PATH; {say("completion", "bash")[1]}
COMP_WORDBREAKS="{breaks}"; COMP_LINE="mixaug train policy=fm"; COMP_POINT=${{#COMP_LINE}}
_mixaug; echo "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == reply
