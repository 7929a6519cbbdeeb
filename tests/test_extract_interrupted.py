"""Extraction on a machine that fails: kills, full and read-only disks, a second writer."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from extractions import SHARD_ROWS, content, run, text_rows

from extractors import FeatureStore, MachineError
from extractors.extract import Extraction

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Extraction:
    return run(tmp_path_factory.mktemp("uninterrupted"))


# A child process that extracts the same data set. What happens after N batches is its argument.
CHILD = """
import os, resource, signal, sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import extractions
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
    extractions.run(cache, progress=progress)
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
    with pytest.raises(MachineError, match="read-only: choose another cache_dir"):
        run(small_disk, part | {"test": text_rows("test", 5)})
    with pytest.raises(MachineError, match="read-only: choose another cache_dir"):
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
