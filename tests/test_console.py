"""Progress for log files and for terminals, and what becomes of predictions on their way out."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import time
from contextlib import suppress

import numpy as np
import pytest

from tasks import console
from tasks.console import LineReporter, QuietReporter, RichReporter, make_reporter
from tasks.data.inputs import text_items
from tasks.pipeline import Predicted
from tasks.predict import Skipped, label, write_csv, write_json_lines, write_table
from tasks.predict import predictions as in_rows
from tasks.screen import fitting, make_table, print_table


def test_lines_say_how_far_and_how_long(monkeypatch):
    stream = io.StringIO()
    clock = iter([0.0, 1.0, 20.0, 40.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    reporter = LineReporter(stream)
    with reporter.stage("extract", total=100, done=50) as stage:
        stage.advance(1)  # after 1 s: too soon for a line
        stage.advance(9)  # after 20 s, 10 of the 50 that were left
    reporter.note("val is used as test")
    assert stream.getvalue().splitlines() == [
        "extract: begins, 50 of 100 already done",
        "extract: 60/100, 1 min 20 s left",
        "extract: done in 40.0 s",
        "note: val is used as test",
    ]


def test_the_time_left_leaves_out_what_it_took_to_begin(monkeypatch):
    stream = io.StringIO()
    clock = iter([0.0, 20.0, 30.0, 40.0, 50.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with LineReporter(stream).stage("extract", total=100) as stage:
        for _ in range(3):
            stage.advance(10)
    assert stream.getvalue().splitlines()[1:3] == [
        "extract: 10/100, 20.0 s so far",
        "extract: 30/100, 1 min 10 s left",
    ]


def test_a_log_file_shows_that_a_long_unit_is_alive(monkeypatch):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.02)
    stream = io.StringIO()
    with LineReporter(stream).stage("compare", total=8, done=2) as stage:
        stage.detail("convex head")
        until = time.monotonic() + 10
        while stream.getvalue().count("so far, convex head") < 2 and time.monotonic() < until:
            time.sleep(0.01)
    alive = [line for line in stream.getvalue().splitlines() if line.startswith("compare: 2/8, ")]
    assert len(alive) > 1
    assert all(re.fullmatch(r"compare: 2/8, \d+\.\d s so far, convex head", a) for a in alive)
    time.sleep(0.1)
    assert stream.getvalue().splitlines()[-1].startswith("compare: done in ")


def test_a_count_that_is_not_known_is_not_said(monkeypatch):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.02)
    for total in (257, None):
        stream = io.StringIO()
        with LineReporter(stream).stage("predict", total=total):
            until = time.monotonic() + 10
            while "so far" not in stream.getvalue() and time.monotonic() < until:
                time.sleep(0.01)
        assert re.search(r"^predict: \d+\.\d s so far$", stream.getvalue(), re.M)
        assert "/" not in stream.getvalue()


def test_a_stage_says_how_it_stands():
    # A line at the end for log files, behind the bar on a terminal, nothing when quiet.
    for reporter in (LineReporter, RichReporter):
        stream = io.StringIO()
        with reporter(stream).stage("fit", total=100) as stage:
            stage.detail("gap 2.0e-01, 8 passes")
            stage.advance(100)
            stage.detail("gap 1.8e-02, 16 passes")
        assert "gap 1.8e-02, 16 passes" in stream.getvalue().splitlines()[-1]
        assert "2.0e-01" not in stream.getvalue().splitlines()[-1]
    with QuietReporter().stage("fit", total=1) as stage:
        stage.detail("gap 0.5")


def test_a_stage_that_fails_is_not_called_done():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), LineReporter(stream).stage("fit", total=None):
        raise KeyboardInterrupt
    assert "done" not in stream.getvalue()


def test_bars_show_counts_and_notes_are_taken_literally():
    stream = io.StringIO()
    reporter = RichReporter(stream)
    with reporter.stage("extract", total=4, done=1) as stage:
        stage.advance(2)
    reporter.note("the class [red] has no rows")
    assert "3/3" in stream.getvalue()  # a search that ends early has no time left
    assert "left" not in stream.getvalue().splitlines()[-2]
    assert "note: the class [red] has no rows" in stream.getvalue()


@pytest.mark.parametrize("columns", ["40", "80"])
def test_bars_and_tables_fit_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    stream = io.StringIO()
    with RichReporter(stream).stage("linear probe", total=12_000) as stage:
        stage.advance(12_000)
        stage.detail("gap 1.8e-02, 160 passes")
    assert "12,000/12,000" in stream.getvalue()
    reporter, clock = RichReporter(stream), itertools.count(step=3)
    monkeypatch.setattr(reporter._console, "get_time", clock.__next__)
    # The bar makes room for the time left.
    with suppress(KeyboardInterrupt), reporter.stage("predict", total=200_000) as stage:
        for _ in range(5):
            stage.advance(10)
        raise KeyboardInterrupt
    assert re.search(r"50/200,000.* h [0-9]+ min left", stream.getvalue())
    with RichReporter(stream).stage("report", total=None):
        pass
    assert "?" not in stream.getvalue()  # of an unknown total
    table = make_table("", "test accuracy", "95% interval", "seconds", "relative gap")
    table.add_row("convex head", "0.7526", "0.6999 to 0.7987", "8.1", "1.8e-02")
    print_table(table, stream)
    assert "0.6999 to 0.7987" in stream.getvalue()
    assert max(map(len, re.split(r"[\r\n]", stream.getvalue()))) <= int(columns)


@pytest.mark.parametrize(("columns", "shown"), [("40", 4), ("66", 3), ("80", 4), ("300", 4)])
def test_of_a_wide_table_the_columns_that_fit_are_shown(columns, shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)  # at 40 each cell has a line
    lines = [["a method with a name", "1.00", "98.00 to 100.00 or more", "25,000,000"]]
    assert fitting(["method", "test accuracy, %", "95% interval", "parameters"], lines) == shown


def test_no_time_left_is_told_that_is_not_known(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    clock = [0.0]

    def shown(even: bool, seconds_after: float) -> str:
        stream, clock[0] = io.StringIO(), 0.0
        reporter = RichReporter(stream)
        monkeypatch.setattr(reporter._console, "get_time", lambda: clock[0])
        with suppress(KeyboardInterrupt), reporter.stage("compare", total=9, even=even) as stage:
            for _ in range(4):
                clock[0] += 2
                stage.advance(1)
            stage.detail("convex head")
            clock[0] += seconds_after
            raise KeyboardInterrupt
        return stream.getvalue()

    assert "left, convex head" in shown(True, 1)
    assert "9.0 s left" in shown(True, 1)  # five units of two seconds, one second ago
    assert "left" not in shown(True, 60)  # it was to be done long ago
    assert "left" not in shown(False, 1)  # methods take as long as they take
    monkeypatch.setattr(console.time, "monotonic", itertools.count(step=20).__next__)
    stream = io.StringIO()
    with LineReporter(stream).stage("compare", total=9, even=False) as stage:
        for _ in range(4):
            stage.advance(1)
    assert "left" not in stream.getvalue()


def test_notes_are_broken_between_words_on_a_terminal_and_not_at_all_in_a_file(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "texts that are empty: 6, the first: data row 7 (--on-bad-row skip leaves them out) " * 2
    stream = io.StringIO()
    RichReporter(stream).note(text.strip())
    assert stream.getvalue().count("\n") == 1
    monkeypatch.setattr(stream := io.StringIO(), "isatty", lambda: True, raising=False)
    RichReporter(stream).note(text.strip())
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(lines) == f"note: {text.strip()}"
    for line in lines:
        assert set(line.split()) <= {"note:", *text.split()}


def test_rows_in_notes_are_counted_as_a_person_does():
    for reporter in (LineReporter, RichReporter):
        stream = io.StringIO()
        reporter(stream).note("rows left out: 1; the first: row/000071 (the text is empty)")
        assert "the first: data row 72 (the text is empty)" in stream.getvalue()
    path = "/data/train/000071.png and train/000071.png"
    assert console.rows_in_words(path) == path


def test_a_table_in_a_file_has_lines_without_ends_of_spaces(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    table = make_table("task", "what")
    table.add_row("a", "long " * 60)
    table.add_row("b", "short")
    print_table(table, stream)
    lines = stream.getvalue().splitlines()
    assert lines[0].split() == ["task", "what"]
    assert len(lines) == 4
    assert all(line == line.rstrip() for line in lines)


def test_the_reporter_fits_the_stream(capsys):
    assert isinstance(make_reporter(quiet=True), QuietReporter)
    assert isinstance(make_reporter(), LineReporter)  # captured: not a terminal


class LengthClassifier:
    """Texts are long or short."""

    modality = "text"
    classes = ("long", "short")

    def predict_stream(self, chunks, *, on_bad_row="fail"):
        for ids, items in chunks:
            long = np.array([min(len(item), 10) / 10 for item in items])
            yield Predicted(ids, np.stack([long, 1 - long], axis=1), {})


TEXTS = ["abcdefghij", "", 'a "b", c', *["x"] * 600]


def predictions(skipped: Skipped | None = None):
    chunks = label(
        LengthClassifier(), text_items(TEXTS), on_bad_row="skip", reporter=QuietReporter()
    )
    return in_rows(chunks, LengthClassifier.classes, Skipped() if skipped is None else skipped)


def test_predictions_as_json_lines():
    stream, skipped = io.StringIO(), Skipped()
    write_json_lines(predictions(skipped), stream)
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(rows) == len(TEXTS) - 1
    assert skipped == {"": "the text is empty"}
    assert rows[0]["label"] == "long"
    assert rows[0]["score"] == 1.0
    assert rows[0]["probabilities"] == {"long": 1.0, "short": 0.0}
    assert rows[-1]["label"] == "short"


def test_predictions_as_csv():
    stream = io.StringIO()
    write_csv(predictions(), LengthClassifier.classes, stream)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert list(rows[0]) == ["id", "label", "score", "long", "short"]
    assert [row["id"] for row in rows] == [text for text in TEXTS if text]
    assert float(rows[1]["long"]) == 0.8


def test_predictions_as_a_table():
    stream = io.StringIO()
    write_table(list(predictions())[:2], LengthClassifier.classes, stream)
    lines = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[0] == ["input", "label", "score", "long", "short"]
    assert lines[-2] == ["abcdefghij", "long", "1.0000", "1.0000", "0.0000"]
