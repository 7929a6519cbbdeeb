"""Speed of the streamed operators against a plain matrix product, and growth of a data pass.

The plain product is X (n, d) times a dense (d, P C) matrix: what F costs where no gate has to be
taken. Then n, P and C are doubled three times each from a base size; the slope is that of log time
against log size, 1 for linear growth. Every time is the median of the rounds, and a round measures
everything once, so that a slow moment of the machine meets all of them.

--devices 1 2 4 8 measures instead the pass of the rates with its rows over so many devices:
`speed-up` is seconds on the first count over seconds here, `efficiency` that over the ratio of the
counts. Devices forced upon one processor (XLA_FLAGS=--xla_force_host_platform_device_count=8) share
its cores, of which one device takes all, so there no speed-up is to be had: below 1 it says what
dividing the rows and summing F'R cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from shared import Row, parser, random_program, show

from convex_heads.operators import Program, adjoint, apply
from convex_heads.sharding import like_rows, rows_over

DOUBLINGS = 3


class Case(NamedTuple):
    """One line of the table: what runs, its sizes (n, d, P, C) and its useful FLOPs."""

    name: str
    run: Callable[[], Any]
    sizes: tuple[int, int, int, int]
    flops: float


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
    B = jnp.asarray(rng.normal(size=(d, P * C)), dtype)
    W = jnp.asarray(rng.normal(size=(P, d, C)), dtype)
    sizes, flops = (n, d, P, C), 2.0 * n * d * P * C
    return [
        Case("plain product", partial(product, X, B), sizes, flops),
        Case("apply", partial(apply, program, W), sizes, flops),
        Case("adjoint", partial(adjoint, program, program.Y), sizes, flops),
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


def medians(cases: list[Case], rounds: int) -> dict[str, float]:
    """Median seconds of every case by name, after one call that compiles."""
    for case in cases:
        jax.block_until_ready(case.run())
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            start = time.perf_counter()
            jax.block_until_ready(case.run())
            seconds[case.name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def row(case: Case, seconds: float, of_plain: float | None, slope: float | None) -> Row:
    """One line of the table."""
    n, d, P, C = case.sizes
    return {
        "what": case.name,
        "n": n,
        "d": d,
        "P": P,
        "C": C,
        "ms": 1e3 * seconds,
        "GFLOP/s": case.flops / seconds / 1e9,
        "of plain": of_plain,
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
    seconds = medians(cases, options.rounds)
    plain = seconds["plain product"]
    rows = [row(case, seconds[case.name], plain / seconds[case.name], None) for case in cases]
    n, d, P, C = options.base
    for cases in growth_cases(n, d, P, C, options.dtype).values():
        seconds = medians(cases, options.rounds)
        times = [seconds[case.name] for case in cases]
        slope = float(np.polyfit(np.arange(len(times)), np.log2(times), 1)[0])
        rows += [row(case, seconds[case.name], None, None) for case in cases[:-1]]
        rows.append(row(cases[-1], times[-1], None, slope))
    show(title, rows, options)


if __name__ == "__main__":
    main()
