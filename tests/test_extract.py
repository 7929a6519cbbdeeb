"""Extraction: same numbers whatever the batch, the same store whatever happened on the way."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractors import FeatureStore, InputError, MachineError, Rows, load_extractor
from extractors.encode import encode_rows
from extractors.extract import Extraction, extract
from extractors.toy import ToyText

REPOSITORY = Path(__file__).parents[1]
SHARD_ROWS = 16


def text_rows(split: str, n: int) -> Rows:
    rng = np.random.default_rng(n)
    words = np.array(["a", "fine", "dull", "film", "that", "nobody", "would", "want", "to", "miss"])
    texts = [" ".join(rng.choice(words, rng.integers(1, 200))) for _ in range(n)]
    return Rows([f"{split}/{i:05d}" for i in range(n)], texts, rng.integers(0, 2, n))


def data_set() -> dict[str, Rows]:
    return {"train": text_rows("train", 150), "test": text_rows("test", 40)}


def run(cache: Path, splits: dict[str, Rows] | None = None, **options: Any) -> Extraction:
    settings: dict[str, Any] = {
        "task": "demo",
        "classes": ("no", "yes"),
        "data_fingerprint": {"sha256": "demo"},
        "cache_dir": cache,
        "shard_rows": SHARD_ROWS,
    }
    extractor = options.pop("extractor", None) or ToyText(24)
    return extract(splits or data_set(), extractor, **(settings | options))


def content(store: FeatureStore) -> list[tuple[str, str, int, str]]:
    """Everything about a store's shards but the time they took: names, sizes, checksums."""
    assert store.verify() == []
    return [(s.file, s.split, s.rows, s.sha256) for s in store.manifest.shards]


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
    with pytest.raises(InputError, match=r"row 'b' cannot be encoded: .*NoneType.*--on-bad-row"):
        encode_rows(toy, inputs, ids)
    seen: list[int] = []
    encoded = encode_rows(toy, inputs, ids, on_bad_row="skip", progress=seen.append)
    assert encoded.kept.tolist() == [0, 2]
    assert list(encoded.skipped) == ["b", "d"]
    assert encoded.features.shape == (2, toy.dim)
    assert sum(seen) == 4
    nothing = encode_rows(toy, [None], ["b"], on_bad_row="skip")
    assert nothing.features.shape == (0, toy.dim)
    assert encode_rows(toy, [], []).kept.shape == (0,)


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
    labels[5] += 1
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
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 99'))
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


# ---- the machine fails ---------------------------------------------------------------------------

# A child process that extracts the same data set. What happens after N batches is its argument.
CHILD = """
import os, resource, signal, sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import test_extract
from extractors import MachineError

cache, event, after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
batches = 0

def progress(rows):
    global batches
    batches += 1
    if batches != after:
        return
    print("now", flush=True)
    if event == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    elif event == "wait":
        time.sleep(60)

try:
    test_extract.run(cache, progress=progress)
except MachineError as error:
    print(error)
    sys.exit(1)
"""


def child(cache: Path, event: str, after: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(cache), event, str(after)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def only_store(cache: Path) -> FeatureStore:
    (folder,) = (cache / "stores").iterdir()
    return FeatureStore.open(folder)


@pytest.mark.parametrize(
    ("name", "moments"), [("SIGKILL", (4, 2, 3)), ("SIGTERM", (3,)), ("SIGINT", (3,))]
)
def test_a_killed_extraction_resumes_to_the_store_of_an_uninterrupted_one(
    tmp_path: Path, uninterrupted: Extraction, name: str, moments: tuple[int, ...]
) -> None:
    interrupted = 0
    for after in moments:  # one run after another dies in the middle of a shard
        process = child(tmp_path, "wait", after)
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n", process.communicate()
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=300)
        assert process.returncode == -getattr(signal, name), errors
        interrupted += after - 1
        assert len(content(only_store(tmp_path))) == interrupted
    done = run(tmp_path)
    assert done.resumed_rows == interrupted * SHARD_ROWS
    assert content(done.store) == content(uninterrupted.store)
    for split in done.store.splits:
        assert done.store.ids(split) == uninterrupted.store.ids(split)
    assert sorted(p.name for p in done.store.path.iterdir()) == sorted(
        [".lock", "manifest.json", *(shard.file for shard in done.store.manifest.shards)]
    )


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_readable_store(
    tmp_path: Path, uninterrupted: Extraction
) -> None:
    rng = np.random.default_rng(0)
    unfinished = 0
    for attempt in range(12):
        cache = tmp_path / str(attempt)
        process = child(cache, "go on", 1)
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n", process.communicate()
        time.sleep(rng.uniform(0, 0.04))  # into an encoding, a write, a sync or a rename
        process.kill()
        process.communicate()
        unfinished += process.returncode == -signal.SIGKILL
        assert only_store(cache).verify() == []
        assert content(run(cache).store) == content(uninterrupted.store)
    assert unfinished > 3


def test_a_size_limit_in_mid_extraction_costs_no_finished_shard(
    tmp_path: Path, uninterrupted: Extraction
) -> None:
    process = child(tmp_path, "limit", 3)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert errors == ""
    assert "the file size limit is reached" in output.splitlines()[-1]
    assert len(content(only_store(tmp_path))) == 2
    done = run(tmp_path)
    assert done.resumed_rows == 2 * SHARD_ROWS
    assert content(done.store) == content(uninterrupted.store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 40 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    gc.collect()  # a caught error holds frames, and they hold mapped shards
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_sentence_and_the_rest_is_kept(
    small_disk: Path, uninterrupted: Extraction
) -> None:
    with pytest.raises(MachineError, match="the disk is full: free some space") as caught:
        run(small_disk)
    assert "\n" not in str(caught.value)
    stored = content(only_store(small_disk))
    assert 0 < len(stored) < len(content(uninterrupted.store))
    assert not list(only_store(small_disk).path.glob(".writing-*"))
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    done = run(small_disk)
    assert done.resumed_rows == SHARD_ROWS * len(stored)
    assert content(done.store) == content(uninterrupted.store)


def test_a_read_only_disk_is_one_sentence_but_a_whole_store_on_it_is_read(
    small_disk: Path,
) -> None:
    part = {"train": text_rows("train", 20)}
    run(small_disk, part)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run(small_disk, part).resumed_rows == 20
    with pytest.raises(MachineError, match="read-only: choose another --cache-dir"):
        run(small_disk, part | {"test": text_rows("test", 5)})
    with pytest.raises(MachineError, match="read-only: choose another --cache-dir"):
        run(small_disk, part, data_fingerprint={"sha256": "other"})


def test_a_second_extraction_at_the_same_time_gets_a_sentence(
    tmp_path: Path, uninterrupted: Extraction
) -> None:
    process = child(tmp_path, "wait", 2)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "now\n"
        with pytest.raises(MachineError, match=rf"pid {process.pid}\) is writing .* wait"):
            run(tmp_path)
    finally:
        process.kill()
        process.communicate()
    assert content(run(tmp_path).store) == content(uninterrupted.store)
