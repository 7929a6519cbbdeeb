"""Whole stores: merged, listed, removed; by one writer, beside any number of readers."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_text_model

from extractors import FeatureStore, InputError, MachineError
from extractors.cache import compact, find_store, list_stores, remove
from extractors.codec import DTYPES
from extractors.manifest import Manifest
from extractors.shard import StoredRows
from extractors.storage import exclusive_lock

REPOSITORY = Path(__file__).parents[1]
DIM = 6


def manifest(dtype: str = "float32") -> Manifest:
    return Manifest(
        fingerprint={"data": {"sha256": "d"}, "extractor": {}, "storage": dtype},
        task="demo",
        backbone="toy:text-6",
        modality="text",
        dim=DIM,
        classes=("no", "yes"),
        max_length=10,
        dtype=dtype,
    )


def some_rows(start: int, n: int) -> StoredRows:
    rng = np.random.default_rng(start)
    return StoredRows(
        [f"row/{i:04d}" for i in range(start, start + n)],
        rng.integers(0, 2, n),
        rng.standard_normal((n, DIM), dtype=np.float32),
        rng.integers(1, 20, n).astype(np.int32),
    )


def make(folder: Path, dtype: str = "float32") -> FeatureStore:
    """12 train shards of 5 rows and 3 test shards of 2."""
    with FeatureStore.writer(folder, manifest(dtype)) as writer:
        for i in range(12):
            writer.append("train", some_rows(5 * i, 5), seconds=0.5)
        for i in range(3):
            writer.append("test", some_rows(500 + 2 * i, 2), seconds=0.25)
    return FeatureStore.open(folder)


def same_rows(first: FeatureStore, second: FeatureStore) -> None:
    assert first.splits == second.splits
    for split in first.splits:
        one, two = first.read(split), second.read(split)
        assert one.ids == two.ids
        for a, b in zip(one[1:], two[1:], strict=True):
            np.testing.assert_array_equal(a, b)


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


# ---- the command line ----------------------------------------------------------------------------


def test_the_verb_cache_lists_verifies_compacts_and_removes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.cli import main

    monkeypatch.setenv("COLUMNS", "160")

    def cache(*arguments: str) -> tuple[int, str, str]:
        code = main(["cache", *arguments, "--cache-dir", str(tmp_path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    assert cache("ls") == (0, "", "note: there are no stores; `convex-heads extract` makes one\n")
    good, bad = (make(tmp_path / "stores" / name) for name in ("good", "bad"))
    (bad.path / "train-00007.arrow").unlink()
    code, out, _ = cache("ls", "--json")
    lines = json.loads(out)["stores"]
    assert (code, [line["name"] for line in lines]) == (0, ["bad", "good"])
    assert (lines[1]["rows"], lines[1]["shards"], lines[1]["dtype"]) == (66, 15, "float32")
    assert lines[1]["bytes_per_row"] == pytest.approx(good.n_bytes / 66, abs=0.1)
    code, out, err = cache("verify")
    assert code == 2
    assert re.search(r"bad .*train-00007\.arrow: missing", out)
    assert re.search(r"good .*whole", out)
    assert err.startswith("error: 1 of 2 stores need care, bad: train-00007.arrow: missing")
    assert len(err.splitlines()) == 1
    code, out, _ = cache("compact", "go")
    assert (code, FeatureStore.open(good.path).manifest.generation) == (0, 1)
    assert cache("compact", "bad")[0] == 2
    code, out, _ = cache("rm", "bad", str(good.path))
    assert code == 0
    assert re.fullmatch(r"removed bad \(0\.0 MB\)\nremoved good \(0\.0 MB\)\n", out)
    assert list((tmp_path / "stores").iterdir()) == []


def test_the_verb_cache_lists_and_removes_what_is_beside_the_stores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from extractors import load_extractor
    from extractors.blocks import CutBackbone
    from tasks.activations import activation_folder, cached_rows
    from tasks.cli import main

    def cache(*arguments: str) -> tuple[int, str, str]:
        code = main(["cache", *arguments, "--cache-dir", str(tmp_path), "--json"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    make(tmp_path / "stores" / "reviews")
    texts, labels = ["a fine film", "a dull day"], np.array([1, 0])
    model = save_text_model("bert", tmp_path / "model")
    cut = CutBackbone(load_extractor(f"hf:{model}", device="cpu"), 1, texts)
    folders = [activation_folder(tmp_path, cut, ["a", "b"], {"n": n}) for n in (1, 2)]
    for folder in folders:
        rows = cached_rows(cut, texts, labels, folder)
    (folders[0].with_name(".writing-1-abc")).mkdir()
    lines = json.loads(cache("ls")[1])["stores"]
    assert [line["kind"] for line in lines] == ["store"] + 3 * ["activations"]
    assert "left by a crash" in lines[1]["problems"][0]
    width = rows.activations(0).shape[1]
    vectors = rows.length(0) + rows.length(1)
    for line in lines[2:]:
        assert (line["rows"], line["dim"], line["problems"]) == (vectors, width, [])
        assert line["bytes"] > 4 * vectors * width
    assert len(json.loads(cache("verify")[1])["stores"]) == 1
    assert cache("compact", "activations")[0] == 2
    assert cache("rm", f"activations/{folders[0].name[:9]}")[0] == 0
    assert [folder.exists() for folder in folders] == [False, True]
    before = rows.activations(1)
    assert cache("rm", "activations")[0] == 0
    np.testing.assert_array_equal(rows.activations(1), before)  # whoever has them open reads on
    assert not any((tmp_path / "activations").iterdir())
    code, _, errors = cache("rm", "activations")
    assert code == 2
    assert "there are no 'activations'" in errors


COMPILED = """
import sys
from tasks.cli import main
code = main(sys.argv[1:])
import jax
assert code == 2, code
print(jax.config.jax_compilation_cache_dir)
"""


def test_compiled_code_is_kept_in_the_cache_directory_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.compile_cache import keep_compiled_code

    name = "JAX_COMPILATION_CACHE_DIR"
    environment = {key: value for key, value in os.environ.items() if key != name}
    command = [sys.executable, "-c", COMPILED, "fit", "missing.csv", "--backbone", "toy:text-4"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "here")],
        capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False,
    )  # fmt: skip
    assert Path(done.stdout.strip()).parent == tmp_path / "here" / "compiled"
    monkeypatch.setenv(name, str(tmp_path / "own"))
    keep_compiled_code(tmp_path / "here")
    assert os.environ[name] == str(tmp_path / "own")


def test_the_verb_extract_stores_int8_and_says_what_that_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.cli import main

    table = tmp_path / "reviews.csv"
    rows = [f"a {word} film number {i},{word}" for i in range(20) for word in ("fine", "dull")]
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    arguments = ["extract", str(table), "--backbone", "toy:text-32", "--cache-dir", str(tmp_path)]
    assert main([*arguments, "--store-dtype", "int8", "--json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert record["store_dtype"] == "int8"
    assert 1e-3 < record["storage_error"]["mean"] <= record["storage_error"]["max"] < 2e-2
    assert "features are stored as int8: they differ from float32 by" in captured.err
    store = FeatureStore.open(record["store"])
    assert (store.manifest.dtype, store.verify()) == ("int8", [])
    assert main([*arguments, "--store-dtype", "int4"]) == 2
    assert "--store-dtype int4: must be" in capsys.readouterr().err
