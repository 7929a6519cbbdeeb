"""What a folder that `extract` or `fit` wrote is, checked for being whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from extractors.errors import InputError
from extractors.manifest import MANIFEST_NAME
from extractors.store import FeatureStore

_MOST_SKIPPED = 20  # rows that a store left out, and that are named


@dataclass(frozen=True)
class Inspection:
    """A store or an artefact. facts: what it says of itself, by name, in reading order."""

    path: str
    kind: Literal["store", "artefact"]
    facts: dict[str, Any]


def inspect_path(path: Path) -> Inspection:
    """Read and verify a store or an artefact.

    Every shard of a store is read and compared with its checksum; an artefact is loaded. Raises
    InputError when the path is neither, or when something in it was altered or is missing.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_file():
        raise InputError(f"{path} is a file: name the folder of a store or an artefact")
    if (path / MANIFEST_NAME).is_file():
        return _inspect_store(path)
    if (path / "config.json").is_file():
        return _inspect_artefact(path)
    raise InputError(
        f"{path} is neither a store (it has no {MANIFEST_NAME}) nor an artefact (no config.json)"
    )


def _inspect_artefact(path: Path) -> Inspection:
    from tasks.pipeline import ConvexHeadPipeline

    # Loading checks the weights against the settings; the backbone is not needed for it.
    ConvexHeadPipeline.from_pretrained(str(path))
    try:
        facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path / 'config.json'}: {error}") from error
    return Inspection(str(path), "artefact", {**facts, "verified": True})


def _inspect_store(path: Path) -> Inspection:
    from tasks.extraction import plain_reason

    store = FeatureStore.open(path)
    problems = store.verify()
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise InputError(
            f"{path}: {problems[0]}{more}; `convex-heads extract` with the same data and backbone "
            "does the damaged part again"
        )
    manifest = store.manifest
    rows: dict[str, int] = {}
    for shard in manifest.shards:
        rows[shard.split] = rows.get(shard.split, 0) + shard.rows
    facts = {
        "task": manifest.task,
        "backbone": manifest.backbone,
        "modality": manifest.modality,
        "rows": rows,
        "dim": manifest.dim,
        "dtype": manifest.dtype,
        "storage_error": manifest.storage_error,
        "classes": list(manifest.classes),
        "max_length": manifest.max_length,
        "truncated_fraction": store.truncated_fraction(),
        "feature_options": manifest.fingerprint.get("extractor", {}).get("options", {}),
        **manifest.measured,
        "shards": len(manifest.shards),
        "megabytes": round(store.n_bytes / 1e6, 1),
        "bytes_per_row": round(store.n_bytes / store.n_rows, 1) if store.n_rows else 0.0,
        "extraction_seconds": round(sum(shard.seconds for shard in manifest.shards), 1),
        "skipped_rows": len(manifest.skipped),
        "skipped": [
            (row.id, plain_reason(row.id, row.reason)) for row in manifest.skipped[:_MOST_SKIPPED]
        ],
        "key": manifest.key,
        "measured": manifest.measured,
        "versions": manifest.versions,
        "verified": True,
    }
    return Inspection(str(path), "store", facts)
