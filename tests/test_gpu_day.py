"""The prepared run on a machine with a GPU: rehearsed on the CPU, and what it makes of its figures."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpu import checks, command, protocol, report
from gpu.setting import Row, Section, Setting
from helpers import ours

#: Sections that start the tests themselves in a new interpreter.
OF_TESTS = ("kernels", "tests")


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """Every section but those that start tests, forked from this process, which has imported what they need."""
    out = tmp_path_factory.mktemp("gpu_day")
    sections = [section.name for section in command.SECTIONS if section.name not in OF_TESTS]
    with pytest.MonkeyPatch.context() as patch:
        # It sets a variable for the processes that it starts.
        patch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "1"))
        patch.setattr(command, "CONTEXT", protocol.FORK)
        code = command.main(["--rehearse", "--sections", *sections, "--out", str(out), "--data", str(out / "data")])
    return code, out


def went_well(code, out, sections):
    log = (out / "log.txt").read_text()
    assert code == 0, log
    rows, where = report.read_rows(out / "gpu_day.csv")
    assert f"torch {torch.__version__}" in where
    ends = {row.section: row.note for row in rows if row.variant == "section"}
    assert ends == dict.fromkeys(sections, "ended"), log
    assert [row for row in rows if row.unit == "works" and float(row.value) != 1] == [], log
    trained = [row for row in rows if row.section == "protocol" and row.variant.startswith("top-1")]
    assert [row.what for row in trained] == ["none", "cutmix"]
    assert all(0 <= float(row.value) <= 100 for row in trained)
    assert sorted(path.name for path in out.iterdir()) == ["gpu_day.csv", "log.txt", "runs"]
    return rows


def every_step(tmp_path, monkeypatch, names, *, rehearse):
    monkeypatch.setattr(checks, "_policies", lambda setting: names)
    rows = list(checks.steps(Setting(torch.device("cpu"), rehearse, tmp_path, tmp_path)))
    assert [row for row in rows if row.value != 1] == []
    assert [row.what for row in rows] == [name for name in names for _ in range(2)]


def test_policies_get_the_models_and_metadata_that_they_look_at(tmp_path, monkeypatch):
    every_step(tmp_path, monkeypatch, ["lisa", "selecmix", "selfmix", "tlalign"], rehearse=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not know how far training is")
def test_every_policy_takes_a_step(tmp_path, monkeypatch):
    every_step(tmp_path, monkeypatch, ours(), rehearse=False)


def test_sections_are_rehearsed_to_their_end(rehearsed):
    went_well(*rehearsed, [section.name for section in command.SECTIONS if section.name not in OF_TESTS])


@pytest.mark.slow
def test_every_section_is_rehearsed_to_its_end(tmp_path, root):
    # In a process of its own: kernels are interpreted only where Triton is told so before it is first imported.
    place = ["--out", str(tmp_path), "--data", str(tmp_path / "data")]
    script = [sys.executable, str(root / "tools" / "gpu_day.py"), "--rehearse", *place]
    code = subprocess.run(script, cwd=tmp_path, capture_output=True).returncode
    rows = went_well(code, tmp_path, [section.name for section in command.SECTIONS])
    assert [row for row in rows if row.what in ("failed", "error") and row.unit == "tests" and row.value != "0"] == []
    assert {row.section for row in rows if row.what == "passed" and int(row.value) > 0} == set(OF_TESTS)


def test_the_page_is_filled_from_the_figures(rehearsed, tmp_path):
    page = tmp_path / "speed.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.fill_page(page, rehearsed[1] / "gpu_day.csv")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| steps | works | | 6 of 6 | | |" in text
    assert f"torch {torch.__version__}" in text
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no place for the figures"):
        report.fill_page(page, rehearsed[1] / "gpu_day.csv")


def test_nothing_of_the_page_is_lost(tmp_path):
    page, figures = tmp_path / "speed.md", tmp_path / "gpu_day.csv"
    report.write_rows(figures, [Row("mixing", "mixup", "", 1.0, "ms")], "a device", "torch 2")
    for text in (f"{report.END} {report.BEGIN}", f"{report.BEGIN} {report.END} kept {report.END} kept"):
        page.write_text(text)
        with pytest.raises(ValueError, match="no place for the figures"):
            report.fill_page(page, figures)
        assert page.read_text() == text
    page.write_text(f"{report.BEGIN} figures {report.END}")
    report.write_rows(figures, [], "a device", "torch 2")
    with pytest.raises(ValueError, match="has no figures"):
        report.fill_page(page, figures)
    figures.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"no file of figures .* columns \['a', 'b'\]"):
        report.fill_page(page, figures)
    assert " figures " in page.read_text()


def test_the_page_of_the_project_has_a_place_for_figures(root):
    text = (root / "docs" / "speed.md").read_text()
    assert text.index(report.BEGIN) < text.index(report.END)


def setting(tmp_path, *earlier):
    return Setting(torch.device("cpu"), False, tmp_path, tmp_path, earlier)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([3.0, 3.3, 3.7], (3, "bfloat16", True, 200)),
        ([3.0, 3.7, 3.9], (2, "bfloat16", True, 200)),
        # Two that end before the time is over, and eager code where it is faster.
        ([3.7, 7.6, 11.0], (2, "bfloat16", True, 100)),
        ([90.0, 95.0, 99.0], (2, "float32", False, 40)),
    ],
)
def test_as_many_runs_are_packed_as_fit(times, expected, tmp_path):
    # 200 epochs of 500 steps in 480 - 60 - 40 s: 3.8 ms a step.
    names = ("1 process", "2 processes", "3 processes")
    rows = [Row("step", "bfloat16, compiled", name, value, "ms") for name, value in zip(names, times, strict=True)]
    slower = Row("step", "float32", "2 processes", 20.0, "ms")
    assert protocol.chosen(setting(tmp_path, slower, *rows)) == expected
    assert protocol.chosen(setting(tmp_path)) == (2, "bfloat16", True, 200)


def test_a_run_that_was_cut_short_has_its_newest_score_and_no_median(tmp_path):
    assert protocol._figure(tmp_path, "none") == (protocol.TITLE, None, 0)
    (tmp_path / "none-x").mkdir()
    file = tmp_path / "none-x" / "epochs.jsonl"

    def ended(last, scored):
        lines = [{"epoch": n, **({"test_top1": float(n)} if scored(n) else {})} for n in range(1, last + 1)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return protocol._figure(tmp_path, "none")

    # Every fourth epoch is scored, and of a whole run of 24 the last ten.
    assert ended(24, lambda n: n % 4 == 0 or n > 14) == (protocol.TITLE, 19.5, 24)
    assert ended(19, lambda n: n % 4 == 0) == ("top-1 at epoch 16", 16.0, 19)
    assert ended(3, lambda n: n % 4 == 0) == (protocol.TITLE, None, 3)


def test_processes_that_time_steps_do_not_wait_for_one_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "_stepping", lambda *_: lambda number: 1 / 0)
    with pytest.raises(RuntimeError, match="a process that timed steps ended with"):
        protocol._at_once(setting(tmp_path), 2, "float32", False)


@pytest.mark.parametrize(("way", "note"), [("fails", "RuntimeError: invalid"), ("dies", "exit code 3")])
def test_a_capture_that_spoils_its_process_costs_no_other_policy_its_answer(way, note, tmp_path, monkeypatch):
    spoiled = []

    def capture(_, name):
        if spoiled:
            raise RuntimeError("captures nothing any more")
        if name == "cutmix" and way == "dies":
            os._exit(3)
        if name == "cutmix":
            spoiled.append(name)
            raise RuntimeError("invalid")

    monkeypatch.setattr(checks, "_policies", lambda _: ["none", "cutmix", "mixup", "fmix"])
    monkeypatch.setattr(checks, "_capture", capture)
    monkeypatch.setattr(checks, "_captures", lambda _: not spoiled)
    rows = list(checks.graphs(setting(tmp_path)))
    assert [(row.what, row.value) for row in rows] == [("none", 1), ("cutmix", 0), ("mixup", 1), ("fmix", 1)]
    assert [row.note for row in rows] == ["", note, "", ""]


def _asks(chosen):
    yield Row("asks", "earlier", "", len(chosen.earlier), "rows")


def test_figures_of_some_sections_do_not_take_the_place_of_those_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "environment", lambda device: {"device": device})
    monkeypatch.setattr(command, "CONTEXT", protocol.FORK)
    monkeypatch.setattr(command, "SECTIONS", (Section("asks", 1, 60, _asks), Section("asks again", 1, 60, _asks)))
    place = ["--part", "1", "--out", str(tmp_path / "out"), "--data", str(tmp_path / "data" / "sheets")]
    assert command.main(place) == 0
    kept = (tmp_path / "data" / "gpu_day_part1.csv").read_text()
    assert kept.count("earlier") == 2
    assert command.main([*place, "--sections", "asks"]) == 0
    assert (tmp_path / "data" / "gpu_day_part1.csv").read_text() == kept


def _hangs(_):
    yield Row("hangs", "begun", "", 1, "works")
    time.sleep(600)


def _fails(_):
    yield Row("fails", "begun", "", 1, "works")
    raise OSError("broken")


@pytest.mark.parametrize(
    ("run", "seconds", "ended"), [(_hangs, 1.0, "stopped after"), (_fails, 60.0, "failed with exit code 1")]
)
def test_what_a_section_gave_before_it_ended_stays(run, seconds, ended, tmp_path, monkeypatch):
    section = Section("hangs" if run is _hangs else "fails", 1, seconds, run)
    # Processes that are forked know the sections of this test.
    monkeypatch.setattr(command, "CONTEXT", protocol.FORK)
    monkeypatch.setattr(command, "SECTIONS", (section,))
    with (tmp_path / "log.txt").open("w") as log:
        given = replace(setting(tmp_path), seconds=seconds)
        rows, how = command.end_section(command.start_section(section, given, log))
    assert how.startswith(ended)
    assert [row.what for row in rows] == ["begun", "seconds"]
    if run is _fails:
        assert "OSError: broken" in (tmp_path / "log.txt").read_text()


def test_halves_of_the_sheets_meet_where_the_data_lies(tmp_path):
    for half, name in (("half1", "apple"), ("half2", "bee")):
        for split in ("train", "test"):
            (tmp_path / half / split).mkdir(parents=True)
            (tmp_path / half / split / f"{name}.webp").write_text(name)
        (tmp_path / half / "classes.csv").write_text("names")
        command.bring(tmp_path / half, tmp_path / "data")
    found = sorted(str(path.relative_to(tmp_path / "data")) for path in (tmp_path / "data").rglob("*.*"))
    assert found == ["classes.csv", *(f"{s}/{n}.webp" for s in ("test", "train") for n in ("apple", "bee"))]
    with pytest.raises(FileNotFoundError, match="expects a folder of gpu_day/ with sheets"):
        command.bring(tmp_path / "data" / "nothing", tmp_path / "data")


def test_a_run_of_the_engine_that_fails_is_told_with_its_last_words(tmp_path, monkeypatch):
    # The run is forked from this process.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = replace(setting(tmp_path), rehearse=True, device=torch.device("cuda"))
    (row,) = protocol.engine(given)
    assert (row.section, row.value, row.unit) == ("engine", 0, "works")
    assert row.note == "exit code 2: error: device=cuda was asked for, but torch sees no GPU here; use device=cpu"


def test_published_figures_are_those_of_the_table():
    assert protocol.published() == {"none": 76.42, "cutmix": 79.45, "resizemix": 79.56}


def test_without_a_gpu_only_the_rehearsal_runs(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        command.main(["--part", "1", "--out", str(Path("unused"))])
    assert "there is no CUDA device here; --rehearse" in capsys.readouterr().err
