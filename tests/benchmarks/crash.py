"""Kills extraction and compaction at random moments (kill -9), damages stores, compares the ends.

One store is extracted by a chain of processes, each killed at a random moment, until `--kills` have
died; the next one finishes it. After every death the store must verify. At the end every file of it
must be equal to that of an uninterrupted extraction. The same for compaction. Then a shard is
truncated, altered or removed, the manifest is lost, or it comes from a later version: each must be
named, healthy rows must stay, and the next extraction must redo the bad shard only. Exits with 1
where one fails.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from extractors import FeatureStore, InputError, Rows
from extractors.cache import compact
from extractors.extract import Extraction, extract
from extractors.toy import ToyText

SHARD_ROWS = 16
Row = dict[str, Any]

CHILD = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import crash
from extractors.cache import compact
cache, action, rows, dtype = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
crash.data(rows)
with tempfile.TemporaryDirectory() as name:  # everything is imported, the backbone is made
    compact(crash.run(Path(name), 40, dtype).store.path)
print("ready", flush=True)
if action == "extract":
    crash.run(cache, rows, dtype)
else:
    compact(cache, shard_bytes=20_000)
"""


def data(n: int) -> dict[str, Rows]:
    """Texts of one to forty words, the same in every process."""
    rng = np.random.default_rng(n)
    words = np.array(["a", "fine", "dull", "film", "that", "nobody", "would", "want", "to", "miss"])
    texts = [" ".join(words[rng.integers(0, 10, rng.integers(1, 40))]) for _ in range(n)]
    ids = [f"row/{i:06d}" for i in range(n)]
    labels = rng.integers(0, 2, n)
    cut = n - n // 5
    return {
        "train": Rows(ids[:cut], texts[:cut], labels[:cut]),
        "test": Rows(ids[cut:], texts[cut:], labels[cut:]),
    }


def run(cache: Path, rows: int, dtype: Any) -> Extraction:
    """Extract the data into a cache."""
    return extract(
        data(rows),
        ToyText(64),
        task="crash",
        classes=("no", "yes"),
        data_fingerprint={"rows": rows},
        cache_dir=cache,
        shard_rows=SHARD_ROWS,
        dtype=dtype,
    )


