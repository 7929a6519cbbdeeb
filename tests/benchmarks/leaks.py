"""Which similarity counts as a near duplicate, and what the check for leaks costs.

Three tables. `planted`: copies of real rows are perturbed, encoded, and compared with the rows they
come from; `unrelated` is the nearest other row of each row. `pairs`: the nearest neighbour of every
text by similarity, and how many of these pairs share nine tenths of their characters. `cost`:
seconds of the search on random rows with planted copies, against faiss over all columns in one run.
"""

from __future__ import annotations

import difflib
import io
import itertools
import os
import random
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from shared import Row, parser, show

from extractors import load_extractor
from extractors.encode import encode_rows
from tasks.data import duplicates
from tasks.data.duplicates import FeatureSpace, SeenRows
from tasks.data.leaks import SIMILARITY
from tasks.data.load import load_task

EDGES = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.9999, 1.01)
RNG = random.Random(0)


def swapped(text: str) -> str:
    i = RNG.randrange(len(text) - 1)
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def shortened(text: str) -> str:
    words = text.split()
    del words[RNG.randrange(len(words))]
    return " ".join(words)


def jpeg(image: Any, quality: int) -> Any:
    from PIL import Image

    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(io.BytesIO(sink.getvalue())).convert("RGB")


TEXTS: dict[str, Callable[[str], str]] = {
    "capitals": str.upper,
    "more spaces": lambda text: "  " + text.replace(" ", "  "),
    "full stop": lambda text: text.rstrip(" .?!") + " .",
    "letters swapped": swapped,
    "word dropped": shortened,
}
IMAGES: dict[str, Callable[[Any], Any]] = {
    "stored again": lambda image: image.copy(),
    "jpeg 90": lambda image: jpeg(image, 90),
    "5% brighter": lambda image: image.point(lambda value: min(255, int(1.05 * value))),
    "moved by 1%": lambda image: image.transform(
        image.size, 0, (1, 0, max(1, image.width // 100), 0, 1, 0)
    ),
    "jpeg 50": lambda image: jpeg(image, 50),
}


def opened(value: Any) -> Any:
    from PIL import Image

    if isinstance(value, np.ndarray):
        return Image.fromarray(value).convert("RGB")
    return Image.open(io.BytesIO(value) if isinstance(value, bytes) else value).convert("RGB")


def planted(data: str, backbone: str, rows: int, copies: int, root: Path | None) -> list[Row]:
    """Cosines of perturbed copies with their originals, and of rows with their neighbours."""
    task, extractor = load_task(data, data_root=root), load_extractor(backbone)

    def encode(items: list[Any]) -> np.ndarray:
        return encode_rows(extractor, items, [str(i) for i in range(len(items))]).features

    inputs = list(task.splits["train"].inputs[:rows])
    if task.modality == "text":
        inputs = [text for text in inputs if len(text.split()) > 3]
    X = encode(inputs)
    space = FeatureSpace(X)
    Z = space.unit(X)
    nearest = np.sort(faiss.knn(Z, Z, 2, metric=faiss.METRIC_INNER_PRODUCT)[0], axis=1)[:, 0]
    found = [_row(data, backbone, "unrelated", nearest)]
    for name, change in (TEXTS if task.modality == "text" else IMAGES).items():
        raw = inputs[:copies] if task.modality == "text" else map(opened, inputs[:copies])
        copied = space.unit(encode([change(each) for each in raw]))
        found.append(_row(data, backbone, name, (copied * Z[:copies]).sum(axis=1)))
    return found


def _row(data: str, backbone: str, what: str, cosines: np.ndarray) -> Row:
    low, middle, high = np.quantile(cosines, [0.01, 0.5, 0.99])
    return {
        "data": data,
        "backbone": backbone.rsplit("/", 1)[-1],
        "rows": what,
        "1%": float(low),
        "median": float(middle),
        "99%": float(high),
        f"% >= {SIMILARITY}": float(100 * (cosines >= SIMILARITY).mean()),
    }


def pairs(data: str, folder: Path, root: Path | None) -> list[Row]:
    """Nearest neighbours in a store of texts, by similarity."""
    from extractors import FeatureStore

    task, store = load_task(data, data_root=root), FeatureStore.open(folder)
    X = np.concatenate([store.read(name, each.ids).features for name, each in task.splits.items()])
    texts = [text for each in task.splits.values() for text in each.inputs]
    labels = np.concatenate([each.labels for each in task.splits.values()])
    Z = FeatureSpace(X).unit(X)
    cosine, of = faiss.knn(Z, Z, 2, metric=faiss.METRIC_INNER_PRODUCT)
    column = np.where(of[:, 0] == np.arange(len(Z)), 1, 0)
    cosine, of = cosine[np.arange(len(Z)), column], of[np.arange(len(Z)), column]
    found = []
    for low, high in itertools.pairwise(EDGES):
        rows = np.flatnonzero((cosine >= low) & (cosine < high))
        looked = rows[:: max(1, len(rows) // 200)]
        alike = [_alike(texts[i], texts[of[i]]) for i in looked.tolist()]
        found.append(
            {
                "data": data,
                "cosine": f"{low} to {min(high, 1)}",
                "rows": len(rows),
                "% alike": 100 * statistics.mean(alike) if alike else None,
                "% same label": float(100 * (labels[rows] == labels[of[rows]]).mean())
                if len(rows)
                else None,
            }
        )
    return found


def _alike(a: str, b: str) -> bool:
    a, b = (re.sub(r"[^0-9a-z]+", " ", text.casefold()).strip() for text in (a, b))
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() > 0.9


def cost(n: int, dim: int, repeats: int) -> list[Row]:
    """Seconds for n rows against n rows, and the recall of planted copies."""
    rng = np.random.default_rng(0)
    scales = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
    X, Y = (rng.standard_normal((n, dim), np.float32) * scales for _ in range(2))
    source = rng.choice(n, n // 100, replace=False)
    target = rng.choice(n, n // 100, replace=False)
    noise = 0.1 * rng.standard_normal((len(source), dim), np.float32) * scales
    Y[target] = X[source] + noise
    space = FeatureSpace(X)
    A, B = space.unit(X), space.unit(Y)

    def all_columns() -> np.ndarray:
        cosine, of = faiss.knn(B, A, 1, metric=faiss.METRIC_INNER_PRODUCT)
        return np.where(cosine[:, 0] >= SIMILARITY, of[:, 0], -1)

    def check(limit: int) -> np.ndarray:
        duplicates.EXACT_ROWS = limit
        fresh = FeatureSpace(X)
        seen = SeenRows(fresh, n, X)
        seen.add(X)
        return seen.twins(Y, SIMILARITY).of

    ways: dict[str, Callable[[], np.ndarray]] = {
        "faiss, all columns": all_columns,
        "check": lambda: check(n),
        "check, inverted file": lambda: check(0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, np.ndarray] = {}
    for _ in range(repeats):
        for name, run in ways.items():
            began = time.perf_counter()
            found[name] = run()
            seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["faiss, all columns"])
    truth = found["faiss, all columns"] >= 0
    return [
        {
            "search": name,
            "rows": f"{n} x {n} x {dim}",
            "seconds": statistics.median(each),
            "of all columns": statistics.median(each) / base,
            "% found": float(100 * (found[name][truth] >= 0).mean()),
            "false": int((found[name][~truth] >= 0).sum()),
        }
        for name, each in seconds.items()
    ]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--data-root", type=Path, default=os.environ.get("CONVEX_HEADS_DATA"))
    made.add_argument("--models", type=Path, help="folder with timm backbones; none: no images")
    made.add_argument("--stores", type=Path, help="folder with MiniLM stores, for `pairs`")
    made.add_argument("--tables", nargs="+", default=["planted", "pairs", "cost"])
    made.add_argument("--n", type=int, default=20_000)
    made.add_argument("--dim", type=int, default=384)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--repeats", type=int, default=5)
    options = made.parse_args()
    faiss.omp_set_num_threads(options.threads)
    if "cost" in options.tables:
        rows = cost(options.n, options.dim, options.repeats)
        show(f"cost, {options.threads} threads, medians of {options.repeats}", rows, options)
    if "pairs" in options.tables and options.stores is not None:
        found = []
        for data in ("trec6", "banking77", "sst2", "wordnet6"):
            for folder in sorted(options.stores.glob(f"{data}-minilm-*")):
                found += pairs(data, folder, options.data_root)
        show("pairs of texts, nearest neighbours", found, options)
    if "planted" in options.tables:
        found = planted("wordnet6", "minilm", 1000, 100, options.data_root)
        if options.models is not None:
            timm = f"timm:local-dir:{options.models}/timm_tf_mobilenetv3_small_100"
            for data, n in (("hymenoptera", 208), ("cifar10", 1000), ("fashion_mnist", 1000)):
                found += planted(data, timm, n, 100, options.data_root)
        show("planted copies, cosines", found, options)


if __name__ == "__main__":
    main()
