"""Bad data gets one clear sentence that says what is wrong and what would be right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from extractors.errors import InputError, command_line
from tasks import load_task
from tasks.config import ExtractConfig, FitConfig
from tasks.config_files import load_config
from tasks.data.columns import ColumnChoice
from tasks.data.inputs import read_items

GOOD = "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40))
LINES = "".join(f'{{"text": "text {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(40))


@pytest.fixture(autouse=True)
def _answering_a_command_line():
    """Sentences as a person reads them there."""
    with command_line():
        yield


def refusal(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        load_task(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_unknown_task_offers_the_closest_and_lists_all():
    message = refusal("imbd")
    assert "'imbd'" in message
    assert "did you mean 'imdb'" in message
    assert "wordnet6, digits, imdb" in message


def test_a_path_that_does_not_exist():
    assert refusal("no/such/reviews.csv") == "no/such/reviews.csv does not exist"


def test_a_data_root_that_does_not_exist(tmp_path, monkeypatch):
    assert "--data-root" in refusal("imdb", data_root=tmp_path / "no")
    monkeypatch.setenv("CONVEX_HEADS_DATA", str(tmp_path / "no"))
    assert "CONVEX_HEADS_DATA" in refusal("imdb")


# Each case: file name, content, what the sentence must contain.
FILES = {
    "missing text column": ("d.csv", "body,label\nx,a\n", ["no column 'text'", "body, label"]),
    "missing label column": ("d.csv", "text,stars\nx,a\n", ["no column 'label'", "text, stars"]),
    "two kinds of input": ("d.csv", "text,image,label\nx,y,a\n", ["--text-column text"]),
    "two columns of one name": ("d.csv", "text,label,label\nx,a,b\n", ["two columns", "'label'"]),
    "empty csv": ("d.csv", "", ["d.csv is empty"]),
    "empty jsonl": ("d.jsonl", "\n\n", ["d.jsonl holds no rows"]),
    "empty parquet": ("d.parquet", "", ["d.parquet is empty"]),
    "blank lines only": ("d.csv", "\n\n", ["d.csv holds no rows"]),
    "header only": ("d.csv", "text,label\n", ["d.csv has no rows"]),
    "one class": ("d.csv", "text,label\nx,a\ny,a\nz,a\n", ["one class, 'a'", "at least two"]),
    "a class per row": (
        "d.csv",
        "text,label\n" + "".join(f"t{i},c{i}\n" for i in range(40)),
        ["40 classes for 40 rows", "--label-column"],
    ),
    "too few rows": ("d.csv", "text,label\nx,a\ny,b\nz,a\n", ["too few to hold out"]),
    "missing label": ("d.csv", GOOD + "x,\n", ["d.csv, data row 41", "label is missing"]),
    "nan label": ("d.csv", GOOD + "x,NaN\n", ["d.csv, data row 41", "label is missing"]),
    "decimal label": (
        "d.jsonl",
        LINES + '{"text": "x", "label": 0.5}\n',
        ["d.jsonl, line 41", "decimal number 0.5"],
    ),
    "number for a text": (
        "d.jsonl",
        LINES + '{"text": 7, "label": "a"}\n',
        ["d.jsonl, line 41", "the text is an int, not a string", "--on-bad-row skip"],
    ),
    "no text": ("d.jsonl", LINES + '{"label": "a"}\n', ["line 41", "the text is missing"]),
    "not json": ("d.jsonl", LINES + "{oops\n", ["d.jsonl, line 41: not JSON"]),
    "not an object": ("d.jsonl", LINES + "[1]\n", ["line 41: a list, not an object"]),
    "ragged csv": (
        "d.csv",
        GOOD + "a,b,c\n",
        ["d.csv, data row 41", "3 cells where the header has 2", "quotes", "--on-bad-row skip"],
    ),
    "neither column": (
        "d.csv",
        "Comment,Mood \nx,a\n",
        ["neither a column", "--text-column", "--label-column", "Comment, 'Mood '"],
    ),
    "not parquet": ("d.parquet", "hello", ["cannot read", "d.parquet"]),
    "not a table": ("d.xlsx", "hello", ["d.xlsx is not a table", ".csv"]),
    "image that is not there": (
        "d.csv",
        "image,label\nnone.png,a\n",
        ["data row 1", "there is no image file", "none.png"],
    ),
}


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.replace(" ", "-"))
def test_files(tmp_path, case):
    name, content, expected = FILES[case]
    (tmp_path / name).write_text(content, encoding="utf-8")
    message = refusal(tmp_path / name)
    for part in expected:
        assert part in message


def test_a_wrong_column_name_offers_the_closest(tmp_path):
    (tmp_path / "d.csv").write_text(GOOD)
    message = refusal(tmp_path / "d.csv", text_column="texts")
    assert "no column 'texts'" in message
    assert "its columns are text, label" in message
    assert "did you mean 'text'" in message


def test_text_and_image_column_exclude_each_other(tmp_path):
    assert "exclude each other" in refusal("digits", text_column="a", image_column="b")


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl"])
@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-16LE", "UTF-16BE", "UTF-32", "WINDOWS-1252"])
def test_a_file_that_is_not_utf8(tmp_path, name, encoding):
    (tmp_path / name).write_bytes("text,label\ndéjà,a\n".encode(encoding))
    message = refusal(tmp_path / name)
    assert f"iconv -f {encoding} -t UTF-8 {name}" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text(GOOD)
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_nan_labels_in_parquet(tmp_path):
    table = pa.table({"text": ["x"] * 20, "label": [0.0, 1.0] * 9 + [1.0, float("nan")]})
    parquet.write_table(table, tmp_path / "d.parquet")
    assert "row 20: the label is missing" in refusal(tmp_path / "d.parquet")
    data = load_task(tmp_path / "d.parquet", on_bad_row="skip")
    assert data.classes == ("0", "1")
    assert data.skipped == (("row/000019", "the label is missing"),)


def test_bad_rows_can_be_skipped_and_are_told(tmp_path):
    (tmp_path / "d.jsonl").write_text(LINES + '{"text": 7, "label": "a"}\n{"text": "x"}\n')
    data = load_task(tmp_path / "d.jsonl", on_bad_row="skip")
    ids = [row_id for rows in data.splits.values() for row_id in rows.ids]
    assert len(ids) == 40
    assert [row_id for row_id, _ in data.skipped] == ["row/000040", "row/000041"]
    assert data.notes == (
        "rows left out because they cannot be used: 2; d.jsonl, line 41 (the text is an int, not a "
        "string); d.jsonl, line 42 (the label is missing)",
    )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
def test_opening_a_csv_file_leaves_no_thread_behind(tmp_path):
    """A reader of pyarrow's that is still at work when the process ends aborts it."""
    (tmp_path / "d.csv").write_text('\n"the\ntext",label\n' + "x,a\n" * 100)
    script = """
import os, pathlib, sys
import pyarrow.csv
from tasks.data.tables import open_table
before = len(os.listdir("/proc/self/task"))
assert open_table(pathlib.Path(sys.argv[1])).names == ("the\\ntext", "label")
assert len(os.listdir("/proc/self/task")) == before
"""
    command = [sys.executable, "-c", script, str(tmp_path / "d.csv")]
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_classes_that_look_like_one_are_told(tmp_path):
    names = ("good", "Good ", "bad", "caf\u00e9", "cafe\u0301")
    lines = [f"text {i},{names[i % 5]}" for i in range(100)]
    (tmp_path / "d.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    data = load_task(tmp_path / "d.csv")
    assert len(data.classes) == 5
    said = "in case, spaces or codes of letters are different: "
    assert said + r"'Good ', 'good'; 'cafe\u0301', 'café'" in data.notes[-1]


def test_a_csv_file_as_spreadsheets_leave_it(tmp_path):
    lines = ["My text; Mood "] + [f"text {i};{'ab'[i % 2]}" for i in range(40)]
    lines[7:7] = ["one;cell;too many", "short", ";a"]
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    named = {"text_column": "my text", "label_column": "mood"}
    message = refusal(tmp_path / "d.csv", **named)
    assert "data row 7: 3 cells where the header has 2" in message
    assert "rows that cannot be used: 2" in message
    data = load_task(tmp_path / "d.csv", on_bad_row="skip", **named)
    assert sum(len(rows) for rows in data.splits.values()) == 40
    assert [row for row, _ in data.skipped] == [f"row/{i:06d}" for i in (6, 7, 8)]
    assert data.skipped[2][1] == "the text is empty"
    (tmp_path / "d.csv").write_text("\n".join(lines[:7] + lines[9:]) + "\n")
    notes = load_task(tmp_path / "d.csv", **named).notes
    assert any("texts that are empty: 1, the first: d.csv, data row 7" in note for note in notes)


def test_nothing_left_after_skipping(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": 1, "label": "a"}\n{"text": 2, "label": "b"}\n')
    assert "no rows left after 2 bad ones" in refusal(tmp_path / "d.jsonl", on_bad_row="skip")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_train_does_not_have(tmp_path, split):
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "test.csv").write_text(GOOD)
    (tmp_path / f"{split}.csv").write_text(GOOD + "x,surprise\n")
    message = refusal(tmp_path)
    assert message.startswith(f"{split} has the class 'surprise'")


def test_a_label_that_classes_json_does_not_name(tmp_path):
    (tmp_path / "classes.json").write_text('["a", "c"]')
    (tmp_path / "train.csv").write_text(GOOD)
    assert "train.csv, data row 2: label 'b' is not one of the 2" in refusal(tmp_path)
    (tmp_path / "train.csv").write_text(GOOD.replace(",a", ",0").replace(",b", ",2"))
    assert "label 2 has no name; there are names for 0 to 1" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[1]", '["a", "a"]', "nonsense"])
def test_a_classes_json_that_is_no_list_of_names(tmp_path, content):
    (tmp_path / "classes.json").write_text(content)
    (tmp_path / "train.csv").write_text(GOOD)
    assert "classes.json" in refusal(tmp_path)


def test_more_rows_than_there_are(tmp_path):
    (tmp_path / "d.csv").write_text(GOOD)
    assert "--train-rows 33 is more than the 32" in refusal(tmp_path / "d.csv", train_rows=33)
    assert "--test-rows 9 is more than the 8" in refusal(tmp_path / "d.csv", test_rows=9)
    assert "at least one row" in refusal(tmp_path / "d.csv", train_rows=0)
    assert "fewer than the 2 classes" in refusal(tmp_path / "d.csv", train_rows=2)


def test_folders_that_hold_no_data(tmp_path):
    assert "holds no data" in refusal(tmp_path)
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "b.csv").write_text(GOOD)
    assert "none is called train" in refusal(tmp_path)
    (tmp_path / "test.csv").write_text(GOOD)
    assert "no train split" in refusal(tmp_path)


