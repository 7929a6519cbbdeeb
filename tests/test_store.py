"""The store on disk: what is written is read, by us and by others; what is damaged is noticed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stores import DIM, manifest, some_rows

from extractors import FeatureStore, InputError, MachineError
from extractors.fingerprint import folder_sha256, store_key
from extractors.manifest import Shard, SkippedRow
from extractors.shard import StoredRows
from extractors.storage import write_atomically
from extractors.store import default_cache_dir

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of two train shards and one test shard."""
    path = tmp_path / "store"
    with FeatureStore.writer(path, manifest()) as writer:
        writer.append("train", some_rows(0, 8), seconds=1.5)
        writer.append("test", some_rows(100, 2), seconds=0.5)
        writer.append("train", some_rows(8, 4), seconds=1.0)
    return path


def test_rows_come_back_in_the_order_asked_for(folder: Path) -> None:
    store = FeatureStore.open(folder)
    assert (store.n_rows, store.dim, store.splits, store.seconds) == (14, DIM, ("train", "test"), 3)
    assert store.classes == ("no", "yes")
    everything = store.read("train")
    assert everything.ids == store.ids("train") == [f"row/{i:04d}" for i in range(12)]
    wanted = ["row/0011", "row/0002", "row/0008", "row/0002"]
    some = store.read("train", wanted)
    assert some.ids == wanted
    positions = [11, 2, 8, 2]
    np.testing.assert_array_equal(some.features, everything.features[positions])
    np.testing.assert_array_equal(some.labels, everything.labels[positions])
    assert some.tokens is not None
    np.testing.assert_array_equal(some.tokens, positions)
    assert store.read("train", []).features.shape == (0, DIM)
    assert store.read("validation").features.shape == (0, DIM)
    assert store.verify() == []


def test_an_id_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="'row/0100' in split 'train'"):
        FeatureStore.open(folder).read("train", ["row/0001", "row/0100"])
    with pytest.raises(InputError, match="'row/0100' in split 'train'"):
        FeatureStore.open(folder).truncated_fraction({"train": ["row/0100"]})


def test_reading_one_shard_copies_nothing(folder: Path) -> None:
    import pyarrow as pa

    before = pa.total_allocated_bytes()
    features = FeatureStore.open(folder).read("test").features
    assert pa.total_allocated_bytes() == before
    assert not features.flags.owndata
    assert not features.flags.writeable
    for block in FeatureStore.open(folder).blocks("train"):
        assert not block.features.flags.owndata


def test_truncation_is_counted_over_the_rows_asked_for(folder: Path) -> None:
    store = FeatureStore.open(folder)
    assert store.truncated_fraction() == pytest.approx(3 / 14)  # token counts 11, 100 and 101
    assert store.truncated_fraction({"test": store.ids("test")}) == 1.0
    assert store.truncated_fraction({"train": ["row/0010", "row/0011"]}) == 0.5
    assert store.truncated_fraction({}) == 0.0


@given(
    features=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 20), st.integers(1, 5)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    cut=st.integers(0, 20),
    seed=st.integers(0, 99),
    has_tokens=st.booleans(),
)
def test_any_finite_features_round_trip_bit_for_bit(
    features: np.ndarray, cut: int, seed: int, has_tokens: bool
) -> None:
    n, dim = features.shape
    rng = np.random.default_rng(seed)
    ids = [f"{i}/ünï ✓" for i in range(n)]
    labels = rng.integers(-(2**40), 2**40, n)
    tokens = rng.integers(0, 999, n).astype(np.int32) if has_tokens else None
    modality = "text" if has_tokens else "image"
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "store"
        with FeatureStore.writer(path, manifest(dim=dim, modality=modality)) as writer:
            for part in (slice(0, cut), slice(cut, n)):
                counts = None if tokens is None else tokens[part]
                writer.append("a", StoredRows(ids[part], labels[part], features[part], counts))
        store = FeatureStore.open(path)
        order = rng.permutation(n)
        read = store.read("a", [ids[i] for i in order])
        assert store.read("a").ids == ids
        np.testing.assert_array_equal(
            read.features.view(np.uint32), features.view(np.uint32)[order]
        )
        np.testing.assert_array_equal(read.labels, labels[order])
        assert (read.tokens is None) == (tokens is None)
        if tokens is not None and read.tokens is not None:
            np.testing.assert_array_equal(read.tokens, tokens[order])


