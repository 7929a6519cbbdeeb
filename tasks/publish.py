"""A folder of files that appears whole, in place of an older one or of none.

It is made beside its place and exchanged with what is there in one step. Where that cannot be (a
mounted volume, the folder one works in, a parent that is not ours to write in) it is made inside,
and its files are moved out one by one, the one that names the folder last: until then a reader
finds the older folder, or one whose checksums do not fit. What else lies in a folder stays there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from extractors.errors import InputError
from extractors.storage import TEMPORARY_PREFIX, make_folder, plain_disk_errors


def check_destination(folder: Path, names: Sequence[str]) -> None:
    """Raises InputError unless such a folder may be written there. Cheap: ask before the work.

    Args:
        folder: must be missing, empty, or one of its kind.
        names: of the files that belong to its kind; by the last one it is known.
    """
    if folder.is_dir():
        strange = [path for path in folder.iterdir() if not path.name.startswith(TEMPORARY_PREFIX)]
        if strange and not (folder / names[-1]).is_file():
            raise InputError(
                f"--out {folder} is a folder with other things in it: name a new or an empty folder"
            )
    elif folder.exists():
        raise InputError(f"--out {folder} is a file: name a folder")
    elif folder.is_symlink():
        raise InputError(f"--out {folder} is a link to nothing: make the folder, or name another")
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"--out {folder}: {place} is a file, and no folder can be made in it")
    try:  # what the permissions promise need not hold: /proc, a disk that is read-only
        tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=place).cleanup()
    except OSError as error:
        raise InputError(
            f"--out {folder}: {place} cannot be written to ({(error.strerror or '').lower()}): "
            "name another folder"
        ) from error


@contextmanager
def whole_folder(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """An empty folder to fill; what is in it is at ``folder`` when the block ends without an error.

    Args:
        folder: where; a link is followed.
        names: as of `check_destination`.

    Raises:
        InputError: as `check_destination`.
        MachineError: the disk refuses; an older folder is then untouched.
    """
    check_destination(folder, names)
    folder = Path(os.path.realpath(folder))
    make_folder(folder.parent, "--out")
    within = folder.is_dir() and not _exchangeable(folder)
    temporary = (folder if within else folder.parent) / (
        f"{TEMPORARY_PREFIX}{os.getpid()}-{folder.name}"
    )
    with plain_disk_errors(temporary.parent, "--out"):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        yield temporary
        with plain_disk_errors(temporary.parent, "--out"):
            if within:
                _move_out(temporary, folder, names)
            else:
                _replace(temporary, folder, names)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchangeable(folder: Path) -> bool:
    """Whether another folder can take its name, and nobody stands in it meanwhile."""
    try:
        here = Path.cwd()
    except OSError:
        here = folder.parent
    return not (
        os.path.ismount(folder)
        or here.is_relative_to(folder)
        or not os.access(folder.parent, os.W_OK | os.X_OK)
    )


def _move_out(new: Path, place: Path, names: Sequence[str]) -> None:
    made = {path.name for path in new.iterdir()}
    for name in (*sorted(made - {names[-1]}), names[-1]):
        (new / name).replace(place / name)
    for name in set(names) - made:
        (place / name).unlink(missing_ok=True)


def _replace(new: Path, place: Path, names: Sequence[str]) -> None:
    """Puts a finished folder in its place; the one that was there goes last."""
    if not place.exists():
        new.replace(place)
        return
    old = new
    if not _exchange(new, place):
        old = new.with_name(f"{new.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        place.replace(old)
        new.replace(place)
    for path in list(old.iterdir()):
        if path.name not in names and not (place / path.name).exists():
            path.replace(place / path.name)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step, so that there is no moment without one; False if it cannot."""
    import ctypes

    at_working_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE; Linux since 3.15
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    names = os.fsencode(first), os.fsencode(second)
    return swap(at_working_folder, names[0], at_working_folder, names[1], exchange) == 0
