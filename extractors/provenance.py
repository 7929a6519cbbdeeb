"""What a shard says of itself and of its store, so that it can be believed without the manifest.

Two entries in the metadata of its Arrow schema: ``convex-heads`` is JSON of everything in the
manifest that this shard is part of (not of what depends on clocks, so that equal shards are equal
files), ``convex-heads-proof`` the sha256 of the whole file in which that very sum is written as
zeros. Readers of plain Arrow do not notice them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from extractors.manifest import Manifest, Shard
from extractors.mapped import Mapped

# Of what a shard says. It has a number of its own, for manifests may change where shards do not.
SHARD_SCHEMA = 2
ABOUT, PROOF = b"convex-heads", b"convex-heads-proof"
_SIGN = b"sha256 with zeros here: "
_ZEROS = _SIGN + b"0" * 64
# Where a shard ends up, or what depends on a clock: not in the file itself.
_NOT_OF_A_SHARD = {"bytes", "sha256", "offset", "seconds"}
_COLUMNS = ["id", "label", "split", "tokens", "features"]
_NOT_OF_A_STORE = {"shards", "skipped", "measured"}


def describe(manifest: Manifest, shard: Shard) -> dict[bytes, bytes]:
    """The metadata of a shard that is about to be written, its proof still to be filled in.

    Args:
        manifest: of the store, with or without the shard.
        shard: its name, split, rows, and what is known of them.
    """
    splits = (*manifest.splits, shard.split)
    bare = replace(manifest, shards=(), skipped=())  # they may be thousands
    about = {
        "schema_version": SHARD_SCHEMA,
        "store": {k: v for k, v in asdict(bare).items() if k not in _NOT_OF_A_STORE},
        # Token counts are in the rows; what was measured beside them is nowhere else.
        "measured": {k: v for k, v in manifest.measured.items() if k != "tokens"},
        "splits": splits[: splits.index(shard.split) + 1],
        "shard": {
            k: v
            for k, v in asdict(shard).items()
            # Only merged shards have parts: all others stay the files that they always were.
            if k not in _NOT_OF_A_SHARD and not (k == "parts" and not v)
        },
    }
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return {ABOUT: text.encode("utf-8", "surrogatepass"), PROOF: _ZEROS}


def seal(content: memoryview) -> memoryview:
    """The file content of a shard with its proof filled in; content: as ``describe`` left it.

    Example:
        >>> start = bytes(4) + len(_ZEROS).to_bytes(4, "little")
        >>> bytes(seal(memoryview(start + _ZEROS)))[-64:] == b"0" * 64
        False
    """
    place = _place(content, _ZEROS)
    assert place is not None, "no proof was asked for, or two"
    sealed = bytearray(content)
    sealed[place : place + 64] = hashlib.sha256(content).hexdigest().encode()
    return memoryview(sealed)


def read_proven(path: Path) -> tuple[Mapping[str, Any], Shard] | None:
    """What a shard says of itself, if not a bit of the file has changed since it was written.

    Returns:
        What ``describe`` noted, and the shard as a manifest lists it (with 0 seconds). None where
        the file is damaged, renamed, or from before shards said anything.
    """
    import pyarrow as pa

    try:
        mapped = Mapped(path)
        buffer = mapped.buffer()
        content = memoryview(buffer)
        with pa.ipc.open_stream(buffer) as stream:
            noted = stream.schema.metadata or {}
        place = _place(content, noted[PROOF])
        about = json.loads(noted[ABOUT].decode("utf-8", "surrogatepass"))
        if place is None or not _is_whole(content, place) or about["shard"]["file"] != path.name:
            return None
        own = dict(about["shard"])
        return about, Shard(
            **{**own, "parts": tuple(own.get("parts", ()))},
            bytes=mapped.size,
            sha256=hashlib.sha256(content).hexdigest(),
            seconds=0.0,
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def is_ours(path: Path) -> bool:
    """Whether a file is a shard, whole or not: by what its schema says, whatever its name is."""
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(Mapped(path).buffer()) as stream:
            schema = stream.schema
    except (OSError, ValueError, pa.ArrowException):
        return False
    # The oldest shards say nothing of themselves, but nobody else has these columns.
    return ABOUT in (schema.metadata or {}) or schema.names[: len(_COLUMNS)] == _COLUMNS


def _place(content: memoryview, proof: bytes) -> int | None:
    """Where the sum is written, in the part before the rows; None: nowhere, or twice."""
    start = bytes(content[: _end_of_schema(content)])
    first = start.find(proof)
    if len(proof) != len(_ZEROS) or first < 0 or start.find(proof, first + 1) >= 0:
        return None
    return first + len(_SIGN)


def _end_of_schema(content: memoryview) -> int:
    """The bytes of an Arrow stream before its rows: a marker, a length, so many bytes."""
    return 8 + int.from_bytes(content[4:8], "little")


def _is_whole(content: memoryview, place: int) -> bool:
    digest = hashlib.sha256(content[:place])
    digest.update(b"0" * 64)
    digest.update(content[place + 64 :])
    return bytes(content[place : place + 64]) == digest.hexdigest().encode()
