"""The benchmark: interleaving, goals and tables. Nothing here judges how fast anything is."""

import csv
import io
from dataclasses import replace

import pytest
import torch

import mixaug
from speed import check, libraries, loaders, sections, steps
from speed import goals as goal_files
from speed.command import main
from speed.goals import Goal, judge, read_goals
from speed.memory import peak_bytes
from speed.profiles import PYTHON, profiles, top_operators
from speed.report import markdown, table
from speed.sections import Row
from speed.setting import LAYOUTS, Setting
from speed.timing import Ratio, Timing, interleaved, once_a_round


def test_every_case_runs_once_a_round_in_turn():
    order = []
    cases = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = interleaved(cases, rounds=3, round_seconds=0)
    # Each case is called twice to warm up, then twice in every round.
    assert order == list("aabbcc") * 4
    assert {name: len(timing.rounds) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}
    with pytest.raises(ValueError, match="rounds of at least 1, got 0"):
        interleaved(cases, rounds=0)


def test_long_cases_run_once_a_round_after_a_call_that_does_not_count():
    order = []
    cases = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = once_a_round(cases, rounds=2, device=torch.device("cpu"))
    assert order == list("ab") * 3
    assert [len(timing.rounds) for timing in timings.values()] == [2, 2]
    with pytest.raises(ValueError, match="rounds of at least 1, got 0"):
        once_a_round(cases, rounds=0, device=torch.device("cpu"))


def test_ratio_is_taken_round_by_round():
    # A machine that slows down threefold in the second round changes no ratio.
    ratio = Ratio.of(Timing((2.0, 6.0, 2.0)), Timing((1.0, 3.0, 2.0)))
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 1.0, 2.0)


def row(job, per, floor, output="out", where="large", peer=None, section="mixing", **further):
    ratio = Ratio(floor, floor - 0.1, floor + 0.1)
    against = None if peer is None else Ratio(peer, peer, peer)
    place = {"goal_section": section, "where": where}
    return Row(
        section, where, job, per, output, "mixaug", 1.0, ratio, against, "timm" if peer else "", **place, **further
    )


def goal(job, per="", where="", **further):
    return Goal(section=further.pop("section", "mixing"), job=job, per=per, where=where, **further)


def test_the_short_table_has_a_line_for_every_job():
    mine = [
        row("mixup", "sample", floor, output) for floor, output in ((3.0, "fresh"), (1.5, "out"), (1.25, "inplace"))
    ]
    others = [
        replace(mine[0], library="slow", floor=Ratio(9, 9, 9)),
        replace(mine[0], library="timm", floor=Ratio(4, 4, 4)),
    ]
    lerp = replace(mine[0], library="lerp", floor=Ratio(2.5, 2.5, 2.5))
    page = markdown({}, [*mine, *others, lerp], [])
    line = next(
        line
        for line in page.splitlines()
        if line.startswith("| mixup | sample |") and "other libraries" not in line and "timm" in line and "slow" in line
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:] == ["3.00", "1.50", "1.25", "2.50", "timm 4.00, slow 9.00"]
    assert "compiled" not in page
    page = markdown({}, [*mine, row("mixup", "sample", 1.75, "compiled"), lerp], [])
    assert "| 3.00 | 1.50 | 1.25 | 1.75 | 2.50 |" in page


def test_goals_take_the_better_of_out_and_inplace():
    goals = [goal("mixup", "batch", "large", output="kept", x_floor=0.8, x_best_peer=0.4)]
    rows = [row("mixup", "batch", 1.5), row("mixup", "batch", 0.7, "inplace", peer=0.5), row("mixup", "sample", 9)]
    verdicts = judge([*rows, row("mixup", "batch", 9, where="small"), row("mixup", "batch", 0.1, "fresh")], goals)
    assert [(v.got, v.goal, v.reached, v.missed) for v in verdicts] == [
        (0.7, 0.8, True, False),
        (0.5, 0.4, False, True),
    ]


