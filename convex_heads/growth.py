r"""Growing the gates: solve, find the gates whose absence costs most, add them, solve on.

At the optimum for some gates, with residual R, a gate g that is not among them would get weights
other than zero exactly if ||X' D_g R||_F > beta: it violates the dual constraint of the program
over *all* gates, and the dual value falls short by no more than the worst such violation allows.
Column generation adds the worst violators and solves again from the weights that there are, zero
weights for the new gates: the objective can only fall.

    R       = residual at the optimum over the gates so far
    trial   = fresh gates, the best ones improved by local ascent on ||X' D_g R||_F
    stop if   max_g ||X' D_g R||_F <= tolerance * beta
    gates  += the worst violators whose patterns differ from one another and from all before

beta is the same absolute number throughout, not a fraction: beta_max grows with the gates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads.certificate import beta_max, climb
from convex_heads.duality import residual
from convex_heads.gated import SOLVERS, Prepared, fresh_gates
from convex_heads.gates import check_sampler, patterns_of
from convex_heads.limits import Limits
from convex_heads.operators import rows
from convex_heads.precision import full_precision
from convex_heads.reduced import minimise
from convex_heads.solution import Solution
from convex_heads.sources import RowSource
from convex_heads.subspace_state import State

# A pattern that agrees with one already chosen on all but this share of the rows adds little.
_APART = 0.02
# Rounds without a lower validation loss after which growing ends.
_PATIENCE = 2


@dataclass(frozen=True)
class Growth:
    """How gates are grown.

    Attributes:
        batch: gates added in one round, >= 1. Default 16; every round compiles the solver anew,
            for its number of gates.
        trials: fresh gates tried in one round, >= batch. Default 256.
        max_gates: never more than this. Default 256.
        violation: largest max_g ||X' D_g R||_F / beta to leave, >= 1. Default 1.2.
        sampler: of the trial gates; one that needs no rows. Default ``aligned``.

    Raises:
        ValueError: a field is out of its range.
    """

    batch: int = 16
    trials: int = 256
    max_gates: int = 256
    violation: float = 1.2
    sampler: str = "aligned"

    def __post_init__(self) -> None:
        check_sampler(self.sampler)
        if self.sampler == "pairs":
            raise ValueError("trial gates are drawn without rows: not from 'pairs'")
        if not 1 <= self.batch <= self.trials:
            raise ValueError(
                f"batch must be at least 1 and at most trials; got {self.batch} of {self.trials}"
            )
        if self.max_gates < 1:
            raise ValueError(f"max_gates must be at least 1; got {self.max_gates}")
        if self.violation < 1:
            raise ValueError(
                f"violation is a multiple of beta, at least 1, for example 1.2; got "
                f"{self.violation}"
            )


class Round(NamedTuple):
    """One solve while growing.

    Attributes:
        n_gates: gates in it.
        primal: objective.
        relative_gap: proven for these gates.
        violation: max over the trial gates of ||X' D_g R||_F / beta.
        passes: data passes of the solve.
        loss: validation loss; NaN without a judge.
        reduced_passes: those with products in less than float32.
    """

    n_gates: int
    primal: float
    relative_gap: float
    violation: float
    passes: float
    loss: float
    reduced_passes: float = 0.0


class Grown(NamedTuple):
    """The program with the gates it has in the end, its solution, and how it came about.

    Attributes:
        prepared: the program.
        solution: weights in rotated coordinates.
        rounds: in order of time.
    """

    prepared: Prepared
    solution: Solution
    rounds: tuple[Round, ...]


def grow(
    prepared: Prepared,
    X: RowSource,
    beta: float,
    key: Array,
    growth: Growth | None = None,
    *,
    solver: str = SOLVERS[0],
    limits: Limits | None = None,
    judge: Callable[[Prepared, Solution], float] | None = None,
) -> Grown:
    """Solves for one beta, adding the worst violators until none is left that matters.

    Args:
        prepared: the program with the gates to start from; few will do, the always-on gate is
            enough.
        X: the features (n, d) that ``prepared`` was made of.
        beta: absolute penalty, > 0.
        key: JAX random key of the trial gates.
        growth: how.
        solver: one of :data:`convex_heads.gated.SOLVERS`.
        limits: of every single solve.
        judge: validation loss of a solution; growing ends after two rounds without a lower one,
            and the round with the lowest is returned. Without it the last round is.

    Raises:
        ValueError: beta is not positive.

    Example:
        >>> from convex_heads.gated import prepare
        >>> from convex_heads.losses import SQUARED
        >>> rng = np.random.default_rng(0)
        >>> X = np.c_[rng.normal(size=(300, 4)), np.ones(300)].astype("float32")
        >>> Y = np.abs(X[:, :1])
        >>> start = prepare(X, Y, np.ones(300), SQUARED, 1, jax.random.key(0))
        >>> grown = grow(start, X, 0.01, jax.random.key(1))
        >>> grown.rounds[0].n_gates, grown.rounds[-1].primal < 0.5 * grown.rounds[0].primal
        (1, True)
    """
    if beta <= 0:
        raise ValueError(f"beta must be above 0 (at 0 every gate improves the fit); got {beta}")
    growth = growth or Growth()
    rounds: list[Round] = []
    best, state = None, None
    while True:
        solution, state = minimise(
            prepared,
            beta,
            solver=solver,
            warm=_pad(state, prepared.program.shape[0]),
            limits=limits,
        )
        key, trial_key = jax.random.split(key)
        gates, norms = _candidates(prepared, solution, trial_key, growth)
        rounds.append(
            Round(
                n_gates=len(prepared.gates),
                primal=solution.stats.primal,
                relative_gap=solution.stats.relative_gap,
                violation=float(norms[0]) / beta,
                passes=solution.stats.passes,
                loss=float("nan") if judge is None else judge(prepared, solution),
                reduced_passes=solution.reduced_passes,
            )
        )
        if judge is None or best is None or rounds[-1].loss < rounds[best[0]].loss:
            best = len(rounds) - 1, Grown(prepared, solution, ())
        room = growth.max_gates - len(prepared.gates)
        done = rounds[-1].violation <= growth.violation or room <= 0
        if done or len(rounds) - 1 - best[0] >= _PATIENCE:
            break
        wider = _extend(prepared, X, gates[norms > beta], min(growth.batch, room))
        if wider is prepared:
            break
        prepared = wider
    return best[1]._replace(rounds=tuple(rounds))


@full_precision
def _candidates(
    prepared: Prepared, solution: Solution, key: Array, growth: Growth
) -> tuple[np.ndarray, np.ndarray]:
    """Trial gates in the coordinates of the given features and their norms, worst first."""
    program, loss = prepared.program, prepared.loss
    Q = jnp.asarray(prepared.Q, program.X.dtype)
    drawn = fresh_gates(prepared, key, growth.trials, growth.sampler)
    R = residual(program, loss, solution.scores)
    gates, norms = climb(program, R, jnp.asarray(drawn))
    order = np.argsort(-np.asarray(norms), kind="stable")
    return np.asarray(gates @ Q.T)[order], np.asarray(norms)[order]


def _extend(prepared: Prepared, X: RowSource, gates: np.ndarray, room: int) -> Prepared:
    """Adds the first gates whose patterns are new, at most ``room``; the same object if none is."""
    program = prepared.program
    D = patterns_of(X, gates)
    known = rows(program.D, len(X))
    chosen: list[int] = []
    for i in range(len(gates)):
        if len(chosen) == room:
            break
        # Agreement with the complement is no gain either: D_1 - D_g is in the span already.
        share = np.abs(np.mean(known != D[:, i : i + 1], axis=0) - 0.5)
        if share.max() < 0.5 - _APART:
            chosen.append(i)
            known = np.c_[known, D[:, i]]
    if not chosen:
        return prepared
    # The blocks stay as they are, so that scores and spans of the rows remain valid.
    B, b, _ = program.D.shape
    new = np.zeros((B * b, len(chosen)), bool)
    new[: len(X)] = D[:, chosen]
    program = program._replace(
        D=jnp.concatenate([program.D, jnp.asarray(new.reshape(B, b, -1))], axis=2)
    )
    return prepared._replace(
        program=program,
        gates=np.concatenate([prepared.gates, gates[chosen].astype(prepared.gates.dtype)]),
        beta_max=float(beta_max(program, prepared.loss)),
    )


def _pad(state: Any, P: int) -> Any:
    """A final state with zero weights for the gates that have come since."""
    if state is None:
        return None

    def pad(A: Array, axis: int) -> Array:
        widths = [(0, 0)] * A.ndim
        widths[axis] = (0, P - A.shape[axis])
        return jnp.pad(A, widths)

    if isinstance(state, State):
        return state._replace(W=pad(state.W, 0), steps=pad(state.steps, 0))
    return state._replace(W=pad(state.W, 0), W_prev=pad(state.W_prev, 0), best=pad(state.best, 0))
