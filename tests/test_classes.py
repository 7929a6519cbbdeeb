"""Rows of some classes alone: which are meant, what becomes of the others, at every verb."""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import ascii_letters, digits

import numpy as np
import pytest

from extractors.errors import InputError
from tasks import load_task
from tasks.artefact import read_artefact
from tasks.cli import main
from tasks.data.classes import classes_slug, left_out_before, only_classes, pick_classes
from tasks.data.raw import RawSplit

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
    splits, others = only_classes({"train": split}, NAMES, ["hen", "cock"])
    kept = splits["train"]
    assert others == (FISH,)
    assert list(kept.ids) == ["a", "b", "d", "e"]  # whoever judges labels finds the missing one
    assert list(kept.labels) == [2, 0, 0, None]
    assert [kept.where(i) for i in range(4)] == ["line 0", "line 1", "line 3", "line 4"]
    assert only_classes({"train": split}, NAMES, [])[0]["train"] is split
    # What an earlier fit left out stays out, and classes that it never saw do not.
    splits, others = only_classes({"train": split}, NAMES, [], ["cock", "turkey"])
    assert (list(splits["train"].ids), others) == (["a", "c", "e"], ("cock",))
    assert only_classes({"train": split}, NAMES, ["cock"], ["cock"])[1] == (FISH, "hen")
    with pytest.raises(InputError, match="all rows are of classes that were left out when"):
        only_classes({"train": split}, NAMES, [], NAMES)
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


def test_each_selection_has_a_folder_of_its_own():
    selections = [
        ["cock", "hen"],
        ["cock", "hen", "Hen"],
        ["cock+hen", "Hen"],
        ["cock", "hen+Hen"],
        ["cock hen", "Hen"],
        [str(i) for i in range(100)],
        [str(i) for i in range(101)],
    ]
    slugs = [classes_slug(names) for names in selections]
    assert len(set(slugs)) == len(slugs)
    assert all(
        len(slug) <= 50 and set(slug) <= set(ascii_letters + digits + "._+-") for slug in slugs
    )
    whole, pair, all_ten = (
        load_task("digits", classes=c).slug for c in ([], ["8,3"], ["0,1,2,3,4,5,6,7,8,9"])
    )
    assert (whole, pair, all_ten) == ("digits", "digits-3+8", "digits")


def test_a_head_of_two_classes_is_fitted_measured_and_refitted(tmp_path, capsys):
    out = tmp_path / "head"
    arguments = ["--backbone", "toy:image-16", "--n-gates", "4", "--beta", "0.1", "--quiet"]
    arguments += ["--no-leak-check", "--out", str(out), "--json"]
    assert main(["fit", "digits", "--classes", "3", "--classes", "8", *arguments]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["n_classes"], record["n_test"]) == (2, 72)
    assert "--classes 3 --classes 8" in record["command"]
    assert record["notes"][-1].startswith("rows of the classes 3, 8 alone")
    others = ["0", "1", "2", "4", "5", "6", "7", "9"]
    assert record["left_out_classes"] == others

    evaluate = ["evaluate", str(out), "digits", "--json"]
    assert main(evaluate) == 0  # the same rows, without saying so again
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    assert (found["n"], found["left_out_classes"]) == (357, others)
    assert "rows of '0', '1', '2', '4', '5', '6', '7', '9' are left out, as when" in streams.err
    assert main([*evaluate, "--classes", "3,8"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["accuracy"] == found["accuracy"]
    assert "left out" not in streams.err

    again = ["refit", str(out), "digits", "--classes", "5", "--out", str(tmp_path / "more")]
    assert main([*again, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["3", "8", "5"]
    assert left_out_before(read_artefact(tmp_path / "more").config) == (*others[:4], *others[5:])

    config = json.loads((out / "config.json").read_text())
    del config["record"]["left_out_classes"]  # as artefacts were before
    (out / "config.json").write_text(json.dumps(config))
    assert main(evaluate) == 2
    said = capsys.readouterr().err
    assert "none of the head's classes (3, 8); --classes takes rows of some classes alone" in said


def write(path, labels):
    rng = np.random.default_rng(0)
    lines = ["text,label,source"]
    for i in range(30 * len(labels)):
        label = labels[i % len(labels)]
        word = {"a": "dog", "b": "rose", "c": "stone", "d": "cloud"}[label]
        lines.append(f"the {word} {rng.integers(99)},{label},{'odd' if i % 2 else 'even'}")
    path.write_text("\n".join(lines) + "\n")


def test_rows_of_classes_that_were_left_out_stay_out_and_new_classes_come_in(tmp_path, capsys):
    write(tmp_path / "rows.csv", "abc")
    write(tmp_path / "more.csv", "abd")
    fit = ["fit", str(tmp_path / "rows.csv"), "--classes", "a,c", "--backbone", "toy:text-8"]
    fit += ["--n-gates", "4", "--beta", "0.1", "--no-leak-check", "--quiet"]
    assert main([*fit, "--out", str(tmp_path / "head")]) == 0
    capsys.readouterr()
    measured = ["evaluate", str(tmp_path / "head"), str(tmp_path / "rows.csv"), "--json"]
    assert main([*measured, "--by", "source"]) == 0
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    assert re.search(r"of these 60 rows the head was fitted on \d+, it seems", streams.err)
    assert {each["slice"]: each["n"] for each in found["slices"]} == {"even": 30, "odd": 30}

    again = ["refit", str(tmp_path / "head"), str(tmp_path / "more.csv"), "--json"]
    assert main([*again, "--out", str(tmp_path / "again")]) == 0
    streams = capsys.readouterr()
    record = json.loads(streams.out)
    assert record["classes"] == ["a", "c", "d"]
    assert sum(n for name, n in record["n"].items() if name.endswith("_new")) == 60
    assert "rows of 'b' are left out, as when the head was fitted" in streams.err


def test_comparisons_of_two_selections_lie_side_by_side(tmp_path):
    from tasks import compare

    def pair(*classes):
        return compare(
            "digits",
            backbone="toy:image-16",
            methods=("ridge",),
            classes=classes,
            seeds=1,
            cache_dir=tmp_path,
            train_rows=100,
            test_rows=40,
        )

    first, second = pair("8,3"), pair("1", "7")
    assert (first.classes, first.n_test) == (("3", "8"), 40)
    assert Path(first.out) == tmp_path / "comparisons" / "digits-3+8-toy-image-16"
    assert Path(second.out) == tmp_path / "comparisons" / "digits-1+7-toy-image-16"
    assert pair("3", "8").rows == first.rows  # the same selection, however it is said
