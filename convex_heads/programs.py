"""The two programs a head can be the optimum of, and :func:`solve` for either."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads import gated, reduced, relu
from convex_heads.checkpoint import one_fit
from convex_heads.decode import Network, TwoLayer
from convex_heads.descent import network_scores
from convex_heads.gates import DEFAULT_SAMPLER, check_sampler
from convex_heads.inputs import check_program
from convex_heads.limits import Limits, is_number
from convex_heads.losses import LOSSES
from convex_heads.operators import Program, apply
from convex_heads.penalties import PENALTIES
from convex_heads.precision import Precision, check_precision
from convex_heads.solution import Record, Solution
from convex_heads.sources import RowSource
from convex_heads.traced import is_traced, solve_traced
from convex_heads.training import MIN_ROWS_TO_SELECT


class Activation(NamedTuple):
    """What a head does differently under one activation; see the functions' own docstrings.

    Attributes:
        name: ``gated_relu`` or ``relu``.
        solvers: their names.
        lasting: those whose final states are small, and serve any number of warm starts.
        prepare: data -> program.
        reweight: the same program under other row weights.
        with_solver: (program, solver or ``auto``) -> the program with what the solver needs, and
            the solver's name.
        minimise: solves it for one beta.
        resume: a warm start at weights.
        scores: (program, weights) -> scores without offset of the deployed network (B, b, C).
        certify: weights -> certificate.
        decode: weights -> deployed network.
        decreasing: whether a path goes from the largest beta to the smallest. Descent goes the
            other way: neurons that the penalty has merged would not part again.
    """

    name: str
    solvers: tuple[str, ...]
    lasting: tuple[str, ...]
    prepare: Callable[..., gated.Prepared]
    reweight: Callable[[gated.Prepared, np.ndarray], gated.Prepared]
    with_solver: Callable[[gated.Prepared, str], tuple[gated.Prepared, str]]
    minimise: Callable[..., tuple[Solution, Any]]
    resume: Callable[..., Any]
    scores: Callable[[Program, Array], Array]
    certify: Callable[..., Any]
    decode: Callable[..., TwoLayer]
    decreasing: bool


ACTIVATIONS = {
    "gated_relu": Activation(
        name="gated_relu",
        solvers=gated.SOLVERS,
        lasting=("kernel",),
        prepare=gated.prepare,
        reweight=gated.reweight,
        with_solver=gated.with_solver,
        minimise=reduced.minimise,
        resume=gated.resume,
        scores=apply,
        certify=gated.certify_prepared,
        decode=Network.decode,
        decreasing=True,
    ),
    "relu": Activation(
        name="relu",
        solvers=relu.SOLVERS,
        lasting=(),
        prepare=relu.prepare,
        reweight=relu.reweight,
        with_solver=relu.with_solver,
        minimise=relu.minimise,
        resume=relu.resume,
        scores=network_scores,
        certify=relu.certify_prepared,
        decode=relu.decode,
        decreasing=False,
    ),
}


class Auto(NamedTuple):
    """What "auto" stands for under one activation and penalty.

    Attributes:
        betas: fractions of beta_max on the path.
        gates: most gates that are offered.
        begin: where the path begins, if not at its end; see :func:`convex_heads.path.solve_path`.
    """

    betas: tuple[float, ...]
    gates: int
    begin: float | None = None


# Hidden units are P C and 2 P C under the two activations with the group penalty, equally many.
# Ridge spreads a function over all gates at a 1/P of its penalty: it gains from many, and wants a
# beta that grows with them. All its weights are in use at every beta, so that the first points cost
# as much as the last: its path begins where most data sets are not far from their best.
AUTO = {
    ("gated_relu", "group"): Auto(
        (0.1, 0.055, 0.03, 0.017, 0.01, 0.0055, 0.003, 0.0017, 0.001), gates=64
    ),
    ("gated_relu", "ridge"): Auto(
        (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003), gates=256, begin=1.0
    ),
    ("relu", "group"): Auto((0.003, 0.01, 0.03, 0.1, 0.3), gates=32),
}


# Numbers in the weights of a ridge head, all of which it is deployed with: 64 MB.
_DEPLOYED = 1 << 24


def default_penalty(activation: str, loss: str, n: int, d: int, C: int) -> str:
    """The penalty where none is asked for.

    Classifiers with a gated ReLU have the ridge penalty, but not of so few rows that they have few
    gates, nor where all its gates would make a head of more than 64 MB: the group penalty switches
    off those that do not pay.

    Args:
        activation: of the head.
        loss: of the head.
        n: rows.
        d: features, a constant one included.
        C: outputs.

    Example:
        >>> default_penalty("gated_relu", "softmax", 5000, 385, 6)
        'ridge'
        >>> default_penalty("gated_relu", "softmax", 1_281_167, 1025, 1000)
        'group'
    """
    ridge = AUTO.get((activation, "ridge"))
    if ridge is None or loss == "squared" or n < MIN_ROWS_TO_SELECT:
        return "group"
    return "ridge" if ridge.gates * d * C <= _DEPLOYED else "group"


def default_tolerance(activation: str, loss: str) -> float:
    """Relative gap that a head is fitted to where none is asked for.

    Descent on a ReLU network need not reach any, and a squared loss may be almost nothing of what
    there was to explain: single precision cannot prove a small gap relative to that.

    Example:
        >>> default_tolerance("gated_relu", "softmax"), default_tolerance("relu", "softmax")
        (0.001, 0.02)
    """
    return 2e-2 if activation == "relu" or loss == "squared" else 1e-3


@dataclass(frozen=True)
class Options:
    """What :func:`solve` solves and when it stops.

    Attributes:
        beta: penalty as a fraction of beta_max, in (0, 1]; at 1 the head is zero. Default 0.03.
            Ridge weights are never zero and have no beta_max of their own: fractions are of the
            beta_max of the group penalty there too, only to have the scale of the data in them,
            and may be above 1.
        n_gates: gates to draw, >= 1; the first is always on. Default 64. Gates with equal patterns
            are dropped.
        gates: how they are drawn, one of :data:`convex_heads.gates.SAMPLERS`. Default ``aligned``.
        loss: ``softmax`` (default), ``logistic`` (a binary loss for every column of the targets,
            summed: one-vs-rest where C > 1) or ``squared``.
        penalty: ``group`` (default), sum_i ||W_i||_F, or ``ridge``, sum_i ||W_i||_F^2 / 2 (gated
            programs only).
        activation: ``gated_relu`` (default, :mod:`convex_heads.gated`) or ``relu``
            (:mod:`convex_heads.relu`).
        solver: ``auto`` (default) is the fastest known. For gated programs there are ``subspace``
            (:mod:`convex_heads.subspace`), under a ridge penalty ``kernel``
            (:mod:`convex_heads.kernel`, for few rows), and ``fista`` (:mod:`convex_heads.fista`,
            the independent baseline); for ReLU programs ``descent``
            (:mod:`convex_heads.descent`) and ``admm`` (:mod:`convex_heads.cronos`).
        limits: tolerance, max_passes, max_seconds.
        precision: of the streamed products that a solve of a gated program begins with:
            ``float32`` (default), ``tf32`` or ``bfloat16``, summed in float32. The gap is always
            computed in float32, and where it is above the tolerance the solve goes on in float32
            (:mod:`convex_heads.reduced`).

    Raises:
        ValueError: a field is out of its range.
    """

    beta: float = 0.03
    n_gates: int = 64
    gates: str = DEFAULT_SAMPLER
    loss: str = "softmax"
    penalty: str = "group"
    activation: str = "gated_relu"
    solver: str = "auto"
    limits: Limits = field(default_factory=Limits)
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("loss", self.loss, LOSSES),
            ("penalty", self.penalty, PENALTIES),
            ("activation", self.activation, ACTIVATIONS),
            ("solver", self.solver, ("auto", *self._solvers)),
        ):
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        check_sampler(self.gates)
        if check_precision(self.precision) is not Precision.FLOAT32 and self.activation == "relu":
            raise ValueError(
                f"ReLU programs are solved in float32 throughout: use precision='float32', or "
                f"activation='gated_relu'; got {self.precision!r}"
            )
        if self.activation == "relu" and self.penalty != "group":
            raise ValueError(
                "the ReLU program has the group penalty, a norm for every neuron: use "
                "penalty='group', or activation='gated_relu'"
            )
        if self.solver == "kernel" and (self.penalty, self.precision) != ("ridge", "float32"):
            raise ValueError(
                f"solver='kernel' is for penalty='ridge' and precision='float32'; got "
                f"{self.penalty!r} and {self.precision!r}"
            )
        most = 1 if self.penalty == "group" else sys.float_info.max
        if not (is_number(self.beta) and 0 < self.beta <= most):
            raise ValueError(
                f"beta is a fraction of beta_max, above 0 and at most 1 under the group penalty; "
                f"got {self.beta!r}"
            )
        if not isinstance(self.n_gates, int | np.integer) or self.n_gates < 1:
            raise ValueError(
                f"n_gates must be a whole number, at least 1 (one gate is a linear head); got "
                f"{self.n_gates!r}"
            )

    @property
    def _solvers(self) -> tuple[str, ...]:
        known = ACTIVATIONS.get(self.activation)
        return () if known is None else known.solvers


def solve(
    X: Array | RowSource,
    Y: Array | np.ndarray,
    options: Options,
    key: Array,
    *,
    on_record: Callable[[Record], None] | None = None,
) -> Solution:
    """Solves the gated or the ReLU program of features X and targets Y.

    Args:
        X: features (n, d), finite, standardised, the last column constant one; memory-mapped ones
            and row sources (:mod:`convex_heads.sources`) may be larger than memory.
        Y: targets (n, C): one-hot for softmax, 0 or 1 for logistic, real for squared.
        options: the program and the limits.
        key: JAX random key of the gates.
        on_record: called every few steps with the record (objective, bound, gap, passes,
            seconds) that the history gets.

    Returns:
        A :class:`Solution`: ``value`` W (P, d, C), or v and w (P, d, 2 C) of the ReLU program, and
        ``gates`` (P, d) in the coordinates of X, the status and the figures.

    Under ``jit`` and ``vmap`` (over X, Y or the key; options are static) gated programs are solved
    by the default solver, without clock, history and ``on_record``; see
    :func:`convex_heads.traced.solve_traced`.

    Raises:
        ValueError: shapes that do not belong together, values that are not finite or targets that
            are not for the loss (``jit`` and ``vmap`` cannot look at values), or, under ``jit`` and
            ``vmap``, options that are not for them.

    Example:
        >>> import jax, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.c_[rng.normal(size=(200, 4)), np.ones(200)].astype("float32")
        >>> Y = np.eye(2, dtype="float32")[(X[:, 0] * X[:, 1] > 0).astype(int)]
        >>> solution = solve(X, Y, Options(beta=0.1, n_gates=16), jax.random.key(0))
        >>> solution.status.name, solution.stats.relative_gap <= 1e-3
        ('CONVERGED', True)

        Heads of four draws of gates at once:

        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> many = jax.vmap(lambda key: solve(X, Y, Options(beta=0.1, n_gates=8), key))(keys)
        >>> many.value.shape, bool((many.stats.relative_gap <= 1e-3).all())
        ((4, 8, 5, 2), True)
    """
    if is_traced(X, Y, key):
        if options.activation != "gated_relu" or options.solver != "auto":
            raise ValueError(
                "under jit and vmap there is activation='gated_relu' with solver='auto' alone; got "
                f"{options.activation!r} with {options.solver!r}"
            )
        if options.precision != Precision.FLOAT32.value:
            raise ValueError(
                f"under jit and vmap there is precision='float32' alone; got {options.precision!r}"
            )
        return solve_traced(
            jnp.asarray(X),
            jnp.asarray(Y),
            LOSSES[options.loss],
            PENALTIES[options.penalty],
            options.beta,
            options.n_gates,
            options.gates,
            key,
            options.limits,
        )
    X, Y = check_program(X, Y, options.loss)
    activation = ACTIVATIONS[options.activation]
    prepared = activation.prepare(
        X,
        Y,
        np.ones(len(X), X.dtype),
        LOSSES[options.loss],
        options.n_gates,
        key,
        PENALTIES[options.penalty],
        options.gates,
    )
    prepared = prepared._replace(precision=Precision(options.precision))
    prepared, solver = activation.with_solver(prepared, options.solver)
    with one_fit(options, X, prepared.gates, Y):
        solution, _ = activation.minimise(
            prepared,
            options.beta * prepared.beta_max,
            solver=solver,
            limits=options.limits,
            on_record=on_record,
        )
    return solution._replace(
        value=jnp.asarray(gated.unrotate(prepared, solution.value)),
        gates=jnp.asarray(prepared.gates),
    )
