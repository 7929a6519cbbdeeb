"""What every solve returns."""

from __future__ import annotations

import enum
from typing import NamedTuple

from jax import Array


class Status(enum.Enum):
    """How a solve ended; the value says what to do about it."""

    CONVERGED = "the relative gap is within the tolerance"
    MAX_PASSES = "stopped at max_passes before the tolerance: raise max_passes or the tolerance"
    MAX_SECONDS = "stopped at max_seconds before the tolerance: raise max_seconds or the tolerance"
    STATIONARY = (
        "the network's objective falls no further: the gap to the program of its own neurons is "
        "what is left, lower tolerance to descend longer"
    )
    STALLED = (
        "no further progress in this floating-point precision: accept the reported gap, or compute "
        "in float64 (JAX_ENABLE_X64=1) if this was float32"
    )
    UNPROVEN = (
        "the solver met the tolerance on its own program, the certificate of the network that is "
        "deployed did not: trust the certificate, or choose another solver"
    )
    BROKEN = "the objective is not a number: check X and Y for NaN or huge values"

    def judged_by(self, relative_gap: float, tolerance: float) -> Status:
        """What a solve that ended so is worth once its weights are certified.

        Example:
            >>> Status.CONVERGED.judged_by(0.5, 0.1).name, Status.STALLED.judged_by(0.05, 0.1).name
            ('UNPROVEN', 'CONVERGED')
        """
        if relative_gap <= tolerance:
            return Status.CONVERGED
        return Status.UNPROVEN if self is Status.CONVERGED else self


class Stats(NamedTuple):
    """Figures of one solve.

    Attributes:
        primal: objective at ``value``.
        dual: best lower bound found.
        relative_gap: (primal - dual) / primal.
        passes: data passes used, trial steps included (one pass = one F and one F' product).
        iterations: solver steps.
        seconds: wall-clock time, compilation included.
        block_rows: rows in a block of the streamed operators (part of what makes a run
            repeatable to the bit).
    """

    primal: float
    dual: float
    relative_gap: float
    passes: float
    iterations: int
    seconds: float
    block_rows: int


class Record(NamedTuple):
    """One line of a solve's history, taken every few steps (eight at most).

    Attributes:
        passes: data passes used so far.
        primal: lowest objective so far.
        dual: highest lower bound so far; -inf before the first.
        relative_gap: (primal - dual) / primal.
        seconds: wall-clock time so far, compilation included.
    """

    passes: float
    primal: float
    dual: float
    relative_gap: float
    seconds: float

    def after(self, passes: float, seconds: float) -> Record:
        """The same record, counted from so many passes and seconds earlier."""
        return self._replace(passes=self.passes + passes, seconds=round(self.seconds + seconds, 4))


class PrecisionEffect(NamedTuple):
    """What products in less than float32 did to the gap of a solve.

    Attributes:
        precision: of the products: ``tf32`` or ``bfloat16``.
        passes: data passes with such products; the others were in float32.
        believed_gap: relative gap that the solver saw through them at their end.
        relative_gap: the gap of the same weights in float32. Above the tolerance, the solver
            went on in float32 from there.
    """

    precision: str
    passes: float
    believed_gap: float
    relative_gap: float


class Solution(NamedTuple):
    """Result of a solve.

    Attributes:
        value: weights W (P, d, C).
        status: how it ended.
        stats: figures.
        history: records in order of time.
        scores: F W of the training rows without the offset, blocked (B, b, C).
        residual: R (B, b, C) of the best dual point found, before it is scaled into the dual
            ball; :func:`convex_heads.certificate.certify_program` checks it anew.
        gates: (P, d) in the coordinates of ``value``; None where the program was given.
        precision_effect: of products in less than float32; None where there were none.
    """

    value: Array
    status: Status
    stats: Stats
    history: tuple[Record, ...]
    scores: Array
    residual: Array
    gates: Array | None = None
    precision_effect: PrecisionEffect | None = None

    @property
    def reduced_passes(self) -> float:
        """Data passes with products in less than float32, of which each is two products."""
        return 0.0 if self.precision_effect is None else self.precision_effect.passes
