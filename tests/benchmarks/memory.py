"""Memory of a solve above a warmed-up process, in floats, against the solver's budget.

The budget is 6 (P d C + b P C) + n (C + P / 8) floats: weights, the (b, P C) temporary of one row
block, scores. The process is warm when the program is on the device and the same solve has run
once. Measured is the peak of RssAnon (anonymous resident memory) in /proc/self/status, sampled by a
thread: Linux only, CPU only. The C library is told to give freed buffers back to the system at
once, so that they neither hide what a solve takes nor count twice.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from shared import Row, parser, random_program, show

from convex_heads import fista, subspace
from convex_heads.certificate import beta_max
from convex_heads.limits import Limits
from convex_heads.losses import SOFTMAX
from convex_heads.operators import Program

SOLVERS = {"subspace": subspace.minimise, "fista": fista.minimise}
SAMPLE_SECONDS = 5e-4
M_MMAP_THRESHOLD = -3  # glibc's malloc.h
MMAP_BYTES = 1 << 17


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("skipped: /proc/self/status has no RssAnon (Linux 4.5 or newer is needed)")


class Peak:
    """The highest RssAnon while the block runs, in bytes; `every`: seconds between two looks."""

    def __init__(self, every: float = SAMPLE_SECONDS) -> None:
        self._every = every

    def __enter__(self) -> Peak:
        self._stop = threading.Event()
        self.bytes = anonymous_bytes()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self._every):
            self.bytes = max(self.bytes, anonymous_bytes())


def return_freed_buffers() -> None:
    """Fixes the size above which glibc maps buffers one by one; it would grow with use."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)


def settle() -> int:
    """Gives free memory back to the system; RssAnon after that."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only, like mallopt
    if trim is not None:
        trim(0)
    return anonymous_bytes()


def floats_of(tree: Any, itemsize: int) -> float:
    """Size of all arrays of a pytree, in floats."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / itemsize


def measure(name: str, program: Program, n: int, beta: float, passes: int, repeats: int) -> Row:
    """The median of the peaks of a few equal solves."""
    itemsize = program.X.dtype.itemsize
    limits = Limits(tolerance=1e-6, max_passes=passes)
    peaks, state_floats = [], 0.0
    for attempt in range(repeats + 1):
        before = settle()
        with Peak() as peak:
            solution, state = SOLVERS[name](program, SOFTMAX, beta, limits=limits)
            jax.block_until_ready((solution.value, state))
        if attempt > 0:  # the first one warms up
            peaks.append((peak.bytes - before) / itemsize)
        state_floats = floats_of(state, itemsize)
        del solution, state
    P, d, C = program.shape
    weights, block, scores = P * d * C, program.X.shape[1] * P * C, n * (C + P / 8)
    budget = 6 * (weights + block) + scores
    measured = float(np.median(peaks))
    return {
        "solver": name,
        "n": n,
        "d": d,
        "P": P,
        "C": C,
        "P d C": weights,
        "b P C": block,
        "n (C + P/8)": int(scores),
        "budget": int(budget),
        "peak": int(measured),
        "peak / budget": measured / budget,
        "final state": int(state_floats),
        "program": int(floats_of(program, itemsize)),
    }


def main() -> None:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    add("--size", nargs=4, type=int, default=[32768, 385, 64, 6], help="n d P C")
    add("--dtype", choices=("float32", "float64"), default="float32", help="of everything")
    add("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), help="which to run")
    add("--beta", type=float, default=0.1, help="fraction of beta_max")
    add("--passes", type=int, default=16, help="data passes of a solve")
    add("--repeats", type=int, default=3, help="solves; the median of their peaks counts")
    options = command.parse_args()
    jax.config.update("jax_enable_x64", options.dtype == "float64")
    if not Path("/proc/self/status").exists() or jax.devices()[0].platform != "cpu":
        raise SystemExit("skipped: needs /proc (Linux) and JAX on the CPU (JAX_PLATFORMS=cpu)")
    return_freed_buffers()
    n, d, P, C = options.size
    program = random_program(n, d, P, C, options.dtype)
    beta = options.beta * float(beta_max(program, SOFTMAX))
    rows = [
        measure(name, program, n, beta, options.passes, options.repeats) for name in options.solvers
    ]
    show(f"sizes in {options.dtype} numbers; peak: above the warmed-up process", rows, options)


if __name__ == "__main__":
    main()
