"""Fits from stores that memory does not hold: the same rows, the same figures, less memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from stores import manifest

from extractors.store import FeatureStore, StoredRows
from tasks.data.leaks import find_leaks
from tasks.memory import free_memory

RNG = np.random.default_rng(0)
SIZES = {"train": 300, "validation": 60, "test": 80}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Three splits of several shards; test row 5 is train row 7, train row 40 is train row 3."""
    new = manifest(dim=8, max_length=16)
    X = {split: RNG.normal(size=(n, 8)).astype("f4") for split, n in SIZES.items()}
    X["train"][40], X["test"][5] = X["train"][3], X["train"][7]
    folder = tmp_path_factory.mktemp("streaming") / "store"
    with FeatureStore.writer(folder, new) as writer:
        for split, features in X.items():
            for part in np.array_split(np.arange(len(features)), 3):
                ids = [f"{split}/{i}" for i in part]
                rows = StoredRows(ids, part % 2, features[part], part.astype("i4"))
                writer.append(split, rows)
    return FeatureStore.open(folder)


@pytest.mark.parametrize("chosen", [None, [7, 299, 0, 120]])
def test_streamed_rows_are_the_rows(store: FeatureStore, chosen: list[int] | None):
    ids = None if chosen is None else [f"train/{i}" for i in chosen]
    read, streamed = store.read("train", ids), store.read("train", ids, streamed=True)
    assert not isinstance(streamed.features, np.ndarray)
    assert (streamed.ids, len(streamed.features)) == (read.ids, len(read.features))
    assert read.tokens is not None and streamed.tokens is not None
    for of, wanted in ((streamed.labels, read.labels), (streamed.tokens, read.tokens)):
        np.testing.assert_array_equal(of, wanted)
    for rows in (slice(None), slice(1, 3), np.array([2, 0, 0])):
        np.testing.assert_array_equal(streamed.features[rows], read.features[rows])


def test_leaks_are_found_among_streamed_rows(store: FeatureStore):
    found = [
        find_leaks({split: store.read(split, streamed=streamed) for split in SIZES})
        for streamed in (False, True)
    ]
    assert found[0].as_record() == found[1].as_record()
    assert found[1].counts["test", "train"] == found[1].counts["train", "train"] == (1, 0)
    np.testing.assert_array_equal(found[0].remove["train"], found[1].remove["train"])


def test_a_limit_of_the_process_is_less_free_memory():
    script = """
        import resource
        from tasks.memory import free_memory
        before = free_memory()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (512 << 20, hard))
        print(before, free_memory())
    """
    if free_memory() is None:
        pytest.skip("free memory is not told here")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    before, limited = map(int, done.stdout.split())
    assert 0 < limited < 512 << 20 <= before


@pytest.mark.slow
def test_the_command_line_fits_a_store_under_a_limit_of_the_operating_system(tmp_path: Path):
    # Features of 184 MB (float32), of which a fit in memory holds five copies, in a process that
    # may take 600 MB more than its imports, compiled code included.
    script = """
        import resource, sys
        import faiss, jax, sklearn.linear_model, tasks.fit
        from tasks.cli import main

        jax.devices()
        status = open("/proc/self/status").read().split()
        used = int(status[status.index("VmData:") + 1]) << 10
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (used + (600 << 20), hard))
        code = main([
            "fit", "large.npy", "--backbone", "precomputed", "--n-gates", "2", "--beta", "0.3",
            "--penalty", "ridge", "--tolerance", "0.1",
            "--store-dtype", "float16", "--no-leak-check", "--json", "--quiet"
        ])
        # The limit is the fit's: libraries that take leave under it may end the process.
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        sys.exit(code)
    """
    if free_memory() is None:
        pytest.skip("limits of data segments are Linux's")
    n, d = 60_000, 768
    X = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.dtype("f2"), (n, d))
    rng = np.random.default_rng(0)
    for start in range(0, n, 10_000):
        X[start : start + 10_000] = rng.standard_normal((10_000, d), np.float32)
    np.save(tmp_path / "large.labels.npy", (X[:, 0] + 0.3 * np.abs(X[:, 1]) > 0.2).astype(int))
    del X
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        # Arrow's own allocator would take a gigabyte of address space at once.
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout)
    assert record["relative_gap"] <= 0.1 and record["test_accuracy"] > 0.75
    assert record["n_train"] + record["n_validation"] + record["n_test"] == n
    assert any("linear probe was fitted on all rows" in note for note in record["notes"])
    assert record["linear_probe_test_accuracy"] > 0.9
