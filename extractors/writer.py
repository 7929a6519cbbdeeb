"""The one writer of a feature store: all or nothing per shard, alone while it writes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from extractors.codec import encode_features
from extractors.errors import InputError
from extractors.manifest import MANIFEST_NAME, SHARD_NAME, Manifest, Shard, SkippedRow
from extractors.provenance import describe, is_ours, read_proven, seal
from extractors.shard import StoredRows, features_offset, shard_bytes
from extractors.storage import (
    TEMPORARY_PREFIX,
    exclusive_lock,
    make_folder,
    plain_disk_errors,
    sync_folder,
    write_atomically,
)

LOCK_NAME = ".lock"
_HALF = re.compile(re.escape(TEMPORARY_PREFIX) + r"\d+-.+")


@dataclass
class StoreWriter:
    """Grows a store while ``open_writer`` holds its lock.

    Attributes:
        path: the store's folder.
        manifest: the store as it is on disk after the last ``append``.
    """

    path: Path
    manifest: Manifest

    def append(
        self,
        split: str,
        rows: StoredRows,
        *,
        seconds: float = 0.0,
        skipped: Sequence[SkippedRow] = (),
        measured: Mapping[str, Any] | None = None,
    ) -> Shard | None:
        """Add one shard, or nothing at all if anything fails on the way.

        Args:
            split: letters, digits and underscore.
            rows: n rows whose ids are not in the store yet; features float32 and finite.
            seconds: wall time that encoding took.
            skipped: rows of this stretch of the data that could not be encoded. Rows that were
                skipped before and are given now, here or among `rows`, are known anew.
            measured: figures about the whole store with this shard; they replace those of the same
                name.

        Returns:
            The new shard, or None where n is 0 and only skipped rows were noted.

        Raises:
            MachineError: the disk refuses; what was there before is untouched.
            InputError: shapes that do not belong together, features that are not finite, or too
                large for the store's dtype.
        """
        given = {*rows.ids, *(row.id for row in skipped)}
        before = [row for row in self.manifest.skipped if row.id not in given]
        manifest = replace(
            self.manifest,
            skipped=(*before, *skipped),
            measured={**self.manifest.measured, **(measured or {})},
        )
        shard = None
        if len(rows.ids):
            self._check(split, rows)
            encoded = encode_features(rows.features, manifest.dtype, rows.ids)
            limit = manifest.max_length
            long = 0 if rows.tokens is None or limit is None else int((rows.tokens > limit).sum())
            shard = Shard(
                file=self._free_name(split),
                split=split,
                rows=len(rows.ids),
                bytes=0,
                sha256="",
                truncated=long,
                seconds=round(seconds, 3),
                error_mean=float(f"{encoded.error.mean():.4g}"),
                error_max=float(f"{encoded.error.max():.4g}"),
            )
            shard, content = sealed(
                shard, shard_bytes(split, rows, encoded, metadata=describe(manifest, shard))
            )
            # The shard first: until the manifest names it, it does not exist.
            write_atomically(self.path / shard.file, content)
            manifest = manifest.with_shard(shard)
        manifest.write(self.path)
        self.manifest = manifest
        return shard

    def drop(self, files: set[str]) -> None:
        """Forget damaged shards: their rows are missing from now on."""
        manifest = self.manifest.without(files)
        manifest.write(self.path)
        self.manifest = manifest
        # They were listed, so they are ours, though their content may not tell any more.
        with plain_disk_errors(self.path):
            for file in files:
                (self.path / file).unlink(missing_ok=True)
        self.remove_leftovers()

    def replace_all(self, contents: Iterable[tuple[Shard, memoryview]]) -> None:
        """Put new shards in the place of all that exist, or change nothing.

        Args:
            contents: in reading order, shards whose files are not in the store, and their bytes.

        Raises:
            MachineError: the disk refuses; it must have room for old and new shards together.
        """
        shards = []
        try:
            for shard, content in contents:
                write_atomically(self.path / shard.file, content)
                shards.append(shard)
            manifest = replace(
                self.manifest, shards=tuple(shards), generation=self.manifest.generation + 1
            )
            manifest.write(self.path)
            self.manifest = manifest
        finally:
            self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Delete half-written files and shards that the manifest does not list.

        The manifest on the disk counts: where this process was interrupted after the file was
        replaced, it knows an older one. Where it cannot be read, nothing is deleted.
        """
        with suppress(InputError):
            listed = {shard.file for shard in Manifest.read(self.path).shards}
            with plain_disk_errors(self.path):
                # A power cut must not bring an older manifest back once its shards are gone.
                sync_folder(self.path)
                for path in own_files(self.path):
                    if path.name not in listed:
                        path.unlink(missing_ok=True)

    def _free_name(self, split: str) -> str:
        """A name for the next shard, under which nobody else has a file here."""
        taken: set[str] = set()
        while (self.path / (name := self.manifest.free_name(split, taken))).exists():
            taken.add(name)
        return name

    def _check(self, split: str, rows: StoredRows) -> None:
        n, dim = len(rows.ids), self.manifest.dim
        if not re.fullmatch(r"\w+", split):
            raise InputError(f"a split's name has letters, digits and underscores, not '{split}'")
        if rows.features.shape != (n, dim) or rows.features.dtype != np.float32:
            raise InputError(
                f"features must be float32 of shape ({n}, {dim}), got {rows.features.dtype} of "
                f"shape {rows.features.shape}"
            )
        if rows.labels.shape != (n,) or (rows.tokens is not None and rows.tokens.shape != (n,)):
            raise InputError(f"labels and tokens must have one entry for each of the {n} rows")
        finite = np.isfinite(rows.features).all(axis=1)
        if not finite.all():
            row = rows.ids[int(np.argmin(finite))]
            raise InputError(f"row '{row}' has features that are NaN or infinite")


