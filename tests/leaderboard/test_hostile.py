"""Run folders that are damaged, or made to do damage: each is a line that says so, and others stand as they were."""

from __future__ import annotations

import copy
import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mixaug.engine.config import compose, plain
from mixaug.engine.errors import ConfigError
from mixaug.leaderboard import aggregate, collect, to_csv, to_html, to_markdown
from mixaug.leaderboard.render import print_tables

from .fabricate import agreeing, fail, result, write_run

DEEP = "[" * 100_000 + "]" * 100_000
EPOCHS = [{"epoch": epoch, "test_top1": 50.0 + epoch} for epoch in range(1, 4)]
BOMB = "seed: 0\na0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 9)
)
COMPOSED = {**plain(compose(["policy=cutmix", "model=cifar_resnet8", "epochs=30"])), "seed": 0}


def board_with(root: Path, spoil: Callable[[Path], object], *, pages: bool = True) -> str:
    """What the terminal says about two whole runs and one that ``spoil`` has been at; all formats are written."""
    for policy in ("none", "mixup"):
        write_run(root, result(policy, 0, 90.0), name=policy, epochs=EPOCHS)
    spoil(write_run(root, result("cutmix", 0), name="spoiled", epochs=EPOCHS, configured=COMPOSED))
    leaderboard = aggregate(collect(root))
    whole = {
        row.policy: row for board in leaderboard.boards for row in board.rows if row.runs[0].folder.name != "spoiled"
    }
    assert {policy: row.score.mean for policy, row in whole.items()} == {"none": 90.0, "mixup": 90.0}
    assert whole["mixup"].difference is not None
    for render in (to_markdown, to_csv, *([to_html] if pages else [])):
        render(leaderboard).encode("utf-8")
    buffer = BytesIO()
    console = Console(file=TextIOWrapper(buffer, encoding="utf-8", write_through=True), width=400)
    print_tables(leaderboard, console)
    return buffer.getvalue().decode("utf-8")


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def changed(**values: Any) -> Callable[[Path], object]:
    return put("result.json", json.dumps({**result("cutmix", 0), **values}))


def failed(content: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / "result.json").unlink()
        (folder / "failure.json").write_text(content)

    return spoil


def replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / "result.json").unlink()
        make(folder / "result.json")

    return spoil


