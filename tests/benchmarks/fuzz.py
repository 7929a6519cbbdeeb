"""10,000 damaged artefacts: how many are refused, and whether anything else happens.

Bytes and values of config.json, bytes and header of model.safetensors, mostly with a checksum that
matches the damage. Everything but a refusal in one sentence, or a head that predicts, ends the run.

    python tests/benchmarks/fuzz.py [--damages 10000]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from shared import Row, parser, show

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))
from fuzzing import damage, outcome  # noqa: E402


def main() -> None:
    """Runs and prints the table."""
    made = parser(__doc__)
    made.add_argument("--damages", type=int, default=10_000)
    options = made.parse_args()
    samples = sorted(path for path in (TESTS / "artefacts").iterdir() if path.is_dir())
    outcome(samples[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "head"
        for seed in range(options.damages):
            kind = damage(samples[seed % len(samples)], place, seed)
            row = rows.setdefault(kind, {"damage": kind, "refused": 0, "loads": 0, "crash": 0})
            try:
                row[outcome(place)] += 1
            except Exception as error:
                row["crash"] += 1
                print(f"seed {seed} ({kind}): {type(error).__name__}: {str(error)[:200]}")
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    show(f"Damaged artefacts, {seconds:.0f} s", [rows[kind] for kind in sorted(rows)], options)
    print(f"peak memory grew by {grown:.1f} MB")
    sys.exit(any(row["crash"] for row in rows.values()))


if __name__ == "__main__":
    main()
