"""Rows per second of encoding, against the library's own best way on the same rows, paired.

Texts: `encode_rows` with MiniLM, in float32 and in int8, against `SentenceTransformer.encode` with
the best of several batch sizes. Images: `encode_rows` from encoded files against a loop of forward
passes over a `DataLoader` that decodes the same files in worker processes, and, as a bound, over
images decoded before the clock starts. Each repeat runs every way once, one after the other; a
ratio is taken within a repeat, and the median over repeats is printed.
`--accuracy` also fits a logistic regression on the features of both precisions.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from shared import Row, parser, show

from extractors import FeatureOptions, load_extractor
from extractors.encode import encode_rows
from extractors.precision import relative_errors

Encode = Callable[[], np.ndarray]


def texts(root: Path | None, task: str, n: int, split: str = "train") -> tuple[list[str], Any]:
    """Random rows of a named task, and their labels."""
    from tasks.data.load import load_task

    rows = load_task(task, data_root=root).splits[split]
    chosen = np.random.default_rng(0).permutation(len(rows))[:n]
    return [str(rows.inputs[i]) for i in chosen], rows.labels[chosen]


def photographs(n: int) -> list[bytes]:
    """Smooth random pictures of 500 x 375 as JPEG files, the size of ImageNet's."""
    from PIL import Image

    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


class Decoded:
    """Encoded pictures as a data set of prepared tensors, for a `DataLoader`."""

    def __init__(self, files: list[bytes], prepare: Callable[[bytes], Any]) -> None:
        self.files, self.prepare = files, prepare

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        return self.prepare(self.files[i])


def paired(ways: dict[str, Encode], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds and CPU seconds of each way in each repeat; the order turns round every time."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            ways[name]()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return found


def table(
    what: str, ways: dict[str, Encode], rivals: Sequence[str], n: int, repeats: int
) -> list[Row]:
    """One line for each way; ratios are to the rival that is fastest over all repeats."""
    expected = ways[rivals[0]]()
    errors = {name: relative_errors(way(), expected).mean() for name, way in ways.items()}
    seconds = paired(ways, repeats)
    best = min(rivals, key=lambda name: np.median([wall for wall, _ in seconds[name]]))
    lines = []
    for name, times in seconds.items():
        ratios = np.array(seconds[best]) / np.array(times)
        lines.append(
            {
                "rows": what,
                "way": name,
                "rows/s": round(n / float(np.median([wall for wall, _ in times])), 1),
                "ratio": round(float(np.median(ratios[:, 0])), 3),
                "least": round(float(ratios[:, 0].min()), 3),
                "most": round(float(ratios[:, 0].max()), 3),
                "CPU ratio": round(float(np.median(ratios[:, 1])), 3),
                "mean error": float(errors[name]),
                "of": best,
            }
        )
    return lines


def text_ways(inputs: list[str], batches: Sequence[int]) -> tuple[dict[str, Encode], list[str]]:
    """The library with several batch sizes, then ours."""
    ids = [str(i) for i in range(len(inputs))]
    plain = load_extractor("minilm", device="cpu")
    int8 = load_extractor("minilm", device="cpu", options=FeatureOptions(quantize="int8"))
    assert plain.dim == int8.dim
    library: Any = plain._model  # pyright: ignore[reportAttributeAccessIssue]

    def theirs(batch: int) -> Encode:
        return lambda: library.encode(inputs, batch_size=batch, convert_to_numpy=True)

    ways = {f"SentenceTransformer.encode, batch {b}": theirs(b) for b in batches}
    rivals = list(ways)
    ways["float32"] = lambda: encode_rows(plain, inputs, ids).features
    ways["int8"] = lambda: encode_rows(int8, inputs, ids).features
    return ways, rivals


def image_ways(name: str, files: list[bytes]) -> tuple[dict[str, Encode], list[str]]:
    """Forward passes fed by a `DataLoader`, ours from files, and over images decoded before."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    extractor: Any = load_extractor(name, device="cpu")
    pixels = torch.stack([extractor.prepare(file) for file in files])
    ids = [str(i) for i in range(len(files))]

    def loop(batches: Iterable[torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                extractor._model(part.contiguous(memory_format=torch.channels_last))
                for part in batches
            ]
            return torch.cat(parts).numpy()

    def loaded(batch: int, workers: int) -> Encode:
        loader = DataLoader(
            cast("Dataset[torch.Tensor]", Decoded(files, extractor.prepare)),
            batch,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        return lambda: loop(loader)

    ways = {
        f"forward, DataLoader, batch {batch}, {workers} worker{'s' * (workers > 1)}": loaded(
            batch, workers
        )
        for batch in (8, 32)
        for workers in (1, 2)
    }
    rivals = list(ways)
    ways["float32, from JPEG files"] = lambda: encode_rows(extractor, files, ids).features
    ways["forward alone, decoded before, batch 8"] = lambda: loop(pixels.split(8))
    return ways, rivals


def accuracy(root: Path | None, task: str, n: int) -> list[Row]:
    """Test accuracy of a logistic regression on n + n rows, by precision."""
    from sklearn.linear_model import LogisticRegression

    train, y = texts(root, task, n)
    test, z = texts(root, task, n, "test")
    lines = []
    right: list[np.ndarray] = []
    for quantize in ("none", "int8"):
        options = FeatureOptions(quantize=quantize)
        extractor = load_extractor("minilm", device="cpu", options=options)
        found = encode_rows(extractor, train + test, [str(i) for i in range(2 * n)]).features
        probe = LogisticRegression(C=10, max_iter=2000).fit(found[:n], y)
        right.append(probe.predict(found[n:]) == z)
        changed = (right[-1] != right[0]).mean()
        lines.append(
            {
                "data": f"{task}, {n:,} + {n:,} rows",
                "precision": "float32" if quantize == "none" else quantize,
                "test accuracy": round(float(right[-1].mean()), 4),
                "predictions changed": round(float(changed), 4),
            }
        )
    return lines


def main() -> None:
    """Measures texts, and images where a backbone is named."""
    made = parser(__doc__)
    made.add_argument("--task", default="imdb", help="named task with texts")
    made.add_argument("--data-root", type=Path, help="folder of named tasks")
    made.add_argument("--rows", type=int, default=256, help="texts; 0 leaves them out")
    made.add_argument("--batch", type=int, nargs="+", default=[16, 32, 64], help="of the library")
    made.add_argument("--images", metavar="BACKBONE", help="also time this timm backbone")
    made.add_argument("--image-rows", type=int, default=128)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--accuracy", type=int, default=0, metavar="N", help="on N + N rows")
    options = made.parse_args()
    lines: list[Row] = []
    if options.rows:
        inputs, _ = texts(options.data_root, options.task, options.rows)
        ways, rivals = text_ways(inputs, options.batch)
        lines += table(options.task, ways, rivals, len(inputs), options.repeats)
    if options.images:
        files = photographs(options.image_rows)
        ways, rivals = image_ways(options.images, files)
        lines += table(options.images.rpartition("/")[2], ways, rivals, len(files), options.repeats)
    if lines:
        title = "rows per second; ratio of seconds to the fastest rival, median over repeats"
        show(title, lines, options)
    if options.accuracy:
        found = accuracy(options.data_root, options.task, options.accuracy)
        show("what int8 does to accuracy", found, options)


if __name__ == "__main__":
    main()