DAMAGED = {
    "cut result": (put("result.json", '{"status": "fin'), "result.json cannot be read"),
    "deep result": (put("result.json", f'{{"a": {DEEP}}}'), "result.json cannot be read: too many levels"),
    "deep options": (changed(policy_options={"a": json.loads("[" * 90 + "]" * 90)}), "result.json has too many levels"),
    "many options": (changed(policy_options={str(key): key for key in range(9000)}), "result.json has too many values"),
    "large result": (put("result.json", '{"a": "' + "x" * 10**6 + '"}'), "result.json has more than"),
    "huge integer": (changed(top1_last=10**400), "result.json has an integer of more than 64 bits"),
    "huge percent": (changed(top1_last=1e308), "top1_last: expected percent, from 0 to 100, got 1e+308"),
    "huge number": (changed(step_ms=1e308), "step_ms: expected a number from -1e+15 to 1e+15, got 1e+308"),
    "infinite": (changed(top1_last=float("inf")), "top1_last: expected a finite number, got inf"),
    "another status": (changed(status="stopped"), "status: expected 'finished', got 'stopped'"),
    "percent": (changed(top1_last=900.0), "top1_last: expected percent"),
    "half seed": (changed(policy="mixup", seed=0.5, top1_last=1.0), "seed: expected an integer of at least 0, got 0.5"),
    "negative seed": (changed(seed=-1), "seed: expected an integer of at least 0"),
    "half epoch": (changed(epochs=1.5), "epochs: expected an integer of at least 1"),
    "negative time": (changed(step_ms=-1.0), "step_ms: expected a number that is not negative"),
    "long name": (changed(policy="x" * 300), "policy: expected a printable name"),
    "two-line name": (changed(model="a\nb"), "model: expected a printable name"),
    "empty name": (changed(data=" "), "data: expected a printable name"),
    "deep environment": (
        put("environment.json", f'{{"a": {DEEP}}}'),
        "environment.json cannot be read: too many levels",
    ),
    "versions": (put("environment.json", '{"versions": [1]}'), "environment.json: versions: unexpected [1]"),
    "device": (put("environment.json", '{"device": 3, "threads": "x"}'), "environment.json: device: unexpected 3"),
    "deep epochs": (put("epochs.jsonl", f'{{"epoch": 1, "a": {DEEP}}}'), "line 1 is not an epoch record"),
    "epoch": (
        put("epochs.jsonl", '{"epoch": -5}\n{"epoch": true}\n{"epoch": 1e3}\n[]\n3\n'),
        "2 more lines are not epoch",
    ),
    "deep config": (put("config.yaml", "seed: 0\na: " + "[" * 500 + "]" * 500), "config.yaml has too many levels"),
    "large config": (put("config.yaml", "seed: 0\na: [" + "1," * 400_000 + "]"), "config.yaml has more than"),
    "bomb": (put("config.yaml", BOMB), "config.yaml has an anchor or alias"),
    "circle": (put("config.yaml", "seed: 0\na: &a [*a]\n"), "config.yaml has an anchor or alias"),
    "interpolation": (
        put("config.yaml", "seed: 0\nmodel: {name: '${oc.env:HOME}'}"),
        "config.yaml has the interpolation",
    ),
    "section": (put("config.yaml", json.dumps({**COMPOSED, "policy": "x"})), "config.yaml: policy: expected a mapping"),
    "choices": (
        put("config.yaml", json.dumps({**COMPOSED, "choices": [1]})),
        "config.yaml: choices: expected a mapping",
    ),
    "deep failure": (failed(f'{{"reason": {DEEP}}}'), "failure.json cannot be read: too many levels"),
    "reason": (failed('{"reason": {"a": 1}}'), "no reason recorded"),
    "folder": (replaced(lambda path: path.mkdir()), "result.json is not an ordinary file"),
    "loop": (replaced(lambda path: path.symlink_to(path.name)), "result.json cannot be read: Too many levels"),
    "nowhere": (
        replaced(lambda path: path.symlink_to("nowhere")),
        "result.json is a link to something that is not there",
    ),
    "loop of a failure": (
        replaced(lambda path: path.with_name("failure.json").symlink_to("failure.json")),
        "failure.json cannot be read: Too many levels",
    ),
    "pipe": (replaced(os.mkfifo if hasattr(os, "mkfifo") else Path.mkdir), "result.json is not an ordinary file"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_a_line_that_says_so(case: str, tmp_path: Path) -> None:
    spoil, said = DAMAGED[case]
    told = board_with(tmp_path, spoil, pages=False)
    assert "spoiled: " in told
    assert said in told


@pytest.mark.usefixtures("drawn")
def test_names_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    """A name that cannot be drawn would cost its board the three plots; the model's stands above them."""
    names = ["$\\frac{$", "a$b$", "\\foo", "$\\undefined$ x", "a_{", "x" * 200, "a b " * 50, "_hidden"]
    for model, policies in (("resnet18", names), ("$\\frac{$ $\\undefined$ a_{", ["cutmix"])):
        for policy in ("none", *policies):
            write_run(
                tmp_path, result(policy, 0, 90.0, model=model), name=f"{len(list(tmp_path.iterdir()))}", epochs=EPOCHS
            )
    page = to_html(aggregate(collect(tmp_path)))
    assert page.count('<img alt="') == 6


def test_an_option_of_another_kind_finds_no_rerun(tmp_path: Path) -> None:
    options = {"pool": "all", "per": "batch", "stages": ["layer1"], "bandwidth": 1.75}
    told = {"task": "regression", "model": "mlp", "data": "airfoil", "protocol": "cmixup", "epochs": 100}
    told["data_options"] = {"fit_on": "all", "scaling": "minmax", "split": "by_seed"}
    configured = {**plain(compose(["data=airfoil", "data.root=x", "protocol=cmixup", "policy=cmixup", "model=mlp"]))}
    for number, alpha in enumerate((None, "two", [2.0], {"a": 1})):
        values = result(
            "cmixup", number, rmse_selected=1.0, rmse_last=1.0, policy_options={**options, "alpha": alpha}, **told
        )
        write_run(tmp_path, values, configured=agreeing(values, configured))
    rows = [row for board in aggregate(collect(tmp_path)).boards for row in board.rows]
    assert len(rows) == 4
    assert all(row.published.rerun is None for row in rows)


@pytest.mark.parametrize(
    "choice", ["../../../../etc/passwd", "/etc/passwd", "a/../b", "none,mixup", "x y=1", "", 3, {"a": 1}]
)
def test_a_choice_is_the_name_of_a_file_or_nothing(choice: object, tmp_path: Path) -> None:
    told = result(choice if isinstance(choice, str) and choice else "cutmix", 0)
    write_run(tmp_path, told, name="run", configured=agreeing(told, COMPOSED, policy=choice))
    [board] = aggregate(collect(tmp_path)).boards
    assert board.rows[0].command.startswith("# config.yaml names ")
    assert "\n" not in board.rows[0].command


def test_a_row_says_when_its_command_runs_foreign_code(tmp_path: Path) -> None:
    told = result("cutmix", 0)
    configured = agreeing(told, copy.deepcopy(COMPOSED))
    configured["policy"]["_target_"] = "os.system"
    write_run(tmp_path, told, configured=configured)
    [board] = aggregate(collect(tmp_path)).boards
    assert "the command runs code outside of mixaug: os.system" in board.rows[0].notes


MARKUP = (
    *(
        "<script>alert(1)</script>",
        "<img src=x onerror=y>",
        "[x](http://example.org)",
        "![x](http://example.org/a.png)",
    ),
    *("a|b|c", "`x`", "**b** _i_ ~~s~~", "# h", "http://example.org", "www.example.org", "a@example.org", "&lt;b&gt;"),
    *("<!-- x -->", "$x$", "- a", "1. a", "> a", "\\", "```"),
)


@pytest.mark.parametrize("text", MARKUP)
def test_the_markdown_shows_texts_as_they_are(text: str, tmp_path: Path) -> None:
    from markdown_it import MarkdownIt

    options = {"note": text, text: 1}
    # The model is one that no command can be made for: its text comes into the block of commands.
    told = result(text, 0, model=text, protocol=text, data_options=options, policy_options=options)
    configured = {**agreeing(told, COMPOSED, model=text), "note": text}
    write_run(tmp_path, told, configured=configured, environment={"device": text, "git_commit": text})
    fail(write_run(tmp_path, result("none", 0), name="failed"), f"{text}\nand {text}")
    write_run(tmp_path, result("none", 1), name=f"cut-{text.replace('/', '')}", finished=False)
    page = to_markdown(aggregate(collect(tmp_path)))
    parsed = MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(page)
    inner = [child for token in parsed for child in token.children or []]
    assert {token.type for token in [*parsed, *inner]} <= PLAIN_TOKENS
    shown = "".join(child.content if child.type == "text" else " " for child in inner)
    assert text in shown
    assert shown.count("run | state") == 0
    tables = [token for token in parsed if token.type == "table_open"]
    assert len(tables) == 2
    assert "http://" not in page.partition("```")[0]


PLAIN_TOKENS = {
    *(
        "heading_open",
        "heading_close",
        "paragraph_open",
        "paragraph_close",
        "inline",
        "text",
        "fence",
        "softbreak",
        "hardbreak",
    ),
    *(f"{part}_{end}" for part in ("table", "thead", "tbody", "tr", "th", "td") for end in ("open", "close")),
    *("bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close", "text_special"),
}


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "＝1+1", "﹢1", "=cmd|' /C calc'!A0", '=HYPERLINK("x")']
)
def test_no_cell_of_the_csv_is_a_formula(text: str, tmp_path: Path) -> None:
    name = text.strip()
    told = result(name, 0, model=name, data=name, protocol=name, policy_options={text: text}, data_options={text: text})
    write_run(tmp_path, told, configured={"seed": 0, text: text})
    write_run(tmp_path, result("none", 0, 99.0))  # a negative difference stays a number
    rows = list(csv.DictReader(to_csv(aggregate(collect(tmp_path))).splitlines()))
    assert len(rows) == 2
    for row in rows:
        for cell in row.values():
            if cell[:1] in set("=+-@\t\r＝＋－＠"):
                float(cell)
    [ours] = [row for row in rows if row["policy"] != "none"]
    assert [ours[key] for key in ("policy", "model", "data", "protocol")] == [f"'{name}"] * 4


