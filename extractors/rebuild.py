"""A manifest that was lost or damaged, written again from what the shards say of themselves.

Only shards whose own checksum holds count, and only if all are of one store and no row is in two
of them: then what is rebuilt is what was there, but for the seconds that encoding took (0 now) and
the list of rows that could not be encoded (they are tried again). Everything else is extracted
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from extractors.errors import InputError
from extractors.manifest import (
    MANIFEST_NAME,
    SHARD_NAME,
    DamagedManifest,
    Manifest,
    Shard,
)
from extractors.provenance import SHARD_SCHEMA, read_proven
from extractors.shard import Block
from extractors.storage import exclusive_lock
from extractors.store import FeatureStore
from extractors.tokens import histogram_of
from extractors.writer import LOCK_NAME

Proven = tuple[Any, Shard]


def rebuild_manifest(folder: Path) -> int:
    """Write the manifest of a store anew where it is lost or damaged.

    Args:
        folder: of a store; one that is whole, or not there, is left alone.

    Returns:
        How many shards the new manifest lists; 0 where nothing was to do, or nothing was left.

    Raises:
        InputError: a damaged manifest whose shards do not tell what was in it, or shards of
            several stores. Nothing was changed.
        MachineError: another process is writing, or the disk refuses.

    Example:
        >>> rebuild_manifest(Path("/no/such/store"))
        0
    """
    if _state(folder) is None:
        return 0
    with exclusive_lock(folder / LOCK_NAME, what=f"the store {folder}"):
        state = _state(folder)  # somebody may have been quicker
        if state is None:
            return 0
        proven = [
            found
            for path in sorted(folder.iterdir())
            if SHARD_NAME.fullmatch(path.name) and (found := read_proven(path))
        ]
        if not proven:
            if isinstance(state, DamagedManifest):
                raise InputError(
                    f"{folder / MANIFEST_NAME} is damaged, and no shard beside it can be proven "
                    f"to be whole: delete {folder} and extract again"
                ) from state
            return 0
        manifest = _manifest(folder, proven)
        manifest.write(folder)
        return len(manifest.shards)


def _state(folder: Path) -> DamagedManifest | str | None:
    """What is wrong with a manifest; None where it is whole, or there is no store at all."""
    if not (folder / MANIFEST_NAME).exists():
        there = folder.is_dir() and any(folder.glob("*.arrow"))
        return "lost" if there else None
    try:
        Manifest.read(folder)
    except DamagedManifest as error:
        return error
    return None


def _manifest(folder: Path, proven: Sequence[Proven]) -> Manifest:
    if any(about["schema_version"] > SHARD_SCHEMA for about, _ in proven):
        raise InputError(
            f"the shards in {folder} were written by a newer version of convex-heads: upgrade "
            "convex-heads, or choose another --cache-dir"
        )
    # A crash while shards were merged, or just after, leaves those of two generations.
    by_generation: dict[int, list[Proven]] = {}
    for about, shard in proven:
        by_generation.setdefault(about["store"]["generation"], []).append((about, shard))
    rows = {
        number: _ids(folder, [shard for _, shard in found])
        for number, found in by_generation.items()
    }
    chosen = max(rows, key=lambda number: (len(rows[number]), number))
    if any(not ids <= rows[chosen] for ids in rows.values()):
        raise _unclear(folder, "shards of before and after they were merged hold different rows")
    found = by_generation[chosen]
    store = found[0][0]["store"]
    if any(about["store"] != store for about, _ in found):
        raise _unclear(folder, "its shards belong to several stores")
    place = {split: i for about, _ in found for i, split in enumerate(about["splits"])}
    shards = sorted(
        (shard for _, shard in found), key=lambda s: (place[s.split], s.split, s.number)
    )
    measured = {name: value for about, _ in found for name, value in about["measured"].items()}
    manifest = Manifest(
        **{**store, "classes": tuple(store["classes"])}, shards=tuple(shards), measured=measured
    )
    opened = FeatureStore(folder, manifest)
    noted = [
        replace(shard, offset=block.offset)
        for split in manifest.splits
        for shard, block in zip(
            (shard for shard in shards if shard.split == split), opened.blocks(split), strict=True
        )
    ]
    if tokens := histogram_of(opened).statistics(manifest.max_length):
        measured["tokens"] = tokens
    return replace(manifest, shards=tuple(noted))


def _ids(folder: Path, shards: Sequence[Shard]) -> set[str]:
    ids = [name for shard in shards for name in Block(folder / shard.file).ids]
    if len(set(ids)) < len(ids):
        raise _unclear(folder, "a row is in two of its shards")
    return set(ids)


def _unclear(folder: Path, why: str) -> InputError:
    return InputError(
        f"the manifest of {folder} is lost and cannot be rebuilt ({why}): delete {folder} and "
        "extract again"
    )