def test_a_goal_within_the_spread_is_not_missed():
    goals = [goal("mixup", "batch", "large", x_floor=0.8)]
    (verdict,) = judge([row("mixup", "batch", 0.85)], goals)
    assert not verdict.reached
    assert not verdict.missed
    (verdict,) = judge([row("mixup", "batch", 0.95)], goals)
    assert verdict.missed


def test_recorded_peers_stand_in_where_none_is_installed():
    goals = [goal("gridmix", "batch", "large", x_best_peer=0.2, recorded_peer="openmixup", recorded_peer_x_floor=5.0)]
    (verdict,) = judge([row("gridmix", "batch", 1.5)], goals)
    assert verdict.got == pytest.approx(0.3)
    assert verdict.missed
    assert "openmixup" in verdict.what


def test_goals_name_what_they_measure():
    goals = [
        goal("mixup", output="fresh", x_fresh_lerp=1.5),
        goal("automix", section="step", x_floor=3.1, x_memory=1.7),
        goal("", section="resident", device="cuda", x_floor=1.05),
    ]
    lerp = Ratio(1.7, 1.6, 1.8)
    rows = [
        row("mixup", "batch", 9, "fresh", fresh_lerp=lerp),
        row("mixup", "batch", 9, "compiled", fresh_lerp=lerp),
        row("mixup", "sample", 9, "fresh"),  # the lerp was not measured
        row("automix", "default", 3.0, "fresh", "deit", section="step", memory=2.0),
        row("cutmix", "default", 1.3, "eager", "resnet", section="resident"),
        row("mixup", "batch", 9, "fresh", section="", fresh_lerp=lerp),
    ]
    assert [(v.row.job, v.goal, v.got, v.missed) for v in judge(rows, goals)] == [
        ("mixup", 1.5, 1.7, True),
        ("automix", 3.1, 3.0, False),
        ("automix", 1.7, 2.0, True),
    ]
    assert [v.what for v in judge(rows, goals)] == ["fresh lerps", "steps of none", "of the memory of none"]
    (last,) = judge(rows[4:], goals, "cuda")
    assert (last.row.job, last.missed) == ("cutmix", True)


def test_every_goal_names_a_job():
    goals = read_goals(goal_files.GOALS)
    labels = {job.label for job in sections.JOBS}
    assert {goal.job for goal in goals if goal.section == "mixing"} <= labels
    trained = {
        job.label for known in (steps.GUIDED, steps.LEARNED, steps.OBJECTIVES) for _, _, jobs in known for job in jobs
    }
    assert {goal.job for goal in goals if goal.section == "step"} <= trained
    assert {goal.section for goal in goals} == set(goal_files.UNITS)
    for job in sections.JOBS:
        mixaug.create(job.policy, **job.options)


def test_goals_of_the_loss_meet_its_rows():
    rows = [*sections.index_loss(1024, 1000, "cpu", 1), *sections.index_loss(8, 1000, "cpu", 1)]
    assert len(rows) == 10
    verdicts = judge(rows, read_goals())
    assert [(verdict.row.setting, verdict.row.output) for verdict in verdicts] == [
        ("B=1024 K=1000", "index form"),
        ("B=1024 K=1000", "index form, smoothing 0.1"),
    ]


@pytest.mark.parametrize(
    ("dtype", "layout", "section"),
    [
        ("float32", "contiguous", "mixing"),
        ("float32", "channels_last", ""),
        ("bfloat16", "contiguous", ""),
        ("uint8", "contiguous", ""),
    ],
)
def test_mixing_is_judged_in_contiguous_float32_only(dtype, layout, section):
    jobs = [job for job in sections.JOBS if job.label == "cutmix"]
    rows = list(sections.mixing(Setting((4, 3, 8, 8), dtype, layout), jobs, ["sample"], compiled=False, rounds=1))
    assert {row.goal_section for row in rows} == {section}
    assert {row.where for row in rows} == {"small"}
    fresh = {row.library: row for row in rows if row.output == "fresh"}
    assert set(fresh) == ({"mixaug"} if dtype == "uint8" else {"mixaug", "lerp"})
    assert (fresh["mixaug"].fresh_lerp is None) == (dtype == "uint8")
    assert all(row.best_peer in ("", "timm", "kornia") for row in rows)