def test_a_negative_difference_stays_a_number_in_the_csv(tmp_path: Path) -> None:
    for policy, top1 in (("none", 91.0), ("mixup", 90.0)):
        write_run(tmp_path, result(policy, 0, top1))
    rows = {row["policy"]: row for row in csv.DictReader(to_csv(aggregate(collect(tmp_path))).splitlines())}
    assert rows["mixup"]["difference"] == "-1.000000"


@pytest.mark.parametrize(
    "override", ["policy=../policy/cutmix", "data.name=../../x", "data.name=a\\\\b", "model.name='a\nb'"]
)
def test_the_folder_of_a_run_lies_below_its_root(override: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a name"):
        compose([override])


# -- fuzzing ------------------------------------------------------------------------------------------------------

NASTY = st.sampled_from(
    [
        "",
        "$\\frac{$",
        "=1+1",
        "@x",
        "<b>",
        "|",
        "`",
        "\x1b[31m",
        "\x00",
        "\n",
        "\ud800",
        "\u202e",
        "../..",
        "${oc.env:HOME}",
        "???",
    ]
)
SCALARS = st.one_of(
    *(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=12),
        NASTY,
    ),
    st.sampled_from([10**400, 1e308, -1e308, 5e-324, 0.5, -1]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FILES = ("result.json", "config.yaml", "environment.json", "epochs.jsonl", "failure.json")


@st.composite
def spoiled(draw: st.DrawFn) -> list[tuple[str, bytes | None]]:
    """Files to write into a whole folder, None to remove one."""
    valid: dict[str, Any] = {
        "result.json": result("cutmix", 0),
        "config.yaml": COMPOSED,
        "environment.json": {"versions": {"torch": "2.15.0"}, "device": {"type": "cpu", "name": "x"}, "threads": 1},
        "failure.json": {"status": "failed", "reason": "full", "step": 3},
        "epochs.jsonl": EPOCHS[0],
    }
    written: list[tuple[str, bytes | None]] = []
    for name in draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=3, unique=True)):
        kind = draw(st.sampled_from(("values", "values", "bytes", "whole", "gone")))
        if kind == "gone":
            written.append((name, None))
            continue
        content = copy.deepcopy(valid[name])
        if kind == "whole":
            content = draw(VALUES)
        elif kind == "values":
            for _ in range(draw(st.integers(1, 3))):
                inside = content
                while True:
                    key = draw(st.sampled_from(sorted(inside)))
                    if not isinstance(inside[key], dict) or not inside[key] or draw(st.booleans()):
                        break
                    inside = inside[key]
                if draw(st.booleans()):
                    inside[key] = draw(VALUES)
                else:
                    inside[draw(st.text(max_size=6) | NASTY)] = inside.pop(key)
        data = json.dumps(content).encode()
        if kind == "bytes":
            at = draw(st.integers(0, len(data)))
            data = draw(
                st.sampled_from((data[:at], data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :]))
            )
        written.append((name, data))
    return written


