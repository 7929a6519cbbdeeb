"""Large arrays in temporary files, mapped into memory without a copy.

On a CPU, JAX reads the mapped pages themselves: the operating system keeps what fits in its cache
and drops the rest, so a program may be larger than memory. The files have no name: whatever ends
the process removes them.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads.sharding import devices_here, place

# Kept free, for everybody else who writes there.
_ROOM = 64 << 20


def spooled(shape: tuple[int, ...], dtype: np.dtype, parts: Iterable[np.ndarray]) -> Array:
    """A JAX array whose memory is a temporary file; over several devices a copy of it on them.

    Args:
        shape: of the array, blocks of rows.
        dtype: of the array.
        parts: arrays that follow each other in memory order; what they leave is filled with zeros.

    Raises:
        OSError: no room in the folder for temporary files (environment variable ``TMPDIR``).

    Example:
        >>> A = spooled((3, 2), np.dtype("float32"), [np.ones((2, 2), "float32")])
        >>> A.tolist()
        [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    """
    folder, size = tempfile.gettempdir(), int(np.prod(shape)) * dtype.itemsize
    if not size:
        return jnp.zeros(shape, dtype)
    free = shutil.disk_usage(folder).free
    if free < size + _ROOM:
        raise OSError(
            errno.ENOSPC,
            f"{size / 1e9:.1f} GB of temporary data do not fit into {folder} ({free / 1e9:.1f} GB "
            f"free): set TMPDIR to a folder with room",
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        written = 0
        for part in parts:
            written += file.write(np.ascontiguousarray(part, dtype).data)
        # Real zeros: writing to holes of a mapping on a full disk would kill the process.
        zeros = bytes(1 << 20)
        while written < size:
            written += file.write(zeros[: size - written])
        file.flush()
        mapped = np.memmap(file, dtype, mode="r+", shape=shape)
    alone = devices_here() == 1 and jax.default_backend() == "cpu"
    return jax.dlpack.from_dlpack(mapped) if alone else place(mapped)
