"""The manifest of a feature store: what the store is, and which shards exist.

A shard that the manifest does not list does not exist, whatever lies in the folder. The manifest
is replaced as a whole after each shard, so that the store is consistent at every moment.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from extractors.codec import check_dtype
from extractors.errors import InputError
from extractors.fingerprint import store_key
from extractors.storage import write_atomically

# 2: float16 and int8 features, what they lose, where features begin in a shard, compaction. A
# schema 1 manifest is one of schema 2 in which all of that has its default.
SCHEMA_VERSION = 2
READABLE_SCHEMAS = (1, 2)
MANIFEST_NAME = "manifest.json"
_CURE = "the same extraction again rebuilds it where the shards allow that"
_NUMERIC_PACKAGES = ("convex-heads", "numpy", "pyarrow", "torch", "sentence-transformers", "timm")


class DamagedManifest(InputError):
    """A manifest that was one: its shards may still say what was in it (see ``rebuild.py``)."""


@dataclass(frozen=True)
class Shard:
    """One Arrow file of one split.

    Attributes:
        file: its name in the store's folder.
        split: the split of every row in it.
        rows: number of rows, at least 1.
        bytes: size of the file.
        sha256: of the file, hexadecimal.
        truncated: rows longer than the backbone's ``max_length``.
        seconds: wall time that encoding these rows took.
        offset: byte at which the features begin; None where it has not been noted.
        error_mean: mean over rows of ||x - stored|| / ||x||; 0.0 for float32.
        error_max: the same of the worst row.
    """

    file: str
    split: str
    rows: int
    bytes: int
    sha256: str
    truncated: int
    seconds: float
    offset: int | None = None
    error_mean: float = 0.0
    error_max: float = 0.0


@dataclass(frozen=True)
class SkippedRow:
    """A row that cannot be encoded: remembered, so that it is not tried again."""

    id: str
    split: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a store but its features.

    Attributes:
        fingerprint: ``{"data": ..., "extractor": ...}``, all that the numbers depend on.
        task: name of the data set.
        backbone: canonical backbone name.
        modality: "text" or "image".
        dim: width of a feature vector.
        classes: class names by label.
        max_length: tokens after which a text was cut, or None.
        shards: the shards that exist, grouped by split, in reading order.
        skipped: rows that could not be encoded.
        versions: packages and their versions when the store was created.
        dtype: of the features as stored: "float32", "float16" or "int8".
        generation: how often the store was compacted; part of the names of its shards.
        measured: figures about the features: ``tokens`` (see ``tokens.py``), ``autocast`` (error
            against float32, see ``precision.py``).
        key: sha256 of the fingerprint; computed.
    """

    fingerprint: dict[str, Any]
    task: str
    backbone: str
    modality: str
    dim: int
    classes: tuple[str, ...]
    max_length: int | None
    shards: tuple[Shard, ...] = ()
    skipped: tuple[SkippedRow, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    generation: int = 0
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return store_key(self.fingerprint)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have rows, in order of first appearance."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    @property
    def storage_error(self) -> dict[str, float]:
        """What storing as ``dtype`` lost: relative error of the mean and of the worst row."""
        rows = sum(shard.rows for shard in self.shards)
        lost = sum(shard.rows * shard.error_mean for shard in self.shards)
        worst = max((shard.error_max for shard in self.shards), default=0.0)
        return {"mean": float(f"{lost / rows if rows else 0.0:.4g}"), "max": worst}

    def with_shard(self, shard: Shard) -> Manifest:
        """A copy with one more shard, sorted into its split by file name."""
        splits = list(dict.fromkeys((*self.splits, shard.split)))
        shards = sorted((*self.shards, shard), key=lambda s: (splits.index(s.split), s.file))
        return replace(self, shards=tuple(shards))

    def without(self, files: set[str]) -> Manifest:
        """A copy without the shards of these files."""
        return replace(self, shards=tuple(s for s in self.shards if s.file not in files))

    def free_name(self, split: str) -> str:
        """The first unused ``SPLIT-00000.arrow``; a shard that is redone gets its old name back.

        After the first compaction it is ``SPLIT.1-00000.arrow``, and so on.
        """
        used = {shard.file for shard in self.shards}
        start = f"{split}.{self.generation}" if self.generation else split
        number = 0
        while (name := f"{start}-{number:05d}.arrow") in used:
            number += 1
        return name

    def write(self, folder: Path) -> None:
        """Replace ``folder/manifest.json`` atomically.

        Raises:
            MachineError: the disk does not take it; the old manifest stays.
        """
        values = {"schema_version": SCHEMA_VERSION, "key": self.key, **asdict(self)}
        text = json.dumps(values, indent=1, ensure_ascii=False)
        write_atomically(folder / MANIFEST_NAME, text.encode("utf-8", "surrogateescape"))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check ``folder/manifest.json``.

        Raises:
            InputError: no store, or another schema version.
            DamagedManifest: one that is no manifest any more, or whose key does not belong to its
                fingerprint.
        """
        path = folder / MANIFEST_NAME
        try:
            values = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{folder} is no feature store: it has no {MANIFEST_NAME}") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise DamagedManifest(f"{path} cannot be read ({error}): {_CURE}") from error
        found = values.pop("schema_version", None) if isinstance(values, dict) else None
        if found is None:
            raise DamagedManifest(
                f"{path} is no feature store's manifest (it has no schema_version): {_CURE}"
            )
        if isinstance(found, int) and found > SCHEMA_VERSION:
            raise InputError(
                f"the store {folder} was written by a newer version of convex-heads (schema "
                f"{found}, this version reads up to {SCHEMA_VERSION}): upgrade convex-heads, or "
                "choose another --cache-dir"
            )
        if found not in READABLE_SCHEMAS:
            raise DamagedManifest(f"{path} is damaged (schema_version {found!r:.20}): {_CURE}")
        try:
            key = values.pop("key")
            values["classes"] = tuple(values["classes"])
            values["shards"] = tuple(Shard(**shard) for shard in values["shards"])
            values["skipped"] = tuple(SkippedRow(**row) for row in values["skipped"])
            manifest = cls(**values)
            check_dtype(manifest.dtype)
        except (KeyError, TypeError, InputError) as error:
            raise DamagedManifest(f"{path} is damaged ({error}): {_CURE}") from error
        if manifest.key != key:
            raise DamagedManifest(
                f"{path} was altered (its key does not belong to its fingerprint): {_CURE}"
            )
        return manifest


def installed_versions() -> dict[str, str]:
    """Versions of the packages that features pass through, without importing any of them."""
    found = {}
    for package in _NUMERIC_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
