"""Speed of the streamed operators against a plain matrix product, and growth of a data pass.

The plain product is X (n, d) times a dense (d, P C) matrix: what F costs where no gate has to be
taken. `mapped file`: the features lie in a temporary file, as those that are larger than memory do,
here on a warm page cache. `busy` is processor seconds over the seconds of all cores. Then n, P and
C are doubled three times each from a base size; the slope is that of log time against log size, 1
for linear growth. Every time is the median of the rounds, and a round measures everything once, so
that a slow moment of the machine meets all of them.

--devices 1 2 4 8 measures instead the pass of the rates with its rows over so many devices:
`speed-up` is seconds on the first count over seconds here, `efficiency` that over the ratio of the
counts. Devices forced upon one processor (XLA_FLAGS=--xla_force_host_platform_device_count=8) share
its cores, of which one device takes all, so there no speed-up is to be had: below 1 it says what
dividing the rows and summing F'R cost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from shared import Row, parser, random_program, show

from convex_heads.operators import Program, adjoint, apply
from convex_heads.scratch import spooled
from convex_heads.sharding import like_rows, rows_over

DOUBLINGS = 3
_PIECE = 4096


class Case(NamedTuple):
    """One line of the table: what runs, its sizes (n, d, P, C) and its useful FLOPs."""

    name: str
    run: Callable[[], Any]
    sizes: tuple[int, int, int, int]
    flops: float


class Taken(NamedTuple):
    """Medians of a case over the rounds."""

    seconds: float
    busy: float


@jax.jit
def product(A: jax.Array, B: jax.Array) -> jax.Array:
    """A B."""
    return A @ B


def data_pass(program: Program, W: jax.Array) -> jax.Array:
    """One product with F and one with F'."""
    return adjoint(program, apply(program, W))


def rate_cases(n: int, d: int, P: int, C: int, dtype: str) -> list[Case]:
    """The plain product and both operators at one size."""
    program = random_program(n, d, P, C, dtype)
    rng = np.random.default_rng(1)
    X = program.X.reshape(-1, d)[:n]
    rows = (np.asarray(X[k : k + _PIECE]) for k in range(0, n, _PIECE))
    mapped = program._replace(X=spooled(program.X.shape, np.dtype(dtype), rows))
    B = jnp.asarray(rng.normal(size=(d, P * C)), dtype)
    W = jnp.asarray(rng.normal(size=(P, d, C)), dtype)
    sizes, flops = (n, d, P, C), 2.0 * n * d * P * C
    return [
        Case("plain product", partial(product, X, B), sizes, flops),
        Case("apply", partial(apply, program, W), sizes, flops),
        Case("adjoint", partial(adjoint, program, program.Y), sizes, flops),
        Case("pass", partial(data_pass, program, W), sizes, 2 * flops),
        Case("pass, mapped file", partial(data_pass, mapped, W), sizes, 2 * flops),
    ]


def growth_cases(n: int, d: int, P: int, C: int, dtype: str) -> dict[str, list[Case]]:
    """A pass at the base size and along each axis, doubled."""
    axes: dict[str, list[Case]] = {}
    for axis in ("n", "P", "C"):
        axes[axis] = []
        for k in range(DOUBLINGS + 1):
            size = {"n": n, "P": P, "C": C}
            size[axis] *= 2**k
            program = random_program(size["n"], d, size["P"], size["C"], dtype)
            W = jnp.asarray(np.random.default_rng(k).normal(size=program.shape), dtype)
            sizes = (size["n"], d, size["P"], size["C"])
            case = Case(
                f"pass, {axis} x {2**k}",
                partial(data_pass, program, W),
                sizes,
                4.0 * float(np.prod(sizes)),
            )
            axes[axis].append(case)
    return axes


def medians(cases: list[Case], rounds: int) -> list[Taken]:
    """What every case takes, after one call that compiles."""
    for case in cases:
        jax.block_until_ready(case.run())
    times = np.empty((rounds, len(cases), 2))
    for k in range(rounds):
        for j, case in enumerate(cases):
            clock, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(case.run())
            times[k, j] = time.perf_counter() - clock, time.process_time() - processor
    wall, used = times[..., 0], times[..., 1]
    busy = np.median(used / wall, axis=0) / (os.cpu_count() or 1)
    return [Taken(*both) for both in zip(np.median(wall, axis=0), busy, strict=True)]


def row(case: Case, taken: Taken, plain: float | None = None, slope: float | None = None) -> Row:
    """One line of the table."""
    n, d, P, C = case.sizes
    speed = case.flops / taken.seconds
    return {
        "what": case.name,
        "n": n,
        "d": d,
        "P": P,
        "C": C,
        "ms": 1e3 * taken.seconds,
        "busy": taken.busy,
        "GFLOP/s": speed / 1e9,
        "of plain": plain and speed / plain,
        "slope": slope,
    }


def device_rows(sizes: list[int], dtype: str, counts: list[int], rounds: int) -> list[Row]:
    """A line for each count of devices."""
    n, d, P, C = sizes
    seconds: list[list[float]] = [[] for _ in counts]
    cases: list[tuple[int, Program, jax.Array]] = []
    for count in counts:
        with rows_over(count):
            program = random_program(n, d, P, C, dtype)
            W = jnp.asarray(np.random.default_rng(1).normal(size=program.shape), dtype)
            cases.append((count, program, like_rows(W, None)))
    for k in range(rounds + 1):
        for (count, program, W), times in zip(cases, seconds, strict=True):
            with rows_over(count):
                start = time.perf_counter()
                jax.block_until_ready(data_pass(program, W))
                if k:  # the first one compiles
                    times.append(time.perf_counter() - start)
    taken = [float(np.median(times)) for times in seconds]
    return [
        {
            "devices": count,
            "n": n,
            "d": d,
            "P": P,
            "C": C,
            "ms": 1e3 * mine,
            "speed-up": taken[0] / mine,
            "efficiency": taken[0] / mine * counts[0] / count,
        }
        for count, mine in zip(counts, taken, strict=True)
    ]


def main() -> None:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    add("--size", nargs=4, type=int, default=[16384, 385, 32, 6], help="n d P C of the rates")
    add("--base", nargs=4, type=int, default=[4096, 385, 32, 6], help="n d P C before doubling")
    add("--dtype", choices=("float32", "float64"), default="float32", help="of everything")
    add("--rounds", type=int, default=7, help="measurements per line, the median counts")
    add("--devices", type=int, nargs="+", metavar="N", help="rows over so many, first one first")
    options = command.parse_args()
    jax.config.update("jax_enable_x64", options.dtype == "float64")
    title = f"{options.dtype} on {jax.devices()[0].device_kind}"
    if options.devices:
        rows = device_rows(options.size, options.dtype, options.devices, options.rounds)
        show(title, rows, options)
        return

    n, d, P, C = options.size
    cases = rate_cases(n, d, P, C, options.dtype)
    taken = medians(cases, options.rounds)
    plain = cases[0].flops / taken[0].seconds
    rows = [row(*both, plain) for both in zip(cases, taken, strict=True)]
    n, d, P, C = options.base
    for cases in growth_cases(n, d, P, C, options.dtype).values():
        taken = medians(cases, options.rounds)
        times = [each.seconds for each in taken]
        slope = float(np.polyfit(np.arange(len(times)), np.log2(times), 1)[0])
        rows += [row(*both) for both in zip(cases[:-1], taken[:-1], strict=True)]
        rows.append(row(cases[-1], taken[-1], slope=slope))
    show(title, rows, options)


if __name__ == "__main__":
    main()
