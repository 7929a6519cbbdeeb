"""The manifest of a feature store: what the store is, and which shards exist.

A shard that the manifest does not list does not exist, whatever lies in the folder. The manifest
is replaced as a whole after each shard, so that the store is consistent at every moment.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from extractors.codec import check_dtype
from extractors.errors import InputError
from extractors.fingerprint import store_key
from extractors.storage import write_atomically

# 2: float16 and int8 features, what they lose, where features begin in a shard, compaction.
# 3: a checksum of the manifest itself, what a merged shard was merged from. An older version would
# take these for damage, so the number says that it cannot know.
# A manifest of a schema before is one of this schema in which all that came later has its default.
SCHEMA_VERSION = 3
READABLE_SCHEMAS = (1, 2, 3)
CHECKED_SINCE = 3
MANIFEST_NAME = "manifest.json"
SHARD_NAME = re.compile(r"\w+(\.\d+)?-(\d{5,})\.arrow")
_PART = 16  # hexadecimal digits of a checksum that tell one shard of a store from the others
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
        parts: of a merged shard: the ``identity`` of each shard that it was merged from, in order.
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
    parts: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """Its place among the shards of its split; names in themselves end with 99999."""
        named = SHARD_NAME.fullmatch(self.file)
        return int(named[2]) if named else 0

    @property
    def identity(self) -> tuple[str, ...]:
        """What it holds, told by the shards as they were before any of them was merged."""
        return self.parts or (self.sha256[:_PART],)


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

    def identity(self, split: str) -> tuple[str, ...]:
        """What a split holds, in reading order; merging its shards does not change it."""
        return tuple(
            part for shard in self.shards if shard.split == split for part in shard.identity
        )

    @property
    def storage_error(self) -> dict[str, float]:
        """What storing as ``dtype`` lost: relative error of the mean and of the worst row."""
        rows = sum(shard.rows for shard in self.shards)
        lost = sum(shard.rows * shard.error_mean for shard in self.shards)
        worst = max((shard.error_max for shard in self.shards), default=0.0)
        return {"mean": float(f"{lost / rows if rows else 0.0:.4g}"), "max": worst}

    def with_shard(self, shard: Shard) -> Manifest:
        """A copy with one more shard, sorted into its split by number."""
        splits = list(dict.fromkeys((*self.splits, shard.split)))
        shards = sorted((*self.shards, shard), key=lambda s: (splits.index(s.split), s.number))
        return replace(self, shards=tuple(shards))

    def without(self, files: set[str]) -> Manifest:
        """A copy without the shards of these files."""
        return replace(self, shards=tuple(s for s in self.shards if s.file not in files))

    def free_name(self, split: str, taken: Set[str] = frozenset()) -> str:
        """The first unused ``SPLIT-00000.arrow``; a shard that is redone gets its old name back.

        After the first compaction it is ``SPLIT.1-00000.arrow``, and so on.

        Args:
            split: its name.
            taken: names that cannot be had.
        """
        used = {shard.file for shard in self.shards} | taken
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
        # In ASCII: names of files need not be text, and what stands for their bytes is no UTF-8.
        values = json.loads(json.dumps(values))
        text = json.dumps({**values, "sha256": checksum(values)}, indent=1)
        write_atomically(folder / MANIFEST_NAME, text.encode("ascii"))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check ``folder/manifest.json``.

        Raises:
            InputError: no store, or another schema version.
            DamagedManifest: one that is no manifest any more, whose key does not belong to its
                fingerprint, or whose checksum differs.
        """
        path = folder / MANIFEST_NAME
        try:
            # Manifests were once written with bytes that are no UTF-8, where names had them.
            values = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{folder} is no feature store: it has no {MANIFEST_NAME}") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
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
        noted = values.pop("sha256", None)
        content = {"schema_version": found, **values}
        try:
            key = values.pop("key")
            manifest = _from_json(values)
            own_key = manifest.key
        except (KeyError, TypeError, InputError) as error:
            raise DamagedManifest(f"{path} is damaged ({error}): {_CURE}") from error
        if own_key != key:
            raise DamagedManifest(
                f"{path} was altered (its key does not belong to its fingerprint): {_CURE}"
            )
        if noted != checksum(content) and (noted is not None or found >= CHECKED_SINCE):
            raise DamagedManifest(f"{path} was altered (its checksum differs): {_CURE}")
        return manifest


def checksum(values: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of everything else in a manifest."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


_NUMBER = (int, float)
_SHARD_TYPES: dict[str, tuple[type, ...]] = {
    "file": (str,),
    "split": (str,),
    "rows": (int,),
    "bytes": (int,),
    "sha256": (str,),
    "truncated": (int,),
    "seconds": _NUMBER,
    "offset": (int, type(None)),
    "error_mean": _NUMBER,
    "error_max": _NUMBER,
    "parts": (list,),
}
_SKIPPED_TYPES: dict[str, tuple[type, ...]] = {"id": (str,), "split": (str,), "reason": (str,)}
_TYPES: dict[str, tuple[type, ...]] = {
    "fingerprint": (dict,),
    "task": (str,),
    "backbone": (str,),
    "modality": (str,),
    "dim": (int,),
    "classes": (list,),
    "max_length": (int, type(None)),
    "shards": (list,),
    "skipped": (list,),
    "versions": (dict,),
    "dtype": (str,),
    "generation": (int,),
    "measured": (dict,),
}


def _from_json(values: Any) -> Manifest:
    """A manifest from what its file says.

    Raises:
        TypeError: a value of another type, one that is missing, or one that is not known.
        InputError: features stored as something that no store holds.
    """
    values = dict(_checked(values, _TYPES))
    values["classes"] = _texts("classes", values.get("classes", []))
    shards = []
    for shard in values.get("shards", []):
        parts = _texts("parts", _checked(shard, _SHARD_TYPES).get("parts", []))
        shards.append(Shard(**{**shard, "parts": parts}))
        # The name is joined to the store's folder: nothing outside of it is ever meant.
        if not SHARD_NAME.fullmatch(shards[-1].file):
            raise TypeError(f"{shards[-1].file!r:.40} is no name of a shard")
    values["shards"] = tuple(shards)
    skipped = values.get("skipped", [])
    values["skipped"] = tuple(SkippedRow(**_checked(row, _SKIPPED_TYPES)) for row in skipped)
    manifest = Manifest(**values)
    check_dtype(manifest.dtype)
    return manifest


def _checked(values: Any, types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise TypeError(f"{values!r:.40} where names and values belong")
    for name, value in values.items():
        # Exact types: True is an int, and no count.
        if type(value) not in types.get(name, (type(value),)) or (type(value) is int and value < 0):
            raise TypeError(f"{name} is {value!r:.40}")
    return values


def _texts(name: str, values: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise TypeError(f"{name} are {values!r:.40}")
    return tuple(values)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that features pass through, without importing any of them."""
    found = {}
    for package in _NUMERIC_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
