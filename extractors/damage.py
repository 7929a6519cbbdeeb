"""What is wrong with a store: shards against what the manifest notes of them, and against it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from extractors.errors import InputError
from extractors.fingerprint import file_sha256
from extractors.manifest import Manifest, Shard
from extractors.provenance import ABOUT
from extractors.shard import Block

MISSING = "missing"


def examine(folder: Path, manifest: Manifest) -> tuple[Manifest, dict[str, str]]:
    """Read every byte of every listed shard.

    Args:
        folder: of the store.
        manifest: as it was when the store was opened.

    Returns:
        The manifest that was compared with, and by file name what is wrong with a shard. It is a
        newer one of the same store where a writer merged shards in the meantime: what was missing
        was there under another name.

    Raises:
        InputError: a shard that may not be read.
    """
    while True:
        found = {
            shard.file: problem
            for shard in manifest.shards
            if (problem := _problem(folder, manifest, shard))
        }
        if MISSING not in found.values():
            return manifest, found
        try:
            now = Manifest.read(folder)
        except InputError:
            return manifest, found
        if now == manifest or now.key != manifest.key:
            return manifest, found
        manifest = now


def contradictions(folder: Path, manifest: Manifest) -> list[str]:
    """Where whole shards say of themselves or of their store what the manifest does not.

    The manifest has its own checksum, but those of older versions have none.
    """
    found = []
    store = json.loads(json.dumps(asdict(manifest)))
    for shard in manifest.shards:
        try:
            block = Block(folder / shard.file)
        except FileNotFoundError:  # merged since it was found whole
            continue
        about = json.loads((block.batch.schema.metadata or {}).get(ABOUT, b"{}"))
        own = json.loads(json.dumps(asdict(shard)))
        for said, noted in ((about.get("store", {}), store), (about.get("shard", {}), own)):
            found += [
                f"{shard.file}: the manifest notes another {name} than the shard itself"
                for name, value in said.items()
                if name in noted and noted[name] != value
            ]
        if set(block.batch["split"].to_pylist()) != {shard.split}:
            found.append(f"{shard.file}: its rows are not of the split {shard.split}")
    return found


def _problem(folder: Path, manifest: Manifest, shard: Shard) -> str | None:
    path = folder / shard.file
    try:
        if not path.is_file():
            return MISSING
        if (size := path.stat().st_size) != shard.bytes:
            return f"{size} bytes instead of {shard.bytes}"
        if file_sha256(path) != shard.sha256:
            return "altered (its checksum differs)"
        return _misfit(path, manifest, shard)
    except FileNotFoundError:
        return MISSING
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return MISSING
        raise


def _misfit(path: Path, manifest: Manifest, shard: Shard) -> str | None:
    """What the manifest says of a shard against what the file itself says."""
    block = Block(path)
    if len(block) != shard.rows:
        return f"{len(block)} rows instead of {shard.rows}"
    width, dtype = block.encoded.shape[1], str(block.encoded.dtype)
    if (width, dtype) != (manifest.dim, manifest.dtype):
        return f"{width} x {dtype} per row instead of {manifest.dim} x {manifest.dtype}"
    if shard.offset not in (None, block.offset):
        return f"its features begin at byte {block.offset}, not {shard.offset}"
    return None
