"""What a gated fit costs: operations, bytes and memory from its shape, seconds from a rate.

With n rows, d features (the constant column among them), P gates and C outputs a data pass is a
product with F and one with F': 4 n d P C operations. Everything else a step does costs O(n C m^2)
for a span of m steps, a few per cent of that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from convex_heads.subspace_state import kept_steps

_BYTES = 4  # float32
# Arrays of the size of the scores, and of the weights, that a step holds beside the state: losses,
# conjugates, directions (as XLA plans them on a CPU).
_PASSING_SCORES, _PASSING_WEIGHTS = 15, 12
# Share of the peak that products of these shapes are taken to reach on a machine that is described.
_SHARE_OF_PEAK = 0.5
# Operations in the time in which a number is read from memory, and passes of a fit in the span of
# its rows beside those of its solves.
_TO_READ, _SPAN_PASSES = 32, 2.5


class Shape(NamedTuple):
    """n rows, d features (one of them constant), P gates, C outputs."""

    n: int
    d: int
    P: int
    C: int

    @property
    def weights(self) -> int:
        """Numbers in the weights."""
        return self.P * self.d * self.C

    @property
    def flops_per_pass(self) -> float:
        """Operations of a data pass."""
        return 4.0 * self.n * self.d * self.P * self.C

    @property
    def bytes_per_pass(self) -> float:
        """Bytes that a data pass and the search after it move: rows, patterns, hidden values."""
        n, d, P, C = self
        rows = 2 * n * d * _BYTES + 2 * n * P
        hidden = 4 * n * P * C * _BYTES
        span = 3 * (kept_steps(n, P, C) + 3) * (n * C + P * d * C) * _BYTES
        return float(rows + hidden + span)

    def span_steps(self, passes: float, solves: int) -> float:
        """Steps of solves in the span of the rows (:mod:`convex_heads.kernel`) from their passes.

        A product with the kernel is n / (2 P d) of a pass, weights from its coefficients are half.
        """
        return (passes - 0.5 * solves) * 2 * self.P * self.d / self.n

    def span_passes(self, steps: float, solves: int) -> float:
        """The inverse of :meth:`span_steps`."""
        return steps * self.n / (2 * self.P * self.d) + 0.5 * solves

    def span_operations(self, steps: float, solves: int) -> tuple[float, float]:
        """Operations of a fit in the span: on all pairs of rows, and on all rows.

        The kernel and its products, which read it; the weights of every solve, what validation
        rows and the certificate take, a few passes.
        """
        pairs = self.d + self.P + steps * max(2 * self.C, _TO_READ)
        return self.n**2 * pairs, self.flops_per_pass * (0.5 * solves + _SPAN_PASSES)

    @property
    def features(self) -> float:
        """Bytes of the program's features: of the temporary file of a fit that is streamed."""
        return float(self.n * self.d * _BYTES)

    @property
    def memory(self) -> float:
        """Bytes of a program, of the rows given, and of the solver.

        Of the solver these are its state, which is written over, and what XLA's plan holds while a
        step is taken.
        """
        # Beside the program's: as stored, standardised, rotated on the way.
        return self.streamed_memory + (1 + 3) * self.features

    @property
    def streamed_memory(self) -> float:
        """The same without features, which a streamed fit reads from files."""
        n, _, P, C = self
        program = n * C * _BYTES + n * P
        state = (kept_steps(n, P, C) + 4) * (n * C + self.weights) * _BYTES
        passing = (_PASSING_SCORES * n * C + _PASSING_WEIGHTS * self.weights) * _BYTES
        return float(program + state + passing)

    @property
    def span_memory(self) -> float:
        """As ``memory``, of a solve in the span of the rows (:mod:`convex_heads.kernel`).

        That is the kernel, patterns as numbers to make it of, and weights at the end of a solve.
        """
        n, _, P, C = self
        program = (1 + 3) * self.features + n * C * _BYTES + 5 * n * P
        kernel = n * n * _BYTES
        passing = (_PASSING_SCORES * n * C + _PASSING_WEIGHTS * self.weights) * _BYTES
        return float(program + kernel + passing)


@dataclass(frozen=True)
class Machine:
    """Some devices of one kind.

    Attributes:
        name: of the kind.
        count: how many.
        tflops: peak of one in float32, without tensor cores, TFLOP/s.
        gigabytes: memory of one.
        bandwidth: to it, TB/s.
    """

    name: str
    count: int
    tflops: float
    gigabytes: float
    bandwidth: float

    @property
    def memory(self) -> float:
        """Bytes that a program may take: nine tenths of all."""
        return 0.9e9 * self.gigabytes * self.count

    def seconds(self, shape: Shape, passes: float) -> float:
        """Of so many passes, at half of the peak or at the bandwidth; an assumption, no figure."""
        compute = shape.flops_per_pass / (_SHARE_OF_PEAK * self.tflops * 1e12)
        moving = shape.bytes_per_pass / (self.bandwidth * 1e12)
        return passes * max(compute, moving) / self.count


# Makers' data sheets: float32 outside of tensor cores, memory, bandwidth.
MACHINES = {
    "T4": (8.1, 16, 0.32),
    "V100": (15.7, 32, 0.9),
    "L4": (30.3, 24, 0.3),
    "L40S": (91.6, 48, 0.864),
    "A100": (19.5, 80, 2.04),
    "H100": (67.0, 80, 3.35),
    "H200": (67.0, 141, 4.8),
    "RTX4090": (82.6, 24, 1.01),
}


def machine(described: str) -> Machine:
    """The machine that `8xH100` or `H200` describes.

    Raises:
        ValueError: a kind that is not known.

    Example:
        >>> machine("8xH100").count, round(machine("h200").seconds(Shape(10**6, 769, 8, 1000), 100))
        (8, 73)
    """
    found = re.fullmatch(r"(?:(\d+)\s*x\s*)?([\w-]+)", described.strip(), re.IGNORECASE)
    kind = found[2].upper().replace("-", "") if found else ""
    if found is None or kind not in MACHINES or found[1] == "0":
        raise ValueError(
            f"a machine is described as 1xH200 or 8xA100, one of {', '.join(MACHINES)}; got "
            f"{described!r}"
        )
    return Machine(kind, int(found[1] or 1), *MACHINES[kind])
