"""Products are asked for in all of float32, and less, where it is asked for, proves nothing."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import Problem

import convex_heads
from convex_heads import ConvexHeadClassifier, Options, gated, solve, subspace
from convex_heads.certificate import _bounds, _largest_norm
from convex_heads.limits import Limits
from convex_heads.losses import SOFTMAX
from convex_heads.operators import adjoint, apply
from convex_heads.penalties import GROUP
from convex_heads.precision import Precision, product
from convex_heads.sharding import rows_over
from convex_heads.subspace_state import zeros
from extractors.errors import InputError
from tasks.config import FinetuneConfig, FitConfig
from tasks.config_files import load_config

N, K, P, C = 40, 4, 3, 2
HIGHEST = "[HIGHEST, HIGHEST]"


def _rows(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = np.c_[rng.normal(size=(n, K - 1)), np.ones(n)].astype("float32")
    clear = np.abs(X[:, 0]) + 0.5 * rng.normal(size=n) > 0.6
    return X, np.eye(C, dtype="float32")[clear.astype(int)]


def _prepared(precision: str = "float32") -> gated.Prepared:
    X, Y = _rows()
    prepared = gated.prepare(X, Y, np.ones(N), SOFTMAX, P, jax.random.key(0))
    return prepared._replace(precision=Precision(precision))


def _asked(function, *args) -> set[str]:
    """The precisions that the products of a function ask for, with the types they multiply."""
    lines = [line for line in function.lower(*args).as_text().splitlines() if "dot_general" in line]
    assert lines
    asked = [re.findall(r"precision = (\[.*?\])", line)[0] for line in lines]
    return {a + " bf16" * ("xbf16>" in line) for a, line in zip(asked, lines, strict=True)}


def _solver(program) -> set[str]:
    beta, tolerance = jnp.float32(0.01), jnp.float32(1e-3)
    state = zeros(program, GROUP)
    return _asked(subspace.advance, program, SOFTMAX, GROUP, beta, tolerance, state, 8)


def _certificate(program) -> set[str]:
    W, beta = jnp.zeros((P, K, C)), jnp.float32(0.01)
    bounds = _asked(_bounds, program, SOFTMAX, GROUP, W, beta, jnp.zeros_like(program.Y))
    return bounds | _asked(_largest_norm, program, program.Y, jnp.ones((20, K)), 3)


def test_solver_and_certificate_ask_for_float32_whatever_is_the_default_outside():
    with jax.default_matmul_precision("bfloat16"):
        program = _prepared().program
        assert _solver(program) == _certificate(program) == {HIGHEST}


def test_so_does_a_solve_under_jit_and_vmap():
    X, Y = _rows()
    options = Options(n_gates=P)
    many = jax.vmap(lambda key: solve(X, Y, options, key).value)
    assert _asked(jax.jit(many), jax.random.split(jax.random.key(0), 2)) == {HIGHEST}


def test_so_do_products_over_a_mesh():
    with rows_over("all"):
        program = _prepared().program
        assert _asked(apply, program, jnp.zeros((P, K, C))) == {HIGHEST}
        assert _asked(adjoint, program, program.Y) == {HIGHEST}


def test_everything_is_compiled_through_the_one_function_that_asks_for_it():
    for path in Path(convex_heads.__file__).parent.glob("*.py"):
        shown = [line for line in path.read_text().splitlines() if ">>>" not in line]
        compiles = [line for line in shown if re.search(r"jax\.jit[(,]|@jax\.jit", line)]
        assert not compiles or path.name == "precision.py", (path.name, compiles)


def test_the_option_changes_what_the_solver_asks_for_and_never_the_certificate():
    for name, asked in (("tf32", "[HIGH, HIGH]"), ("bfloat16", "[DEFAULT, DEFAULT] bf16")):
        prepared = _prepared(name)
        rounded = prepared.program._replace(precision=prepared.precision)
        assert _asked(apply, rounded, jnp.zeros((P, K, C))) == {asked}
        assert _asked(adjoint, rounded, rounded.Y) == {asked}
    assert _solver(rounded) == {HIGHEST, asked}
    assert _certificate(prepared.program) == {HIGHEST}


def test_rounded_products_are_linear_nearly_to_float32():
    rng = np.random.default_rng(0)
    X, b = rng.normal(size=(64, 50)).astype("float32"), rng.normal(size=(50, 7)).astype("float32")
    rounded = np.asarray(jnp.asarray(X).astype(jnp.bfloat16), np.float64)
    found = np.asarray(product(jnp.asarray(X), jnp.asarray(b), Precision.BFLOAT16), np.float64)
    size = np.abs(rounded) @ np.abs(b)
    assert (np.abs(found - rounded @ b) <= 2.0**-15 * size).all()
    assert (np.abs(found - X.astype(float) @ b) > 2.0**-12 * size).any()


def _true_gap(X, Y, beta: float, solution) -> float:
    """How far weights are above the optimum that an interior-point method finds in float64."""
    X64, mean = X.astype(float), Y.mean(axis=0).astype(float)
    D = X @ np.asarray(solution.gates).T >= 0
    problem = Problem(X64, D, Y.astype(float), np.full(len(X), 1 / len(X)), np.log(mean), "softmax")
    beta *= problem.beta_max()
    value = problem.objective(np.asarray(solution.value, np.float64), beta)
    return (value - problem.solve(beta)[0]) / value


def test_a_gap_that_only_rounded_products_believe_is_closed_in_float32():
    X, Y = _rows(120)
    tolerance = 3e-4
    options = Options(
        beta=0.03, n_gates=6, precision="bfloat16", limits=Limits(tolerance=tolerance)
    )
    seen = []
    solution = solve(X, Y, options, jax.random.key(0), on_record=seen.append)
    effect = solution.precision_effect
    assert effect is not None and effect.precision == "bfloat16"
    assert effect.believed_gap <= tolerance < effect.relative_gap  # or this test shows nothing
    assert 0 < effect.passes < solution.stats.passes
    assert solution.status.name == "CONVERGED"
    assert solution.stats.relative_gap <= tolerance
    assert _true_gap(X, Y, 0.03, solution) <= tolerance + 1e-6  # objectives in float64
    passes = [record.passes for record in solution.history]
    assert passes == sorted(passes)
    assert seen[-1] == solution.history[-1]


def test_limits_that_end_the_solve_leave_the_gap_that_holds_in_float32():
    X, Y = _rows(120)
    limits = Limits(tolerance=1e-6, max_passes=5)
    options = Options(beta=0.003, n_gates=6, precision="bfloat16", limits=limits)
    solution = solve(X, Y, options, jax.random.key(0))
    assert solution.status.name == "MAX_PASSES"
    assert _true_gap(X, Y, 0.003, solution) <= solution.stats.relative_gap + 1e-5


def test_a_head_begun_in_bfloat16_is_as_good_as_one_in_float32():
    X, Y = _rows(120)
    full, begun = (
        ConvexHeadClassifier(n_gates=6, beta=0.1, loss="softmax", precision=precision).fit(
            X[:, :-1], Y.argmax(axis=1)
        )
        for precision in ("float32", "bfloat16")
    )
    assert full.precision_effect_ is None
    assert full.reduced_passes_ == 0 < begun.reduced_passes_ < begun.passes_
    effect = begun.precision_effect_
    assert effect is not None and effect.precision == "bfloat16"
    assert begun.certificate_.relative_gap <= begun.tolerance_
    assert begun.certificate_.primal == pytest.approx(full.certificate_.primal, rel=1e-3)


def test_tf32_is_float32_on_a_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("this device may have it")
    rng = np.random.default_rng(0)
    X, b = rng.normal(size=(64, 50)).astype("float32"), rng.normal(size=(50, 7)).astype("float32")
    found = product(jnp.asarray(X), jnp.asarray(b), Precision.TF32)
    np.testing.assert_allclose(found, X.astype(float) @ b, atol=1e-5)


def test_what_cannot_be_is_refused_in_a_sentence(tmp_path):
    X, Y = _rows()
    with pytest.raises(ValueError, match="must be one of float32, tf32, bfloat16; got 'half'"):
        Options(precision="half")
    with pytest.raises(ValueError, match="ReLU programs are solved in float32 throughout"):
        Options(activation="relu", precision="tf32")
    with pytest.raises(ValueError, match="under jit and vmap there is precision='float32' alone"):
        jax.jit(lambda key: solve(X, Y, Options(precision="tf32"), key))(jax.random.key(0))
    with pytest.raises(ValueError, match="got 'bf16'"):
        ConvexHeadClassifier(precision="bf16").fit(X, Y[:, 0])
    with pytest.raises(InputError, match="precision tf32: ReLU heads are solved in float32"):
        FitConfig(data="imdb", activation="relu", precision="tf32")
    with pytest.raises(InputError, match="precision tf32: heads are solved in float32 here"):
        FinetuneConfig(data="imdb", precision="tf32")
    (tmp_path / "f.toml").write_text('data = "imdb"\nprecision = "half"\n')
    with pytest.raises(InputError, match=r"precision.*float32.*tf32.*bfloat16"):
        load_config(FitConfig, tmp_path / "f.toml")
