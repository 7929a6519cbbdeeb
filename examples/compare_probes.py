"""What is worth its time on your data: the convex head, linear probe, kNN, ridge, side by side.

Run: python examples/compare_probes.py [DATA] [BACKBONE] [SEEDS] [TRAIN_ROWS] [TEST_ROWS]
DATA is a task's name, a table or an image folder; the default is the digits of scikit-learn.
"""

import sys

from tasks import compare
from tasks.console import make_reporter

given = sys.argv[1:]
data, backbone, seeds, train_rows, test_rows = [
    *given,
    *("digits", "toy:image-32", "3", "400", "200")[len(given) :],
]
found = compare(
    data,
    backbone=backbone,
    methods=("convex", "linear", "ridge", "knn"),
    seeds=int(seeds),
    train_rows=int(train_rows),
    test_rows=int(test_rows),
    out="out/probes",
    reporter=make_reporter(),
)

print("method         accuracy   95% interval    seconds")
for row in found.rows:
    low, high = row["interval"]
    print(
        f"{row['title']:14s} {row['test_accuracy']:8.4f}   {low:.4f}-{high:.4f}"
        f"  {row['seconds_warm']:7.1f}"
    )
for verdict in found.verdict:
    print(*verdict["text"], sep="\n")
print("report:", found.report)