def sealed(shard: Shard, content: memoryview) -> tuple[Shard, memoryview]:
    """A shard with the proof in its bytes, and what the manifest notes of these bytes."""
    content = seal(content)
    checksum = hashlib.sha256(content).hexdigest()
    offset = features_offset(content)
    return replace(shard, bytes=len(content), sha256=checksum, offset=offset), content


def own_files(folder: Path, listed: Container[str] = ()) -> list[Path]:
    """The shards in a store's folder, and halves of files; the same names may be somebody else's.

    Args:
        folder: of the store, or of one that has lost its manifest.
        listed: names that are shards for certain.
    """
    return [
        path
        for path in folder.iterdir()
        if _HALF.fullmatch(path.name)
        or path.name in listed
        or (SHARD_NAME.fullmatch(path.name) and is_ours(path))
    ]


@contextmanager
def open_writer(folder: Path, new: Manifest) -> Iterator[StoreWriter]:
    """Lock a store, create it or check that it is the same, and clear what a crash left behind.

    Args:
        folder: the store's folder.
        new: the manifest of an empty store; an existing one must have the same key and dim.

    Raises:
        MachineError: another process is writing, or the disk refuses.
        InputError: an existing store cannot be read or belongs to other data.
    """
    make_folder(folder)
    with exclusive_lock(folder / LOCK_NAME, what=f"the store {folder}"):
        if (folder / MANIFEST_NAME).exists():
            found = Manifest.read(folder)
            _check_same(folder, found, new)
            writer = StoreWriter(folder, found)
            writer.remove_leftovers()
            yield writer
            return
        if any(SHARD_NAME.fullmatch(path.name) and read_proven(path) for path in folder.iterdir()):
            raise InputError(
                f"the store {folder} has lost its {MANIFEST_NAME}: `convex-heads extract` with the "
                "same data and backbone rebuilds it from the shards"
            )
        try:
            new.write(folder)
            writer = StoreWriter(folder, new)
            writer.remove_leftovers()
            yield writer
        except BaseException:
            _remove_empty(folder)
            raise


def _check_same(folder: Path, found: Manifest, new: Manifest) -> None:
    if found.key != new.key:
        raise InputError(
            f"the store {folder} belongs to other data or another backbone (key "
            f"{found.key[:12]}, expected {new.key[:12]})"
        )
    if found.dtype != new.dtype:
        raise InputError(
            f"the store {folder} holds {found.dtype} features, {new.dtype} was asked for: "
            "delete the store and extract again"
        )
    if found.dim != new.dim:
        raise InputError(
            f"the store {folder} holds features of width {found.dim}, the backbone gives "
            f"{new.dim}: delete the store and extract again"
        )


def _remove_empty(folder: Path) -> None:
    """Take a new store away again that nothing came of: of an empty one nobody has any use."""
    with suppress(InputError, OSError):
        found = Manifest.read(folder) if (folder / MANIFEST_NAME).exists() else None
        if found is None or not (found.shards or found.skipped):
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
            if [path.name for path in folder.iterdir()] == [LOCK_NAME]:
                (folder / LOCK_NAME).unlink()
                folder.rmdir()
