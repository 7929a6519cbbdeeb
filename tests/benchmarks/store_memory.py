"""Peak memory of extraction as the number of rows grows: it must not grow with them.

Each line is a process of its own that extracts short texts with a toy backbone, from a generator
without length (`stream`) or from rows in memory (`rows`, whose own ids and texts are not counted).
peak: highest RssAnon in the extraction above what the process had before it, in MB; bytes/row: its
growth over the line before (Linux only).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import store_memory
store_memory.child(sys.argv[2], int(sys.argv[3]))
"""


def stream(n: int) -> Iterator[Any]:
    """Rows that exist one at a time."""
    from extractors.stream import StreamRow

    for i in range(n):
        yield StreamRow(f"row/{i:08d}", "test" if i % 5 == 0 else "train", f"text {i % 997}", i % 2)


def child(kind: str, n: int) -> None:
    """Extract n rows and print what it took."""
    import gc

    from memory import Peak, anonymous_bytes, return_freed_buffers

    from extractors import Rows
    from extractors.extract import extract
    from extractors.stream import extract_stream
    from extractors.toy import ToyText

    common: dict[str, Any] = {"task": "memory", "classes": ("no", "yes")}
    return_freed_buffers()
    with tempfile.TemporaryDirectory() as name:

        def run(rows: int) -> None:
            settings = {**common, "cache_dir": Path(name), "data_fingerprint": {"rows": rows}}
            if kind == "stream":
                done = extract_stream(stream(rows), ToyText(16), **settings)
                assert done.rows == rows
            else:
                assert extract(given[rows], ToyText(16), **settings).rows == rows

        given: dict[int, Any] = {}
        if kind == "rows":
            for count in (2000, n):
                items = list(stream(count))
                labels = np.array([row.label for row in items])
                ids, texts = [row.id for row in items], [row.input for row in items]
                given[count] = {"train": Rows(ids, texts, labels)}
                del items
        run(2000)  # everything is imported
        gc.collect()
        before = anonymous_bytes()
        with Peak() as peak:
            run(n)
        print(peak.bytes - before)


def main() -> None:
    """The command line."""
    from shared import Row, parser, show

    command = parser(__doc__)
    command.add_argument("--rows", nargs="+", type=int, default=[25_000, 100_000, 200_000])
    command.add_argument(
        "--kinds", nargs="+", choices=("stream", "rows"), default=["stream", "rows"]
    )
    options = command.parse_args()
    rows: list[Row] = []
    for kind in options.kinds:
        last: tuple[int, int] | None = None
        for n in options.rows:
            arguments = [sys.executable, "-c", CHILD, str(Path(__file__).parent), kind, str(n)]
            done = subprocess.run(
                arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
            )
            peak = int(done.stdout)
            growth = None if last is None else (peak - last[1]) / (n - last[0])
            rows.append({"from": kind, "rows": n, "peak": peak / 1e6, "bytes/row": growth})
            last = n, peak
    show("peak memory of an extraction, MB", rows, options)


if __name__ == "__main__":
    main()
