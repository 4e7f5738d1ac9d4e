"""Reading run folders, whatever state they are in."""

import json

import pytest

from mixaug.leaderboard import collect
from mixaug.leaderboard.collect import read_epochs, read_run

from .fabricate import agreeing, fail, result, write_run


def test_each_state_is_told_apart(tmp_path):
    write_run(tmp_path, result(), name="a-finished")
    fail(write_run(tmp_path, result(), name="b-failed"), "loss became nan at step 12")
    write_run(tmp_path, result(), name="c-unfinished", finished=False, epochs=[{"epoch": 1}, {"epoch": 2}])
    write_run(tmp_path, result(), name="d-unfinished", finished=False)
    (write_run(tmp_path, result(), name="e-corrupt") / "result.json").write_text('{"status": "fin')
    runs = collect(tmp_path)
    assert [(run.folder.name[2:], run.status) for run in runs] == [
        ("finished", "finished"),
        ("failed", "failed"),
        ("unfinished", "unfinished"),
        ("unfinished", "unfinished"),
        ("corrupt", "corrupt"),
    ]
    assert [run.reason for run in runs[:4]] == [
        "",
        "loss became nan at step 12",
        "stopped after epoch 2",
        "no epoch finished",
    ]
    assert "result.json cannot be read" in runs[4].reason


def test_options_of_older_runs_have_their_present_names(tmp_path):
    before = {"mask_lam": 0.2, "lam_margin": 0.1, "alpha": 2.0}
    write_run(tmp_path, result("automix", policy_options=before))
    write_run(tmp_path, result("none", policy_options={"mask_lam": 1}))
    options = {run.result["policy"]: run.result["policy_options"] for run in collect(tmp_path)}
    assert options == {
        "automix": {"mask_weight": 0.2, "min_lam": 0.1, "alpha": 2.0},
        "none": {"mask_lam": 1},  # an option of that name was never renamed there
    }


def test_a_run_resumed_after_a_failure_is_finished(tmp_path):
    folder = write_run(tmp_path, result())
    (folder / "failure.json").write_text(json.dumps({"status": "failed", "reason": "disk full"}))
    assert read_run(folder).status == "finished"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("top1_last", None, "top1_last: expected a finite number"),
        ("top1_best", float("nan"), "top1_best: expected a finite number"),
        ("seed", "0", "seed: expected a finite number"),
        ("seed", True, "seed: expected a finite number"),
        ("policy", 3, "policy: expected text"),
        ("step_ms", "fast", "step_ms: expected a finite number"),
        ("policy_options", [1], "policy_options: expected a mapping"),
    ],
)
def test_a_result_with_a_wrong_value_is_named(tmp_path, key, value, said):
    run = read_run(write_run(tmp_path, result(**{key: value}), configured={}))
    assert run.status == "corrupt"
    assert said in run.reason


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe\x00", b"nonsense"])
@pytest.mark.parametrize("name", ["result.json", "failure.json", "environment.json", "config.yaml", "epochs.jsonl"])
def test_any_damaged_file_is_reported_and_spoils_no_other_run(tmp_path, name, content):
    write_run(tmp_path, result(seed=1), name="whole")
    damaged = write_run(tmp_path, result(), name="damaged", finished=name != "failure.json")
    (damaged / name).write_bytes(content)
    by_name = {run.folder.name: run for run in collect(tmp_path)}
    assert by_name["whole"].status == "finished"
    assert by_name["whole"].problems == ()
    run = by_name["damaged"]
    if name in ("result.json", "failure.json"):
        assert run.status == "corrupt"
        assert name in run.reason
    elif content:
        assert run.status == "finished"
        assert any(name in problem for problem in run.problems)


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    path = tmp_path / "epochs.jsonl"
    path.write_text('{"epoch": 1, "test_top1": 5}\n{"epoch": 2, "test_top1": 6}\n{"epoch": 2, "test_top1": 7}\n{"ep')
    problems = []
    assert read_epochs(path, problems) == ({"epoch": 1, "test_top1": 5}, {"epoch": 2, "test_top1": 7})
    assert problems == ["epochs.jsonl: line 4 is not an epoch record"]


def test_roots_nest_overlap_and_may_be_runs_themselves(tmp_path):
    deep = write_run(tmp_path / "a" / "b", result())
    flat = write_run(tmp_path, result(seed=1))
    assert {run.folder for run in collect([tmp_path, tmp_path / "a", flat])} == {deep, flat}
    assert collect(tmp_path / "a")[0].folder == deep


def test_a_root_that_is_no_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        collect(tmp_path / "nowhere")


def test_a_result_of_another_run_is_told_by_the_config_that_it_lies_beside(tmp_path):
    from mixaug.engine.config import compose, plain
    from mixaug.engine.identity import digest_of
    from mixaug.engine.reading import DamagedFile
    from mixaug.engine.results import digest_beside, read_result

    composed = plain(compose(["data=digits", "policy=mixup", "epochs=30"]))
    told = result("mixup", 0, policy_options={"alpha": 1.0})
    config = agreeing(told, composed)
    told["config"] = digest_of(config)
    folder = write_run(tmp_path, told, configured=config)
    assert (read_run(folder).status, read_result(folder / "result.json")) == ("finished", told)
    assert digest_beside(folder) == told["config"]
    for changes, said in (
        ({"policy": "none", "seed": 1}, "policy=none, seed=1, and the config.yaml beside it has policy=mixup, seed=0"),
        ({"model": "resnet50"}, "model=resnet50, and the config.yaml beside it has model=cifar_resnet8"),
        ({"policy_options": {"alpha": 0.2}}, "whose policy_options are not those"),
        ({}, "whose settings are not those"),
    ):
        (folder / "result.json").write_text(json.dumps({**told, **changes, "config": "0123456789"}))
        run = read_run(folder)
        assert run.status == "corrupt" and "it is the result of another run" in run.reason and said in run.reason
        with pytest.raises(DamagedFile, match="it is the result of another run"):
            read_result(folder / "result.json")
    (folder / "result.json").write_text(json.dumps(told))
    # What cannot change a number, or says where data lie, may be written anew by whoever moves a folder.
    for moved in ({"workers": 3, "root": "elsewhere"}, {"data": {**config["data"], "root": "/data"}}):
        (folder / "config.yaml").write_text(json.dumps({**config, **moved}))
        assert read_run(folder).status == "finished", moved
    (folder / "config.yaml").write_text(json.dumps({**config, "batch_size": 7}))
    assert "whose settings are not those" in read_run(folder).reason
    # Results of earlier versions have no digest, and folders may have no config.
    del told["config"]
    (folder / "result.json").write_text(json.dumps(told))
    assert read_run(folder).status == "finished"
    # Whether a policy took partners from a pool is said by its result alone.
    told["policy_options"] = {"alpha": 1.0, "pool": "batch"}
    for digest in ({}, {"config": digest_of({**config, "batch_size": 7})}):
        (folder / "result.json").write_text(json.dumps({**told, **digest}))
        assert read_run(folder).status == "finished"
    (folder / "config.yaml").unlink()
    assert (read_run(folder).status, digest_beside(folder)) == ("finished", None)
