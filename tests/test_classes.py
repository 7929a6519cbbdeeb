"""Rows of some classes alone: which are meant, what becomes of the others, at every verb."""

from __future__ import annotations

import json

import numpy as np
import pytest

from extractors.errors import InputError
from tasks import load_task
from tasks.classes import only_classes, pick_classes
from tasks.cli import main
from tasks.raw import RawSplit

FISH = "tench, Tinca tinca"
NAMES = ("cock", FISH, "hen", "Hen")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["hen,cock"], [0, 2]),
        (["cock", "hen"], [0, 2]),
        ([" COCK , Hen"], [0, 3]),
        ([FISH, "cock"], [0, 1]),
    ],
)
def test_classes_are_named_one_by_one_or_with_commas(wanted, found):
    assert pick_classes(NAMES, wanted) == found


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (["cock,hem"], "no class 'hem'; there are 'cock', .*, 'hen', 'Hen'; did you mean 'hen'"),
        (["HEN"], "no class 'HEN'"),  # either may be meant
        (["cock,hen,cock"], "names the class 'cock' twice"),
        ([""], "no class ''"),
    ],
)
def test_a_class_that_is_not_there_is_refused(wanted, sentence):
    with pytest.raises(InputError, match=sentence):
        pick_classes(NAMES, wanted)
    with pytest.raises(InputError, match=r"'11', \.\.\. \(30 in all\)"):
        pick_classes([str(i) for i in range(30)], ["x"])


def test_rows_keep_their_names_order_and_places():
    split = RawSplit(list("abcde"), list("vwxyz"), [2, 0, 1, 0, None], where=lambda i: f"line {i}")
    kept = only_classes({"train": split}, NAMES, ["hen", "cock"])["train"]
    assert list(kept.ids) == ["a", "b", "d", "e"]  # whoever judges labels finds the missing one
    assert list(kept.labels) == [2, 0, 0, None]
    assert [kept.where(i) for i in range(4)] == ["line 0", "line 1", "line 3", "line 4"]
    assert only_classes({"train": split}, NAMES, [])["train"] is split
    with pytest.raises(InputError, match="rows of one label"):
        only_classes({"train": RawSplit(["a"], ["v"], [[0, 1]], where=str)}, NAMES, ["hen"])
    with pytest.raises(InputError, match="test has no row of the classes 'cock', 'hen'"):
        only_classes(
            {"train": split, "test": RawSplit(["f"], ["v"], [1], where=str)}, NAMES, ["hen,cock"]
        )


def test_a_task_of_two_classes_divides_their_rows_as_the_whole_task_does():
    whole, pair = load_task("digits"), load_task("digits", classes=["8,3"])
    assert pair.classes == ("3", "8")
    for name, rows in pair.splits.items():
        of = whole.splits[name]
        ids = [i for i, y in zip(of.ids, of.labels, strict=True) if whole.classes[y] in "38"]
        assert list(rows.ids) == ids
        labels = {i: whole.classes[y] for i, y in zip(of.ids, of.labels, strict=True)}
        assert [pair.classes[y] for y in rows.labels] == [labels[i] for i in ids]
    assert pair.fingerprint["sha256"] != whole.fingerprint["sha256"]
    assert pair.notes[-1] == "rows of the classes 3, 8 alone: 357 of 1,797"
    with pytest.raises(InputError, match="all rows are of one class, '3'"):
        load_task("digits", classes=["3"])


def test_a_head_of_two_classes_is_fitted_measured_and_refitted(tmp_path, capsys):
    out = tmp_path / "head"
    arguments = ["--backbone", "toy:image-16", "--n-gates", "4", "--beta", "0.1", "--quiet"]
    arguments += ["--no-leak-check", "--out", str(out), "--json"]
    assert main(["fit", "digits", "--classes", "3", "--classes", "8", *arguments]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["n_classes"], record["n_test"]) == (2, 72)
    assert "--classes 3 --classes 8" in record["command"]
    assert record["notes"][-1].startswith("rows of the classes 3, 8 alone")

    assert main(["evaluate", str(out), "digits"]) == 2
    assert "none of the head's classes (3, 8)" in capsys.readouterr().err
    assert main(["evaluate", str(out), "digits", "--classes", "3,8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 357

    again = ["refit", str(out), "digits", "--classes", "5", "--out", str(tmp_path / "more")]
    assert main([*again, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["3", "8", "5"]


def test_slices_are_those_of_the_rows_that_are_kept(tmp_path, capsys):
    rng = np.random.default_rng(0)
    lines = ["text,label,source"]
    for i in range(90):
        label = "abc"[i % 3]
        word = {"a": "dog", "b": "rose", "c": "stone"}[label]
        lines.append(f"the {word} {rng.integers(99)},{label},{'odd' if i % 2 else 'even'}")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    fit = ["fit", str(tmp_path / "rows.csv"), "--classes", "a,c", "--backbone", "toy:text-8"]
    fit += ["--n-gates", "4", "--beta", "0.1", "--no-leak-check", "--quiet"]
    assert main([*fit, "--out", str(tmp_path / "head")]) == 0
    capsys.readouterr()
    measured = ["evaluate", str(tmp_path / "head"), str(tmp_path / "rows.csv"), "--json"]
    assert main([*measured, "--classes", "a,c", "--by", "source"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["slice"]: each["n"] for each in found["slices"]} == {"even": 30, "odd": 30}


def test_a_comparison_of_two_classes(tmp_path):
    from tasks import compare

    found = compare(
        "digits",
        backbone="toy:image-16",
        methods=("linear",),
        classes=("3", "8"),
        seeds=1,
        out=tmp_path / "pair",
    )
    assert found.classes == ("3", "8")
    assert found.n_test == 72
