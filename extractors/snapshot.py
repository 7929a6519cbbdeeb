"""The shards of an opened store, mapped as they were when it was opened, whoever writes meanwhile.

A writer appends, drops damaged shards, does them again under their old names, and merges all of
them. A mapping outlives all of that; only until a split is mapped may its files become others.
"""

from __future__ import annotations

import os
from pathlib import Path

from extractors.errors import InputError
from extractors.manifest import MANIFEST_NAME, Manifest
from extractors.shard import Block

Stamp = tuple[int, int, int]


class StoreChanged(InputError):
    """The rows of an opened store are not to be had any more; opened anew it has others."""


def stamp_of(folder: Path) -> Stamp | None:
    """What changes with every new manifest of a store; None where there is none."""
    try:
        found = os.stat(folder / MANIFEST_NAME)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def map_split(
    folder: Path, manifest: Manifest, split: str, stamp: Stamp | None
) -> tuple[Block, ...]:
    """Map all shards of a split; where a writer has merged them, what they became.

    A writer may have added rows after that. They follow those that were there when the store was
    opened, and are left out.

    Args:
        folder: of the store.
        manifest: as it was when the store was opened.
        split: its name.
        stamp: taken just before that manifest was read; None: nobody knows when.

    Raises:
        StoreChanged: the rows are others now.
        InputError: a shard is missing or cannot be read.
    """
    wanted = sum(shard.rows for shard in manifest.shards if shard.split == split)
    own = manifest.identity(split)
    current = manifest
    while True:
        blocks, missing = _mapped(folder, current, split, wanted)
        if missing is None and stamp is not None and stamp == stamp_of(folder):
            return blocks
        # Another manifest may mean other files under the same names. It is read after they were
        # mapped: a file changes only when no manifest lists it.
        stamp = stamp_of(folder)
        try:
            now = Manifest.read(folder)
        except InputError:
            if missing is None:  # lost, or just removed: then the shards are still the old ones
                return blocks
            raise
        listed = {(shard.file, shard.sha256) for shard in now.shards}
        used = {(s.file, s.sha256) for s in current.shards if s.split == split}
        if used <= listed:
            if missing is None:
                return blocks
            raise InputError(
                f"the shard {missing.filename} cannot be read (it is missing): extract again to "
                "redo it"
            ) from missing
        if now.key != manifest.key or now.identity(split)[: len(own)] != own:
            raise StoreChanged(f"the store {folder} changed while it was read: open it again")
        current = now


def _mapped(
    folder: Path, manifest: Manifest, split: str, wanted: int
) -> tuple[tuple[Block, ...], FileNotFoundError | None]:
    """The first `wanted` rows; and the error of the first file that is not there."""
    start = os.path.join(folder, "")  # a Path each costs as much as a mapping
    blocks: list[Block] = []
    for shard in manifest.shards:
        if shard.split == split and wanted:
            n = min(shard.rows, wanted)
            try:
                blocks.append(
                    Block(
                        f"{start}{shard.file}",
                        size=shard.bytes,
                        shape=(n, manifest.dim),
                        dtype=manifest.dtype,
                        offset=shard.offset,
                    )
                )
            except FileNotFoundError as error:
                return (), error
            wanted -= n
    return tuple(blocks), None