def apply(files: list[tuple[str, bytes | None]]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        for name, data in files:
            if data is None:
                (folder / name).unlink(missing_ok=True)
            else:
                (folder / name).write_bytes(data)

    return spoil


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("MIXAUG_FUZZ", "300")), deadline=None, derandomize=True, database=None)
@given(files=spoiled())
def test_none_of_many_folders_stops_or_changes_the_others(scratch: Path, files: list[tuple[str, bytes | None]]) -> None:
    told = board_with(Path(tempfile.mkdtemp(dir=scratch)), apply(files), pages=False)
    assert not set(told) & {"\x1b", "\x00", "\u202e"}


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(files=spoiled())
def test_no_folder_stops_or_changes_the_others(scratch: Path, files: list[tuple[str, bytes | None]]) -> None:
    told = board_with(Path(tempfile.mkdtemp(dir=scratch)), apply(files), pages=False)
    assert not set(told) & {"\x1b", "\x00", "\u202e"}


# A page with its plots takes a second.
@pytest.mark.usefixtures("drawn")
@settings(max_examples=3, deadline=None, derandomize=True, database=None)
@given(text=st.text(min_size=1, max_size=20) | NASTY, value=VALUES)
def test_no_name_or_option_stops_a_page(scratch: Path, text: str, value: object) -> None:
    spoil = changed(policy=text, data_options={text: value}, policy_options={text: value, "alpha": value})
    board_with(Path(tempfile.mkdtemp(dir=scratch)), spoil)
