"""Whole stores: merged, listed, removed; by one writer, beside any number of readers."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stores import DIM, make, manifest, same_rows, some_rows

from extractors import FeatureStore, InputError, MachineError
from extractors.cache import compact, find_store, list_stores, remove
from extractors.codec import DTYPES
from extractors.shard import StoredRows
from extractors.storage import exclusive_lock

REPOSITORY = Path(__file__).parents[1]

# ---- compact -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_compacting_merges_shards_and_changes_no_row(tmp_path: Path, dtype: str) -> None:
    before = make(tmp_path / "store", dtype)
    make(tmp_path / "other", dtype)
    after = compact(before.path)
    assert [(s.file, s.rows) for s in after.manifest.shards] == [
        ("train.1-00000.arrow", 60),
        ("test.1-00000.arrow", 6),
    ]
    assert after.verify() == []
    assert sorted(path.name for path in after.path.iterdir()) == sorted(
        [".lock", "manifest.json", "train.1-00000.arrow", "test.1-00000.arrow"]
    )
    same_rows(after, FeatureStore.open(tmp_path / "other"))
    assert after.seconds == before.seconds
    assert after.truncated_fraction() == before.truncated_fraction()
    assert after.manifest.storage_error == pytest.approx(before.manifest.storage_error, rel=1e-3)
    again = compact(before.path)  # nothing left to do
    assert again.manifest == after.manifest


def test_merged_shards_keep_to_their_size_and_the_store_grows_on(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    size = 5 * 5 * DIM * 4  # the features of five shards
    after = compact(store.path, shard_bytes=size)
    assert compact(store.path, shard_bytes=size).manifest == after.manifest
    assert [(s.split, s.rows) for s in after.manifest.shards] == [
        ("train", 25),
        ("train", 25),
        ("train", 10),
        ("test", 6),
    ]
    with FeatureStore.writer(store.path, manifest()) as writer:
        writer.append("train", some_rows(60, 4))
        writer.drop({"train.1-00001.arrow"})  # as if it were damaged
        writer.append("train", some_rows(25, 25))
    grown = FeatureStore.open(store.path)
    assert grown.ids("train") == [f"row/{i:04d}" for i in range(64)]
    assert grown.verify() == []
    last = compact(store.path)
    assert [s.file for s in last.manifest.shards] == ["train.2-00000.arrow", "test.2-00000.arrow"]
    assert last.ids("train") == grown.ids("train")


def test_a_damaged_store_is_not_compacted(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    (store.path / "train-00004.arrow").unlink()
    with pytest.raises(InputError, match=r"train-00004\.arrow is missing; extract again"):
        compact(store.path)
    assert FeatureStore.open(store.path).manifest == store.manifest


def test_compacting_without_room_changes_nothing(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    before = {path.name: path.read_bytes() for path in store.path.iterdir()}
    del before[".lock"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(MachineError, match="the file size limit is reached"):
            compact(store.path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    after = {path.name: path.read_bytes() for path in store.path.iterdir() if path.name != ".lock"}
    assert after == before


# ---- many readers beside one writer --------------------------------------------------------------


def test_readers_go_on_while_a_store_is_compacted_or_removed(tmp_path: Path) -> None:
    expected = make(tmp_path / "expected")
    opened = make(tmp_path / "store")
    mapped, half_way = (FeatureStore.open(opened.path) for _ in range(2))
    list(mapped.blocks("train"))
    blocks = half_way.blocks("train")
    first = next(blocks)
    compact(tmp_path / "store")
    with FeatureStore.writer(opened.path, manifest()) as writer:
        writer.append("train", some_rows(900, 3))
    assert mapped.ids("train") == expected.ids("train")
    same_rows(opened, expected)  # finds what its shards became
    rest = np.concatenate([first.features, *(block.features for block in blocks)])
    np.testing.assert_array_equal(rest, expected.read("train").features)
    compact(tmp_path / "store")
    same_rows(FeatureStore(opened.path, opened.manifest), expected)  # also of a merged shard
    remove(tmp_path / "store")
    same_rows(opened, expected)  # what is mapped stays
    with pytest.raises(InputError, match="is no feature store"):
        half_way.read("test")


def test_a_store_that_lost_rows_while_it_was_open_says_so(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    with FeatureStore.writer(store.path, manifest()) as writer:
        writer.drop({"train-00003.arrow"})
    with pytest.raises(InputError, match="changed while it was read: open it again"):
        store.read("train")
    assert len(FeatureStore.open(store.path).read("train").ids) == 55


READER = """
import sys
import numpy as np
from extractors import FeatureStore
seen = 0
while seen < 400:
    store = FeatureStore.open(sys.argv[1])
    rows = store.read("train")
    number = np.array([int(name[4:]) for name in rows.ids])
    assert (number == np.arange(len(number))).all(), number
    assert (rows.features[:, 0] == number).all()
    assert (rows.labels == number % 2).all()
    assert len(number) >= seen
    seen = len(number)
