"""A certified sentiment head on frozen MiniLM embeddings of IMDb reviews.

Run: python examples/imdb_sentiment.py [DATA_ROOT] [TRAIN_ROWS] [TEST_ROWS]

DATA_ROOT holds imdb/train.parquet and imdb/test.parquet; without it the data come from the Hub.
Two cores encode 12 to 25 long reviews a second; stop at any time, the same command resumes.
"""

import sys
from pathlib import Path

from tasks import ConvexHeadPipeline
from tasks.config import FitConfig
from tasks.console import make_reporter
from tasks.fit import run_fit

root = Path(sys.argv[1]) if len(sys.argv) > 1 else None
train_rows, test_rows = (int(n) for n in (sys.argv[2:4] or ("5000", "5000")))

config = FitConfig(
    data="imdb",
    backbone="minilm",
    data_root=root,
    train_rows=train_rows,
    test_rows=test_rows,
    out=Path("out/imdb"),
)
record = run_fit(config, reporter=make_reporter())

print(f"truncated at 256 tokens   {record.truncated_fraction:.1%}")
print(f"convex head               {record.test_accuracy:.4f}")
print(f"linear probe              {record.linear_probe_test_accuracy:.4f}")
print(f"proven relative gap       {record.relative_gap:.1e}")

clf = ConvexHeadPipeline.from_pretrained(record.artefact)
for text in ("A warm, funny and beautifully acted film.", "Two hours of my life, gone."):
    print(clf(text), text)
