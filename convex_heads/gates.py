"""Gates g_i and their activation patterns D_i = diag(1[X g_i >= 0])."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@partial(jax.jit, static_argnames="n_gates")
def sample_gates(key: Array, second_moment: Array, n_gates: int) -> Array:
    r"""Draws gates aligned with the data: g ~ N(0, S), S the second moment of the features.

    Directions in which the data vary more get more of the gates' cuts; fewer such gates are needed
    than isotropic ones for the same accuracy. The draw is S^{1/2} xi with the *symmetric* root,
    which does not depend on the signs or the order of eigenvectors: equal data give equal gates.

    Args:
        key: a JAX random key.
        second_moment: (d, d), of the standardised features; the last row and column belong to
            the constant column and are ignored: random gates pass through the mean of the data.
        n_gates: P >= 1. The first gate is (0, ..., 0, 1): always on, so that the head contains
            the linear probe.

    Returns:
        gates (P, d).
    """
    d = second_moment.shape[0]
    eigenvalues, Q = jnp.linalg.eigh(second_moment[:-1, :-1])
    xi = jax.random.normal(key, (n_gates - 1, d - 1), second_moment.dtype)
    root = jnp.sqrt(jnp.maximum(eigenvalues, 0))
    drawn = ((xi @ Q) * root) @ Q.T
    always_on = jnp.zeros((1, d), second_moment.dtype).at[0, -1].set(1)
    return jnp.concatenate([always_on, jnp.pad(drawn, ((0, 0), (0, 1)))])


@jax.jit
def activation_patterns(X: Array, gates: Array) -> Array:
    """1[X g_i >= 0]: features (n, d), gates (P, d) -> bool (n, P)."""
    return X @ gates.T >= 0


def distinct_patterns(D: np.ndarray) -> np.ndarray:
    """Indices (in order) of the first gate of every distinct pattern; D is bool (n, P)."""
    packed = np.packbits(np.asarray(D), axis=0).T
    _, first = np.unique(packed, axis=0, return_index=True)
    return np.sort(first)
