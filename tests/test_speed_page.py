"""The measured tables of docs/speed.md: each has its place, and holds what was measured."""

import re

import pytest

from speed import command, page
from speed.goals import Verdict
from speed.sections import Row
from speed.timing import Ratio


def row(job="mixup", output="out", floor=1.5, library="mixaug", setting="64x3x8x8 float32 contiguous", **further):
    ratio = Ratio(floor, floor - 0.25, floor + 0.25)
    return Row(
        further.pop("section", "mixing"),
        setting,
        job,
        further.pop("per", "batch"),
        output,
        library,
        1.0,
        ratio,
        **further,
    )


def cells(lines):
    """Cells of the lines of tables, heads and rules left out."""
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rules = [place for place, line in enumerate(shown) if set("".join(line)) <= set("-:")]
    return [line for place, line in enumerate(shown) if place not in rules and place + 1 not in rules]


def test_every_table_has_its_place_its_command_and_a_day(root):
    text = (root / "docs" / "speed.md").read_text()
    for name, measured in page.TABLES.items():
        begin, end = page.marks(name)
        inner = text.split(begin)[1].split(end)[0].strip()
        assert inner.startswith(f"`python tools/speed.py {measured.arguments}`; "), name
        assert re.search(r"torch \d.*, timm .*; \d{4}-\d\d-\d\d\.$", inner.splitlines()[0]), name
        assert "|---|" in inner, name


@pytest.mark.parametrize("name", page.TABLES)
def test_the_command_of_a_table_is_one_that_the_tool_takes(name):
    options = command._parser().parse_args(page.TABLES[name].arguments.split())
    assert options.device == "cpu"
    assert options.rounds >= 5


def test_a_table_is_measured_and_put_in_its_place(monkeypatch, tmp_path):
    place = tmp_path / "speed.md"
    before, after = page.marks("mixing"), page.marks("loss")
    place.write_text("one\n{}\nold\n{}\ntwo\n{}\nkept\n{}\n".format(*before, *after))
    arguments = "--sections mixing --shapes 2,3,4,4 --rounds 1 --threads 1 --jobs mixup --per batch"
    tables = {"mixing": page.Measured(arguments, page.TABLES["mixing"].write), "loss": page.TABLES["loss"]}
    for module in (page, command):
        monkeypatch.setattr(module, "TABLES", tables)
        monkeypatch.setattr(module, "PAGE", place)
    assert command.main(["--page", "mixing"]) == 0
    text = place.read_text()
    assert text.startswith(f"one\n{before[0]}\n\n`python tools/speed.py {arguments}`; ")
    assert "old" not in text
    assert text.endswith("two\n{}\nkept\n{}\n".format(*after))
    (line,) = [line for line in cells(text.splitlines()) if line[:2] == ["mixup", "batch"]]
    assert all(float(figure) > 0 for figure in line[2:7])
    place.write_text("nothing")
    with pytest.raises(ValueError, match="no place for the table 'mixing'"):
        command.main(["--page", "mixing"])


def test_a_page_without_a_place_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    (begin, end), place = page.marks("loss"), tmp_path / "speed.md"
    monkeypatch.setattr(command, "PAGE", place)
    monkeypatch.setattr(command, "_measure", None)
    for text in ("nothing", begin, f"{end}\n{begin}", f"{begin}\n{begin}\n{end}"):
        place.write_text("{}\n{}\n".format(*page.marks("mixing")) + text)
        with pytest.raises(ValueError, match="no place for the table 'loss'"):
            command.main(["--page", "mixing", "loss"])


def test_a_table_takes_no_other_arguments(capsys):
    with pytest.raises(SystemExit):
        command.main(["--page", "mixing", "--rounds", "3"])
    assert "--page measures each table by a command of its own" in capsys.readouterr().err


def test_missed_goals_are_shown_and_the_others_counted():
    verdicts = [
        Verdict(row("fmix"), "floors", 9.0, 12.0, 11.0),
        Verdict(row("mixup"), "floors", 1.0, 0.9, 0.8),
        Verdict(row("cutmix"), "floors", 1.0, 1.1, 0.9),
    ]
    lines = page.TABLES["mixing"].write([], verdicts)
    assert "Goals: 3. Reached: 1. Within the spread of the run: 1. Missed: 1." in lines
    assert cells(lines) == [["64x3x8x8", "fmix", "batch", "9 floors", "12.00"]]


