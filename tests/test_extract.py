"""Extraction: same numbers whatever the batch, the same store whatever happened on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extractions import SHARD_ROWS, content, data_set, run, text_rows
from hypothesis import given
from hypothesis import strategies as st

from extractors import InputError, MachineError, Rows, load_extractor
from extractors.encode import encode_rows
from extractors.extract import Extraction
from extractors.toy import ToyText

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Extraction:
    return run(tmp_path_factory.mktemp("uninterrupted"))


# ---- encode_rows ---------------------------------------------------------------------------------


@given(order=st.permutations(range(12)), n=st.integers(1, 12), batch_size=st.integers(1, 20))
def test_rows_come_back_in_their_order_whatever_the_batch(
    order: list[int], n: int, batch_size: int
) -> None:
    rows = text_rows("x", 12)
    expected = ToyText(8).encode(rows.inputs)
    toy = ToyText(8)
    toy.batch_size = batch_size
    chosen = order[:n]
    seen: list[int] = []
    encoded = encode_rows(
        toy, [rows.inputs[i] for i in chosen], [rows.ids[i] for i in chosen], progress=seen.append
    )
    np.testing.assert_array_equal(encoded.features, expected[chosen])
    assert encoded.tokens is not None
    assert encoded.tokens.tolist() == [len(rows.inputs[i].split()) for i in chosen]
    assert encoded.kept.tolist() == list(range(n))
    assert sum(seen) == n


@pytest.mark.parametrize("name", ["toy:text", "toy:image"])
def test_bad_rows_are_named_or_left_out(name: str) -> None:
    toy = load_extractor(name)
    good = "fine" if toy.modality == "text" else np.zeros((4, 4), np.uint8)
    inputs, ids = [good, None, good, 7.5], ["a", "b", "c", "d"]
    with pytest.raises(InputError, match=r"row 'b' cannot be encoded: .*NoneType.*on_bad_row"):
        encode_rows(toy, inputs, ids)
    seen: list[int] = []
    encoded = encode_rows(toy, inputs, ids, on_bad_row="skip", progress=seen.append)
    assert encoded.kept.tolist() == [0, 2]
    assert list(encoded.skipped) == ["b", "d"]
    assert encoded.features.shape == (2, toy.dim)
    assert sum(seen) == 4
    nothing = encode_rows(toy, [None], ["b"], on_bad_row="skip")
    assert nothing.features.shape == (0, toy.dim)
    none = encode_rows(toy, [], [])
    assert (none.kept.shape, none.features.shape) == ((0,), (0, toy.dim))


class Spoiled(ToyText):
    """A backbone that overflows on some texts, as half-precision weights do."""

    def encode(self, prepared: Sequence[str]) -> np.ndarray:
        features = super().encode(prepared)
        features[["overflow" in text for text in prepared], 1] = np.inf
        return features


def test_features_that_are_not_finite_name_their_row(tmp_path: Path) -> None:
    rows = Rows(["a", "b", "c"], ["fine", "overflow", "fine too"], np.array([0, 1, 1]))
    with pytest.raises(InputError, match=r"row 'b' .* toy:text-24 gives NaN or infinite features"):
        run(tmp_path, {"train": rows}, extractor=Spoiled(24))
    done = run(tmp_path, {"train": rows}, extractor=Spoiled(24), on_bad_row="skip")
    assert done.store.ids("train") == ["a", "c"]
    assert [row.id for row in done.skipped] == ["b"]


class Hungry(ToyText):
    """A backbone that needs more memory than there is."""

    def encode(self, prepared: Sequence[str]) -> np.ndarray:
        return np.empty(2**60, dtype=np.float32)


def test_out_of_memory_is_one_sentence() -> None:
    with pytest.raises(MachineError, match="out of memory while encoding 1 rows") as caught:
        encode_rows(Hungry(4), ["a"], ["a"])
    assert "\n" not in str(caught.value)


# ---- extract -------------------------------------------------------------------------------------


def test_the_store_holds_every_row_with_its_label(uninterrupted: Extraction) -> None:
    store, splits = uninterrupted.store, data_set()
    assert (uninterrupted.rows, uninterrupted.dim, uninterrupted.resumed_rows) == (190, 24, 0)
    assert store.splits == ("train", "test")
    assert store.path.name.startswith("demo-toy-text-24-")
    assert store.path.name.endswith(store.manifest.key[:12])
    for split, rows in splits.items():
        stored = store.read(split)
        assert stored.ids == list(rows.ids)
        np.testing.assert_array_equal(stored.labels, rows.labels)
        np.testing.assert_array_equal(stored.features, ToyText(24).encode(rows.inputs))
    long = [len(text.split()) > 128 for rows in splits.values() for text in rows.inputs]
    assert uninterrupted.truncated_fraction == pytest.approx(np.mean(long))
    assert 0 < np.mean(long) < 1


def test_a_second_run_reads_writes_nothing_and_loads_no_backbone(tmp_path: Path) -> None:
    run(tmp_path)
    folder = next((tmp_path / "stores").iterdir())
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    class Unloadable(ToyText):
        def encode(self, prepared: Sequence[str]) -> np.ndarray:
            raise AssertionError("nothing is missing")

    calls: list[tuple[int, int]] = []
    done = run(tmp_path, extractor=Unloadable(24), on_start=lambda *call: calls.append(call))
    assert (done.rows, done.resumed_rows, calls) == (190, 190, [(190, 190)])
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_a_subset_grows_into_the_whole(tmp_path: Path, uninterrupted: Extraction) -> None:
    whole = data_set()
    part = [3, 140, 7, 99, 20]
    rows = whole["train"]
    subset = Rows([rows.ids[i] for i in part], [rows.inputs[i] for i in part], rows.labels[part])
    first = run(tmp_path, {"train": subset})
    assert (first.rows, first.resumed_rows, first.store.n_rows) == (5, 0, 5)
    done = run(tmp_path)
    assert (done.rows, done.resumed_rows, done.store.path) == (190, 5, first.store.path)
    for split, expected in whole.items():
        np.testing.assert_array_equal(
            done.store.read(split, expected.ids).features, uninterrupted.store.read(split).features
        )
    again = run(tmp_path, {"train": subset})
    assert (again.rows, again.resumed_rows, again.store.n_rows) == (5, 5, 190)
    assert again.truncated_fraction == first.truncated_fraction


def test_other_data_or_another_backbone_have_their_own_store(tmp_path: Path) -> None:
    stores = {
        run(tmp_path).store.path,
        run(tmp_path, data_fingerprint={"sha256": "other"}).store.path,
        run(tmp_path, extractor=ToyText(25)).store.path,
    }
    assert len(stores) == 3


def test_rows_that_changed_under_an_unchanged_fingerprint_are_noticed(tmp_path: Path) -> None:
    run(tmp_path)
    splits = data_set()
    labels = splits["train"].labels.copy()
    labels[5] = 1 - labels[5]
    changed = splits | {"train": Rows(splits["train"].ids, splits["train"].inputs, labels)}
    with pytest.raises(InputError, match=r"row 'train/00005' .* the data changed"):
        run(tmp_path, changed)
    with pytest.raises(InputError, match=r"row 'train/00000' is stored .* as \('train'"):
        run(tmp_path, {"test": splits["train"]})
    with pytest.raises(InputError, match="'train/00000' occurs twice"):
        run(tmp_path, {"train": splits["train"], "test": splits["train"]})


def test_skipped_rows_are_remembered_and_still_fail_when_asked_to(tmp_path: Path) -> None:
    rows = text_rows("train", 40)
    inputs: list[Any] = list(rows.inputs)
    inputs[3], inputs[30] = None, 7
    splits = {"train": Rows(rows.ids, inputs, rows.labels)}
    with pytest.raises(InputError, match="row 'train/00003' cannot be encoded"):
        run(tmp_path, splits)
    done = run(tmp_path, splits, on_bad_row="skip")
    assert [row.id for row in done.skipped] == ["train/00003", "train/00030"]
    assert (done.rows, done.store.n_rows, done.resumed_rows) == (38, 38, 0)
    again = run(tmp_path, splits, on_bad_row="skip")
    assert (again.rows, again.resumed_rows, again.skipped) == (38, 38, done.skipped)
    with pytest.raises(InputError, match="row 'train/00003' cannot be encoded"):
        run(tmp_path, splits)
    only_good = Rows(rows.ids[10:20], inputs[10:20], rows.labels[10:20])
    assert run(tmp_path, {"train": only_good}).rows == 10
    with pytest.raises(InputError, match="none of the 2 rows can be encoded"):
        run(
            tmp_path / "other",
            {"train": Rows(["a", "b"], [None, 1], np.array([0, 1]))},
            on_bad_row="skip",
        )


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_redone_and_nothing_else(
    tmp_path: Path, uninterrupted: Extraction, harm: str
) -> None:
    store = run(tmp_path).store
    path = store.path / "train-00003.arrow"
    if harm == "remove":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        path.write_bytes(data if harm == "flip" else data[:-200])
    assert len(store.verify()) == 1
    encoded: list[int] = []
    done = run(tmp_path, progress=encoded.append)
    assert (sum(encoded), done.resumed_rows) == (SHARD_ROWS, 190 - SHARD_ROWS)
    assert content(done.store) == content(uninterrupted.store)


def test_a_store_of_another_version_is_left_alone(tmp_path: Path) -> None:
    manifest = run(tmp_path).store.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 3', '"schema_version": 99'))
    before = manifest.read_bytes()
    with pytest.raises(InputError, match=r"newer version of convex-heads \(schema 99"):
        run(tmp_path)
    assert manifest.read_bytes() == before


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="shard_rows must be at least 1"):
        run(Path("/nowhere"), shard_rows=0)
    with pytest.raises(InputError, match="2 ids, 1 inputs and 2 labels"):
        Rows(["a", "b"], ["x"], np.array([0, 1]))
    with pytest.raises(InputError, match="vector of integers"):
        Rows(["a"], ["x"], np.array([0.5]))
