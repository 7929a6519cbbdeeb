"""What fits and solves are given, checked: all of it before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from jax import Array
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, check_consistent_length, validate_data

from convex_heads.losses import check_targets
from convex_heads.sources import RowSource, check_source, is_streamed
from convex_heads.training import feature_dtype

P = ParamSpec("P")
H = TypeVar("H")


def raw_dtypes(X: Any) -> list[type]:
    """The dtypes that raw features may have for scikit-learn's checks, the one to convert to first.

    Double precision is kept until the features are standardised: a column of time stamps or other
    numbers with a large mean has lost its digits in single precision.
    """
    short = getattr(X, "dtype", None) in (np.float16, np.int8, np.uint8, np.int16, np.uint16)
    if short and feature_dtype() is np.float32:
        return [np.float32, np.float64]
    return [np.float64, np.float32] if feature_dtype() is np.float32 else [np.float64]


def check_validation(
    head: BaseEstimator, X: RowSource, X_val: Any, y_val: Any, outputs: int | None = None
) -> tuple[RowSource, np.ndarray]:
    """Validation features (m, d) and targets (m,) or (m, C), checked against the features X.

    Args:
        head: what is being fitted; it knows the names of the columns, whose order they must have.
        X: features (n, d).
        X_val: validation features.
        y_val: their targets.
        outputs: C, where targets are numbers.

    Raises:
        ValueError: they do not belong together, said in one sentence.
    """
    width = np.shape(X_val)[1:]
    if len(width) == 1 and width[0] != X.shape[1]:
        raise ValueError(f"X_val has {width[0]} features, X has {X.shape[1]}")
    if is_streamed(X_val):
        X_val = check_source("X_val", X_val, [X.dtype])
    else:
        validate_data(head, X_val, reset=False, skip_check_array=True)
        X_val = check_array(X_val, dtype=X.dtype.name, input_name="X_val")
    if y_val is None:
        raise ValueError("X_val was given without y_val")
    check_consistent_length(X_val, y_val)
    y_val = np.asarray(y_val)
    if outputs is None:
        return X_val, y_val
    y_val = np.asarray(y_val, np.float64).reshape(len(y_val), -1)
    if y_val.shape[1] != outputs or not np.isfinite(y_val).all():
        raise ValueError(
            f"y_val must hold finite targets, {outputs} for each row as y has; got shape "
            f"{y_val.shape}"
        )
    return X_val, y_val


def check_program(
    X: Array | RowSource, Y: Array | np.ndarray, loss: str
) -> tuple[RowSource, np.ndarray]:
    """Features (n, d) and targets (n, C) of :func:`convex_heads.solve`, in the dtype of programs.

    Single precision stays single, whatever JAX computes in.

    Raises:
        ValueError: values that are not finite, or targets that are not for the loss.
    """
    dtypes = [feature_dtype(), np.float32]
    if is_streamed(X):
        X = check_source("X", cast(RowSource, X), dtypes)
    else:
        X = np.asarray(X)
        if X.dtype.kind not in "biuf":
            raise ValueError(f"X must be an array of real numbers; got {X.dtype} values")
        if not np.isfinite(X).all():
            raise ValueError(
                f"X must hold finite features; got NaN or infinity among shape {X.shape}"
            )
        X = X if X.dtype in dtypes else X.astype(dtypes[0])
    Y = np.asarray(Y)
    check_targets(Y, loss)
    return X, Y.astype(X.dtype)


def all_or_nothing(fit: Callable[P, H]) -> Callable[P, H]:
    """A fit that fails leaves an estimator as it was, not with half of what it learnt."""

    @wraps(fit)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> H:
        learnt = vars(args[0])
        before = dict(learnt)
        try:
            return fit(*args, **kwargs)
        except BaseException:
            learnt.clear()
            learnt.update(before)
            raise

    return wrapped