print("whole", seen)
"""


def test_readers_in_other_processes_see_whole_stores_at_every_moment(tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def row(i: int) -> StoredRows:
        features = np.full((4, DIM), np.arange(i, i + 4)[:, None], np.float32)
        ids = [f"row/{k}" for k in range(i, i + 4)]
        return StoredRows(ids, np.arange(i, i + 4) % 2, features, np.ones(4, np.int32))

    with FeatureStore.writer(folder, manifest()) as writer:
        writer.append("train", row(0))
    command = [sys.executable, "-c", READER, str(folder)]
    readers = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        for _ in range(2)
    ]
    for start in range(4, 400, 4):
        with FeatureStore.writer(folder, manifest()) as writer:
            writer.append("train", row(start))
        if start % 80 == 0:
            compact(folder)
    for reader in readers:
        output, errors = reader.communicate(timeout=120)
        assert output == "whole 400\n", errors


# ---- remove, list, find --------------------------------------------------------------------------


def test_removing_deletes_what_is_the_stores_own(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    (store.path / ".writing-1-train-00099.arrow").write_bytes(b"half")
    assert remove(store.path) > store.n_bytes
    assert not store.path.exists()
    other = make(tmp_path / "other")
    (other.path / "notes.txt").write_text("somebody's own")
    remove(other.path)
    assert [path.name for path in other.path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="is no feature store"):
        remove(other.path)


def test_a_store_that_is_being_written_is_not_removed(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    with (
        exclusive_lock(store.path / ".lock", what="it"),
        pytest.raises(MachineError, match=rf"another process \(pid {os.getpid()}\) is writing"),
    ):
        remove(store.path)
    assert FeatureStore.open(store.path).verify() == []


def test_stores_are_listed_and_found_by_name(tmp_path: Path) -> None:
    for name in ("reviews-toy-1", "reviews-toy-2", "digits-toy-3", "future"):
        make(tmp_path / "stores" / name)
    (tmp_path / "stores" / "empty").mkdir()
    future = tmp_path / "stores" / "future" / "manifest.json"
    future.write_text(json.dumps(json.loads(future.read_text()) | {"schema_version": 7}))
    found = list_stores(tmp_path)
    assert [item.path.name for item in found] == [
        "digits-toy-3",
        "future",
        "reviews-toy-1",
        "reviews-toy-2",
    ]
    assert [item.store is None for item in found] == [False, True, False, False]
    assert "newer version" in found[1].problem
    assert find_store("digits", tmp_path).name == "digits-toy-3"
    assert find_store("reviews-toy-2", tmp_path).name == "reviews-toy-2"
    assert find_store(str(tmp_path / "stores" / "future")).name == "future"
    with pytest.raises(InputError, match="may mean reviews-toy-1 or reviews-toy-2"):
        find_store("reviews", tmp_path)
    with pytest.raises(InputError, match="there is no store 'missing'"):
        find_store("missing", tmp_path)


# ---- the lock ------------------------------------------------------------------------------------

LOCK_AND_FORK = """
import os, sys, time
from pathlib import Path
from extractors.storage import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), what="it"):
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def test_a_child_that_outlives_a_killed_owner_does_not_keep_its_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    owner = subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_FORK, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        with (
            pytest.raises(MachineError, match=rf"pid {owner.pid}\) is writing"),
            exclusive_lock(path, what="it"),
        ):
            pass
        owner.kill()
        owner.wait()
        os.kill(child, 0)  # it is still there
        with exclusive_lock(path, what="it"):
            assert path.read_text() == f"{os.getpid()}\n"
    finally:
        os.kill(child, signal.SIGKILL)
        owner.stdout.close()


def test_a_lock_file_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with exclusive_lock(path, what="it"):
        path.unlink()  # as the removal of a store does
        with exclusive_lock(path, what="it"):
            assert path.read_text() == f"{os.getpid()}\n"


def test_hundreds_of_shards_are_read_with_few_files_open(tmp_path: Path) -> None:
    with FeatureStore.writer(tmp_path / "store", manifest()) as writer:
        for i in range(120):
            writer.append("train", some_rows(i, 1))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, limits[1]))
    try:
        store = FeatureStore.open(tmp_path / "store")
        assert store.read("train").features.shape == (120, DIM)
        assert sum(len(batch.rows) for batch in store.batches("train", 7, seed=1)) == 120
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
