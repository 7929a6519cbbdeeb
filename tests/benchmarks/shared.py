"""What the benchmark commands share: a table on the screen, the same as JSON, a random program."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convex_heads.operators import Program, build_program

Row = dict[str, Any]


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line that shows its defaults and knows --json."""
    made = argparse.ArgumentParser(
        description=(description or "").strip(),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return made


def show(title: str, rows: list[Row], options: argparse.Namespace) -> None:
    """Prints rows (all with the same keys) as one aligned table; numbers to the right."""
    columns = list(rows[0])
    cells = [columns, *([_text(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [any(isinstance(row[name], str) for row in rows) for name in columns]
    print(title)
    for line in cells:
        padded = (
            text.ljust(width) if is_left else text.rjust(width)
            for text, width, is_left in zip(line, widths, left, strict=True)
        )
        print("  ".join(padded).rstrip())
    if options.json is not None:
        settings = {name: _plain(value) for name, value in vars(options).items() if name != "json"}
        machine = {
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
            "jax": jax.__version__,
        }
        record = {"title": title, "settings": settings, "machine": machine, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, int | float | list) else str(value)


def random_program(n: int, d: int, P: int, C: int, dtype: str) -> Program:
    """A program of random features, half of all gates on, and one-hot targets."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), np.float32).astype(dtype)
    Y = np.eye(C, dtype=dtype)[rng.integers(C, size=n)]
    D = rng.random((n, P), np.float32) < 0.5
    D[:, 0] = True
    return build_program(X, D, Y, np.ones(n, dtype), np.zeros(C, dtype))
