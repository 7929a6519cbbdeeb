"""A manifest that is lost or damaged is rebuilt from the shards, where they prove what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from extractors import FeatureStore, InputError, Rows
from extractors.cache import compact, list_stores, remove
from extractors.extract import extract
from extractors.manifest import Manifest
from extractors.rebuild import rebuild_manifest
from extractors.shard import StoredRows
from extractors.toy import ToyText

DIM = 6
N = 40


class Counting(ToyText):
    """Knows how many texts it was asked to encode."""

    encoded = 0

    def encode(self, prepared: Sequence[str]) -> np.ndarray:
        type(self).encoded += len(prepared)
        return super().encode(prepared)


def run(cache: Path, n: int = N) -> FeatureStore:
    rng = np.random.default_rng(0)
    texts = [" ".join(["film"] * int(k)) for k in rng.integers(1, 30, N)]
    labels = rng.integers(0, 2, N)
    ids = [f"row/{i:03d}" for i in range(N)]
    splits = {
        "test": Rows(ids[:8], texts[:8], labels[:8]),
        "train": Rows(ids[8:n], texts[8:n], labels[8:n]),
    }
    return extract(
        splits, Counting(DIM), task="demo", classes=("no", "yes"), data_fingerprint={"n": N},
        cache_dir=cache, shard_rows=4, dtype="float16",
    ).store  # fmt: skip


def known(manifest: Manifest) -> Manifest:
    """All but what clocks say, which shards do not know."""
    return replace(manifest, shards=tuple(replace(shard, seconds=0.0) for shard in manifest.shards))


HARMS = {
    "lost": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "another key": lambda path: path.write_text(path.read_text().replace('"key": "', '"key": "0')),
    "no schema": lambda path: path.write_text("{}"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_the_manifest_is_rebuilt_as_it_was_and_nothing_is_encoded_again(
    tmp_path: Path, harm: str
) -> None:
    store = run(tmp_path)
    before = Counting.encoded
    HARMS[harm](store.path / "manifest.json")
    again = run(tmp_path)
    assert Counting.encoded == before
    assert known(again.manifest) == known(store.manifest)
    assert again.verify() == []


def test_shards_that_cannot_be_proven_are_extracted_again(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    store = run(tmp_path)
    flipped, cut, renamed = (store.path / f"train-0000{i}.arrow" for i in (1, 3, 5))
    content = bytearray(flipped.read_bytes())
    content[-60] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-40])
    renamed.rename(store.path / "train-00099.arrow")
    (store.path / "manifest.json").unlink()
    before = Counting.encoded
    again = run(tmp_path)
    assert Counting.encoded == before + 12
    assert known(again.manifest) == known(whole.manifest)
    for shard in whole.manifest.shards:  # to the byte
        assert (again.path / shard.file).read_bytes() == (whole.path / shard.file).read_bytes()


def test_every_bit_of_a_shard_is_part_of_its_proof(tmp_path: Path) -> None:
    from extractors.provenance import read_proven

    path = run(tmp_path).path / "train-00000.arrow"
    sane = path.read_bytes()
    assert read_proven(path) is not None
    for place in range(0, len(sane), 7):
        content = bytearray(sane)
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        assert read_proven(path) is None, place


@pytest.mark.parametrize("moment", ["before", "after"])
def test_after_a_crash_while_merging_the_complete_generation_counts(
    tmp_path: Path, moment: str
) -> None:
    store = run(tmp_path)
    old = tmp_path / "old"
    shutil.copytree(store.path, old)
    merged = compact(store.path)
    if moment == "before":  # some merged shards are there, none of the old ones is gone
        shutil.copy(store.path / "test.1-00000.arrow", old)
        expected = known(Manifest.read(old))
        folder = old
    else:  # all merged shards are there, and an old one has not been deleted yet
        shutil.copy(old / "train-00002.arrow", store.path)
        expected = known(merged.manifest)
        folder = store.path
    (folder / "manifest.json").unlink()
    assert rebuild_manifest(folder) == len(expected.shards)
    assert known(Manifest.read(folder)) == expected
    assert rebuild_manifest(folder) == 0  # it is whole now


def test_what_is_unclear_is_refused_in_one_sentence_and_left_alone(tmp_path: Path) -> None:
    def refused(folder: Path, sentence: str) -> None:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(InputError, match=sentence):
            rebuild_manifest(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    store = run(tmp_path)
    new = Manifest(
        fingerprint={"another": 1}, task="demo", backbone="toy:text-6", modality="text",
        dim=DIM, classes=("no", "yes"), max_length=None, dtype="float16",
    )  # fmt: skip
    other = tmp_path / "other"
    ids = ["x", "y"]
    rows = StoredRows(ids, np.array([0, 1]), np.ones((2, DIM), np.float32), np.ones(2, np.int32))
    with FeatureStore.writer(other, new) as writer:
        writer.append("validation", rows)
        writer.append("more", rows)
    (other / "manifest.json").unlink()
    refused(other, "a row is in two of its shards")
    (store.path / "manifest.json").write_text("{")
    shutil.copy(other / "more-00000.arrow", store.path)
    refused(store.path, "belong to several stores")
    for path in store.path.glob("*.arrow"):  # as they were before shards said anything
        table = pa.ipc.open_stream(path.read_bytes()).read_all()
        with pa.ipc.new_stream(str(path), table.schema.remove_metadata()) as stream:
            stream.write_table(table)
    refused(store.path, "no shard beside it can be proven")
    future = json.dumps({"schema_version": 99})
    (store.path / "manifest.json").write_text(future)
    with pytest.raises(InputError, match="newer version"):
        run(tmp_path)


def test_a_store_without_its_manifest_is_listed_and_can_be_removed(tmp_path: Path) -> None:
    store = run(tmp_path)
    (store.path / "manifest.json").unlink()
    (found,) = list_stores(tmp_path)
    assert found.store is None
    assert "has no manifest.json" in found.problem
    remove(found.path)
    assert list_stores(tmp_path) == []
