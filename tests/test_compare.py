"""`compare` from the command line: wrong options, a whole run, and one that is killed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from extractors.errors import InputError
from tasks.cli import main
from tasks.comparison.ledger import MEASURED, RECORDS
from tasks.config import CompareConfig
from tasks.config_files import as_command
from tasks.methods import METHODS, check_methods, default_methods


def test_misspelt_methods_and_options_are_refused(capsys) -> None:
    with pytest.raises(InputError, match="did you mean 'linear'"):
        check_methods(["liner"])
    assert "relu" not in default_methods("image")
    for wrong, told in (
        (["--methods", "linear,nonsense"], "no such method"),
        (["--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--shots", "2", "--curve"], "ask for one of them"),
        (["--shots", "two"], "--shots"),
        (["--backbone", "toy:image-8", "--backbone", "toy:image-8"], "same backbone twice"),
    ):
        assert main(["compare", "digits", *wrong]) == 2
        assert told in capsys.readouterr().err


def test_help_names_every_method(capsys) -> None:
    assert main(["compare", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.partition("Arguments:")[0].split())
    default, _, if_named = text.partition("Methods: ")[2].partition("; if named, ")
    assert default.split(", ") == list(default_methods("text"))
    others = [name for name in METHODS if not METHODS[name].default]
    assert if_named.partition(".")[0].split(", ") == others


def test_command_can_be_typed_again() -> None:
    config = CompareConfig(data="x.csv", backbone=("a:1", "b:2"), methods=("knn",), shots=(1, 2))
    assert as_command("compare", config) == (
        "convex-heads compare x.csv --backbone a:1 --backbone b:2 --methods knn --shots 1,2"
    )


# The job


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("own") / "reviews.csv"
    rng = np.random.default_rng(0)
    words = {
        "animal": ["dog", "cat", "horse", "bird", "wolf"],
        "plant": ["oak", "rose", "fern", "moss"],
    }
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("text", "label"))
        for i in range(150):
            for label, names in words.items():
                lines.writerow((f"the {rng.choice(names)} and number {i}", label))
        for _ in range(2):
            lines.writerow(("the very same wolf twice", "animal"))
    return path


def command(data: Path, out: Path, *more: str) -> list[str]:
    own = [str(data), "--backbone", "toy:text-16", "--out", str(out), "--seeds", "2", "--quiet"]
    return ["compare", *own, "--methods", "linear,tfidf,lora", *more]


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / RECORDS).read_text().splitlines()]


def repeatable(out: Path) -> list[dict]:
    found = [{k: v for k, v in line.items() if k not in MEASURED} for line in lines(out)]
    return sorted(found, key=lambda line: (line["method"], line["seed"]))


@pytest.fixture(scope="module")
def compared(reviews, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    assert main(command(reviews, out)) == 0
    return out


def test_records_skipped_and_report_are_there(compared: Path) -> None:
    found = lines(compared)
    assert len(found) == 2 * 2
    for line in found:
        assert line["status"] == "done"
        assert 0 <= line["validation_accuracy"] <= 1 and 0 <= line["test_accuracy"] <= 1
        assert line["seconds"] >= line["seconds_warm"] >= 0
        assert line["settings_tried"] >= 8 and line["parameters"] > 0
        assert 50 < line["peak_rss_mb"] < 4000
        assert (compared / line["predictions"]).exists()
    (skipped,) = [json.loads(s) for s in (compared / "skipped.jsonl").read_text().splitlines()]
    assert skipped["method"] == "lora" and "backbone" in skipped["reason"]
    summary = json.loads((compared / "summary.json").read_text())
    assert [row["method"] for row in summary["rows"]] == ["linear", "tfidf"]
    assert len(summary["pairs"]) == 1
    page = (compared / "report.html").read_text()
    for sentence in summary["verdict"][0]["text"]:
        assert sentence.split(" (")[0] in page
    for outside in ("<script", "http://", "https://", "url(http"):
        assert outside not in page.replace("http://www.w3.org", "")
    for name in ("Can the probabilities be relied on", "Hardest classes", "Rows that repeat"):
        assert name in page and name in (compared / "report.md").read_text()
    figure = ElementTree.parse(compared / "accuracy_seconds.svg").getroot()
    assert "TF-IDF" in "".join(figure.itertext())
    table = (compared / "report.md").read_text()
    assert f"| linear probe | {100 * summary['rows'][0]['test_accuracy']:.2f} |" in table
    assert not (compared / "work").exists()


def test_records_tell_how_far_probabilities_can_be_relied_on(compared: Path) -> None:
    for line in lines(compared):
        counts = np.array(line["reliability"]["counts"])
        assert counts.sum() == line["n_test"]
        accuracy = np.nan_to_num(np.array(line["reliability"]["accuracy"], float))
        assert (counts * accuracy).sum() / line["n_test"] == pytest.approx(
            line["test_accuracy"], abs=1e-5
        )
        assert line["selective"]["accuracy"][-1] == pytest.approx(line["test_accuracy"], abs=1e-5)
        # Words are where they were, whatever happens to the features.
        assert (line["noise"] is None) == (line["method"] == "tfidf")
        assert line["certified"] is None
    with (compared / "label_errors.csv").open() as file:
        assert next(csv.reader(file))[:4] == ["row", "split", "label", "suggested"]
    p = np.load(next((compared / "advice").glob("linear_*")))
    assert len(p) == json.loads((compared / "summary.json").read_text())["n_pool"]
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-4)


def test_reports_show_rows_only_when_they_are_asked_to(
    compared: Path, reviews: Path, tmp_path: Path
) -> None:
    told = "the very same wolf twice"
    for file in compared.rglob("*.*"):
        assert told.encode() not in file.read_bytes(), file
    page = (compared / "report.html").read_text()
    leaks = json.loads((compared / "summary.json").read_text())["leaks"]
    assert leaks["examples"] and all(pair["row"] in page for pair in leaks["examples"])
    out = shutil.copytree(compared, tmp_path / "out")
    assert main(command(reviews, out, "--embed-samples")) == 0
    assert told in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_fit_puts_the_comparison_into_its_model_card(
    compared: Path, reviews: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "head"
    fit = ["fit", str(reviews), "--backbone", "toy:text-16", "--out", str(out), "--quiet"]
    fit += ["--n-gates", "4", "--beta", "0.1", "--comparison"]
    assert main([*fit, str(tmp_path)]) == 2
    assert "no finished comparison (summary.json) in it" in capsys.readouterr().err
    assert main([*fit, str(compared)]) == 0
    card = (out / "README.md").read_text()
    summary = json.loads((compared / "summary.json").read_text())
    for row in summary["rows"]:
        assert f"| {row['title']} | {row['backbone']} | {row['test_accuracy']:.4f} |" in card
    assert f"- {summary['verdict'][0]['text'][0]}" in card


def test_the_same_command_does_nothing_again_and_answers_the_same(
    compared: Path, reviews: Path, capsys
) -> None:
    before = (compared / RECORDS).read_bytes()
    assert main(command(reviews, compared, "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (compared / RECORDS).read_bytes() == before
    assert answer["verdict"][0]["text"]
    assert main(command(reviews, compared, "--n-gates", "8")) == 2
    assert "another head" in capsys.readouterr().err


def test_trials_of_other_settings_are_done_again_and_no_others(
    compared: Path, reviews: Path, tmp_path: Path, capsys
) -> None:
    out = shutil.copytree(compared, tmp_path / "out")
    before = lines(out)
    (old,) = [line for line in before if (line["method"], line["seed"]) == ("tfidf", 1)]
    old["settings"] = {**old["settings"], "C": old["settings"]["C"][:3]}
    old["test_accuracy"] = 0.0
    (out / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in before))
    loud = [word for word in command(reviews, out) if word != "--quiet"]
    assert main(loud) == 0
    assert "trials of TF-IDF are of other settings than are tried now" in capsys.readouterr().err
    *kept, again = lines(out)
    assert kept == before
    assert (again["method"], again["seed"]) == ("tfidf", 1)
    assert again["test_accuracy"] > 0
    assert main(loud) == 0
    assert "other settings" not in capsys.readouterr().err
    assert len(lines(out)) == len(before) + 1


def wait_for_lines(out: Path, least: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        file = out / RECORDS
        if file.exists() and file.read_bytes().count(b"\n") >= least:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {least} lines came: {process.poll()}")


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in found.stdout.splitlines()]
    return [child for child, parent in pairs if parent == pid]


def test_killed_at_once_loses_one_trial_and_repeats_to_the_bit(
    compared: Path, reviews: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", "tasks.cli", *command(reviews, out)]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for_lines(out, 1, process)
    orphans = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in orphans) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in orphans)  # nobody works on unseen
    kept = (out / RECORDS).read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 1 <= kept.count(b"\n") < 4
    assert main(command(reviews, out)) == 0
    assert (out / RECORDS).read_bytes().startswith(kept)  # seconds too: not done again
    assert repeatable(out) == repeatable(compared)
    for line in lines(out):
        mine, other = (np.load(folder / line["predictions"]) for folder in (out, compared))
        assert np.array_equal(mine, other)


@pytest.mark.slow
def test_a_file_called_tasks_is_not_ours_and_a_head_without_weights_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "tasks.py").write_text("raise SystemExit('of somebody else')")
    kinds = ["common"] * 54 + ["rare"] * 6
    rows = [f"a {kind} thing {i % 7} of number {i},{kind}" for i, kind in enumerate(kinds)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    own = ["compare", "rows.csv", "--backbone", "toy:text-8", "--methods", "convex,linear"]
    # At beta_max the head is constant: no change of a row changes its class.
    own += ["--beta", "1", "--penalty", "group", "--seeds", "2", "--quiet", "--json", "--out"]
    assert main([*own, "rows.csv"]) == 2
    assert "--out rows.csv is a file" in capsys.readouterr().err
    assert main([*own, "out"]) == 0
    answer = json.loads(capsys.readouterr().out)
    [head] = [row for row in answer["trust"] if row["method"] == "convex"]
    assert head["certified"]["median_radius"] is None and not answer["skipped"]
    assert "certified radius" in (tmp_path / "out" / "report.html").read_text()


def test_few_shots_curves_and_two_backbones(reviews: Path, tmp_path: Path) -> None:
    own = ["compare", str(reviews), "--methods", "linear,knn,tfidf", "--seeds", "2", "--quiet"]
    two = ["--backbone", "toy:text-16", "--backbone", "toy:text-8"]
    assert main([*own, *two, "--out", str(tmp_path / "two")]) == 0
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    both = "toy:text-16 + toy:text-8"
    assert summary["backbones"] == ["toy:text-16", "toy:text-8", both]
    assert [r["method"] for r in summary["rows"] if r["backbone"] == both] == ["linear", "knn"]
    one = two[:2]
    assert main([*own, *one, "--shots", "1,4", "--out", str(tmp_path / "shots")]) == 0
    found = lines(tmp_path / "shots")
    assert {(line["shots"], line["n_train"], line["n_validation"]) for line in found} == {
        (1, 2, 2),
        (4, 8, 8),
    }
    assert main([*own, *one, "--curve", "--out", str(tmp_path / "curve")]) == 0
    sizes = sorted({line["n_train"] for line in lines(tmp_path / "curve")})
    assert len(sizes) == 5
    assert "How much is there to learn from" in (tmp_path / "curve" / "report.html").read_text()
