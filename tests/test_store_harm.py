"""What must never cost a row: interruptions while merging, foreign files, altered manifests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from stores import DIM, make, manifest, same_rows, some_rows

from extractors import FeatureStore, InputError, MachineError, storage
from extractors.cache import compact, find_store, remove
from extractors.manifest import DamagedManifest, SkippedRow, checksum
from extractors.rebuild import rebuild_manifest
from extractors.shard import StoredRows

REPOSITORY = Path(__file__).parents[1]

# ---- interrupted while shards are merged ---------------------------------------------------------

INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from extractors import cache, storage

sync = storage.sync_folder

def interrupted(folder):
    # The manifest of the merged store has just been renamed.
    if b'"generation": 1' in (folder / "manifest.json").read_bytes() and not interrupted.done:
        interrupted.done = True
        os.kill(os.getpid(), signal.SIGINT)
    sync(folder)

interrupted.done = False
storage.sync_folder = interrupted
cache.compact(Path(sys.argv[1]))
"""


def test_ctrl_c_just_after_the_manifest_was_replaced_loses_no_row(tmp_path: Path) -> None:
    expected, store = make(tmp_path / "expected"), make(tmp_path / "store")
    command = [sys.executable, "-c", INTERRUPTED, str(store.path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT, done.stderr
    after = FeatureStore.open(store.path)
    assert (after.manifest.generation, after.verify()) == (1, [])
    same_rows(after, expected)


@pytest.mark.parametrize("failures", [1, 99])
def test_a_disk_that_fails_just_after_the_manifest_was_replaced_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    expected, store = make(tmp_path / "expected"), make(tmp_path / "store")
    left = failures
    sync = storage.sync_folder

    def failing(folder: Path) -> None:
        nonlocal left
        if left and b'"generation": 1' in (folder / "manifest.json").read_bytes():
            left -= 1
            raise OSError(5, "Input/output error")
        sync(folder)

    monkeypatch.setattr(storage, "sync_folder", failing)
    monkeypatch.setattr("extractors.writer.sync_folder", failing)
    with pytest.raises(MachineError, match="input/output error"):
        compact(store.path)
    after = FeatureStore.open(store.path)
    assert after.verify() == []
    same_rows(after, expected)
    # Nobody knows which manifest a power cut would leave, so the shards of both are there.
    old = [(store.path / shard.file).exists() for shard in store.manifest.shards]
    assert all(old) if failures == 99 else not any(old)


def test_where_the_manifest_cannot_be_read_nothing_is_deleted(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    with FeatureStore.writer(store.path, manifest()) as writer:
        (store.path / "manifest.json").write_text("{")
        writer.remove_leftovers()
    assert all((store.path / shard.file).exists() for shard in store.manifest.shards)
    assert rebuild_manifest(store.path) == 15


# ---- files that are somebody else's --------------------------------------------------------------


def foreign(path: Path) -> bytes:
    """An Arrow stream with a shard's name, as `datasets` writes them."""
    table = pa.table({"text": ["somebody's", "own"]})
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)
    return path.read_bytes()


def test_a_folder_of_somebody_elses_is_not_removed(tmp_path: Path) -> None:
    from tasks.cli import main

    folder = tmp_path / "theirs"
    folder.mkdir()
    content = foreign(folder / "part-00000.arrow")
    (folder / "manifest.json").write_text('{"manifest_version": 3}')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for refuse in (remove, lambda path: main_refuses(main, path, tmp_path)):
        with pytest.raises(InputError, match="is no feature store"):
            refuse(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="there is no store"):
        find_store(str(folder))
    with pytest.raises(InputError, match="is no feature store"):
        remove(folder)
    assert content == before["part-00000.arrow"] == (folder / "part-00000.arrow").read_bytes()
    assert [path.name for path in folder.iterdir()] == ["part-00000.arrow"]


def main_refuses(main: Any, path: Path, cache_dir: Path) -> None:
    assert main(["cache", "rm", str(path), "--cache-dir", str(cache_dir)]) == 2
    remove(path)


def test_somebody_elses_file_in_a_store_stays_and_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    content = foreign(folder / "train-00001.arrow")
    with FeatureStore.writer(folder, manifest()) as writer:
        for i in range(3):
            writer.append("train", some_rows(5 * i, 5))
        writer.drop({"train-00002.arrow"})
    store = FeatureStore.open(folder)
    assert [s.file for s in store.manifest.shards] == ["train-00000.arrow", "train-00003.arrow"]
    remove(folder)
    assert [path.name for path in folder.iterdir()] == ["train-00001.arrow"]
    assert (folder / "train-00001.arrow").read_bytes() == content


def test_a_link_to_a_store_is_removed_with_the_store(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    link = tmp_path / "link"
    link.symlink_to(store.path)
    assert remove(link) > store.n_bytes
    assert not store.path.exists() and not link.is_symlink()


# ---- the manifest --------------------------------------------------------------------------------

NO_TEXT = b"caf\xe9".decode("utf-8", "surrogateescape")  # the name of a file in Latin-1


def test_names_that_are_no_text_are_kept_and_read(tmp_path: Path) -> None:
    nothing = StoredRows([], np.empty(0, np.int64), np.empty((0, DIM), np.float32), None)
    bad = SkippedRow("row/9", "train", f"{NO_TEXT}.png is no image")
    new = manifest(task=f"data/{NO_TEXT}", classes=("no", "ja ✓"))
    with FeatureStore.writer(tmp_path / "store", new) as writer:
        writer.append("train", some_rows(0, 3))
        writer.append("train", nothing, skipped=[bad])
    store = FeatureStore.open(tmp_path / "store")
    assert (store.manifest.task, store.classes, store.verify()) == (new.task, new.classes, [])
    assert store.manifest.skipped == (bad,)
    (store.path / "manifest.json").read_bytes().decode("ascii")
    # As it was written before, with bytes that are no UTF-8.
    values = json.loads((store.path / "manifest.json").read_bytes())
    text = json.dumps(values, ensure_ascii=False)
    (store.path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert FeatureStore.open(store.path).manifest == store.manifest


ALTERED: dict[str, Any] = {
    "classes": lambda told: told["classes"].reverse(),
    "split": lambda told: told["shards"][0].update(split="test"),
    "modality": lambda told: told.update(modality="image"),
    "backbone": lambda told: told.update(backbone="toy:text-7"),
    "task": lambda told: told.update(task="other"),
    "max_length": lambda told: told.update(max_length=11),
    "truncated": lambda told: told["shards"][0].update(truncated=5),
    "error": lambda told: told["shards"][0].update(error_max=0.5),
    "generation": lambda told: told.update(generation=7),
    "seconds": lambda told: told["shards"][0].update(seconds=99.0),
    "order": lambda told: told["shards"].reverse(),
    "schema": lambda told: told.update(schema_version=2),
    "no checksum": lambda told: told.pop("sha256"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_every_altered_value_of_a_manifest_is_damage_and_rebuilt(tmp_path: Path, what: str) -> None:
    expected, opened = make(tmp_path / "expected"), make(tmp_path / "store")
    path = opened.path / "manifest.json"
    told = json.loads(path.read_text())
    ALTERED[what](told)
    path.write_text(json.dumps(told))
    with pytest.raises(DamagedManifest, match="checksum differs"):
        FeatureStore.open(opened.path)
    assert any("checksum differs" in problem for problem in opened.verify())
    assert rebuild_manifest(opened.path) == 15
    again = FeatureStore.open(opened.path)
    assert again.verify() == []
    assert again.manifest.storage_error == expected.manifest.storage_error
    same_rows(again, expected)


@pytest.mark.parametrize("what", ["classes", "backbone", "truncated", "generation", "split"])
def test_a_manifest_without_a_checksum_is_compared_with_what_shards_say(
    tmp_path: Path, what: str
) -> None:
    store = make(tmp_path / "store")
    path = store.path / "manifest.json"
    told = json.loads(path.read_text())
    del told["sha256"]
    for shard in told["shards"]:
        del shard["parts"]
    told["schema_version"] = 2
    path.write_text(json.dumps(told))
    assert FeatureStore.open(store.path).verify() == []
    ALTERED[what](told)
    path.write_text(json.dumps(told))
    assert FeatureStore.open(store.path).verify()


WRONG: dict[str, Any] = {
    "task": 7,
    "classes": [1, 2],
    "classes ": "no",
    "shards": {"a": 1},
    "shards ": [7],
    "skipped": [["a"]],
    "skipped ": [{"id": 1, "split": "train", "reason": ""}],
    "dim": "6",
    "dim ": -1,
    "dim  ": True,
    "max_length": 1.5,
    "fingerprint": [],
    "versions": None,
    "dtype": ["float32"],
    "generation": None,
    "measured": [],
    "key": None,
    "sha256": 7,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_of_another_type_is_damage(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "store").path / "manifest.json"
    told = json.loads(path.read_text()) | {name.strip(): WRONG[name]}
    told["sha256"] = told["sha256"] if name != "sha256" else 7
    path.write_text(json.dumps(told))
    with pytest.raises(DamagedManifest, match="the same extraction again") as caught:
        FeatureStore.open(path.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"file": "../elsewhere-00000.arrow"}, {"rows": "5"}, {"offset": "8"}, {"parts": [1]}],
)
def test_a_shard_of_another_type_or_place_is_damage(
    tmp_path: Path, change: dict[str, object]
) -> None:
    path = make(tmp_path / "store").path / "manifest.json"
    told = json.loads(path.read_text())
    told["shards"][0] |= change
    del told["sha256"]
    path.write_text(json.dumps({**told, "sha256": checksum(told)}))
    with pytest.raises(DamagedManifest, match="damaged"):
        FeatureStore.open(path.parent)
