"""What no extraction stores: rows in memory and rows of a stream are refused in the same words."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extractors import BadRow, FeatureStore, InputError, MachineError, Rows
from extractors.cache import compact, list_stores
from extractors.distributed import _paired
from extractors.encode import Chunk, EncodedRows, encode_chunks, encode_rows
from extractors.extract import Extraction, extract, store_folder
from extractors.gather import Picked
from extractors.stream import StreamRow, extract_stream
from extractors.toy import ToyText

REPOSITORY = Path(__file__).parents[1]
Way = Callable[..., Extraction]


def in_memory(cache: Path, ids: Sequence[Any], inputs: Sequence[Any], labels: Any, **more: Any):
    rows = Rows(ids, inputs, np.asarray(labels))
    return extract({"train": rows}, **settings(cache, more))


def as_stream(cache: Path, ids: Sequence[Any], inputs: Sequence[Any], labels: Any, **more: Any):
    rows = [StreamRow(i, "train", x, y) for i, x, y in zip(ids, inputs, labels, strict=True)]
    return extract_stream(iter(rows), **settings(cache, more))


def settings(cache: Path, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "extractor": ToyText(4),
        "task": "demo",
        "classes": ("no", "yes"),
        "data_fingerprint": {"sha256": "demo"},
        "cache_dir": cache,
        "shard_rows": 2,
    } | more


both = pytest.mark.parametrize("way", [in_memory, as_stream])
TEXTS = ["good", "bad", "fair", "fine"]


@both
def test_a_store_with_other_classes_is_refused(tmp_path: Path, way: Way) -> None:
    way(tmp_path, ["a", "b"], TEXTS[:2], [0, 1])
    for ids in (["a", "b"], ["a", "b", "c"]):  # complete, and with something to add
        rows = (ids, TEXTS[: len(ids)], [0, 1, 1][: len(ids)])
        with pytest.raises(InputError, match=r"classes \(no, yes\), but \(yes, no\) are asked for"):
            way(tmp_path, *rows, classes=("yes", "no"))
    assert way(tmp_path, ["a", "b"], TEXTS[:2], [0, 1]).store.n_rows == 2


@both
@pytest.mark.parametrize("label", [-1, 2, 10**6])
def test_a_label_without_a_class_is_refused(tmp_path: Path, way: Way, label: int) -> None:
    with pytest.raises(InputError, match=rf"row 'b' has the label {label}, but labels of 2 cl"):
        way(tmp_path, ["a", "b"], TEXTS[:2], [0, label])
    assert list_stores(tmp_path) == []
    assert way(tmp_path, ["a", "b"], TEXTS[:2], [0, label], classes=()).rows == 2


@both
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (7, "ids must be texts, got int"),
        (None, "ids must be texts, got NoneType"),
        ("caf\udce9.png", r"the id 'caf\\udce9.png' is no valid Unicode"),
    ],
)
def test_an_id_that_no_store_can_hold_is_refused(
    tmp_path: Path, way: Way, name: Any, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        way(tmp_path, ["a", name], TEXTS[:2], [0, 1])


@pytest.mark.parametrize("label", [1.7, 1.0, np.float64(1), "1", None, 2**63])
def test_labels_of_a_stream_are_integers_and_nothing_is_cut_off(tmp_path: Path, label: Any) -> None:
    with pytest.raises(InputError, match=r"row 'b' has the label .* which is no class index"):
        as_stream(tmp_path, ["a", "b"], TEXTS[:2], [0, label], classes=())
    done = as_stream(tmp_path, ["a", "b"], TEXTS[:2], [np.uint8(0), np.int64(1)])
    assert done.store.labels("train").tolist() == [0, 1]


def test_labels_beyond_64_bits_are_refused() -> None:
    with pytest.raises(InputError, match=f"labels must be at most {2**63 - 1}, got {2**63}"):
        Rows(["a"], ["x"], np.array([2**63], np.uint64))


@both
def test_a_first_bad_row_leaves_no_empty_store(tmp_path: Path, way: Way) -> None:
    with pytest.raises(InputError, match="row 'a' cannot be encoded"):
        way(tmp_path, ["a"], [None], [0])
    assert list((tmp_path / "stores").iterdir()) == []


class Repaired(ToyText):
    """A backbone of texts of which some could not be read for a while."""

    broken = True

    def prepare(self, item: Any) -> str:
        if self.broken and item == "bad":
            raise BadRow("too many open files")
        return super().prepare(item)


@both
def test_rows_that_were_repaired_are_encoded_when_they_must_be(tmp_path: Path, way: Way) -> None:
    toy = Repaired(4)
    rows = (["a", "b", "c"], ["good", "bad", "fair"], [0, 1, 0])
    first = way(tmp_path, *rows, extractor=toy, on_bad_row="skip")
    assert [row.id for row in first.skipped] == ["b"]
    with pytest.raises(InputError, match="row 'b' cannot be encoded: too many open files"):
        way(tmp_path, *rows, extractor=toy)
    toy.broken = False
    assert way(tmp_path, *rows, extractor=toy, on_bad_row="skip").rows == 2  # not tried again
    done = way(tmp_path, *rows, extractor=toy)
    assert (done.rows, done.resumed_rows, done.skipped) == (3, 2, ())
    again = way(tmp_path, *rows, extractor=toy, on_bad_row="skip")
    assert (again.rows, again.skipped, again.store.manifest.skipped) == (3, (), ())


# ---- an engine that does not give back what it was given -----------------------------------------


class Broken:
    """An engine that loses its last chunk."""

    def encoder(self, *_: Any) -> Any:
        from contextlib import nullcontext

        def encode(extractor: Any, chunks: Any, **options: Any) -> Iterator[Any]:
            yield from list(encode_chunks(extractor, chunks, **options))[:-1]

        return nullcontext(encode)


def test_an_engine_that_ends_early_is_an_error_and_what_came_is_kept(tmp_path: Path) -> None:
    rows = (list("abcd"), TEXTS, [0, 1, 0, 1])
    with pytest.raises(MachineError, match="only 1 shards came back"):
        in_memory(tmp_path, *rows, engine=Broken())
    done = in_memory(tmp_path, *rows)
    assert (done.rows, done.resumed_rows) == (4, 2)


def test_as_many_results_as_chunks_are_wanted_of_ray() -> None:
    chunks = [Chunk("train", ["a"], ["x"], np.zeros(1, np.int64)) for _ in range(2)]
    one = EncodedRows(np.zeros(1, np.intp), np.zeros((1, 4), np.float32), None, {})
    assert len(list(_paired(chunks, iter([one, one]), None))) == 2
    for results, sentence in (([one], "Ray ended before"), ([one] * 3, "more shards than")):
        with pytest.raises(MachineError, match=sentence):
            list(_paired(chunks, iter(results), None))


def test_no_rows_have_the_width_of_the_backbone() -> None:
    assert encode_rows(ToyText(4), [], []).features.shape == (0, 4)


# ---- where a store lies --------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["データ.csv", "---", "データ"])
def test_a_name_without_a_letter_of_ascii_is_data(tmp_path: Path, task: str) -> None:
    assert store_folder(task, ToyText(4), {}, tmp_path).name.startswith("data-toy-text-4-")


def test_data_under_another_name_have_the_store_that_they_had(tmp_path: Path) -> None:
    rows = (["a", "b"], TEXTS[:2], [0, 1])
    first = in_memory(tmp_path, *rows, task="old.csv")
    again = in_memory(tmp_path, *rows, task="new.csv")
    assert (again.store.path, again.resumed_rows) == (first.store.path, 2)
    other = in_memory(tmp_path, *rows, data_fingerprint={"sha256": "other"})
    assert other.store.path != first.store.path


def test_the_engine_on_ray_is_not_loaded_where_nobody_asked_for_it() -> None:
    code = "import sys, extractors.extract; sys.exit('extractors.distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


# ---- beside a writer -----------------------------------------------------------------------------


@both
def test_an_extraction_finds_its_rows_while_the_store_is_merged(tmp_path: Path, way: Way) -> None:
    ids = [f"r{i}" for i in range(60)]
    rows = (ids, [f"text {i}" for i in range(60)], [i % 2 for i in range(60)])
    folder = way(tmp_path, *rows).store.path
    stop = threading.Event()

    def merge() -> None:
        number = 0
        while not stop.is_set():
            store = FeatureStore.open(folder)
            with FeatureStore.writer(folder, store.manifest) as writer:
                part = store.read("train", ids[:1])._replace(ids=[f"more{number}"])
                writer.append("train", part)
            compact(folder)
            number += 1

    writer = threading.Thread(target=merge)
    writer.start()
    try:
        for _ in range(30):
            done = way(tmp_path, *rows)
            assert (done.rows, done.resumed_rows) == (60, 60)
    finally:
        stop.set()
        writer.join()


# ---- rows by mask --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_mask_chooses_the_rows_that_it_is_true_for(tmp_path: Path, dtype: str) -> None:
    labels = [0, 1, 1, 0]
    store = in_memory(tmp_path, list("abcd"), TEXTS, labels, dtype=dtype).store
    source = store.source("train")
    expected = store.read("train").features
    mask = source.labels == 1
    some = Picked(source, np.array([3, 1, 0]))
    np.testing.assert_array_equal(source[mask], expected[[1, 2]])
    np.testing.assert_array_equal(source.encoded(mask), source.encoded(np.array([1, 2])))
    np.testing.assert_array_equal(Picked(source, mask)[:], expected[[1, 2]])
    np.testing.assert_array_equal(some[np.array([True, False, True])], expected[[3, 0]])
    assert source[np.array([])].shape == (0, 4)
    for rows in (mask[:2], np.array([True]), np.array([0.0, 1.0]), np.array([[True] * 4])):
        for chosen in (source, some):
            with pytest.raises(IndexError):
                chosen[rows]
