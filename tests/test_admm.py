"""ADMM on ReLU programs, against an interior-point method, and the pieces it is made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from relu_programs import make, oracle

from convex_heads import cronos, relu
from convex_heads.limits import Limits
from convex_heads.losses import LOSSES
from convex_heads.nystrom import adaptive_nystrom, approximation_error, nystrom, precondition
from convex_heads.pcg import pcg


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("fraction", [0.3, 0.03])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 6))]
)
def test_admm_finds_the_value_of_an_interior_point_method(x64, name, fraction, seed):
    prepared = make(seed, name)
    beta = fraction * prepared.beta_max
    limits = Limits(tolerance=1e-5, max_passes=60_000)
    solution, run = cronos.minimise(
        prepared.program, prepared.loss, beta, h=relu._moments(prepared), limits=limits
    )
    value = oracle(prepared, beta)
    assert solution.stats.dual <= value * (1 + 1e-7)
    # Weights that are outside their cones have up to a few times as much less than the optimum.
    outside = float(run.violation)
    assert outside <= 5e-5
    assert solution.stats.primal == pytest.approx(value, rel=1e-5 + 5 * outside)
    assert solution.stats.dual == pytest.approx(value, rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [6, "adaptive"])
def test_nystrom_preconditioned_admm_finds_the_same_value(x64, rank):
    prepared = make(1, "softmax", P=4)
    beta = 0.1 * prepared.beta_max
    recipe = cronos.Recipe(balance=False, rank=rank)
    solution, _ = cronos.minimise(
        prepared.program,
        prepared.loss,
        beta,
        h=relu._moments(prepared),
        recipe=recipe,
        limits=Limits(tolerance=1e-5, max_passes=60_000),
    )
    assert solution.stats.primal == pytest.approx(oracle(prepared, beta), rel=1e-4)


@pytest.mark.slow
def test_the_published_recipe_is_for_the_squared_loss_and_solves_it(x64):
    prepared = make(0, "squared")
    beta, n = 0.1 * prepared.beta_max, 30
    solve_it = {"h": relu._moments(prepared), "recipe": cronos.paper(n)}
    solution, _ = cronos.minimise(
        prepared.program,
        prepared.loss,
        beta,
        limits=Limits(tolerance=1e-4, max_passes=100_000),
        **solve_it,
    )
    assert solution.stats.dual <= oracle(prepared, beta) * (1 + 1e-6)
    other = make(0, "logistic")
    with pytest.raises(ValueError, match="squared loss, not logistic"):
        cronos.minimise(other.program, other.loss, beta, **solve_it)


@pytest.mark.slow
def test_nystrom_is_exact_at_full_rank_and_its_error_is_known(x64):
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    values = 2.0 ** -np.arange(12)
    matrix = jnp.asarray((Q * values) @ Q.T)

    def product(V):
        return (matrix @ V.reshape(12, -1)).reshape(V.shape)

    key = jax.random.key(0)
    full = nystrom(product, (3, 4), 12, key, jnp.float64)
    np.testing.assert_allclose(full.eigenvalues, values, rtol=1e-5)
    U = full.U.reshape(12, 12)
    np.testing.assert_allclose((U * full.eigenvalues) @ U.T, matrix, atol=1e-7)
    part = nystrom(product, (3, 4), 4, key, jnp.float64)
    U = np.asarray(part.U.reshape(12, 4))
    exact = np.linalg.norm(np.asarray(matrix) - (U * np.asarray(part.eigenvalues)) @ U.T, 2)
    assert float(approximation_error(product, part, key, 50)) == pytest.approx(exact, rel=1e-3)
    adapted = adaptive_nystrom(product, (3, 4), 1e-3, key, jnp.float64, rank=1, factor=10)
    assert float(approximation_error(product, adapted, key, 50)) <= 1e-2
    # Applied to what the sketch knows, the preconditioner is the inverse but for a factor.
    mu = 0.1
    r = jnp.asarray(rng.normal(size=(3, 4, 2)))
    z = precondition(full, jnp.asarray(mu), r)
    back = product(z) + mu * z
    scale = float(full.eigenvalues[-1]) + mu
    np.testing.assert_allclose(back, scale * r, atol=1e-6)


def test_pcg_solves_for_all_columns_and_counts_its_products(x64):
    rng = np.random.default_rng(1)
    M = rng.normal(size=(9, 9))
    matrix = jnp.asarray(M @ M.T + np.eye(9))
    b = jnp.asarray(rng.normal(size=(9, 3)))
    result = pcg(lambda x: matrix @ x, b, jnp.zeros_like(b), lambda r: r, jnp.asarray(1e-10), 200)
    np.testing.assert_allclose(result.x, np.linalg.solve(matrix, b), atol=1e-7)
    assert float(result.residual) <= 1e-10
    exact = pcg(
        lambda x: matrix @ x,
        b,
        jnp.zeros_like(b),
        lambda r: jnp.linalg.solve(matrix, r),
        jnp.asarray(1e-8),
        200,
    )
    assert int(exact.products) == 2


@pytest.mark.parametrize("name", ["squared", "logistic", "softmax"])
def test_proximal_maps_of_losses_solve_their_equation(x64, name):
    loss = LOSSES[name]
    rng = np.random.default_rng(2)
    C = 1 if name == "logistic" else 4
    v = jnp.asarray(3 * rng.normal(size=(200, C)))
    label = rng.integers(0, max(2, C), 200)
    y = label[:, None].astype(float) if C == 1 else np.eye(C)[label]
    for rho in (0.05, 1.0):
        z = loss.prox(v, jnp.asarray(y), jnp.asarray(rho), v)
        for _ in range(3):
            z = loss.prox(v, jnp.asarray(y), jnp.asarray(rho), z)
        np.testing.assert_allclose(loss.gradient(z, y) + rho * (z - v), 0, atol=1e-9)
