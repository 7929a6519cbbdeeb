"""CRONOS-AM: the top blocks of a backbone and the convex head, trained in turn.

Run: python examples/alternate.py DATA [BACKBONE] [UNFREEZE] [ROUNDS]
where DATA is a task's name (with CONVEX_HEADS_DATA set), a CSV, an image folder, ...
"""

import sys
from pathlib import Path

from tasks import ConvexHeadPipeline
from tasks.config import FinetuneConfig
from tasks.console import LineReporter
from tasks.cronos_am.finetune import run_finetune
from tasks.reports.figures import as_file
from tasks.reports.round_figure import rounds_figure

data, backbone, unfreeze, rounds = [*sys.argv[1:], *(None, "minilm", "1", "3")[len(sys.argv) - 1 :]]
if data is None:
    sys.exit(__doc__)
out = Path("alternated")
record = run_finetune(
    FinetuneConfig(
        data=data, backbone=backbone, unfreeze=int(unfreeze), rounds=int(rounds), out=out
    ),
    reporter=LineReporter(),
)

print("round  half-step  kept   objective      gap  validation  seconds")
for line in record.rounds:
    gap = "" if line["relative_gap"] is None else f"{line['relative_gap']:.0e}"
    print(
        f"{line['round']:5d}  {line['half']:9s}  {line['kept']!s:5s}  {line['objective']:9.5f}"
        f"  {gap:>7s}  {line['validation_accuracy']:10.4f}  {line['seconds']:7.1f}"
    )
(out / "rounds.svg").write_text(as_file(rounds_figure(record.rounds)))
print(f"frozen backbone: test accuracy {record.frozen_test_accuracy:.4f}")
print(f"top {unfreeze} of {record.n_blocks} blocks trained: {record.test_accuracy:.4f}")
print(f"on its gates the head is optimal for these blocks, up to {record.relative_gap:.1e}")

clf = ConvexHeadPipeline.from_pretrained(out)
if clf.modality == "text":
    print(clf("a fine film"))
