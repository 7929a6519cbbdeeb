"""Files in, files out: order, bad rows, every format, and going on after kill -9."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extractors.errors import InputError
from extractors.toy import ToyText
from tasks.artefact import read_artefact, write_artefact
from tasks.cli import main
from tasks.config_saved import PredictConfig
from tasks.console import QuietReporter
from tasks.evaluate import measure, slices_of
from tasks.journal import Journal
from tasks.metrics import evaluate
from tasks.pipeline import ConvexHeadPipeline
from tasks.predict import run_predict

HEAD = Path(__file__).parent / "artefacts" / "schema-1-first"
TEXTS = [f"{'a fine film' if i % 3 else 'ants and bees'} number {i}" for i in range(700)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text"])
        writer.writerows([text] for text in TEXTS)
    return path


def predict(source: Path, target: Path, *more: str) -> int:
    command = ["predict", str(HEAD), "--input", str(source), "--output", str(target)]
    return main([*command, "--quiet", *more])


def test_texts_come_from_standard_input(monkeypatch, capsys):
    lines = io.BytesIO("\ufeffa fine film\r\n\nants\u2028and\x0cbees".encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(lines))
    assert main(["predict", str(HEAD), "--input", "-", "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)["predictions"]
    assert [answer["id"] for answer in said] == ["line/000001", "line/000003"]
    assert main(["predict", str(HEAD), "--text", "a fine film", "--json", "--quiet"]) == 0
    one = json.loads(capsys.readouterr().out)["predictions"][0]
    assert said[0]["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("déjà".encode("latin-1"))))
    assert main(["predict", str(HEAD), "--input", "-"]) == 2
    assert "standard input is not UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)
    assert main(["predict", str(HEAD), "--input", "-"]) == 2
    assert "there is no standard input" in capsys.readouterr().err


def read(path: Path) -> list[dict]:
    from pyarrow import parquet

    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open() as stream:
            return list(csv.DictReader(stream))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{**row, **row["probabilities"]} for row in rows]


def test_every_format_in_and_out_gives_the_same_answers_in_order(texts, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    expected = ConvexHeadPipeline.from_pretrained(HEAD).predict_proba(TEXTS)
    for source in (texts, tmp_path / "in.parquet", tmp_path / "in.jsonl"):
        for suffix in ("csv", "jsonl", "parquet"):
            target = tmp_path / f"out.{suffix}"
            assert predict(source, target) == 0
            rows = read(target)
            assert [row["id"] for row in rows] == [f"row/{i:06d}" for i in range(len(TEXTS))]
            found = [[float(row[name]) for name in ("animal", "film", "plant")] for row in rows]
            np.testing.assert_allclose(found, expected, atol=1e-5)
            target.unlink()
    assert predict(texts, tmp_path / "out.json") == 0
    answers = json.loads((tmp_path / "out.json").read_text())["predictions"]
    found = [list(row["probabilities"].values()) for row in answers]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    (tmp_path / "out.json").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl",
        "in.parquet",
        "texts.csv",
    ]


def test_rows_are_called_by_a_column_of_the_table(tmp_path, capsys):
    source, target = tmp_path / "new.csv", tmp_path / "out.jsonl"
    source.write_text("key,text\n007,a fine film\n,ants\nb-1,bees\nc,two,cells\n")
    assert predict(source, target, "--id-column", "Key", "--on-bad-row", "skip") == 0
    assert [row["id"] for row in read(target)] == ["007", "row/000001", "b-1"]
    (left_out,) = map(json.loads, (tmp_path / "out.jsonl.skipped.jsonl").read_text().splitlines())
    assert left_out["id"] == "row/000003"

    source.write_text("key,text\na,fine\nb,poor\na,ants\n")
    assert predict(source, target, "--id-column", "key") == 2
    assert "data row 3: the column 'key' has 'a' as in data row 1" in capsys.readouterr().err
    assert predict(source, target, "--id-column", "keys") == 2
    assert "did you mean 'key'?" in capsys.readouterr().err
    for bad in ("[1, 2]", r'"\ud800"'):
        rows = tmp_path / "new.jsonl"
        rows.write_text(f'{{"key": 1.5, "text": "fine"}}\n{{"key": {bad}, "text": "poor"}}\n')
        assert predict(rows, target, "--id-column", "key") == 2
        assert "new.jsonl, line 2: an id is a text or a number" in capsys.readouterr().err
    lines = tmp_path / "new.txt"
    lines.write_text("a fine film\n")
    assert predict(lines, target, "--id-column", "key") == 2
    assert "is a column of a table" in capsys.readouterr().err


def test_bad_rows_fail_or_are_reported_and_skipped(tmp_path, capsys):
    rows = [{"text": "fine"}, {"text": 7}, {"text": None}, {"text": "dull"}]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert predict(source, target) == 2
    assert "error: data row 2 cannot be encoded" in capsys.readouterr().err
    assert not target.exists()
    assert predict(source, target, "--on-bad-row", "skip") == 0
    assert [row["id"] for row in read(target)] == ["row/000000", "row/000003"]
    reported = (tmp_path / "out.parquet.skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in reported] == ["row/000001", "row/000002"]
    assert "int (7)" in reported[0]
    command = ["predict", str(HEAD), "--input", str(source), "--on-bad-row", "skip", "--json"]
    assert main([*command, "--quiet"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in answer["skipped"]] == ["row/000001", "row/000002"]
    assert main([*command[:-1], "--format", "parquet", "--quiet"]) == 2
    assert "--output" in capsys.readouterr().err
    assert main([*command, "--format", "csv", "--quiet"]) == 2
    assert "leave out --format csv" in capsys.readouterr().err
    # The file has its own format, and one object on stdout tells of it; a broken line says why.
    lines = tmp_path / "in.csv"
    lines.write_text("text,more\nfine,1\na dull, film,1\nfine,2\n")
    assert predict(lines, tmp_path / "out.csv", "--on-bad-row", "skip", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in read(tmp_path / "out.csv")] == ["row/000000", "row/000002"]
    assert (answer["rows"], answer["output"]) == (2, str(tmp_path / "out.csv"))
    assert "3 cells where the header has 2" in answer["skipped"][0]["reason"]


def test_empty_texts_are_told_or_left_out(tmp_path, capsys):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.csv"
    rows = [{"text": "fine"}, {"text": " "}, {"text": "dull"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["predict", str(HEAD), "--input", str(source), "--output", str(target)]
    assert main(command) == 0
    assert "texts that are empty: 1, labelled all the same" in capsys.readouterr().err
    assert main([*command, "--on-bad-row", "skip"]) == 0
    said = capsys.readouterr().err
    assert f"--output {target} was there before: it is replaced" in said
    assert "the first: data row 2 (the text is empty)" in said
    assert [row["id"] for row in read(target)] == ["row/000000", "row/000002"]
    reported = (tmp_path / "out.csv.skipped.jsonl").read_text()
    assert json.loads(reported) == {"id": "row/000001", "reason": "the text is empty"}


def test_an_interruption_ends_the_bar_before_anything_is_said(texts, tmp_path, monkeypatch):
    ended = []

    class Watched(QuietReporter):
        @contextmanager
        def stage(self, name, total, done=0, *, even=True):
            try:
                yield self
            finally:
                ended.append(name)

    def interrupted(journal, chunk):
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.journal.Journal.add", interrupted)
    config = PredictConfig(artefact=str(HEAD), input=texts, output=tmp_path / "out.csv")
    with pytest.raises(KeyboardInterrupt) as caught:
        run_predict(config, as_json=False, reporter=Watched())
    assert caught.tb is not None  # which keeps the frames, as that of a command line does
    assert ended == ["predict"]


_SLOW = """
import sys, time
from extractors.toy import ToyText
encode = ToyText.encode
def slowly(self, prepared):
    time.sleep(0.05)
    return encode(self, prepared)
