"""Streams of rows: no length, one shard in memory, the same store as from rows in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractors import InputError, Rows
from extractors.extract import Extraction, extract
from extractors.known import KnownIds
from extractors.stream import StreamRow, extract_stream
from extractors.toy import ToyText

OPTIONS: dict[str, Any] = {
    "task": "demo",
    "classes": ("no", "yes"),
    "data_fingerprint": {"sha256": "stream"},
    "shard_rows": 16,
}


def stream(n: int, *, until: int | None = None) -> Iterator[StreamRow]:
    """Rows of two splits, mixed; with `until` the source fails there."""
    for i in range(n):
        if i == until:
            raise ConnectionError("the source is gone")
        yield StreamRow(f"row/{i:06d}", "test" if i % 5 == 0 else "train", f"film {i % 97}", i % 2)


def run(cache: Path, rows: Iterator[StreamRow], **changes: Any) -> Extraction:
    return extract_stream(rows, ToyText(8), cache_dir=cache, **(OPTIONS | changes))


def content(done: Extraction) -> set[tuple[str, int, str]]:
    assert done.store.verify() == []
    return {(shard.file, shard.rows, shard.sha256) for shard in done.store.manifest.shards}


def test_a_generator_gives_the_store_of_the_same_rows_in_memory(tmp_path: Path) -> None:
    done = run(tmp_path / "stream", stream(300))
    assert (done.rows, done.resumed_rows, done.store.n_rows) == (300, 0, 300)
    splits = {}
    for split in ("train", "test"):
        rows = [row for row in stream(300) if row.split == split]
        labels = np.array([row.label for row in rows])
        splits[split] = Rows([row.id for row in rows], [row.input for row in rows], labels)
    whole = extract(splits, ToyText(8), cache_dir=tmp_path / "memory", **OPTIONS)
    assert content(done) == content(whole)
    assert done.store.path.name == whole.store.path.name


class Unloadable(ToyText):
    def encode(self, prepared: Any) -> np.ndarray:
        raise AssertionError("nothing is missing")


def test_a_stream_that_broke_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        run(tmp_path, stream(300, until=200))
    done = run(tmp_path, stream(300))
    assert 100 < done.resumed_rows <= 200
    assert content(done) == content(run(tmp_path / "whole", stream(300)))
    before = {path: path.stat().st_mtime_ns for path in done.store.path.iterdir()}
    again = extract_stream(stream(300), Unloadable(8), cache_dir=tmp_path, **OPTIONS)
    assert (again.rows, again.resumed_rows) == (300, 300)
    assert {path: path.stat().st_mtime_ns for path in done.store.path.iterdir()} == before


def test_a_damaged_shard_is_redone_from_the_stream(tmp_path: Path) -> None:
    first = run(tmp_path, stream(300))
    expected = content(first)
    (first.store.path / "train-00003.arrow").write_bytes(b"nothing")
    done = run(tmp_path, stream(300))
    assert done.resumed_rows == 300 - 16
    assert content(done) == expected


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    run(tmp_path, stream(40))
    with pytest.raises(InputError, match=r"'row/000007' occurs twice \(again in split 'train'\)"):
        run(tmp_path, iter([*stream(40), *stream(8)][::-1]))
    changed = (row._replace(label=1 - row.label) for row in stream(40))
    with pytest.raises(InputError, match=r"row 'row/000000' is stored .* the data changed"):
        run(tmp_path, changed)
    bad = [row._replace(id=f"b{row.id}", input=None) for row in stream(3)]
    with pytest.raises(InputError, match="row 'brow/000001' cannot be encoded"):
        run(tmp_path, iter(bad[1:]))
    done = run(tmp_path, iter([*stream(60), *bad]), on_bad_row="skip")
    assert (done.rows, done.resumed_rows, len(done.skipped)) == (60, 40, 3)
    again = run(tmp_path, iter([*stream(60), *bad]), on_bad_row="skip")
    assert (again.rows, again.resumed_rows, again.skipped) == (60, 60, done.skipped)
    with pytest.raises(InputError, match="none of the 3 rows can be encoded"):
        run(tmp_path / "bad", iter(bad), on_bad_row="skip")
    with pytest.raises(InputError, match="shard_rows must be at least 1"):
        run(tmp_path, stream(1), shard_rows=0)


@given(portions=st.lists(st.lists(st.text(max_size=3), max_size=12), max_size=12))
def test_known_ids_are_a_set(portions: list[list[str]]) -> None:
    known, expected = KnownIds(), set()
    for portion in portions:
        assert known.contains(portion).tolist() == [name in expected for name in portion]
        repeats = []
        for name in portion:
            repeats.append(name in expected)
            expected.add(name)
        assert known.add(portion).tolist() == repeats
    assert len(known) == len(expected)


def peak(cache: Path, n: int) -> int:
    """Bytes that Python and NumPy held at most while a stream of n rows was extracted."""
    tracemalloc.start()
    run(cache, stream(n), shard_rows=512)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    run(tmp_path / "warm", stream(100))
    small, large = peak(tmp_path / "a", 2000), peak(tmp_path / "b", 8000)
    assert large - small < 6000 * 80  # a row is 200 bytes as Python objects, its features 32 more


@pytest.mark.slow
def test_200_000_short_rows_take_the_memory_of_a_few_thousand(tmp_path: Path) -> None:
    run(tmp_path / "warm", stream(100))
    small, large = peak(tmp_path / "a", 10_000), peak(tmp_path / "b", 200_000)
    assert (
        large - small < 190_000 * 48
    )  # hashes of ids (16 to 32 bytes), and shards in the manifest
