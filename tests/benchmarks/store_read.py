"""Reading a feature store against a raw numpy.memmap of the same bytes, paired in one run.

sequential: every feature copied into one buffer, block by block (512 rows); `anew` opens the files
for each pass, the raw one too. shuffled: all rows in random batches, new for each pass, with
labels. device: shuffled batches used by a matrix product on a JAX device, sent ahead of it, against
sending each batch of the memmap when it is due. Both sides of a pair run one after the other, in
turns; ratio is the median over pairs of raw seconds / store seconds: above 1 the store is faster.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from shared import Row, parser, show

from extractors.cache import compact
from extractors.manifest import Manifest
from extractors.shard import StoredRows
from extractors.store import Batch, FeatureStore
from tasks.prefetch import DeviceBatch, prefetch

WIDE = jax.jit(lambda features: features.astype(np.float32))
PRODUCT = jax.jit(lambda features, weights: (features @ weights).sum(0))


def make_store(folder: Path, rows: int, dim: int, shard_rows: int, dtype: str) -> FeatureStore:
    """Random features in shards of the size that extraction writes."""
    new = Manifest(
        fingerprint={"dtype": dtype},
        task="benchmark",
        backbone="toy:text-2",
        modality="text",
        dim=dim,
        classes=("no", "yes"),
        max_length=None,
        dtype=dtype,
    )
    rng = np.random.default_rng(0)
    with FeatureStore.writer(folder, new) as writer:
        for start in range(0, rows, shard_rows):
            n = min(shard_rows, rows - start)
            ids = [f"train/{i:08d}" for i in range(start, start + n)]
            features = rng.standard_normal((n, dim), np.float32)
            tokens = np.ones(n, np.int32)
            writer.append("train", StoredRows(ids, rng.integers(0, 2, n), features, tokens))
    return FeatureStore.open(folder)


class Reading:
    """A store, and a raw file with the bytes of its features."""

    def __init__(self, store: FeatureStore, raw: Path, batch: int, step: int) -> None:
        self.path, self.raw, self.batch, self.step = store.path, raw, batch, step
        blocks = [block.encoded for block in store.blocks("train")]
        self.dtype, self.shape = blocks[0].dtype, (store.n_rows, store.dim)
        with raw.open("wb") as file:
            for block in blocks:
                file.write(block.tobytes())
        self.labels = store.labels("train").copy()
        self.store, self.map = store, self.open_map()
        self.buffer = np.empty((max(map(len, blocks)), store.dim), self.dtype)
        self.epoch = 0

    def open_map(self) -> np.ndarray:
        """The raw file."""
        return np.memmap(self.raw, self.dtype, "r", shape=self.shape)

    def copy_map(self, features: np.ndarray) -> None:
        """All rows in order from the memmap."""
        for start in range(0, len(features), self.step):
            block = features[start : start + self.step]
            np.copyto(self.buffer[: len(block)], block)

    def copy_store(self, store: FeatureStore) -> None:
        """All rows in order from the store."""
        for block in store.blocks("train"):
            for start in range(0, len(block), self.step):
                part = block.encoded[start : start + self.step]
                np.copyto(self.buffer[: len(part)], part)

    def map_batches(self) -> Iterator[Batch]:
        """All rows in random order from the memmap."""
        order = np.random.default_rng(self.epoch).permutation(len(self.map))
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            yield Batch(rows, self.map[rows], self.labels[rows], None)

    def store_batches(self) -> Iterator[Batch]:
        """All rows in random order from the store, as stored."""
        self.epoch += 1
        return self.store.batches("train", self.batch, seed=0, epoch=self.epoch, decode=False)

    def cases(self) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
        """Name -> (raw, store)."""
        return {
            "sequential, anew": (
                lambda: self.copy_map(self.open_map()),
                lambda: self.copy_store(FeatureStore.open(self.path)),
            ),
            "sequential": (lambda: self.copy_map(self.map), lambda: self.copy_store(self.store)),
            "shuffled": (
                lambda: exhaust(self.map_batches()),
                lambda: exhaust(self.store_batches()),
            ),
            "device": (
                lambda: use(map(send, self.map_batches())),
                lambda: use(prefetch(self.store_batches())),
            ),
        }


def send(batch: Batch) -> DeviceBatch:
    """Plainly; an int8 store is paired with its bytes without scale."""
    features, labels = jax.device_put((batch.features, batch.labels.astype(np.int32)))
    return DeviceBatch(batch.rows, WIDE(features), labels)


def exhaust(batches: Iterator[Batch]) -> None:
    """Looks at nothing: the copies are made."""
    for _ in batches:
        pass


def use(batches: Iterator[DeviceBatch]) -> None:
    """A product with a (dim, 512) matrix for each batch, as a small head would need."""
    total = None
    for batch in batches:
        weights = jax.numpy.ones((batch.features.shape[1], 512), np.float32)
        total = PRODUCT(batch.features, weights)
        total.block_until_ready()


def seconds(run: Callable[[], None]) -> float:
    """Of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(reading: Reading, repeats: int) -> Iterator[Row]:
    """A line for each case."""
    for name, (raw, store) in reading.cases().items():
        raw(), store()  # the page cache has everything
        pairs = []
        for turn in range(repeats):
            first, second = (raw, store) if turn % 2 else (store, raw)
            one, two = seconds(first), seconds(second)
            pairs.append((one, two) if turn % 2 else (two, one))
        size = reading.labels.size * reading.shape[1] * reading.dtype.itemsize
        taken = statistics.median(pair[1] for pair in pairs)
        yield {
            "dtype": str(reading.dtype),
            "shards": len(reading.store.manifest.shards),
            "read": name,
            "ratio": statistics.median(pair[0] / pair[1] for pair in pairs),
            "lowest": min(pair[0] / pair[1] for pair in pairs),
            "GB/s": size / taken / 1e9,
            "rows/s": int(reading.shape[0] / taken),
        }


def main() -> None:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    add("--rows", type=int, default=100_000, help="rows of the store")
    add("--dim", type=int, default=384, help="width of the features")
    add("--shard-rows", type=int, default=512, help="rows per shard before compaction")
    add("--batch", type=int, default=256, help="rows of a shuffled batch")
    add("--dtypes", nargs="+", default=["float32", "float16", "int8"], help="of the features")
    add("--repeats", type=int, default=5, help="pairs; their median counts")
    options = command.parse_args()
    rows: list[Row] = []
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory() as name:
            folder, raw = Path(name) / "store", Path(name) / "raw"
            store = make_store(folder, options.rows, options.dim, options.shard_rows, dtype)
            for _ in range(2):
                reading = Reading(store, raw, options.batch, options.shard_rows)
                rows += measure(reading, options.repeats)
                store = compact(folder)
    show("reading a store against a raw memmap of the same bytes", rows, options)


if __name__ == "__main__":
    main()