ToyText.encode = slowly
from tasks.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_killed_on_the_way_the_same_command_goes_on(texts, tmp_path, capsys):
    whole, target = tmp_path / "whole.csv", tmp_path / "out.csv"
    assert predict(texts, whole) == 0
    command = [sys.executable, "-c", _SLOW, "predict", str(HEAD), "--input", str(texts)]
    environment = {**os.environ, "PYTHONPATH": str(HEAD.parent.parent.parent)}
    job = subprocess.Popen([*command, "--output", str(target)], env=environment)
    journal = tmp_path / ".out.csv.partial"
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not target.exists()
    with journal.open("ab") as file:
        file.write(b'{"n": 256, "p": "AAAA')  # a line cut off by the crash
    capsys.readouterr()
    assert main([*command[3:], "--output", str(target)]) == 0
    assert "rows labelled before: " in capsys.readouterr().err
    assert target.read_bytes() == whole.read_bytes()
    assert not journal.exists()
    # Another input begins anew.
    journal.write_bytes(b'{"key": "of another job"}\n{"n": 256, "p": "", "skipped": {}}\n')
    assert predict(texts, target) == 0
    assert target.read_bytes() == whole.read_bytes()


def test_no_file_is_overwritten_that_should_not_be(texts, tmp_path, capsys):
    before = texts.read_bytes()
    assert predict(texts, texts) == 2
    assert "is the file to label" in capsys.readouterr().err
    assert texts.read_bytes() == before
    assert predict(texts, tmp_path / "out.xlsx") == 2
    assert "say --format" in capsys.readouterr().err
    assert predict(texts, tmp_path / "out.tsv", "--format", "csv") == 0
    # A second process on the same output is told so, and does not write into the journal.
    journal = Journal(tmp_path / ".out.csv.partial", "key", ["a"], 3)
    assert predict(texts, tmp_path / "out.csv") == 1
    assert "another process" in capsys.readouterr().err
    journal.close(remove=False)
    told = tmp_path / "out.csv.skipped.jsonl"
    told.write_text("of an earlier run\n")
    assert predict(texts, tmp_path / "out.csv") == 0
    assert not told.exists()


