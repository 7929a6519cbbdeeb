"""In which precision products of matrices are taken: in all of float32, unless less is asked for.

Left to itself JAX takes products of float32 numbers in less than float32 on GPUs and TPUs (TF32,
bfloat16). A bound computed so is no proof, and a solve that compares objectives loses its way. So
everything that this package compiles goes through :func:`jit`, and what is not compiled as a whole
through :func:`full_precision`: what they ask for holds wherever they are called from, under a
caller's ``jit``, ``vmap`` or mesh, and whatever ``jax_default_matmul_precision`` says outside.

Less is for the streamed products of a program that says so (:mod:`convex_heads.reduced`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.stages import Wrapped

P = ParamSpec("P")
T = TypeVar("T")


@jax.tree_util.register_static
class Precision(enum.Enum):
    """Of the numbers that are multiplied; they are summed in float32 always."""

    FLOAT32 = "float32"
    TF32 = "tf32"
    BFLOAT16 = "bfloat16"


# Digits of a number after the first one.
_BITS = {Precision.TF32: 10, Precision.BFLOAT16: 7}


def check_precision(name: str) -> Precision:
    """The precision of that name.

    Raises:
        ValueError: there is none.

    Example:
        >>> check_precision("tf32")
        <Precision.TF32: 'tf32'>
    """
    known = [each.value for each in Precision]
    if name not in known:
        raise ValueError(f"precision must be one of {', '.join(known)}; got {name!r}")
    return Precision(name)


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with every product within it in all of the numbers' precision."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return inside


def jit(
    function: Callable[..., Any],
    *,
    static_argnames: str | tuple[str, ...] = (),
    donate_argnames: str | tuple[str, ...] = (),
) -> Wrapped:
    """``jax.jit`` of a function whose products are in full precision.

    Example:
        >>> dot = jit(lambda a, b: a @ b)
        >>> with jax.default_matmul_precision("bfloat16"):
        ...     print("HIGHEST" in dot.lower(jnp.ones(2), jnp.ones(2)).as_text())
        True
    """
    return jax.jit(
        full_precision(function), static_argnames=static_argnames, donate_argnames=donate_argnames
    )


def product(X: Array, b: Array, precision: Precision) -> Array:
    """The product of data X (..., m, k) and b (k, n): (..., m, n), summed in float32.

    In less than float32 the data are rounded, and b is in two terms, each rounded: the product is
    still linear in b, nearly to float32, so a solve sees a program of slightly other data, and can
    compare its objectives.

    Example:
        >>> a = jnp.full((1, 1), 1 + 2**-9)
        >>> float(product(a, jnp.ones((1, 1)), Precision.BFLOAT16)[0, 0])
        1.0
        >>> bool(product(jnp.ones((1, 1)), a, Precision.BFLOAT16)[0, 0] == a[0, 0])
        True
    """
    if precision is Precision.FLOAT32:
        return jnp.matmul(X, b, precision=jax.lax.Precision.HIGHEST)
    # A conversion there and back, unlike this, the compiler may leave out.
    high = jax.lax.reduce_precision(b, exponent_bits=8, mantissa_bits=_BITS[precision])
    return _rounded_product(X, high, precision) + _rounded_product(X, b - high, precision)


def _rounded_product(X: Array, b: Array, precision: Precision) -> Array:
    """The product of the rounded numbers; TF32 is asked of the device, which rounds them."""
    if precision is Precision.TF32:
        return jnp.matmul(X, b, precision=jax.lax.Precision.HIGH)
    summed = jnp.matmul(
        X.astype(jnp.bfloat16),
        b.astype(jnp.bfloat16),
        precision=jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
    return summed.astype(X.dtype)
