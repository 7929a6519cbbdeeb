"""How far the vector of a row moves with its batch, its order, its neighbours and a restart.

For each backbone the rows are encoded one by one; that is the reference. Every other way of
encoding them is compared with it row by row: max |difference| / max |reference| of the row, the
largest over all rows. The bound that the tests hold every adapter to in float32 is 1e-5.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from shared import parser, show

from extractors import Rows, load_extractor
from extractors.base import Extractor
from extractors.encode import encode_rows
from extractors.extract import extract
from extractors.options import FeatureOptions
from extractors.precision import measure_error


def texts(n: int) -> list[str]:
    """Definitions of wordnet6, every eighth repeated into a long text."""
    from tasks.data.registry import read_wordnet6

    found = list(read_wordnet6().splits["train"].inputs[:n])
    return [text if i % 8 else f"{text}; " * (1 + i % 60) for i, text in enumerate(found)]


def images(n: int) -> list[np.ndarray]:
    """Smooth random colours of many sizes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        found.append(
            np.asarray(coarse.resize((90 + i % 50, 80 + i % 70), Image.Resampling.BICUBIC))
        )
    return found


def error(found: np.ndarray, expected: np.ndarray) -> float:
    scale = np.abs(expected).max(axis=1)
    return float((np.abs(found - expected).max(axis=1) / scale).max())


def measure(name: str, options: FeatureOptions, n: int) -> dict[str, Any]:
    """One line of the table."""
    extractor = load_extractor(name, device="cpu", options=options)
    inputs: list[Any] = texts(n) if extractor.modality == "text" else images(n)
    ids = [f"row/{i:05d}" for i in range(n)]
    prepared = [extractor.prepare(item) for item in inputs]
    assert extractor.dim  # loaded
    alone = np.concatenate([extractor.encode([row]) for row in prepared])
    began = time.perf_counter()
    sorted_by_length = encode_rows(extractor, inputs, ids).features
    seconds = time.perf_counter() - began
    order = np.random.default_rng(1).permutation(n)
    shuffled = np.empty_like(alone)
    shuffled[order] = encode_rows(extractor, [inputs[i] for i in order], ids).features
    batches = max(
        error(
            np.concatenate([extractor.encode(prepared[i : i + b]) for i in range(0, n, b)]), alone
        )
        for b in (2, 7, 32)
    )
    longest = max(prepared, key=lambda row: len(row) if isinstance(row, str) else 0)
    beside = np.concatenate([extractor.encode([row, longest])[:1] for row in prepared[:32]])
    half = load_extractor(
        name, device="cpu", options=FeatureOptions(**vars(options) | {"autocast": "bfloat16"})
    )
    return {
        "backbone": name if len(name) < 40 else f"{name.partition(':')[0]}:{Path(name).name}",
        "options": ",".join(f"{key}={value}" for key, value in options.chosen().items()) or "-",
        "dim": extractor.dim,
        "batches": batches,
        "sorted": error(sorted_by_length, alone),
        "order": error(shuffled, alone),
        "neighbour": error(beside, alone[:32]),
        "restart": error(_restarted(extractor, inputs, ids), alone),
        "bfloat16 mean": measure_error(half, extractor, prepared[:64])["mean"],
        "rows/s": round(n / seconds, 1),
    }


def _restarted(extractor: Extractor, inputs: list[Any], ids: list[str]) -> np.ndarray:
    """Every third row first, then all, in shards that do not fit the batches."""
    with tempfile.TemporaryDirectory() as cache:
        found = None
        for step in (3, 1):
            rows = Rows(ids[::step], inputs[::step], np.zeros(len(ids[::step]), int))
            found = extract(
                {"train": rows}, extractor, task="rows", classes=("a",), cache_dir=Path(cache),
                data_fingerprint={"rows": len(ids)}, shard_rows=37,
            )  # fmt: skip
        assert found is not None
        return np.array(found.store.read("train", ids).features)


def random_backbones(home: Path) -> list[str]:
    """Small random models of every architecture that the tests know."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tiny_models import IMAGE_KINDS, TEXT_KINDS, save_image_model, save_text_model

    texts = [f"hf:{save_text_model(kind, home / kind)}" for kind in TEXT_KINDS]
    return texts + [f"hf:{save_image_model(kind, home / kind)}" for kind in IMAGE_KINDS]


def main() -> None:
    """Measures every backbone that is at hand."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=96, help="rows for each backbone")
    made.add_argument("--backbone", action="append", help="measure this one instead; may repeat")
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as home:
        names = options.backbone
        if names is None:
            names = [*random_backbones(Path(home)), "minilm"]
        lines = [measure(name, FeatureOptions(), options.rows) for name in names]
        for name in names:
            extractor = load_extractor(name)
            if extractor.modality == "text":
                windows = FeatureOptions(long_text="windows", normalize="l2")
                lines.append(measure(name, windows, options.rows))
    show("largest relative difference of a row from itself encoded alone, float32", lines, options)


if __name__ == "__main__":
    main()
