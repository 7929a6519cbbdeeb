"""Extraction by workers of a real local Ray: the store of one process, whoever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extractors import FeatureStore, InputError, MachineError, Rows, load_extractor
from extractors.distributed import RayEngine
from extractors.extract import Extraction, extract
from extractors.toy import ToyText
from tasks.cli import main

REPOSITORY = Path(__file__).parents[1]
SHARD_ROWS = 16


class LeisurelyToy(ToyText):
    """Leaves its process id behind and takes a moment for every shard."""

    def __init__(self, folder: Path) -> None:
        super().__init__(24)
        self.folder = folder

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        mark = self.folder / f"{os.getpid()}-{time.monotonic_ns()}"
        mark.touch()
        time.sleep(0.2)
        return super().encode(prepared)


def data_set(n: int = 200) -> dict[str, Rows]:
    rng = np.random.default_rng(0)
    words = np.array(["a", "fine", "dull", "film", "that", "nobody", "would", "want", "to", "miss"])
    texts = [" ".join(rng.choice(words, rng.integers(1, 100))) for _ in range(n)]
    ids = [f"row/{i:04d}" for i in range(n)]
    labels = rng.integers(0, 2, n)
    return {
        "train": Rows(ids[:-40], texts[:-40], labels[:-40]),
        "test": Rows(ids[-40:], texts[-40:], labels[-40:]),
    }


def run(cache: Path, engine: RayEngine | None = None, **options: Any) -> Extraction:
    settings: dict[str, Any] = {
        "splits": data_set(),
        "extractor": ToyText(24),
        "task": "demo",
        "classes": ("no", "yes"),
        "data_fingerprint": {"sha256": "demo"},
        "cache_dir": cache,
        "shard_rows": SHARD_ROWS,
    }
    return extract(**(settings | options), engine=engine)


def content(store: FeatureStore) -> list[tuple[str, str, int, str]]:
    assert store.verify() == []
    return [(s.file, s.split, s.rows, s.sha256) for s in store.manifest.shards]


def test_without_ray_the_sentence_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    data = tmp_path / "own.csv"
    data.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    arguments = ["extract", str(data), "--backbone", "toy:text-8", "--cache-dir", str(tmp_path)]
    assert main([*arguments, "--engine", "ray", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'convex-heads[ray]'" in error and error.count("\n") == 1
    assert not list(tmp_path.glob("stores/*"))
    assert main([*arguments, "--workers", "3"]) == 2
    assert "--workers is for --engine ray" in capsys.readouterr().err
    assert main([*arguments, "--engine", "ray", "--workers", "0"]) == 2
    assert "--workers 0: must be at least 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray with room for two workers; stopped at the end."""
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_the_store_is_that_of_one_process_although_a_worker_is_killed(ray, tmp_path, capsys):
    alone = run(tmp_path / "alone")
    marks = tmp_path / "marks"
    marks.mkdir()
    killed: list[int] = []

    def progress(_: int) -> None:
        workers = sorted({int(mark.name.split("-")[0]) for mark in marks.iterdir()})
        if not killed and len(workers) == 2:
            os.kill(workers[0], signal.SIGKILL)
            killed.extend(workers)

    engine = RayEngine(partial(LeisurelyToy, marks), workers=2, threads=1)
    done = run(tmp_path / "ray", engine, progress=progress)
    assert killed and not capsys.readouterr().out
    used = {int(mark.name.split("-")[0]) for mark in marks.iterdir()}
    assert len(used) == 3  # the two, and the one that came for the dead
    assert done.store.path.name == alone.store.path.name  # the same fingerprint
    assert content(done.store) == content(alone.store)  # the same shards, byte by byte
    for split in ("train", "test"):
        a, b = alone.store.read(split), done.store.read(split)
        assert a.ids == b.ids and np.array_equal(a.features, b.features)


@pytest.mark.slow
def test_a_killed_driver_loses_nothing_that_was_written(tmp_path):
    pytest.importorskip("ray")
    marks, cache = tmp_path / "marks", tmp_path / "cache"
    marks.mkdir()
    code = (
        "from functools import partial; from pathlib import Path\n"
        "from test_distributed import LeisurelyToy, RayEngine, run\n"
        "if __name__ == '__main__':\n"
        f"    make = partial(LeisurelyToy, Path({str(marks)!r}))\n"
        f"    run(Path({str(cache)!r}), RayEngine(make, workers=2, threads=1))\n"
    )
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    try:
        deadline = time.monotonic() + 120
        while len(list(cache.glob("stores/*/*.arrow"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    store = FeatureStore.open(next(cache.glob("stores/*")))
    written = content(store)
    assert 3 <= len(written) < 13
    done = run(cache)
    assert done.resumed_rows == sum(rows for *_, rows, _ in written)
    assert content(done.store)[: len(written)] == written
    assert content(done.store) == content(run(tmp_path / "alone").store)


@pytest.mark.slow
def test_only_what_is_missing_is_encoded_by_ray(ray, tmp_path):
    splits = data_set()
    run(tmp_path / "grown", splits={"train": splits["train"]})
    engine = RayEngine(partial(load_extractor, "toy:text-24"), threads=1)
    done = run(tmp_path / "grown", engine, splits=splits)
    assert done.resumed_rows == 160
    assert content(done.store) == content(run(tmp_path / "alone").store)
    again = run(tmp_path / "grown", engine, splits=splits)
    assert again.resumed_rows == 200


@pytest.mark.slow
def test_faults_come_back_as_one_sentence(ray, tmp_path):
    splits = data_set()
    spoilt = Rows(splits["train"].ids, [*splits["train"].inputs[:-1], 7], splits["train"].labels)  # type: ignore[list-item]
    engine = RayEngine(partial(ToyText, 24), threads=1)
    with pytest.raises(InputError, match="row 'row/0159' cannot be encoded"):
        run(tmp_path / "bad", engine, splits={"train": spoilt})
    done = run(tmp_path / "bad", engine, splits={"train": spoilt}, on_bad_row="skip")
    assert [row.id for row in done.skipped] == ["row/0159"]
    with pytest.raises(MachineError, match="a worker finds another toy:text-25"):
        run(tmp_path / "other", RayEngine(partial(ToyText, 25), threads=1))
    with pytest.raises(InputError, match="the job would hang"):
        run(tmp_path / "many", RayEngine(partial(ToyText, 24), workers=4, threads=1))


@pytest.mark.slow
def test_the_command_line_fills_the_same_store(tmp_path, capsys):
    pytest.importorskip("ray")
    for name, extra in (("alone", []), ("ray", ["--engine", "ray", "--workers", "2"])):
        command = ["extract", "digits", "--backbone", "toy:image-32", "--train-rows", "600"]
        command += ["--test-rows", "100", "--cache-dir", str(tmp_path / name), "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "tasks.cli", *command, *extra],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "arning" not in done.stderr and "core_worker" not in done.stderr, done.stderr
        assert done.stdout.count("\n") == 1
    stores = [
        FeatureStore.open(next((tmp_path / name).glob("stores/*"))) for name in ("alone", "ray")
    ]
    assert stores[0].path.name == stores[1].path.name
    assert content(stores[0]) == content(stores[1])
