"""The verb `cache`: list, verify, compact and remove feature stores; list and remove the rest."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from extractors.cache import Found, compact, find_store, list_stores, remove
from extractors.errors import InputError
from extractors.manifest import MANIFEST_NAME
from extractors.store import FeatureStore
from tasks.cache_folders import CacheFolder, find_folders, list_folders, remove_folder
from tasks.config_saved import CacheConfig
from tasks.console import Reporter
from tasks.screen import make_table, print_table
from tasks.show import show_json


@dataclass(frozen=True, kw_only=True)
class StoreLine:
    """One store in the table of `cache`, and in its JSON; or activations, or compiled code.

    kind: "store", "activations" (rows are vectors then) or "compiled". modified: seconds since 1970
    of the last write. problems: what is wrong; empty where nothing is, or where nothing was looked
    for.
    """

    name: str
    path: str
    kind: str = "store"
    task: str | None = None
    backbone: str | None = None
    rows: int | None = None
    dim: int | None = None
    dtype: str | None = None
    shards: int | None = None
    bytes: int | None = None
    bytes_per_row: float | None = None
    modified: float | None = None
    problems: tuple[str, ...] = ()


def run_cache(config: CacheConfig, *, as_json: bool, reporter: Reporter) -> None:
    """Do it, and print a line for each store.

    Raises:
        InputError: no such store, or `verify` found damage (after everything was printed).
        MachineError: a store is being written, or the disk refuses.
    """
    paths, others = _meant(config)
    lines = []
    for path in paths:
        if config.action == "rm":
            lines.append(StoreLine(name=path.name, path=str(path), bytes=remove(path)))
        else:
            if config.action == "compact":
                compact(path)
            lines.append(_line(path, verify=config.action == "verify"))
    for other in others:
        if config.action == "rm":
            remove_folder(other)
        lines.append(_other_line(other, removed=config.action == "rm"))
    if as_json:
        show_json({"action": config.action, "stores": lines})
    else:
        _show(config, lines, reporter)
    damaged = [line for line in lines if line.problems]
    if damaged and config.action == "verify":
        raise InputError(
            f"{len(damaged)} of {len(lines)} stores need care, {damaged[0].name}: "
            f"{damaged[0].problems[0]}; `convex-heads extract` with the same "
            "data and backbone does damaged shards again"
        )


def _meant(config: CacheConfig) -> tuple[list[Path], list[CacheFolder]]:
    """The stores and the other folders that are named; all of them where none is."""
    if not config.stores:
        known = [found.path for found in list_stores(config.cache_dir)]
        return known, list_folders(config.cache_dir) if config.action == "ls" else []
    stores, others = [], []
    for name in config.stores:
        found = find_folders(name, config.cache_dir)
        if found is None:
            stores.append(find_store(name, config.cache_dir))
        elif config.action in ("compact", "verify"):
            raise InputError(f"{config.action} is for stores; {name} can be listed and removed")
        else:
            others += found
    return stores, others


def _other_line(folder: CacheFolder, *, removed: bool) -> StoreLine:
    return StoreLine(
        name=folder.name,
        path=str(folder.path),
        kind=folder.kind,
        rows=folder.vectors,
        dim=folder.width,
        dtype="float32" if folder.vectors is not None else None,
        bytes=folder.bytes,
        modified=folder.modified,
        problems=(folder.problem,) if folder.problem and not removed else (),
    )


def _line(path: Path, *, verify: bool) -> StoreLine:
    try:
        found = Found(path, FeatureStore.open(path))
    except InputError as error:
        found = Found(path, None, str(error))
    store = found.store
    if store is None:
        return StoreLine(name=path.name, path=str(path), problems=(found.problem,))
    manifest = store.manifest
    return StoreLine(
        name=path.name,
        path=str(path),
        task=manifest.task,
        backbone=manifest.backbone,
        rows=store.n_rows,
        dim=store.dim,
        dtype=manifest.dtype,
        shards=len(manifest.shards),
        bytes=store.n_bytes,
        bytes_per_row=round(store.n_bytes / store.n_rows, 1) if store.n_rows else None,
        modified=(path / MANIFEST_NAME).stat().st_mtime,
        problems=tuple(store.verify()) if verify else (),
    )


def _show(config: CacheConfig, lines: list[StoreLine], reporter: Reporter) -> None:
    if not lines:
        reporter.note("there are no stores; `convex-heads extract` makes one")
        return
    if config.action == "rm":
        for line in lines:
            print(f"removed {line.name} ({_megabytes(line.bytes)} MB)")
        return
    state = "found" if config.action == "verify" else "written"
    table = make_table("store", "rows", "dim", "dtype", "shards", "MB", "bytes/row", state)
    for line in lines:
        found = "; ".join(line.problems)
        if config.action == "verify":
            found = found or "whole"
        elif not found and line.modified is not None:
            found = time.strftime("%Y-%m-%d %H:%M", time.localtime(line.modified))
        numbers = (line.rows, line.dim, line.dtype, line.shards)
        cells = ["-" if value is None else str(value) for value in numbers]
        per_row = "-" if line.bytes_per_row is None else f"{line.bytes_per_row:.0f}"
        table.add_row(line.name, *cells, _megabytes(line.bytes), per_row, found)
    print_table(table)


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f}"