def content(folder: Path) -> dict[str, bytes]:
    """All files of a store; of the manifest what does not depend on clocks."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
    manifest = json.loads(found["manifest.json"])
    del manifest["sha256"]  # of clocks, too
    for shard in manifest["shards"]:
        del shard["seconds"]
    found["manifest.json"] = json.dumps(manifest, sort_keys=True).encode()
    return found


def kill_at(moment: float, folder: Path, action: str, rows: int, dtype: str) -> bool:
    """Start the action in a process and kill it so many seconds later; False: it was done first."""
    arguments = [str(Path(__file__).parent), str(folder), action, str(rows), dtype]
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(moment)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def kill_extractions(place: Path, kills: int, rows: int, dtype: str, rng: Any) -> Row:
    """A chain of extractions into one store."""
    began = time.perf_counter()
    expected = run(place / "whole", rows, dtype)
    span = (time.perf_counter() - began) / kills  # so that the chain ends about when the data do
    cache = place / "killed"
    dead = early = half = unlisted = 0
    problems: list[str] = []
    while dead < kills:
        if not kill_at(rng.uniform(0, 1.5 * span), cache, "extract", rows, dtype):
            shutil.rmtree(cache)  # it was faster than its killer: once more from nothing
            early += 1
            continue
        dead += 1
        for folder in (cache / "stores").iterdir() if (cache / "stores").is_dir() else ():
            if (folder / "manifest.json").exists():
                store = FeatureStore.open(folder)
                problems += store.verify()
                listed = {shard.file for shard in store.manifest.shards}
                names = {path.name for path in folder.iterdir()}
                half += any(name.startswith(".writing-") for name in names)
                unlisted += any(name.endswith(".arrow") for name in names - listed)
    done = run(cache, rows, dtype)
    same = content(done.store.path) == content(expected.store.path)
    return {
        "action": f"extract, {dtype}",
        "killed": dead,
        "finished first": early,
        "half a file left": half,
        "unlisted shard left": unlisted,
        "rows": rows,
        "kept": done.resumed_rows,
        "equal": "yes" if same and not problems else f"NO {problems[:1]}",
    }


def kill_compactions(place: Path, kills: int, rows: int, dtype: str, rng: Any) -> Row:
    """Compactions of copies of one store; each is done again to its end."""
    source = run(place / "source", rows, dtype).store.path
    whole = place / "compacted"
    shutil.copytree(source, whole)
    began = time.perf_counter()
    compact(whole, shard_bytes=20_000)
    span = time.perf_counter() - began
    dead = early = half = unlisted = 0
    equal = True
    while dead < kills:
        folder = place / f"compact-{dead + early}"
        shutil.copytree(source, folder)
        if not kill_at(rng.uniform(0, span), folder, "compact", rows, dtype):
            early += 1
        else:
            dead += 1
            store = FeatureStore.open(folder)
            names = {path.name for path in folder.iterdir()}
            half += any(name.startswith(".writing-") for name in names)
            listed = {shard.file for shard in store.manifest.shards}
            unlisted += any(name.endswith(".arrow") for name in names - listed)
            equal &= store.verify() == [] and store.n_rows == rows
            compact(folder, shard_bytes=20_000)
        equal &= content(folder) == content(whole)
    return {
        "action": f"compact, {dtype}",
        "killed": dead,
        "finished first": early,
        "half a file left": half,
        "unlisted shard left": unlisted,
        "rows": rows,
        "kept": rows,
        "equal": "yes" if equal else "NO",
    }


def damage(place: Path, rows: int, harm: str) -> Row:
    """Harm a store in one way; see whether it is named, and what the next extraction redoes."""
    whole = run(place / "whole", rows, "float32").store.path
    store = run(place / harm, rows, "float32").store
    shard = store.path / "train-00002.arrow"
    bytes_ = bytearray(shard.read_bytes())
    if harm == "truncated":
        shard.write_bytes(bytes_[:-100])
    elif harm == "flipped byte":
        bytes_[len(bytes_) // 2] ^= 1
        shard.write_bytes(bytes_)
    elif harm == "missing":
        shard.unlink()
    elif harm == "lost manifest":
        (store.path / "manifest.json").unlink()
        done = run(place / harm, rows, "float32")
        equal = content(store.path) == content(whole) and done.resumed_rows == rows
        named = f"rebuilt from {done.rebuilt} shards"
        return {"harm": harm, "named": named, "kept": rows, "equal": "yes" if equal else "NO"}
    else:
        path = store.path / "manifest.json"
        sane = path.read_bytes()
        path.write_text(json.dumps(json.loads(sane) | {"schema_version": 99}))
        try:
            run(place / harm, rows, "float32")
            named = "not named"
        except InputError as error:
            named = str(error).replace(str(store.path), "STORE")
        untouched = json.loads(path.read_bytes())["schema_version"] == 99
        path.write_bytes(sane)
        equal = untouched and content(store.path) == content(whole) and "newer version" in named
        return {"harm": harm, "named": named, "kept": rows, "equal": "yes" if equal else "NO"}
    (named,) = FeatureStore.open(store.path).verify()
    done = run(place / harm, rows, "float32")
    equal = shard.name in named and content(store.path) == content(whole)
    equal &= done.resumed_rows == rows - SHARD_ROWS
    return {
        "harm": harm,
        "named": named,
        "kept": done.resumed_rows,
        "equal": "yes" if equal else "NO",
    }


def main() -> None:
    """The command line."""
    from shared import parser, show  # it loads JAX, which the processes that die can do without

    command = parser(__doc__)
    add = command.add_argument
    add("--kills", type=int, default=30, help="of each action")
    add("--rows", type=int, default=6000, help="rows of the data")
    add("--dtypes", nargs="+", default=["float32", "int8"], help="of the features")
    add("--seed", type=int, default=0, help="of the moments")
    options = command.parse_args()
    rng = np.random.default_rng(options.seed)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for dtype in options.dtypes:
            place = Path(name) / dtype
            rows.append(kill_extractions(place, options.kills, options.rows, dtype, rng))
        compacted = Path(name) / "compact"
        rows.append(kill_compactions(compacted, options.kills, options.rows // 2, "float32", rng))
        harms = ("truncated", "flipped byte", "missing", "lost manifest", "future manifest")
        damaged = [damage(Path(name) / "harm", 100, harm) for harm in harms]
    file, options.json = options.json, None
    show("killed with kill -9 at random moments", rows, options)
    print()
    show("damaged on disk", damaged, options)
    if file is not None:
        file.write_text(json.dumps({"killed": rows, "damaged": damaged}, indent=1) + "\n", "utf-8")
    sys.exit(any(row["equal"] != "yes" for row in [*rows, *damaged]))


if __name__ == "__main__":
    main()