@pytest.mark.parametrize(("policy", "per"), [("mixup", "batch"), ("mixup", "sample"), ("cutmix", "batch")])
def test_other_libraries_do_the_same_job(policy, per):
    setting = Setting((4, 3, 8, 8))
    found = dict(libraries.other_libraries(policy, per, setting))
    assert "timm" in found
    assert ("torchvision" in found) == (per == "batch")
    images, labels = setting.images(0), torch.tensor([1, 2, 3, 4])
    targets = libraries.dense_targets(found["timm"](images.clone(), labels))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("policy", ["mixup", "cutmix"])
@pytest.mark.parametrize(
    ("library", "per"),
    [("torchvision", "batch"), ("timm", "batch"), ("timm", "sample"), ("timm", "pair"), ("kornia", "sample")],
)
def test_other_libraries_mix_two_sources_and_keep_dtype_and_shape(library, per, policy, dtype, layout):
    pytest.importorskip(library)
    setting = Setting((4, 4, 16, 16), dtype, layout)
    mixer = dict(libraries.other_libraries(policy, per, setting))[library]
    # Image i is one in channel i alone: the mean of channel c is the share of image c.
    images = torch.eye(4)[:, :, None, None].repeat(1, 1, 16, 16).to(setting.images(0))
    images = images.to(memory_format=LAYOUTS[layout])
    labels = torch.arange(4)
    torch.manual_seed(0)
    mixed, targets = mixer(images.clone(memory_format=torch.preserve_format), labels)
    assert (mixed.shape, mixed.dtype) == (images.shape, images.dtype)
    assert mixed.is_contiguous(memory_format=LAYOUTS[layout])
    shares = mixed.float().mean((2, 3))
    torch.testing.assert_close(shares.sum(1), torch.ones(4), atol=0.02, rtol=0)
    assert ((shares > 0).sum(1) <= 2).all()
    assert (shares < 1).any()
    if library == "kornia":
        # The labels hold own label, partner's label and a share, for one mix of each sample.
        own, partner, share = targets.reshape(4, 3).unbind(1)
        assert torch.equal(own.long(), labels)
        kept = share if policy == "cutmix" else 1 - share
        targets = torch.zeros(4, 4).scatter_(1, labels[:, None], kept[:, None])
        targets.scatter_add_(1, partner.long()[:, None], 1 - kept[:, None])
    else:
        assert targets.shape == (4, setting.num_classes)
        targets = targets[:, :4].float()
    torch.testing.assert_close(targets, shares, atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_command_prints_and_writes_tables(capsys, tmp_path, dtype):
    arguments = ["--shapes", "4,3,8,8", "--rounds", "1", "--jobs", "mixup", "cutmix", "--dtypes", dtype]
    code = main([*arguments, "--sections", "mixing", "--per", "sample", "--out", str(tmp_path)])
    assert code == 0
    printed = capsys.readouterr().out
    assert "### mixing: 4x3x8x8" in printed
    assert f"torch {torch.__version__}" in printed
    lines = list(csv.DictReader(io.StringIO((tmp_path / "speed.csv").read_text())))
    assert {(line["job"], line["output"]) for line in lines if line["library"] == "mixaug"} == {
        (job, output) for job in ("mixup", "cutmix") for output in ("fresh", "out", "inplace")
    }
    assert {float(line["x_floor"]) for line in lines if line["library"] == "floor"} == {1.0}
    assert table([]).count("\n") == 1


def test_bad_shape_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--shapes", "4,3,8"])
    assert "expected B,C,H,W of positive integers, got '4,3,8'" in capsys.readouterr().err


def test_a_step_shows_its_peak_of_memory():
    rows = list(
        steps.training_step(Setting((4, 3, 8, 8)), [sections.Job("cutmix", "cutmix")], "cifar_resnet8", 1, memory=True)
    )
    assert [row.job for row in rows] == ["none", "cutmix"]
    assert rows[0].note == "peak memory x 1.00"
    assert 0.9 < float(rows[1].note.split()[-1]) < 2
    assert rows[1].memory == pytest.approx(float(rows[1].note.split()[-1]), abs=0.006)
    assert {(row.goal_section, row.where) for row in rows} == {("step", "cifar_resnet8")}


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_step_in_half_precision_runs_under_autocast(dtype):
    jobs = [sections.Job("mixup", "mixup")]
    assert len(list(steps.training_step(Setting((4, 3, 8, 8), dtype), jobs, "cifar_resnet8", 1))) == 2
    with pytest.raises(ValueError, match="floating-point images, got uint8"):
        next(steps.training_step(Setting((4, 3, 8, 8), "uint8"), jobs, "cifar_resnet8", 1))


@pytest.mark.slow
def test_one_graph_holds_more_than_gradients_taken_at_once():
    marked = {job.label for _, _, jobs in steps.LEARNED for job in jobs if job.one_graph}
    assert marked == {"automix, one graph"}
    jobs = [sections.Job("at once", "automix"), sections.Job("kept", "automix", one_graph=True)]
    rows = steps.training_step(Setting((8, 3, 16, 16)), jobs, "cifar_resnet8", 1, memory=True)
    memory = {row.job: row.memory for row in rows}
    assert memory["kept"] > 1.3 * memory["at once"]


def test_peak_memory_counts_what_is_held_at_once():
    def call():
        first = torch.zeros(250_000)
        second = first + 1
        del first
        return second, torch.zeros(125_000)

    assert peak_bytes(call, torch.device("cpu")) == pytest.approx(2_000_000, rel=0.01)


@pytest.mark.slow
def test_puzzlemix_section_compares_with_recorded_costs():
    rows = list(sections.puzzlemix((4, 3, 32, 32), "cpu", 1))
    assert len(rows) >= 8
    assert all(row.milliseconds > 0 for row in rows)
    gaps = list(sections.cut_energies("cpu", count=2))
    assert {row.output for row in gaps} == {"scipy", "host", "device"}
    assert all("largest 0.00 %" in row.note for row in gaps if row.output == "scipy" or row.job == "L = 3, n = 4")


@pytest.mark.parametrize("per", ["batch", "sample", "pair"])
def test_loaders_deliver_the_same_normalised_batches(per):
    setting = Setting((4, 3, 8, 8))
    found = loaders.delivering(setting, per, batches=3, workers=0)
    libraries = {name.partition("/")[0] for name in found}
    assert libraries == {"mixaug", "timm", *(["torchvision"] if per == "batch" else [])}
    for loader in found.values():
        batches = [(b.inputs, b.targets(100)) if isinstance(b, mixaug.MixedBatch) else tuple(b) for b in loader]
        assert len(batches) == 3
        for images, targets in batches:
            assert (images.shape, images.dtype) == ((4, 3, 8, 8), torch.float32)
            assert images.abs().max() <= 2.0001
            assert images.std() > 0.5
            torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_loader_section_compares_with_ours():
    rows = list(loaders.loaders(Setting((4, 3, 8, 8)), ["batch", "sample"], rounds=1, workers=0))
    assert [(row.per, row.library) for row in rows] == [
        *(("batch", library) for library in ("mixaug", "timm", "torchvision")),
        *(("sample", library) for library in ("mixaug", "timm")),
    ]
    assert {row.floor.median for row in rows if row.library == "mixaug"} == {1.0}
    assert all(row.note.endswith(" images/s") for row in rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resident_section_leaves_out_what_asks_the_model(dtype):
    jobs = [sections.Job("cutmix", "cutmix"), sections.Job("snapmix", "snapmix")]
    setting = Setting((4, 3, 8, 8), dtype, "channels_last")
    rows = list(steps.resident(setting, jobs, "cifar_resnet8", 1, batches=2, compiled=False))
    assert [(row.library, row.job) for row in rows] == [
        ("floor", "one batch again"),
        ("mixaug", "none"),
        ("floor", "one batch again"),
        ("mixaug", "cutmix"),
    ]
    assert {row.output for row in rows} == {"eager"}
    assert all(row.note.endswith(" images/s") for row in rows)
    assert len(judge(rows, read_goals(), "cuda")) == 2
    assert judge(rows, read_goals(), "cpu") == []


def test_resident_section_refuses_uint8():
    with pytest.raises(ValueError, match="float32 or bfloat16, got uint8"):
        next(steps.resident(Setting((4, 3, 8, 8), "uint8"), [], "cifar_resnet8", 1, batches=2, compiled=False))


def test_profile_counts_calls_and_shares():
    a = torch.randn(64, 64)

    def call():
        return torch.mm(a, a).add_(1).add_(1)

    operators = {found.name: found for found in top_operators(call, torch.device("cpu"), steps=5)}
    assert operators["aten::mm"].calls == 1
    assert operators["aten::add_"].calls == 2
    assert operators[PYTHON].calls == 1
    assert sum(found.share for found in operators.values()) == pytest.approx(1)
    times = [found.microseconds for found in operators.values()]
    assert times == sorted(times, reverse=True)
    assert len(top_operators(call, torch.device("cpu"), steps=5, count=2)) == 2
    jobs = [job for job in sections.JOBS if job.label == "mixup"]
    found = list(profiles(Setting((4, 3, 8, 8)), jobs, ["batch", "sample"], steps=2))
    assert [(profile.job, profile.per) for profile in found] == [("mixup", "batch"), ("mixup", "sample")]


def test_command_shows_profiles_of_named_jobs(capsys, tmp_path):
    arguments = ["--shapes", "4,3,8,8", "--per", "batch", "--sections", "--profile", "--out", str(tmp_path)]
    assert main([*arguments, "--jobs", "mixup"]) == 0
    page = (tmp_path / "speed.md").read_text()
    assert "### profile of mixup, per batch, into `out=`: 4x3x8x8 float32 contiguous" in page
    assert "| aten::" in page
    capsys.readouterr()
    for jobs in ([], ["--jobs", "transmix"]):
        with pytest.raises(SystemExit):
            main([*arguments, *jobs])
        assert "--profile needs --jobs, of 'mixup'" in capsys.readouterr().err


@pytest.mark.slow
def test_resident_section_runs_compiled():
    rows = list(steps.resident(Setting((4, 3, 8, 8)), [], "cifar_resnet8", 1, batches=2, compiled=True))
    assert [row.output for row in rows] == ["compiled", "compiled"]


@pytest.mark.slow
def test_every_section_runs(capsys):
    arguments = ["--shapes", "8,3,32,32", "--rounds", "1", "--jobs", "mixup", "--model", "cifar_resnet8", "--compiled"]
    main([*arguments, "--sections", "mixing", "loss", "step", "resident", "loader", "--eager", "--batches", "2"])
    printed = capsys.readouterr().out
    for section in ("mixing:", "mixing, labels and loss", "training step", "training cifar", "loader", "log_softmax"):
        assert section in printed


MACHINE = {"device": "a", "threads": "2"}


def test_a_row_is_slower_where_it_leaves_the_spread_of_a_run_of_the_same_machine(tmp_path):
    path = tmp_path / "runs" / "recorded.csv"
    before = [row("cutmix", "batch", 1.0), row("cutmix", "batch", 1.5, "inplace"), row("mixup", "batch", 2.0, "fresh")]
    check.record(path, before, MACHINE, replace=False)
    for other in ({"device": "b", "threads": "2"}, {"device": "a", "threads": "1"}):
        assert check.recorded(path, other) == {}
    earlier = check.recorded(path, MACHINE)
    # The recorded rounds go from 0.9 to 1.1; the better of `out=` and in place counts.
    slow = row("cutmix", "batch", 1.25)
    for now, slower in ((1.0, 0), (1.19, 0), (1.25, 1)):
        found, compared = check.regressions([row("cutmix", "batch", now), row("cutmix", "sample", 9.0)], earlier)
        assert (len(found), compared) == (slower, 1)
    assert check.regressions([slow, row("cutmix", "batch", 1.0, "inplace")], earlier)[0] == []
    (said,) = check.regressions([slow], earlier)[0]
    assert said == "mixing large cutmix batch kept: 1.25 (1.15 to 1.35), recorded 1.00 (0.90 to 1.10)"
    # Far outside of the recorded spread, and by less than a tenth.
    check.record(path, [row("cutmix", "batch", 3.0)], MACHINE, replace=True)
    assert check.regressions([row("cutmix", "batch", 3.25)], check.recorded(path, MACHINE))[0] == []
    # What is compared does not become the measure.
    check.record(path, [row("cutmix", "batch", 9.0), row("fmix", "batch", 1.0)], MACHINE, replace=False)
    kept = check.recorded(path, MACHINE)
    assert kept["mixing", "large", "cutmix", "batch", "kept"].median == 3.0
    assert kept["mixing", "large", "fmix", "batch", "kept"].median == 1.0
    assert kept["mixing", "large", "mixup", "batch", "fresh"].median == 2.0


def test_a_fresh_result_is_judged_beside_a_fresh_lerp(tmp_path):
    path = tmp_path / "recorded.csv"
    check.record(path, [row("mixup", "batch", 1.0, "fresh", fresh_lerp=Ratio(1.0, 0.9, 1.1))], MACHINE, replace=False)
    earlier = check.recorded(path, MACHINE)
    dear = row("mixup", "batch", 3.0, "fresh", fresh_lerp=Ratio(1.0, 0.9, 1.1))
    assert check.regressions([dear], earlier) == ([], 1)
    assert len(check.regressions([replace(dear, fresh_lerp=Ratio(2.0, 1.9, 2.1))], earlier)[0]) == 1


def test_a_rival_is_ahead_where_a_training_step_feels_it():
    # Ours takes a millisecond, half of it more than the rival, or a quarter in place.
    rows = [row("cutmix", "batch", 1.0, "out", peer=2.0), row("cutmix", "batch", 1.0, "inplace", peer=4 / 3)]
    rows += [row("mixup", "batch", 1.0, peer=0.5), row("fmix", "batch", 1.0)]
    assert check.leads(rows, lambda setting: 13.0) == ([], 2)
    (said,), _ = check.leads(rows, {"large": 12.0}.__getitem__)
    assert said == "mixing large cutmix batch: timm is 0.25 ms faster, 2.1% of a training step of 12 ms"


def test_a_step_of_eight_images_stands_for_one_of_more():
    assert 0 < check.step_milliseconds(Setting((9, 3, 8, 8)), "cifar_resnet8", attempts=1) < 60_000


def test_the_check_says_what_it_compares_and_keeps_the_first_run(capsys, monkeypatch, tmp_path):
    arguments = ["--sections", "mixing", "--jobs", "maskmix", "--shapes", "4,3,8,8", "--rounds", "1", "--per", "batch"]
    arguments += ["--recorded", str(tmp_path / "recorded.csv")]
    assert main(arguments) == 0
    assert not (tmp_path / "recorded.csv").exists()
    assert main([*arguments, "--check"]) == 1
    assert "nothing that this run measured has been recorded or has a rival" in capsys.readouterr().err
    assert main([*arguments, "--record"]) == 0
    monkeypatch.setattr(check, "SLOWER", 1e9)
    assert main([*arguments, "--check"]) == 0
    assert "0 of 2 rows slower than recorded, 0 of 0 rivals ahead" in capsys.readouterr().err
    monkeypatch.setattr(check, "regressions", lambda rows, earlier: (["maskmix"], 1))
    assert main([*arguments, "--check"]) == 1
    assert "slower: maskmix" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["--rounds 0", "--threads -1", "--batches 0", "--workers -1", "--shapes a,b,c,d"])
def test_numbers_that_make_no_sense_are_refused_at_once(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    assert f"argument {arguments.split()[0]}: expected" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused_before_measuring(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "file" / "below")])
    assert stopped.value.code == 2
    assert "--out: " in capsys.readouterr().err
