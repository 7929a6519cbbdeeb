"""Stores beside their writers: opened ones read what they were opened on, new ones appear whole."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stores import DIM, make, manifest, same_rows, some_rows

from extractors import FeatureStore, InputError, storage
from extractors.cache import compact, remove
from extractors.manifest import Shard, SkippedRow
from extractors.provenance import ABOUT, describe
from extractors.rebuild import rebuild_manifest
from extractors.shard import StoredRows

# ---- opened stores beside a writer ---------------------------------------------------------------


def constant(start: int, n: int, value: float) -> StoredRows:
    return some_rows(start, n)._replace(features=np.full((n, DIM), value, np.float32))


@pytest.mark.parametrize("merge", [False, True])
def test_an_opened_store_never_reads_other_rows_under_an_old_name(
    tmp_path: Path, merge: bool
) -> None:
    folder = tmp_path / "store"
    with FeatureStore.writer(folder, manifest()) as writer:
        for i in range(3):
            writer.append("train", constant(5 * i, 5, i))
        writer.append("test", constant(100, 5, 9))
    opened = FeatureStore.open(folder)
    with FeatureStore.writer(folder, manifest()) as writer:
        writer.drop({"train-00001.arrow"})
        writer.append("train", constant(50, 5, 7))  # other rows, the same size
    if merge:
        compact(folder)
    assert (opened.read("test").features == 9).all()
    with pytest.raises(InputError, match="changed while it was read: open it again"):
        opened.read("train")
    assert FeatureStore.open(folder).n_rows == 20


def test_a_store_that_was_made_anew_is_not_taken_for_the_opened_one(tmp_path: Path) -> None:
    opened = make(tmp_path / "store")
    remove(opened.path)
    with FeatureStore.writer(opened.path, manifest()) as writer:
        for i in reversed(range(12)):
            writer.append("train", some_rows(5 * i, 5))
    compact(opened.path)
    with pytest.raises(InputError, match="changed while it was read: open it again"):
        opened.read("train")


def test_a_shard_that_was_redone_as_it_was_is_the_same_shard(tmp_path: Path) -> None:
    expected, opened = make(tmp_path / "expected"), make(tmp_path / "store")
    with FeatureStore.writer(opened.path, manifest()) as writer:
        writer.drop({"train-00003.arrow"})
        writer.append("train", some_rows(15, 5), seconds=0.5)
    compact(opened.path)
    same_rows(opened, expected)


def test_shards_are_in_the_order_of_their_numbers_beyond_100000() -> None:
    shard = Shard("train-00000.arrow", "train", 1, 1, "", 0, 0.0)
    found = manifest()
    for number in (100_000, 99_999, 5):
        found = found.with_shard(replace(shard, file=f"train-{number:05d}.arrow"))
    assert [each.number for each in found.shards] == [5, 99_999, 100_000]


def test_an_opened_store_is_verified_after_it_was_merged(tmp_path: Path) -> None:
    opened = make(tmp_path / "store")
    compact(opened.path)
    assert opened.damaged_shards() == {}
    assert opened.verify() == []


def test_a_store_that_is_merged_again_and_again_is_verified_meanwhile(tmp_path: Path) -> None:
    folder = make(tmp_path / "store").path
    stop = threading.Event()

    def merge() -> None:
        start = 1000
        while not stop.is_set():
            with FeatureStore.writer(folder, manifest()) as writer:
                writer.append("train", some_rows(start, 1))
            compact(folder)
            start += 1

    writer = threading.Thread(target=merge)
    writer.start()
    try:
        for _ in range(40):
            opened = FeatureStore.open(folder)
            assert opened.verify() == []
            assert opened.ids("train")[:60] == [f"row/{i:04d}" for i in range(60)]
    finally:
        stop.set()
        writer.join()


def test_a_store_is_read_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make(tmp_path / "store")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    opened = FeatureStore.open("store")
    with FeatureStore.writer("store", manifest()) as writer:
        monkeypatch.chdir(tmp_path / "elsewhere")
        same_rows(opened, expected)
        writer.append("train", some_rows(900, 1))
    assert os.listdir() == []


# ---- new stores ----------------------------------------------------------------------------------


def test_a_store_that_lost_its_manifest_is_not_begun_anew(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    (store.path / "manifest.json").unlink()
    with (
        pytest.raises(InputError, match=r"has lost its manifest\.json"),
        FeatureStore.writer(store.path, manifest()),
    ):
        pass
    assert rebuild_manifest(store.path) == 15


def test_a_store_of_which_nothing_came_is_not_left_behind(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").touch()
    for folder in (tmp_path / "new", tmp_path / "theirs"):
        with (
            pytest.raises(InputError, match="a split's name has letters"),
            FeatureStore.writer(folder, manifest()) as writer,
        ):
            writer.append("../up", some_rows(0, 1))
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "theirs" / "manifest.json").exists()
    with FeatureStore.writer(tmp_path / "asked for", manifest()):
        pass
    assert FeatureStore.open(tmp_path / "asked for").n_rows == 0


def test_the_names_of_all_new_folders_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(storage, "sync_folder", synced.append)
    storage.make_folder(tmp_path / "a" / "b" / "c")
    assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
    synced.clear()
    storage.make_folder(tmp_path / "a" / "b" / "c")
    assert synced == []


def test_rows_that_came_to_be_encoded_are_no_longer_noted_as_bad(tmp_path: Path) -> None:
    nothing = StoredRows([], np.empty(0, np.int64), np.empty((0, DIM), np.float32), None)
    bad = [SkippedRow(f"row/{i:04d}", "train", "too many open files") for i in range(3)]
    with FeatureStore.writer(tmp_path / "store", manifest()) as writer:
        writer.append("train", nothing, skipped=bad)
        again = replace(bad[2], reason="no image")
        writer.append("train", some_rows(0, 2), skipped=[again])
    assert FeatureStore.open(tmp_path / "store").manifest.skipped == (again,)


def test_unmerged_shards_are_the_files_that_they_always_were() -> None:
    shard = Shard("train-00000.arrow", "train", 2, 0, "", 0, 0.0)
    about = json.loads(describe(manifest(), shard)[ABOUT])
    assert "parts" not in about["shard"]
    assert about["schema_version"] == 2