def test_classes_called_like_other_columns_have_columns_of_their_own(tmp_path):
    head = replace(read_artefact(HEAD).head, classes=("label", "id", "film"))
    write_artefact(
        tmp_path / "head",
        head,
        modality="text",
        backbone="toy:text-8",
        backbone_fingerprint=ToyText(8).fingerprint(),
        facts={},
    )
    for name in ("out.csv", "out.parquet"):
        command = [
            "predict",
            str(tmp_path / "head"),
            "--text",
            "a",
            "--output",
            str(tmp_path / name),
        ]
        assert main([*command, "--quiet"]) == 0
        assert list(read(tmp_path / name)[0]) == [
            *("id", "label", "score", "class:label", "class:id", "film")
        ]


def test_evaluate_agrees_with_the_metrics_and_slices_add_up(tmp_path, capsys):
    found = ConvexHeadPipeline.from_pretrained(HEAD).predict_proba(TEXTS)
    names = np.array(["animal", "film", "plant"])
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(len(TEXTS)) < 0.8, names[found.argmax(1)], rng.choice(names, 700))
    source = tmp_path / "rows.csv"
    with source.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label", "source", "length"])
        for i, (text, label) in enumerate(zip(TEXTS, labels, strict=True)):
            writer.writerow([text, label, "ab"[i % 2], i])
    command = ["evaluate", str(HEAD), str(source), "--quiet", "--seed", "3"]
    assert main([*command, "--by", "source", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    whole = evaluate(found, np.searchsorted(names, labels))
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "nll", "ece"):
        assert record[name] == pytest.approx(getattr(whole, name), abs=1e-5)
        low, high = record[f"{name}_interval"]
        assert low <= high
        assert low - 0.02 <= record[name] <= high + 0.02
    assert [part["slice"] for part in record["slices"]] == ["a", "b"]
    assert sum(part["n"] for part in record["slices"]) == 700
    right = sum(part["n"] * part["accuracy"] for part in record["slices"])
    assert right / 700 == pytest.approx(record["accuracy"])
    assert main([*command, "--by", "length"]) == 0
    assert "0 to 174.75" in capsys.readouterr().out
    assert main([*command, "--by", "text"]) == 2
    assert "too many for slices" in capsys.readouterr().err
    assert main([*command, "--by", "sauce"]) == 2
    assert "has no column 'sauce'; its columns are " in capsys.readouterr().err
    assert main([*command, "--by", "Source", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["slices"]) == 2
    # Split files count by what they are, however they are called.
    (tmp_path / "splits").mkdir()
    for name in ("train.csv", "dev.csv"):
        shutil.copy(source, tmp_path / "splits" / name)
    divided = [*command[:2], str(tmp_path / "splits"), "--by", "source", "--json", "--quiet"]
    for files, split in ((["train.csv", "dev.csv"], "test"), (["test.csv"], "validation")):
        for name in files:
            shutil.copy(source, tmp_path / "splits" / name)
        assert main([*divided, "--split", split]) == 0
        assert len(json.loads(capsys.readouterr().out)["slices"]) == 2
    # An artefact remembers the columns that its rows had.
    own = shutil.copytree(HEAD, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    config["columns"] = {"text": "Words", "label": "kind"}
    (own / "config.json").write_text(json.dumps(config))
    source.write_text("words ,Kind\nfine,film\n")
    assert main(["evaluate", str(own), str(source), "--quiet"]) == 0
    assert main(["predict", str(own), "--input", str(source), "--quiet"]) == 0
    # What cannot be used is called what it is, and left out as `fit` does.
    source.write_text("text,label\nfine,film\nfine\n,film\nfine,\nfine,film\n")
    assert main(["evaluate", str(own), *command[2:]]) == 2
    said = capsys.readouterr().err
    assert "data row 2: 1 cell where the header has 2" in said
    assert "rows that cannot be used: 2; texts that are empty: 1 (--on-bad-row skip" in said
    capsys.readouterr()
    assert main(["evaluate", str(own), *command[2:], "--on-bad-row", "skip", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["n"] == 2
    assert [row["id"] for row in record["skipped"]] == ["row/000001", "row/000002", "row/000003"]
    source.write_text("text,label\nfine,film\nfine,mineral\n")
    assert main(["evaluate", str(own), *command[2:]]) == 2
    assert "'mineral' is none of the head's classes" in capsys.readouterr().err


@pytest.mark.slow
def test_intervals_cover_what_they_should():
    # 200 samples from a known truth: 95% intervals of the NLL and F1 miss it about 5% of the time.
    rng = np.random.default_rng(0)
    p = rng.dirichlet([2, 2, 2], 40_000)
    y = np.array([rng.choice(3, p=row) for row in p])
    truth = evaluate(p, y)
    missed = {"nll": 0, "macro_f1": 0, "accuracy": 0}
    for _ in range(60):
        rows = rng.integers(len(y), size=300)
        found = measure(p[rows], y[rows], 0)
        for name in missed:
            low, high = found[f"{name}_interval"]
            missed[name] += not low <= getattr(truth, name) <= high
    assert max(missed.values()) <= 9  # binomial(60, 0.05) exceeds 9 with probability 4e-4


def test_a_column_with_too_many_values_is_refused():
    with pytest.raises(InputError, match="too many"):
        slices_of([f"v{i}" for i in range(80)], "x")
