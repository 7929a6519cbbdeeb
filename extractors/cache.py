"""What is done to whole stores: list them, merge their small shards, remove them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from extractors.errors import InputError
from extractors.manifest import MANIFEST_NAME, SHARD_NAME, DamagedManifest, Manifest, Shard
from extractors.provenance import describe, is_ours
from extractors.shard import Block, merged_bytes
from extractors.storage import exclusive_lock, plain_disk_errors
from extractors.store import FeatureStore, default_cache_dir
from extractors.writer import LOCK_NAME, open_writer, own_files, sealed

#: what merged shards grow to: large enough to be read at the disk's speed, small enough that one
#: that is damaged is redone in minutes.
SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Found:
    """A store in the cache, or what is left of one.

    Attributes:
        path: its folder.
        store: opened; None where it cannot be.
        problem: why it cannot be opened; "" where it can.
    """

    path: Path
    store: FeatureStore | None
    problem: str = ""


def list_stores(cache_dir: Path | None = None) -> list[Found]:
    """Every store of a cache by name; one that cannot be opened is listed with its problem.

    Example:
        >>> list_stores(Path("/no/such/folder"))
        []
    """
    folder = (cache_dir or default_cache_dir()) / "stores"
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if _is_store(path):
            found.append(_open(path))
    return found


def find_store(name: str, cache_dir: Path | None = None) -> Path:
    """The folder that is meant by a path, by a store's name, or by the only start of a name.

    Raises:
        InputError: no store is called so, or several are.
    """
    if _is_store(Path(name)):
        return Path(name)
    known = [found.path for found in list_stores(cache_dir)]
    exact = [path for path in known if path.name == name]
    close = exact or [path for path in known if path.name.startswith(name)]
    if len(close) == 1:
        return close[0]
    if close:
        raise InputError(
            f"'{name}' may mean {' or '.join(path.name for path in close[:3])}: write more of it"
        )
    raise InputError(
        f"there is no store '{name}': `convex-heads cache ls` lists those that there are"
    )


def compact(folder: Path, *, shard_bytes: int = SHARD_BYTES) -> FeatureStore:
    """Merge small shards into large ones, for faster reading; all rows stay as they are.

    Readers that have the store open go on reading. A crash on the way changes nothing.

    Args:
        folder: a store without damaged shards.
        shard_bytes: size of the features that a merged shard has at most, unless one shard has
            more already.

    Returns:
        The store, opened anew.

    Raises:
        InputError: no store, or a damaged one.
        MachineError: another process is writing, or no room for the store a second time.
    """
    with open_writer(folder, Manifest.read(folder)) as writer:
        store = FeatureStore(folder, writer.manifest)
        for file, problem in store.damaged_shards().items():
            raise InputError(f"{folder}: {file} is {problem}; extract again before compacting")
        groups = _groups(store.manifest, shard_bytes)
        if any(len(group) > 1 for group in groups):
            writer.replace_all(_merged(store, groups))
        return FeatureStore(folder, writer.manifest)


def remove(folder: Path) -> int:
    """Delete a store; files in its folder that are not its own stay, and so does the folder then.

    Args:
        folder: of a store; a link to one is removed with it.

    Returns:
        Bytes of the files deleted.

    Raises:
        InputError: no store.
        MachineError: another process is writing to it, or the disk refuses.
    """
    link = folder if folder.is_symlink() else None
    folder = folder.resolve()
    if not _own(folder):
        raise InputError(
            f"{folder} is no feature store: it has no {MANIFEST_NAME} and no shard of one"
        )
    with exclusive_lock(folder / LOCK_NAME, what=f"the store {folder}"), plain_disk_errors(folder):
        freed = 0
        for path in (*_own(folder), folder / LOCK_NAME):
            if path.exists():
                freed += path.stat().st_size
                path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
        if link is not None:
            link.unlink()
    return freed


def _own(folder: Path) -> list[Path]:
    """The files of a store; the manifest first, for without it there is no store any more."""
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        return []
    listed: set[str] = set()
    ours = path.exists()
    try:
        listed = {shard.file for shard in Manifest.read(folder).shards}
    except DamagedManifest:
        # Others have files of that name, too.
        ours = b'"fingerprint"' in path.read_bytes()
    except InputError:
        pass  # there is none, or it is one of a newer version
    own = own_files(folder, listed)
    return [path, *own] if ours or (own and path.exists()) else own


def _is_store(folder: Path) -> bool:
    """Whether a folder is a store, or one that has lost its manifest."""
    if (folder / MANIFEST_NAME).exists():
        return True
    return folder.is_dir() and any(
        SHARD_NAME.fullmatch(path.name) and is_ours(path) for path in folder.glob("*.arrow")
    )


def _open(path: Path) -> Found:
    try:
        return Found(path, FeatureStore.open(path))
    except InputError as error:
        return Found(path, None, str(error))


def _groups(manifest: Manifest, shard_bytes: int) -> list[list[Shard]]:
    """The shards that are merged, in reading order.

    Sizes are those of the features, which add up exactly: so what was merged once stays as it is.
    """
    per_row = manifest.dim * np.dtype(manifest.dtype).itemsize
    groups: list[list[Shard]] = []
    size = 0
    for shard in manifest.shards:
        more = shard.rows * per_row
        if groups and groups[-1][0].split == shard.split and size + more <= shard_bytes:
            groups[-1].append(shard)
            size += more
        else:
            groups.append([shard])
            size = more
    return groups


def _merged(
    store: FeatureStore, groups: Sequence[Sequence[Shard]]
) -> Iterator[tuple[Shard, memoryview]]:
    number: dict[str, int] = {}
    after = replace(store.manifest, generation=store.manifest.generation + 1)
    for group in groups:
        split = group[0].split
        rows = sum(shard.rows for shard in group)
        lost = sum(shard.rows * shard.error_mean for shard in group) / rows
        shard = Shard(
            file=f"{split}.{after.generation}-{number.setdefault(split, 0):05d}.arrow",
            split=split,
            rows=rows,
            bytes=0,
            sha256="",
            truncated=sum(shard.truncated for shard in group),
            seconds=round(sum(shard.seconds for shard in group), 3),
            error_mean=float(f"{lost:.4g}"),
            error_max=max(shard.error_max for shard in group),
            parts=tuple(part for shard in group for part in shard.identity),
        )
        blocks = [Block(store.path / each.file) for each in group]
        yield sealed(shard, merged_bytes(blocks, metadata=describe(after, shard)))
        number[split] += 1