def test_forms_show_the_better_of_the_kept_outputs_and_the_best_rival():
    half = "64x3x8x8 bfloat16 channels_last"
    rows = [
        row(floor=3.0),
        row(output="inplace", floor=2.0, against_best_peer=Ratio(0.5, 0.5, 0.5), best_peer="timm"),
        row(output="fresh", floor=1.0),
        row(floor=1.25, setting=half),
        row(library="timm", output="own", floor=4.0),
    ]
    lines = page.TABLES["forms"].write(rows, [])
    assert lines[0] == "| job | per | float32 contiguous | bfloat16 channels_last |"
    assert cells(lines) == [["mixup", "batch", "2.00 (timm 4.00)", "1.25"]]


def test_compiled_and_eager_stand_side_by_side():
    rows = [row(output="fresh", floor=3.0), row(output="compiled", floor=2.0), row(output="own", library="timm")]
    lines = page.TABLES["compiled"].write(rows, [])
    assert lines[0] == "| job | per | 64x3x8x8, compiled | 64x3x8x8, fresh |"
    assert lines[1] == "|---|---|--:|--:|"
    assert cells(lines) == [["mixup", "batch", "2.00", "3.00"]]


def test_losses_loaders_and_epochs_have_a_line_for_each_batch():
    loss = {"section": "loss as a multiple of log_softmax", "setting": "B=8 K=4"}
    rows = [
        row(output="", library="floor", **loss),
        row(output="index form", floor=2.5, **loss),
        row(output="targets", floor=3.5, library="dense", **loss),
    ]
    lines = page.TABLES["loss"].write(rows, [])
    assert lines[0] == "| logits | index form | targets |"
    assert cells(lines) == [["B=8 K=4", "2.50", "3.50"]]
    rows = [
        row(output="DeviceLoader", note="1,234 images/s"),
        row(output="PrefetchLoader", library="timm", note="999 images/s"),
        row(output="DeviceLoader", note="1,000 images/s", per="sample"),
    ]
    assert cells(page.TABLES["loaders"].write(rows, [])) == [
        ["64x3x8x8", "batch", "1,234", "999; x 1.50 (1.25 to 1.75)"],
        ["64x3x8x8", "sample", "1,000", ""],
    ]
    rows = [row("one batch again", library="floor", note="5 images/s"), row("cutmix", note="4 images/s")]
    assert cells(page.TABLES["resident"].write(rows, [])) == [["cutmix", "4", "1.50 (1.25 to 1.75)"]]


@pytest.mark.parametrize("name", ["guided", "learned", "objectives"])
def test_steps_stand_beside_their_goals(name):
    rows = [row("none", where="vit"), row("automix", where="vit", memory=2.0), row("samix", where="vit", memory=1.0)]
    verdicts = [Verdict(rows[1], "steps of none", 3.1, 1.5, 1.25), Verdict(rows[1], "of the memory of none", 1.7, 2, 2)]
    assert cells(page.TABLES[name].write(rows, verdicts)) == [
        ["vit, 64x3x8x8", "automix", "1.50 (1.25 to 1.75)", "3.1", "2.00", "1.7"],
        ["vit, 64x3x8x8", "samix", "1.50 (1.25 to 1.75)", "", "1.00", ""],
    ]


def test_puzzlemix_stands_beside_the_authors_and_the_exact_cut():
    rows = [
        row("plain mixup", library="floor"),
        row("n = 2", note="authors: 9 times their plain mixup"),
        row("L = 2, n = 4", "scipy", note="gap mean 0.000 %", library="floor"),
        row("L = 2, n = 4", "device", note="gap mean 0.010 %"),
    ]
    assert cells(page.TABLES["puzzlemix"].write(rows, [])) == [
        ["64x3x8x8 float32 contiguous", "n = 2", "1.00", "1.50 (1.25 to 1.75)", "9 times their plain mixup"],
        ["L = 2, n = 4", "device", "1.50", "gap mean 0.010 %"],
    ]