def test_the_manifest_says_everything(folder: Path) -> None:
    told = json.loads((folder / "manifest.json").read_text())
    assert told["schema_version"] == 3
    assert told["key"] == store_key(told["fingerprint"])
    assert told["dtype"] == "float32"
    assert [s["file"] for s in told["shards"]] == [
        "train-00000.arrow",
        "train-00001.arrow",
        "test-00000.arrow",
    ]
    for shard in told["shards"]:
        assert set(shard) == {field.name for field in fields(Shard)}
        assert (folder / shard["file"]).stat().st_size == shard["bytes"]


# ---- what is refused -----------------------------------------------------------------------------


def damage(folder: Path, edit: dict[str, object]) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            {"schema_version": 4},
            r"newer version of convex-heads \(schema 4, this version reads up to 3\): upgrade",
        ),
        ({"schema_version": 0}, r"damaged \(schema_version 0\)"),
        ({"schema_version": "3"}, r"damaged \(schema_version '3'\)"),
        ({"dtype": "float64"}, "stored as float32, float16, int8, not as 'float64'"),
        ({"schema_version": None}, "no schema_version"),
        ({"key": "0" * 64}, "altered"),
        ({"fingerprint": {"data": {}, "extractor": {}}}, "altered"),
        ({"shards": [{"file": "x"}]}, "damaged"),
        ({"unknown": 1}, "damaged"),
    ],
)
def test_a_foreign_manifest_is_refused_in_one_line(
    folder: Path, edit: dict[str, object], sentence: str
) -> None:
    damage(folder, edit)
    with pytest.raises(InputError, match=sentence) as caught:
        FeatureStore.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '"store"', "\x00"])
def test_a_manifest_that_is_no_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        FeatureStore.open(folder)


def test_a_folder_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path(__file__)):
        with pytest.raises(InputError, match="is no feature store"):
            FeatureStore.open(path)


def test_every_altered_byte_count_or_file_is_noticed(folder: Path) -> None:
    store = FeatureStore.open(folder)
    flipped, cut, gone = (folder / shard.file for shard in store.manifest.shards)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-8])
    gone.unlink()
    problems = store.verify()
    assert len(problems) == 3
    assert re.search("train-00000.arrow: altered", problems[0])
    assert re.search("train-00001.arrow: [0-9]+ bytes instead of [0-9]+", problems[1])
    assert re.search("test-00000.arrow: missing", problems[2])
    with pytest.raises(InputError, match=r"test-00000\.arrow cannot be read"):
        store.read("test")


def test_an_id_that_occurs_twice_is_noticed(folder: Path) -> None:
    with FeatureStore.writer(folder, manifest()) as writer:
        writer.append("test", some_rows(0, 1))
    assert FeatureStore.open(folder).verify() == ["split test: an id occurs twice"]


def bad_rows() -> dict[str, tuple[str, StoredRows]]:
    good = some_rows(50, 2)
    nan, infinite = good.features.copy(), good.features.copy()
    nan[1, 0], infinite[0, 2] = np.nan, -np.inf
    return {
        "row 'row/0051' has features that are NaN": ("train", good._replace(features=nan)),
        "row 'row/0050' has features that are NaN": ("train", good._replace(features=infinite)),
        rf"float64 of shape \(2, {DIM}\)": (
            "train",
            good._replace(features=good.features.astype(float)),
        ),
        r"shape \(2, 2\)": ("train", good._replace(features=good.features[:, :2])),
        "one entry for each of the 2 rows": ("train", good._replace(labels=good.labels[:1])),
        "not '../up'": ("../up", good),
    }


