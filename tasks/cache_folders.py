"""What a cache keeps beside stores: activations of `finetune`, and compiled solvers."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from extractors.errors import InputError
from extractors.storage import TEMPORARY_PREFIX, plain_disk_errors
from extractors.store import default_cache_dir
from tasks.cronos_am.activations import ABOUT_NAME, VALUES_NAME

KINDS = ("activations", "compiled")


@dataclass(frozen=True)
class CacheFolder:
    """One folder in ``CACHE/activations`` or ``CACHE/compiled``.

    Attributes:
        path: the folder.
        kind: "activations" or "compiled".
        bytes: of all files in it.
        modified: seconds since 1970 of the last write.
        vectors: of activations; None where that is not known.
        width: numbers in each of them.
        problem: why it is of no use; "" where it is.
    """

    path: Path
    kind: str
    bytes: int
    modified: float
    vectors: int | None = None
    width: int | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """As `cache` lists it: ``activations/0a1b...``."""
        return f"{self.kind}/{self.path.name}"


def list_folders(cache_dir: Path | None = None) -> list[CacheFolder]:
    """All of a cache, by kind and name.

    Example:
        >>> list_folders(Path("/no/such/folder"))
        []
    """
    root = cache_dir or default_cache_dir()
    found = []
    for kind in KINDS:
        folder = root / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.is_dir():
                found.append(_look(path, kind))
    return found


def find_folders(name: str, cache_dir: Path | None = None) -> list[CacheFolder] | None:
    """The folders meant by "activations", by "activations/0a1b" or the like; None: no such kind.

    Raises:
        InputError: there is none of that name.
    """
    kind, _, rest = name.strip("/").partition("/")
    if kind not in KINDS:
        return None
    found = [each for each in list_folders(cache_dir) if each.kind == kind]
    close = [each for each in found if each.path.name.startswith(rest)]
    if not close:
        raise InputError(f"there are no '{name}': `convex-heads cache ls` lists what there is")
    return close


def remove_folder(folder: CacheFolder) -> int:
    """Delete it; a program that has it open goes on reading.

    Returns:
        Bytes of the files deleted.

    Raises:
        MachineError: the disk refuses.
    """
    with plain_disk_errors(folder.path):
        # What says that it is whole goes first: half a folder is never taken for a whole one.
        (folder.path / ABOUT_NAME).unlink(missing_ok=True)
        shutil.rmtree(folder.path)
    return folder.bytes


def _look(path: Path, kind: str) -> CacheFolder:
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    size, modified = sum(file.st_size for file in files), path.stat().st_mtime
    modified = max([modified, *(file.st_mtime for file in files)])
    if kind == "compiled":
        return CacheFolder(path, kind, size, modified)
    if path.name.startswith(TEMPORARY_PREFIX):
        return CacheFolder(path, kind, size, modified, problem="being written, or left by a crash")
    try:
        about = json.loads((path / ABOUT_NAME).read_text("utf-8"))
        vectors, width = int(about["vectors"]), int(about["width"])
        there = (path / VALUES_NAME).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return CacheFolder(path, kind, size, modified, problem="damaged: it is computed anew")
    wrong = there != 4 * vectors * width
    problem = f"{there} bytes instead of {4 * vectors * width}: computed anew" if wrong else ""
    return CacheFolder(path, kind, size, modified, vectors, width, problem)
