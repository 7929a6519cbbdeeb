"""A file's bytes as memory: mapped whole, read-only, without a file that stays open.

Python's own ``mmap`` keeps a descriptor for each mapping, and a store may have more shards than a
process may have files; Arrow's mapping keeps none but costs three times as much for each shard,
which a store of hundreds of small shards feels each time it is opened. So this asks the operating
system itself, where that is POSIX.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

_FAILED = ctypes.c_void_p(-1).value


def _system() -> Any:
    """``mmap`` and ``munmap`` of the C library; None where there is none such (Windows)."""
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_ssize_t,
    ]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


_SYSTEM = _system()
_READ_ONLY = os.O_RDONLY | getattr(os, "O_BINARY", 0)


def _in_memory(descriptor: int, offset: int) -> bool:
    """Whether a byte of an open file can be had without the disk; False where nobody can tell."""
    nowait = getattr(os, "RWF_NOWAIT", None)
    if nowait is None:
        return False
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, nowait) == 1
    except OSError:
        return False


class Mapped:
    """The bytes of a file; they outlive its name, and go with the last array that shows them.

    Args:
        path: the file.
        size: that it must have; None takes it as it is.

    Attributes:
        size: of the file when it was mapped. Nothing is mapped where this is 0, or another than
            was asked for.

    Raises:
        OSError: it is not there, or cannot be mapped.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "file"
        >>> _ = path.write_bytes(bytes(range(8)))
        >>> Mapped(path).array((2, 2), "uint8", offset=4).tolist()
        [[4, 5], [6, 7]]
    """

    def __init__(self, path: str | Path, size: int | None = None) -> None:
        self._address: int | None = None
        self._kept: mmap.mmap | None = None
        self._cold = False
        descriptor = os.open(path, _READ_ONLY)
        try:
            self.size = os.fstat(descriptor).st_size
            if not self.size or size not in (None, self.size):
                return
            if _SYSTEM is None:
                self._kept = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
                self._address = np.frombuffer(self._kept, np.uint8).ctypes.data
                return
            address = _SYSTEM.mmap(None, self.size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
            if address == _FAILED:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error), str(path))
            self._address = address
            self._cold = not _in_memory(descriptor, self.size // 2)
        finally:
            os.close(descriptor)

    def __del__(self) -> None:
        if self._address is not None and self._kept is None and _SYSTEM is not None:
            _SYSTEM.munmap(self._address, self.size)

    def expect(self) -> None:
        """Ask for all bytes to be read ahead: they are going to be used soon.

        Of a file that is in memory this would cost a tenth of reading it, so nothing is asked.
        """
        if self._cold and self._address is not None and self._kept is None:
            _SYSTEM.madvise(self._address, self.size, mmap.MADV_WILLNEED)

    def array(self, shape: tuple[int, int], dtype: str, offset: int) -> np.ndarray:
        """A read-only view of some bytes as (n, d) numbers.

        Raises:
            ValueError: they are not all in the file.
        """
        kind = np.dtype(dtype)
        if self._address is None or offset < 0 or min(shape) < 0:
            raise ValueError("nothing is mapped there")
        if offset + shape[0] * shape[1] * kind.itemsize > self.size:
            raise ValueError("the file ends before the array does")
        return np.asarray(_Part(self, self._address + offset, shape, kind.str))

    def buffer(self) -> Any:
        """All bytes as a ``pyarrow.Buffer``, uncopied.

        Raises:
            ValueError: nothing is mapped.
        """
        import pyarrow as pa

        if self._address is None:
            raise ValueError("nothing is mapped there")
        return pa.foreign_buffer(self._address, self.size, base=self)


class _Part:
    """What NumPy asks for an array over foreign memory; the array keeps this, and this the file."""

    __slots__ = ("__array_interface__", "whole")

    def __init__(self, whole: Mapped, address: int, shape: tuple[int, int], kind: str) -> None:
        self.whole = whole
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": shape,
            "typestr": kind,
        }