@pytest.mark.parametrize("sentence", bad_rows())
def test_unusable_rows_are_refused_and_leave_the_store_as_it_was(
    folder: Path, sentence: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    split, rows = bad_rows()[sentence]
    with (
        FeatureStore.writer(folder, manifest()) as writer,
        pytest.raises(InputError, match=sentence),
    ):
        writer.append(split, rows)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_store_of_other_data_or_width_is_not_written_to(folder: Path) -> None:
    other = manifest(fingerprint={"data": {"sha256": "x"}, "extractor": {}})
    wider = manifest(dim=DIM + 1)
    for new, sentence in ((other, "belongs to other data"), (wider, f"width {DIM}")):
        with pytest.raises(InputError, match=sentence), FeatureStore.writer(folder, new):
            pass


# ---- one writer, all or nothing ------------------------------------------------------------------

HOLD_THE_LOCK = """
import sys, time
sys.path.insert(0, "tests")
from stores import manifest
from extractors import FeatureStore
with FeatureStore.writer(sys.argv[1], manifest()):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_second_writer_gets_a_sentence_and_a_killed_one_leaves_no_lock(folder: Path) -> None:
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(folder)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with (
            pytest.raises(MachineError, match=rf"another process \(pid {first.pid}\) is writing"),
            FeatureStore.writer(folder, manifest()),
        ):
            pass
        assert FeatureStore.open(folder).read("train").ids  # reading needs no lock
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with FeatureStore.writer(folder, manifest()) as writer:
        writer.append("train", some_rows(20, 2))
    assert FeatureStore.open(folder).n_rows == 16


def test_what_a_crash_left_behind_is_never_read_and_then_removed(folder: Path) -> None:
    whole = (folder / "train-00000.arrow").read_bytes()
    (folder / "train-00007.arrow").write_bytes(whole)  # renamed, but not in the manifest
    (folder / ".writing-1-train-00002.arrow").write_bytes(whole[:100])
    (folder / "notes.txt").write_text("somebody's own")
    assert FeatureStore.open(folder).n_rows == 14
    with FeatureStore.writer(folder, manifest()):
        pass
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "manifest.json",
        "notes.txt",
        "test-00000.arrow",
        "train-00000.arrow",
        "train-00001.arrow",
    ]


def test_a_dropped_shard_gives_its_name_to_the_one_that_replaces_it(folder: Path) -> None:
    before = FeatureStore.open(folder).manifest
    with FeatureStore.writer(folder, manifest()) as writer:
        writer.drop({"train-00000.arrow"})
        assert FeatureStore.open(folder).ids("train") == [f"row/{i:04d}" for i in range(8, 12)]
        writer.append("train", some_rows(0, 8), seconds=1.5)
    assert FeatureStore.open(folder).manifest == before


def test_skipped_rows_are_remembered_even_where_nothing_else_is_left(folder: Path) -> None:
    nothing = StoredRows([], np.empty(0, np.int64), np.empty((0, DIM), np.float32), None)
    bad = SkippedRow("row/9999", "train", "no text")
    with FeatureStore.writer(folder, manifest()) as writer:
        assert writer.append("train", nothing, skipped=[bad]) is None
    assert FeatureStore.open(folder).manifest.skipped == (bad,)
    assert FeatureStore.open(folder).n_rows == 14


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(MachineError, match="cannot write to"):
        write_atomically(tmp_path / "missing" / "file", b"new")


# ---- keys and places -----------------------------------------------------------------------------


def test_the_key_depends_on_every_value_and_on_no_order() -> None:
    assert store_key({"a": 1, "b": {"c": 2}}) == store_key({"b": {"c": 2}, "a": 1})
    keys = [store_key({"a": value}) for value in (1, 2, 1.5, "1", None, [1], {"b": 1})]
    assert len(set(keys)) == len(keys)
    for value in (float("nan"), Path("x"), {1, 2}):
        with pytest.raises(InputError, match="plain JSON"):
            store_key({"a": value})


def test_a_folder_hash_sees_weights_and_not_words(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    first = folder_sha256(tmp_path)
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.bin").write_text("another runtime's")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x").write_text("x")
    assert folder_sha256(tmp_path) == first
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    second = folder_sha256(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert len({first, second, folder_sha256(tmp_path)}) == 3
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert folder_sha256(moved) not in {first, second}
    empty = moved / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no model files"):
        folder_sha256(empty)


def test_the_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEX_HEADS_CACHE", "/somewhere")
    assert default_cache_dir() == Path("/somewhere")
    monkeypatch.delenv("CONVEX_HEADS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_dir() == Path("/xdg/convex-heads")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache_dir() == Path("/home/somebody/.cache/convex-heads")
