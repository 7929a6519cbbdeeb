"""Your own table: odd column names, rows that cannot be used, a head, and what it gets wrong.

Run: python examples/own_data.py [TABLE TEXT_COLUMN LABEL_COLUMN [BACKBONE]]
without arguments on a small CSV that it writes itself, with a backbone of random weights.
"""

import csv
import sys
from pathlib import Path

from tasks import ConvexHeadPipeline
from tasks.config import FitConfig
from tasks.console import make_reporter
from tasks.fit import run_fit

if len(sys.argv) > 3:
    table, text_column, label_column, *rest = sys.argv[1:]
    backbone = rest[0] if rest else "minilm"
else:
    table, text_column, label_column, backbone = "tickets.csv", "Message", "Team", "toy:text"
    with open(table, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Ticket no", "Message", "Team"])
        for i in range(120):
            rows.writerow([2 * i, f"my invoice {i} was charged twice", "billing"])
            rows.writerow([2 * i + 1, f"the app crashes on screen {i}", "support"])
        rows.writerow([240, "when do you open?", ""])  # no label: left out, and that is said

record = run_fit(
    FitConfig(
        data=table,
        text_column=text_column,
        label_column=label_column,
        backbone=backbone,
        on_bad_row="skip",
        embed_samples=True,  # wrongly labelled test rows go into the artefact
        out=Path("out/own-data"),
    ),
    reporter=make_reporter(),
)
low, high = record.test_accuracy_interval
print(f"rows left out    {record.skipped_rows}")
print(f"test accuracy    {record.test_accuracy:.3f} ({low:.3f} to {high:.3f})")
print(f"linear probe     {record.linear_probe_test_accuracy:.3f}")
print(f"relative gap     {record.relative_gap:.1e}")
print(f"wrong test rows  {record.artefact}/samples.jsonl")

clf = ConvexHeadPipeline.from_pretrained(record.artefact)
print(clf("why was my invoice charged again?", top_k=2))
