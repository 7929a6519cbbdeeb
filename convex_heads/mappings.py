"""Room for compiled programs among a process's memory mappings.

XLA keeps a program in three mappings or so, and JAX forgets none. Linux grants a process 65,530
(vm.max_map_count): at one more XLA aborts the process, without an exception. A fit at the defaults
takes some hundreds where its features have a width that no fit before had, so that a loop over many
widths ended there.
"""

from __future__ import annotations

from pathlib import Path

import jax

_SHARE = 0.5
_TAKEN, _GRANTED = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def make_room() -> None:
    """Has JAX forget its compiled programs where half of the mappings are taken.

    What is used again is compiled again, or read from JAX's cache on disk. Where the system tells
    of no mappings (only Linux does), this does nothing.
    """
    try:
        granted = int(_GRANTED.read_text("ascii"))
        with _TAKEN.open("rb") as lines:
            taken = sum(1 for _ in lines)
    except (OSError, ValueError):
        return
    if taken > _SHARE * granted:
        jax.clear_caches()
