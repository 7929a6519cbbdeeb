"""Reading a store in batches: every row once, in any order, from mapped shards; on a device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import manifest, some_rows

from extractors import FeatureStore, InputError
from extractors.base import Modality
from extractors.codec import DTYPES
from extractors.gather import Gatherer
from extractors.shard import StoredRows
from extractors.store import Batch
from tasks.prefetch import prefetch

DIM = 5
COUNTS = (7, 1, 30, 12)


@pytest.fixture(params=DTYPES, scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Four train shards, and a test shard between them in the address space."""
    folder = tmp_path_factory.mktemp("reading") / "store"
    new = manifest(request.param, dim=DIM, modality="image", max_length=None)
    rng = np.random.default_rng(0)
    with FeatureStore.writer(folder, new) as writer:
        for k, n in enumerate(COUNTS):
            ids = [f"{k}/{i}" for i in range(n)]
            features = rng.standard_normal((n, DIM), np.float32)
            writer.append("train", StoredRows(ids, rng.integers(0, 99, n), features, None))
            ids = [f"test/{name}" for name in ids]
            writer.append("test", StoredRows(ids, rng.integers(0, 99, n), features + 5, None))
    return FeatureStore.open(folder)


def test_batches_hold_every_row_once(store: FeatureStore) -> None:
    whole = store.read("train")
    n = len(whole.ids)
    for size in (1, 7, 16, n, n + 5):
        ordered = list(store.batches("train", size))
        assert [len(batch.rows) for batch in ordered[:-1]] == [size] * (len(ordered) - 1)
        np.testing.assert_array_equal(
            np.concatenate([batch.features for batch in ordered]), whole.features
        )
        shuffled = list(store.batches("train", size, seed=3))
        rows = np.concatenate([batch.rows for batch in shuffled])
        assert sorted(rows.tolist()) == list(range(n))
        for batch in shuffled:
            assert batch.features.dtype == np.float32
            np.testing.assert_array_equal(batch.features, whole.features[batch.rows])
            np.testing.assert_array_equal(batch.labels, whole.labels[batch.rows])
    assert list(store.batches("nowhere", 3)) == []
    with pytest.raises(InputError, match="at least 1 row, got 0"):
        next(store.batches("train", 0))


def test_the_order_follows_seed_and_epoch(store: FeatureStore) -> None:
    def order(seed: int, **epoch: int) -> list[int]:
        batches = store.batches("train", 9, seed=seed, **epoch)
        return [int(row) for batch in batches for row in batch.rows]

    assert order(1) == order(1, epoch=0) == order(1, epoch=0)
    assert len({tuple(order(seed, epoch=epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


@given(rows=st.lists(st.integers(0, sum(COUNTS) - 1), max_size=40))
def test_any_rows_are_gathered_from_any_shards(store: FeatureStore, rows: list[int]) -> None:
    gatherer = Gatherer(tuple(store.blocks("train")), dim=DIM)
    expected = store.read("train").features[np.array(rows, np.intp)]
    np.testing.assert_array_equal(gatherer.features(np.array(rows, np.intp)), expected)


def test_rows_that_are_not_there_are_never_reached(store: FeatureStore) -> None:
    gatherer = Gatherer(tuple(store.blocks("train")), dim=DIM)
    for row in (-1, gatherer.n, gatherer.n + 10**6):
        with pytest.raises(IndexError):
            gatherer.encoded(np.array([0, row]))


@pytest.mark.parametrize(
    ("modality", "limit", "n"), [("text", None, 3), ("image", 2, 3), ("text", 2, 0)]
)
def test_nothing_is_cut_off_without_a_limit_without_texts_and_without_rows(
    tmp_path: Path, modality: Modality, limit: int | None, n: int
) -> None:
    new = manifest(modality=modality, max_length=limit)
    rows = some_rows(0, 3)
    with FeatureStore.writer(tmp_path / "store", new) as writer:
        if n:
            tokens = rows.tokens if modality == "text" else None
            writer.append("train", rows._replace(tokens=tokens))
    store = FeatureStore.open(tmp_path / "store")
    assert store.n_rows == n
    assert store.truncated_fraction() == 0
    assert store.truncated_fraction({"train": store.ids("train")}) == 0


# ---- on a device ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", [True, False])
def test_prefetched_batches_are_the_batches(store: FeatureStore, decode: bool) -> None:
    expected = list(store.batches("train", 8, seed=0))
    device = jax.devices()[0]
    sent = list(prefetch(store.batches("train", 8, seed=0, decode=decode), device=device))
    assert len(sent) == len(expected)
    for one, two in zip(sent, expected, strict=True):
        assert one.features.devices() == {device}
        assert (one.features.dtype, one.labels.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(one.rows, two.rows)
        np.testing.assert_array_equal(one.features, two.features)
        np.testing.assert_array_equal(one.labels, two.labels)


def counting(asked: list[int], fails_at: int | None = None) -> Iterator[Batch]:
    for i in range(100):
        asked.append(i)
        if i == fails_at:
            raise InputError("the shard x cannot be read")
        yield Batch(np.array([i]), np.full((1, 2), i, np.float32), np.array([i]), None)


def test_reading_is_ahead_but_not_further_than_asked() -> None:
    asked: list[int] = []
    sent = prefetch(counting(asked), ahead=3)
    assert next(sent).labels.tolist() == [0]
    for _ in range(200):  # the reader fills what it may, and no more
        threading.Event().wait(0.005)
        if len(asked) == 5:
            break
    threading.Event().wait(0.05)
    assert len(asked) == 5  # one given out, three ready, one in hand
    sent.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert len(asked) == 5


def test_an_error_of_reading_comes_where_its_batch_would_have_come() -> None:
    sent = prefetch(counting([], fails_at=4))
    assert [next(sent).labels.tolist() for _ in range(4)] == [[0], [1], [2], [3]]
    with pytest.raises(InputError, match="the shard x cannot be read"):
        next(sent)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    with pytest.raises(InputError, match="at least 1 batch ahead, got 0"):
        prefetch([], ahead=0)
