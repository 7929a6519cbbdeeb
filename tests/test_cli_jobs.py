"""The main job through the command line, on small real data and random backbones."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tasks.cli import main
from tasks.info import Inspection
from tasks.records import FitRecord
from tasks.show import show_fit
from tasks.show_artefact import artefact_lines

# Small enough to be quick; what the defaults reach is tested with the solver.
QUICK = ("--n-gates", "8", "--beta", "0.05", "--tolerance", "0.01")

WORDS = {"animal": "dog cat horse bird wolf", "plant": "oak rose fern moss grass"}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    """200 texts of two classes that a bag of random features tells apart."""
    path = tmp_path_factory.mktemp("own") / "reviews.csv"
    lines = ["text,label"]
    for i in range(100):
        for label, words in WORDS.items():
            chosen = words.split()
            lines.append(f"the {chosen[i % 5]} and a {chosen[i // 5 % 5]} number {i},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def fitted(reviews, tmp_path_factory, request) -> tuple[dict, Path, str]:
    """`fit --json` once, in a process of its own: the record, the artefact, and stderr."""
    out = tmp_path_factory.mktemp("artefact") / "a head"
    done = run(
        "fit", str(reviews), "--backbone", "toy:text-32", "--out", str(out), *QUICK, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout), out, done.stderr


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


@pytest.mark.slow
def test_penalty_and_solver_are_those_that_were_asked_for(reviews, tmp_path):
    done = run(
        *("fit", str(reviews), "--backbone", "toy:text-32", "--out", str(tmp_path / "head")),
        *(*QUICK, "--beta", "2", "--penalty", "ridge", "--solver", "fista", "--json"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["penalty"], record["solver"]) == ("ridge", "fista")
    assert record["beta"] == pytest.approx(2 * record["beta_max"])
    assert record["pattern_violation"] is None  # under ridge every gate gains something
    assert "under a ridge penalty" in (tmp_path / "head" / "README.md").read_text()
    assert "ridge penalty" in (tmp_path / "head" / "report.html").read_text()
    refused = run("fit", str(reviews), "--penalty", "lasso")
    assert refused.returncode == 2
    assert "group" in refused.stderr and "ridge" in refused.stderr


def test_fit_reports_every_field_and_writes_the_artefact(fitted):
    record, out, _ = fitted
    assert list(record) == list(FitRecord.__dataclass_fields__)
    assert record["artefact"] == str(out)
    assert record["n_train"] + record["n_validation"] + record["n_test"] == 200
    assert 0 <= record["relative_gap"] <= 0.05
    assert record["dual"] <= record["primal"]
    (only,) = record["path"]
    assert only["validation_loss"] > 0
    assert len(only["gate_norms"]) == record["n_gates"]
    assert record["history"][-1]["relative_gap"] <= record["tolerance"] == 0.01
    low, high = record["test_accuracy_interval"]
    assert low <= record["test_accuracy"] <= high
    assert {"extract", "fit", "fit_compile", "baseline"} <= set(record["seconds"])
    for name in ("config.json", "model.safetensors", "README.md", "report.html"):
        assert (out / name).is_file()


def test_the_artefact_holds_no_row(fitted, reviews):
    _, out, _ = fitted
    texts = [line.rpartition(",")[0] for line in reviews.read_text().splitlines()[1:]]
    for path in out.iterdir():
        content = path.read_bytes()
        held = [text for text in texts if text.encode() in content]
        assert not held, (path, held[:3])


@pytest.mark.slow
def test_rows_are_kept_when_asked_for(tmp_path):
    lines = [f"{'good' if i % 3 else 'bad'} film {i},{'ab'[i % 2]}" for i in range(200)]
    (tmp_path / "noise.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    fit = ["fit", str(tmp_path / "noise.csv"), "--backbone", "toy:text-8", "--embed-samples"]
    assert main([*fit, "--out", str(tmp_path / "head"), *QUICK, "--quiet"]) == 0
    kept = (tmp_path / "head" / "samples.jsonl").read_text().splitlines()
    assert 0 < len(kept) <= 20
    for row in map(json.loads, kept):
        assert row["label"] != row["predicted"]
        assert f"{row['text']},{row['label']}" in lines


def test_progress_goes_to_stderr_without_a_stack_of_warnings(fitted):
    record, _, stderr = fitted
    # The gap that is told in the end is the certificate's, as in the table.
    gap = re.search(r"^fit: done in .* s, gap (\S+), \d+ pass(es)?$", stderr, re.M)
    assert gap and gap[1] == f"{record['relative_gap']:.1e}"
    assert "arning" not in stderr
    assert "Traceback" not in stderr


def test_fit_for_people_names_both_heads_and_the_next_command(fitted, capsys):
    record, out, _ = fitted
    show_fit(FitRecord(**record))
    shown = capsys.readouterr().out
    for part in ("convex head", "linear probe", "95% interval", "relative gap", "truncated"):
        assert part in shown
    assert f"{record['test_accuracy']:.4f}" in shown
    assert f"convex-heads predict '{out}'" in shown  # quoted: there is a space in the path


def test_predict_texts_in_every_format(fitted, capsys):
    _, out, _ = fitted
    texts = ["--text", "the dog and a wolf", "--text", "moss, fern and grass"]
    assert main(["predict", str(out), *texts, "--json", "--quiet"]) == 0
    answer = json.loads(capsys.readouterr().out)
    labels = [row["label"] for row in answer["predictions"]]
    assert labels == ["animal", "plant"]
    for row in answer["predictions"]:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["score"] == max(row["probabilities"].values())
    assert main(["predict", str(out), *texts, "--format", "jsonl", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["label"] for line in lines] == labels
    assert main(["predict", str(out), *texts, "--format", "csv", "--quiet"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["label"] for row in rows] == labels
    assert main(["predict", str(out), *texts, "--quiet"]) == 0
    table = capsys.readouterr().out
    assert "the dog and a wolf" in table


def test_predict_a_file_into_a_file(fitted, reviews, tmp_path):
    _, out, _ = fitted
    target = tmp_path / "answers.csv"
    arguments = ["predict", str(out), "--input", str(reviews), "--output", str(target), "--quiet"]
    assert main(arguments) == 0
    with target.open() as stream:
        answers = [row["label"] for row in csv.DictReader(stream)]
    truth = [line.rpartition(",")[2] for line in reviews.read_text().splitlines()[1:]]
    assert sum(a == b for a, b in zip(answers, truth, strict=True)) >= 190


def test_predict_refuses_what_the_head_cannot_label(fitted, capsys, tmp_path):
    _, out, _ = fitted
    cases = [
        (["predict", str(out)], "say what to label"),
        (["predict", str(out), "--text", "x", "--input", "y"], "not both"),
        (["predict", str(tmp_path), "--text", "x"], str(tmp_path)),
        (["predict", str(out), "--text", "x", "--output", "no/such/file.csv"], "cannot write"),
    ]
    for arguments, expected in cases:
        assert main(arguments) == 2
        streams = capsys.readouterr()
        assert streams.out == ""
        assert expected in streams.err
        assert streams.err.strip().count("\n") == 0


def test_info_knows_stores_and_artefacts(fitted, capsys, monkeypatch):
    record, out, _ = fitted
    assert main(["info", record["store"], "--json"]) == 0
    store = json.loads(capsys.readouterr().out)
    assert store["kind"] == "store"
    assert sum(store["facts"]["rows"].values()) == 200
    assert store["facts"]["dim"] == record["dim"] == 32
    assert main(["info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "artefact"
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["info", str(out)]) == 0
    screen = capsys.readouterr().out.splitlines()
    # (The path of a test's folder takes lines of its own.)
    assert len(screen) <= 24 + 4 and max(map(len, screen)) <= 80
    said = " ".join(" ".join(screen).split())
    low, high = (f"{x:.4f}" for x in record["test_accuracy_interval"])
    assert "is an artefact" in said and record["backbone"] in said
    assert f"{record['test_accuracy']:.4f} on test rows, 95% interval {low} to {high}" in said
    assert f"within {record['relative_gap']:.1e}" in said and "convex-heads predict" in said


def test_info_leaves_out_what_an_artefact_does_not_say():
    base = {"modality": "text", "loss": "softmax", "classes": ["a", "b"], "backbone": "toy:text-8"}
    strange = {
        "certificate": {"relative_gap": "small", "beta": 0.1, "beta_max": 0},
        "record": {"test_accuracy": None, "n_train": "many", "dim": [], "test_ece": {}},
        "temperature": 1.0,
        "refit": 3,
    }
    for facts in (base, base | strange, base | {"record": [], "certificate": 0}):
        lines = dict(artefact_lines(Inspection("a head", "artefact", facts)))
        assert lines["classes"] == "2: a, b" and lines["accuracy"] == lines["certificate"] == ""
        assert lines["all of it"] == "convex-heads info 'a head' --json"
    many = base | {"classes": [f"class {i}" for i in range(1000)]}
    shown = dict(artefact_lines(Inspection("x", "artefact", many)))["classes"]
    assert shown.startswith("1,000: class 0, ") and len(shown) < 170
    refit = base | {
        "record": {"test_accuracy": 0.5, "test_ece": 0.1, "linear_probe_test_accuracy": 0.4},
        "refit": {"test_accuracy": 0.75, "test_accuracy_interval": [0.7, 0.8], "data": "more.csv"},
    }
    lines = dict(artefact_lines(Inspection("x", "artefact", refit)))
    assert lines["accuracy"] == "0.7500 on test rows, 95% interval 0.7000 to 0.8000"


def test_info_says_of_whom_a_head_is_the_best_and_of_no_temperature_that_is_none():
    facts = {"modality": "text", "classes": ["a", "b"], "backbone": "toy:text-8"}
    facts |= {"certificate": {"relative_gap": 0.02}, "temperature": 1.0}

    def lines(**more):
        return dict(artefact_lines(Inspection("x", "artefact", facts | more)))

    relu = lines(loss="squared", activation="relu")
    assert "best there can be for its own patterns" in relu["certificate"]
    assert relu["calibration"] == "none, the squared loss has no temperature"
    assert "own patterns" not in lines(loss="softmax")["certificate"]
    assert lines(loss="softmax")["calibration"] == "temperature 1"


def test_an_altered_shard_is_found_by_info_and_redone_by_extract(reviews, tmp_path, capsys):
    extract = ["extract", str(reviews), "--backbone", "toy:text-8", "--cache-dir", str(tmp_path)]
    assert main([*extract, "--json", "--quiet"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["rows"], first["dim"], first["resumed_rows"]) == (200, 8, 0)
    shard = sorted(Path(first["store"]).glob("*.arrow"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["info", first["store"]]) == 2
    assert shard.name in capsys.readouterr().err
    assert main([*extract, "--json", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert 0 < again["resumed_rows"] < 200
    assert main(["info", first["store"]]) == 0
    capsys.readouterr()
    assert main([*extract, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed_rows"] == 200


def test_images_are_fitted_and_labelled(tmp_path, capsys):
    from PIL import Image

    from tasks import load_task

    digits = load_task("digits", train_rows=400, test_rows=100)
    fit = ["fit", "digits", "--backbone", "toy:image-64", "--out", str(tmp_path / "head")]
    assert main([*fit, "--train-rows", "400", "--test-rows", "100", *QUICK, "--quiet"]) == 0
    streams = capsys.readouterr()
    assert "convex head" in streams.out
    assert "--input" in streams.out
    assert "truncated" not in streams.out
    assert streams.err == ""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, pixels in enumerate(digits.splits["test"].inputs[:3]):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"not an image")
    predict = ["predict", str(tmp_path / "head"), "--input", str(folder), "--format", "jsonl"]
    assert main([*predict, "--quiet"]) == 2
    assert "3.png" in capsys.readouterr().err
    assert main([*predict, "--on-bad-row", "skip"]) == 0
    streams = capsys.readouterr()
    rows = [json.loads(line) for line in streams.out.splitlines()]
    assert [row["id"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert "left out because they could not be used: 1" in streams.err


def test_ctrl_c_keeps_what_is_finished_and_exits_with_130(tmp_path):
    rows = "".join(f"text number {i},{'ab'[i % 2]}\n" for i in range(20_000))
    (tmp_path / "big.csv").write_text("text,label\n" + rows)
    command = [sys.executable, "-m", "tasks.cli", "extract", str(tmp_path / "big.csv")]
    command += ["--backbone", "toy:text-64", "--cache-dir", str(tmp_path / "cache"), "--json"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cache/stores/*/*-00001.arrow")):
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 130, err
    assert out == ""
    assert "interrupted; what was finished, if anything, is kept" in err.splitlines()[-1]
    assert "Traceback" not in err
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["rows"] == 20_000
    assert record["resumed_rows"] >= 512


def test_rows_that_are_left_out_are_listed_also_by_a_run_that_goes_on(tmp_path, capsys):
    from PIL import Image

    rng = np.random.default_rng(0)
    for c, kind in enumerate(("ant", "bee")):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(128 * c, 128 * (c + 1), (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / kind / f"{i}.png")
    for i in range(12):
        (tmp_path / "set" / "bee" / f"bad{i:02}.png").write_bytes(b"no image %d" % i)
    data = [str(tmp_path / "set"), "--backbone", "toy:image", "--on-bad-row", "skip", "--quiet"]
    data += ["--cache-dir", str(tmp_path / "cache")]
    for command in (["extract"], ["extract"], ["fit"]):  # the second finds all that there is
        more = ["--out", str(tmp_path / "head")] if command == ["fit"] else []
        assert main([*command, *data, *more]) == 0
        said = capsys.readouterr().out
        assert "could not be used: 12\n" in said
        assert len(re.findall(r"^  bee/bad\d\d\.png: the image does not decode$", said, re.M)) == 10
        assert "and 2 more" in said
        assert main([*command, *data, *more, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["skipped_rows"] == len(record["skipped"]) == 12
        assert ["bee/bad03.png", "the image does not decode"] in record["skipped"]
    report = (tmp_path / "head" / "report.html").read_text()
    assert report.count(".png (the image does not decode)") == 12
    assert str(tmp_path) not in report.split("Made by")[0]
    assert main(["info", record["store"]]) == 0
    assert capsys.readouterr().out.count("the image does not decode") == 12


def test_a_class_that_validation_rows_lack_is_told(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    for split, classes in (("train", "abc"), ("validation", "ab"), ("test", "abc")):
        lines = [f"word{c} number {i} {split},{c}" for c in classes for i in range(8)]
        (tmp_path / "set" / f"{split}.csv").write_text("\n".join(["text,label", *lines]))
    command = ["fit", str(tmp_path / "set"), "--backbone", "toy:text-8", "--json", "--out"]
    assert main([*command, str(tmp_path / "head")]) == 0
    streams = capsys.readouterr()
    told = "validation rows hold no c: beta and temperature are chosen without it"
    assert told in streams.err
    assert told in json.loads(streams.out)["notes"]
