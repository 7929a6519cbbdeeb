"""CRONOS as published: a handful of ADMM steps on the ReLU program, judged on validation rows.

Feng, Frangella & Pilanci 2024, "CRONOS: Enhancing deep learning with scalable GPU accelerated
convex neural networks": squared loss, Gaussian gates, rho = 1, a Nyström preconditioner of rank 20,
weights that may lie outside their cones. See :func:`convex_heads.cronos.paper`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convex_heads import admm, cronos, gated, linear_system, relu
from convex_heads.decode import probabilities
from convex_heads.descent import network_scores
from convex_heads.losses import SQUARED
from convex_heads.operators import rows
from convex_heads.penalties import GROUP
from tasks.methods.base import Fitted, Problem, Unavailable
from tasks.methods.settings import SETTINGS
from tasks.standardise import scaling_of

_TRIED = SETTINGS["cronos"]
_GATES, _STEPS, _BETAS = _TRIED["gates"], _TRIED["steps"], _TRIED["betas"]
_MOST_SLACKS = 2**29  # numbers that the cones keep: 2 GiB


def fit(problem: Problem) -> Fitted:
    """3 betas, 10 steps each, all judged; the best validation accuracy chooses."""
    train, validation, C = problem.train, problem.validation, problem.n_classes
    P = max(1, min(_GATES, len(train) // 8))
    slacks = len(train) * 2 * C * P
    if slacks > _MOST_SLACKS:
        raise Unavailable(
            f"the constraints of {len(train):,} rows, {C} classes and {P} gates keep"
            f" {slacks * 4 / 2**30:.0f} GiB, and at most {_MOST_SLACKS * 4 / 2**30:.0f} are taken"
        )
    scaling = scaling_of(train.features, train.min_spread)
    X, X_val = scaling.transform(train.features), scaling.transform(validation.features)
    one_hot = np.eye(C, dtype=X.dtype)
    key, sketch_key = jax.random.split(jax.random.key(problem.seed))
    ones = np.ones(len(X), X.dtype)
    prepared = relu.prepare(X, one_hot[train.labels], ones, SQUARED, P, key, GROUP, "gaussian")
    held_out = gated.held_out_program(prepared, X_val, one_hot[validation.labels])
    program, recipe = prepared.program, cronos.paper(len(X))
    # The moments of the rows along their principal axes.
    h = prepared.h / SQUARED.curvature
    best: tuple[float, Array | None, float, int] = (-1.0, None, 0.0, 0)
    for fraction in _BETAS:
        beta = jnp.asarray(fraction * prepared.beta_max, program.X.dtype)
        state = admm.zero_state(program, SQUARED, recipe)
        system = linear_system.sketched(program, h, state.rho, recipe.rank, sketch_key)
        for step in range(1, _STEPS + 1):
            state = admm.advance(program, SQUARED, recipe, system, beta, state, 1)
            z = rows(network_scores(held_out, state.u), len(X_val))
            accuracy = float(np.mean(np.asarray(z).argmax(axis=1) == validation.labels))
            if accuracy > best[0]:
                best = accuracy, state.u, fraction, step
    _, u, fraction, step = best
    assert u is not None
    offset = np.asarray(program.z0)
    network = relu.decode(scaling, prepared.gates, gated.unrotate(prepared, u), offset, "squared")
    return Fitted(
        lambda part: probabilities(network.scores(part.features), "squared"),
        settings_tried=len(_BETAS) * _STEPS,
        chosen={"beta": fraction, "steps": step, "gates": len(prepared.gates)},
        parameters=network.hidden.size + network.output.size,
    )
