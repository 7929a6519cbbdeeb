"""Compiled solvers are kept on disk, so that the second run of a command does not compile again."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from extractors.store import default_cache_dir

_MIN_SECONDS = "0"


def keep_compiled_code(cache_dir: Path | None = None) -> None:
    """Tell JAX, before it is imported, where to keep compiled code; a user's own choice wins.

    Args:
        cache_dir: of the stores too; None is ``default_cache_dir()``.

    What is compiled for one processor may not run on another, and home folders are shared between
    machines: each kind of processor has its own folder.
    """
    folder = (cache_dir or default_cache_dir()).absolute() / "compiled" / _processor()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", _MIN_SECONDS)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        told = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    except OSError:
        told = []
    description = "\n".join([platform.machine(), platform.processor(), *sorted(set(told))])
    return hashlib.sha256(description.encode()).hexdigest()[:12]
