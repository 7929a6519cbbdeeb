"""The parts of crash-safe storage: a lock that dies with its owner, writes that are all or nothing.

A file is written under a temporary name in its final folder, synced, renamed, and the folder
synced: after a crash or a power cut there is either the whole file or none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from extractors.errors import MachineError

TEMPORARY_PREFIX = ".writing-"
_CURES = {
    errno.ENOSPC: "the disk is full: free some space, or choose another {option}",
    errno.EDQUOT: "your disk quota is used up: free some space, or choose another {option}",
    errno.EFBIG: "the file size limit is reached (see ulimit -f): raise it",
    errno.EROFS: "the file system is read-only: choose another {option}",
    errno.EACCES: "permission denied: choose a place for {option} that you may write to",
    errno.EPERM: "permission denied: choose a place for {option} that you may write to",
}


@contextmanager
def plain_disk_errors(path: Path, option: str = "--cache-dir") -> Iterator[None]:
    """Turn an ``OSError`` of writing below ``path`` into a one-line ``MachineError``.

    option: which one says where to write.
    """
    try:
        yield
    except OSError as error:
        reason = _CURES.get(error.errno or 0, (error.strerror or str(error)).lower())
        reason = reason.replace("{option}", option)
        raise MachineError(f"cannot write to {path}: {reason}") from error


def make_folder(path: Path, option: str = "--cache-dir") -> None:
    """Create a folder and its parents; the file system has them when this returns.

    Raises:
        MachineError: it cannot be created.
    """
    with plain_disk_errors(path, option):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        # A file that is synced is lost all the same if the name of a folder above it is.
        for folder in missing:
            sync_folder(folder.parent)


def write_atomically(path: Path, content: bytes | memoryview, option: str = "--cache-dir") -> None:
    """Write a whole file or nothing; the file system has it when this returns.

    Raises:
        MachineError: disk full, quota, read-only, size limit. The old file, if any, is untouched.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    with plain_disk_errors(path.parent, option):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def exclusive_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the only writer's lock on a file for the length of a ``with`` block.

    The kernel releases it when the process ends, however it ends, so a stale lock cannot exist;
    the file itself stays.

    Args:
        path: the lock file; created when missing.
        what: what is locked, for the sentence that a second writer gets.

    Raises:
        MachineError: another process holds it, or the file system has no locks.
    """
    descriptor = _locked(path, what)
    # A lock belongs to the open file, which children of a fork inherit: without this, one that
    # outlives a killed owner would keep its lock.
    _HELD.add(descriptor)
    try:
        with plain_disk_errors(path.parent):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        if descriptor in _HELD:
            _HELD.remove(descriptor)
            os.close(descriptor)


_HELD: set[int] = set()


def _let_go_in_child() -> None:
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _locked(path: Path, what: str) -> int:
    """An open and locked descriptor of the lock file that lies at ``path`` now."""
    import fcntl  # POSIX only; reading a store needs no lock

    while True:
        with plain_disk_errors(path.parent):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
            os.close(descriptor)  # its last owner removed it together with the store
        except BlockingIOError as error:
            owner = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise MachineError(
                f"another process{f' (pid {owner})' if owner else ''} is writing to {what}: wait "
                "until it has finished, or stop it; the work it finished is kept"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise MachineError(
                f"the file system of {path.parent} has no file locks ({error.strerror}): choose "
                "another --cache-dir"
            ) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