def test_a_split_that_is_there_twice(tmp_path):
    for name in ("train.csv", "dev.csv", "validation.csv"):
        (tmp_path / name).write_text(GOOD)
    assert "'dev' and 'validation'" in refusal(tmp_path)
    (tmp_path / "dev.csv").rename(tmp_path / "train.tsv")
    assert "train.csv and train.tsv" in refusal(tmp_path)


# ---- new rows to predict ----


def test_new_rows_must_fit_the_head(tmp_path):
    (tmp_path / "d.csv").write_text("text\nfine\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "photo.png").write_bytes(b"x")
    cases = [
        (tmp_path / "no.csv", "text", "does not exist"),
        (tmp_path / "d.csv", "image", "holds texts, but this head labels images"),
        (tmp_path, "text", "is a folder, but this head labels texts"),
        (tmp_path / "empty.txt", "text", "holds nothing to label"),
        (tmp_path / "empty.txt", "image", "is neither an image nor"),
    ]
    for path, modality, expected in cases:
        with pytest.raises(InputError, match=expected):
            read_items(path, modality, ColumnChoice())
    with pytest.raises(InputError, match="one a line, but this head labels images"):
        read_items(Path("-"), "image", ColumnChoice())
    assert read_items(tmp_path / "d.csv", "text", ColumnChoice()).inputs == ["fine"]
    assert read_items(tmp_path, "image", ColumnChoice()).ids == ["photo.png"]


UTF8 = "text,label\n" + "".join(f"größe {i},{'ab'[i % 2]}\n" for i in range(40))


@pytest.mark.parametrize(
    "content",
    [
        UTF8.encode() + "schön,a\n".encode("latin-1"),
        b"\xef\xbb\xbf" + GOOD.encode() + "schön,a\n".encode("latin-1"),
        (GOOD + "".join(f"more {i},a\n" for i in range(99))).encode() + b"n\xe4,b\n",
    ],
    ids=["letters", "mark", "nearly all"],
)
def test_a_line_that_is_not_utf8_does_not_make_a_file_of_another_encoding(tmp_path, content):
    path = tmp_path / "d.csv"
    path.write_bytes(content)
    n = content.count(b"\n") - 1
    message = refusal(path)
    assert f"d.csv, data row {n}: not UTF-8 text, as the rest of the file is, at letter " in message
    assert "iconv" not in message
    assert "--on-bad-row skip" in message
    data = load_task(path, on_bad_row="skip")
    assert [row for row, _ in data.skipped] == [f"row/{n - 1:06d}"]
    lines = tmp_path / "d.txt"
    lines.write_bytes(content)
    with pytest.raises(InputError, match=rf"d\.txt, line {n + 1}: not UTF-8 text"):
        read_items(lines, "text", ColumnChoice())


def test_a_column_is_not_both_text_and_label(tmp_path):
    (tmp_path / "d.csv").write_text(GOOD)
    assert "'label' is both what is read and the label" in refusal(
        tmp_path / "d.csv", text_column="label"
    )


def test_rows_are_counted_alike_whether_they_end_the_work_or_are_left_out(tmp_path):
    (tmp_path / "d.csv").write_text(GOOD + "x,\ny,\n ,a\n")
    message = refusal(tmp_path / "d.csv")
    assert "rows that cannot be used: 2; texts that are empty: 1 (--on-bad-row" in message
    assert len(load_task(tmp_path / "d.csv", on_bad_row="skip").skipped) == 3


# ---- options ----

OPTIONS = {
    "no gates": ({"n_gates": "0"}, "--n-gates 0: must be at least 1"),
    "gates in words": (
        {"n_gates": "many"},
        "--n-gates many: must be 'auto', 'grow' or a whole number",
    ),
    "grown pairs": (
        {"n_gates": "grow", "gates": "pairs"},
        "grow: grown gates are not drawn",
    ),
    "no such sampler": ({"gates": "random"}, "--gates random: must be"),
    "negative beta": ({"beta": "-1"}, "--beta -1: must be above 0"),
    "nan beta": ({"beta": "nan"}, "--beta nan: must be above 0"),
    "zero tolerance": ({"tolerance": 0.0}, "--tolerance 0: must be above 0"),
    "beta above one": ({"beta": "1.5"}, "--beta 1.5: must be at most 1"),
    "tolerance of one": ({"tolerance": 1.0}, "--tolerance 1: must be below 1"),
    "unknown solver": (
        {"solver": "adam"},
        "--solver adam: must be 'auto', 'subspace', 'kernel', 'fista', 'descent' or 'admm'",
    ),
    "unknown loss": ({"loss": "hinge"}, "--loss hinge: must be 'auto', 'softmax'"),
    "unknown activation": ({"activation": "gelu"}, "--activation gelu: must be 'gated_relu'"),
    "no rows": ({"train_rows": 0}, "--train-rows 0: must be at least 1"),
    "negative seed": ({"seed": -1}, "--seed -1: must be at least 0"),
    "beta of seven": ({"beta": "7"}, "--beta 7: must be at most 1"),
    "seed in words": ({"seed": "x"}, "--seed x: must be a whole number"),
    "beta in words": ({"beta": "x"}, "--beta x: must be 'auto' or a number"),
    "no such device": ({"device": "gpu"}, "--device gpu: must be cpu, cuda, cuda:N"),
    "no number of a device": ({"device": "cuda:x"}, "--device cuda:x: must be cpu, cuda, cuda:N"),
    "bad row policy": ({"on_bad_row": "ask"}, "--on-bad-row ask: must be 'fail' or 'skip'"),
}


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.replace(" ", "-"))
def test_options(case):
    given, expected = OPTIONS[case]
    with pytest.raises(InputError) as caught:
        load_config(FitConfig, None, {"data": "digits", **given})
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_option_files(tmp_path):
    path = tmp_path / "fit.toml"

    def refused(content: str, kind=FitConfig) -> str:
        path.write_text(content)
        with pytest.raises(InputError) as caught:
            load_config(kind, path)
        return str(caught.value)

    assert "unknown option 'n_gate'; did you mean 'n_gates'?" in refused('data = "x"\nn_gate = 1')
    assert "unknown option 'n_gates'" in refused('data = "x"\nn_gates = 1', ExtractConfig)
    assert "not valid TOML" in refused("data = imdb")
    assert "say which data" in refused("seed = 1")
    # What was typed in the file is named as it stands there, what was not is an option.
    seed = refused('data = "x"\nseed = "one"')
    assert seed == f"{path}: seed one: must be a whole number"
    both = refused('data = "x"\ndrop-leaks = true\nleak_check = false')
    assert both.startswith(f"{path}: drop_leaks needs the leak check: leave out leak_check = false")
    with pytest.raises(InputError, match=r"^--seed two: must be a whole number"):
        load_config(FitConfig, path, {"seed": "two"})
    with pytest.raises(InputError, match="cannot read --config"):
        load_config(FitConfig, Path("no.toml"))
    path.write_text('data = "x"\ntrain-rows = 10\nbeta = 0.03\n')
    config = load_config(FitConfig, path, {"beta": "auto"})
    assert (config.data, config.train_rows, config.beta) == ("x", 10, "auto")


def test_rows_are_checked_in_python_too():
    with pytest.raises(InputError):
        FitConfig(data="digits", n_gates=0)
    with pytest.raises(InputError):
        ExtractConfig(data="digits", test_rows=0)
    assert np.isclose(float(FitConfig(data="digits", beta=0.5).beta), 0.5)


def test_a_misspelt_backbone_is_said_before_the_data_are_asked_for(capsys):
    from tasks.cli import main

    assert main(["fit", "imdb", "--backbone", "bert-base-uncased", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "st:bert-base-uncased" in error
    assert "timm:bert-base-uncased" in error
