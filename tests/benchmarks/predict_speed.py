"""Rows a second of `convex-heads predict` from file to file, against the backbone alone.

`alone` encodes the same texts, in memory, and throws the features away; `predict` reads a CSV file,
labels it with a head of random weights on MiniLM and writes Parquet, journal and all. Both in turn,
in one process; medians over --repeats and their ratio.

    python tests/benchmarks/predict_speed.py [--rows 1000] [--repeats 3]
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from serve_load import WORDS, random_head
from shared import parser, show

from extractors.encode import encode_rows
from tasks.console import QuietReporter
from tasks.data.columns import ColumnChoice
from tasks.data.inputs import read_items
from tasks.journal import Journal
from tasks.pipeline import ConvexHeadPipeline
from tasks.predict import Skipped, job_key, label, write_parquet


def main() -> None:
    """Runs and prints the table."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=1000)
    made.add_argument("--repeats", type=int, default=3)
    options = made.parse_args()
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, options.rows)
    texts = [" ".join(rng.choice(WORDS, n)) for n in lengths]
    alone, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        clf = ConvexHeadPipeline.from_pretrained(random_head(place / "head"))
        with (place / "in.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text"])
            writer.writerows([text] for text in texts)
        ids = [str(i) for i in range(len(texts))]
        encode_rows(clf.extractor, texts[:64], ids[:64])
        for turn in range(options.repeats):
            began = time.perf_counter()
            encode_rows(clf.extractor, texts, ids)
            alone.append(options.rows / (time.perf_counter() - began))
            began = time.perf_counter()
            predict(clf, place, turn)
            whole.append(options.rows / (time.perf_counter() - began))
    row = {
        "rows": options.rows,
        "alone, rows/s": float(np.median(alone)),
        "predict, rows/s": float(np.median(whole)),
        "ratio": float(np.median(np.array(whole) / np.array(alone))),
    }
    show("From file to file against the backbone alone", [row], options)


def predict(clf: ConvexHeadPipeline, place: Path, turn: int) -> None:
    """What the verb does, with a backbone that is loaded already."""
    items = read_items(place / "in.csv", "text", ColumnChoice())
    journal = Journal(
        place / f"{turn}.partial", job_key(clf, items, "fail"), items.ids, len(clf.classes)
    )
    for chunk in label(clf, items, on_bad_row="fail", reporter=QuietReporter()):
        journal.add(chunk)
    write_parquet(journal.chunks(), clf.classes, place / f"{turn}.parquet", Skipped())
    journal.close(remove=True)


if __name__ == "__main__":
    main()
