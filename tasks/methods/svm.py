"""The RBF support vector machine; of many rows, least squares on Nyström features of its kernel.

The exact machine keeps the kernel of all pairs of rows, n^2 numbers. Beyond EXACT_ROWS the kernel
is approximated by its rows at some landmarks (Williams & Seeger 2001), and the hinge is replaced by
squares (Suykens & Vandewalle 1999), whose path over C costs one eigendecomposition.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.svm import SVC

from tasks.methods.base import (
    Fitted,
    Part,
    Problem,
    Unavailable,
    best_of,
    platt,
    scored,
    standardised,
)
from tasks.methods.ridge import ridge_path
from tasks.methods.settings import SETTINGS
from tasks.metrics import binary_nll

_TRIED = SETTINGS["svm"]
EXACT_ROWS = _TRIED["exact_rows"]
_C, _GAMMAS = _TRIED["C"], _TRIED["gammas"]
_LANDMARKS = _TRIED["landmarks"]
_PENALTIES = np.array(_TRIED["penalties"])
_BLOCK = 4096


def fit(problem: Problem) -> Fitted:
    """4 gammas, 4 C (12 penalties beyond EXACT_ROWS); the best validation accuracy chooses."""
    return _exact(problem) if len(problem.train) <= EXACT_ROWS else _nystrom(problem)


def _distances(A: NDArray[np.floating], B: NDArray[np.floating]) -> NDArray[np.float64]:
    """Squared distances (n, m)."""
    A, B = A.astype(np.float64), B.astype(np.float64)
    square = (A * A).sum(axis=1)[:, None] + (B * B).sum(axis=1) - 2 * A @ B.T
    return np.maximum(square, 0, out=square)


def _scores_of(model: SVC, kernel: NDArray[np.floating], n_classes: int) -> NDArray[np.floating]:
    """(n, n_classes): of classes that it was not fitted on below all others."""
    z = model.decision_function(kernel)
    if z.ndim == 1:  # two classes: the second one's
        z = np.stack([-z, z], axis=1)
    every = np.full((len(z), n_classes), z.min() - 1)
    every[:, model.classes_] = z
    return every


def _exact(problem: Problem) -> Fitted:
    train, validation = problem.train, problem.validation
    transform = standardised(train)
    Z, Z_val = transform(train), transform(validation)
    square, square_val = _distances(Z, Z), _distances(Z_val, Z)
    best: tuple[float, Any, float] = (-1.0, None, 0.0)
    for scale in _GAMMAS:
        gamma = scale / Z.shape[1]
        kernel, kernel_val = np.exp(-gamma * square), np.exp(-gamma * square_val)
        for C in _C:
            model = SVC(
                C=C,
                kernel="precomputed",
                decision_function_shape="ovr",
                cache_size=500,
                class_weight=problem.class_weight,
            )
            model.fit(kernel, train.labels)
            said = _scores_of(model, kernel_val, problem.n_classes).argmax(axis=1)
            accuracy = float(np.mean(said == validation.labels))
            if accuracy > best[0]:
                best = accuracy, copy.copy(model), gamma
    model, gamma = best[1:]

    def scores(part: Part) -> NDArray[np.floating]:
        kernel = np.exp(-gamma * _distances(transform(part), Z))
        return _scores_of(model, kernel, problem.n_classes)

    return Fitted(
        scored(scores, validation),
        settings_tried=len(_C) * len(_GAMMAS),
        chosen={"kernel": "exact", "C": model.C, "gamma_times_d": gamma * Z.shape[1]},
        parameters=model.dual_coef_.size + len(model.support_) * Z.shape[1],
    )


Features = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _nystrom(problem: Problem) -> Fitted:
    train, validation, C = problem.train, problem.validation, problem.n_classes
    transform = standardised(train)
    weights = problem.row_weights().astype(np.float32)
    best: tuple[float, Any] = (-1.0, None)
    for scale, features, path in _paths(
        transform(train),
        lambda rows: np.eye(C, dtype=np.float32)[train.labels[rows]],
        weights,
        transform(validation),
        validation.labels,
        problem.seed,
    ):
        at = best_of(path.accuracies)
        if path.accuracies[at] > best[0]:
            best = path.accuracies[at], (features, path.weights[at], path.offsets[at], at, scale)
    features, W, offset, at, scale = best[1]
    return Fitted(
        scored(_scores(transform, features, W, offset), validation),
        settings_tried=len(_GAMMAS) * len(_PENALTIES),
        chosen=_chosen(train, at, scale),
        parameters=_parameters(train, W),
    )


def fit_several(problem: Problem) -> Fitted:
    """Least squares for all labels at once; 4 gammas, 12 penalties by validation NLL.

    Of at most 2,048 rows all are landmarks, and the kernel is exact. A logistic curve for each
    label turns scores into probabilities (Platt 1999).
    """
    if problem.class_weight is not None:
        raise Unavailable("it has no class weights for several labels: leave out --class-weight")
    train, validation = problem.train, problem.validation
    transform = standardised(train)
    Y, Y_val = problem.targets(train).astype(np.float32), problem.targets(validation)
    Z_val = transform(validation)
    best: tuple[float, Any] = (np.inf, None)
    for scale, features, path in _paths(
        transform(train),
        lambda rows: Y[rows],
        np.ones(len(train), np.float32),
        Z_val,
        np.zeros(len(Z_val), np.int64),  # the path's own accuracy is for classes
        problem.seed,
    ):
        phi = features(Z_val)
        for at in range(len(_PENALTIES)):
            W, offset = path.weights[at], path.offsets[at]
            z = phi @ W + offset
            curve = platt(z, Y_val)
            loss = binary_nll(curve(z), Y_val)
            if loss < best[0]:
                best = loss, (features, W, offset, curve, at, scale)
    features, W, offset, curve, at, scale = best[1]
    scores = _scores(transform, features, W, offset)
    return Fitted(
        lambda part: curve(scores(part)),
        settings_tried=len(_GAMMAS) * len(_PENALTIES),
        chosen=_chosen(train, at, scale),
        parameters=_parameters(train, W),
    )


def _paths(
    Z: NDArray[np.float32],
    targets: Callable[[slice], NDArray[np.float32]],
    weights: NDArray[np.float32],
    Z_val: NDArray[np.float32],
    y_val: NDArray[np.int64],
    seed: int,
) -> Iterator[tuple[float, Features, Any]]:
    """For each gamma its scale, the Nyström features (m,) and the ridge path on them.

    Args:
        Z: (n, d) standardised training rows.
        targets: some rows -> (b, C).
        weights: (n,) of mean 1.
        Z_val: (n_val, d).
        y_val: (n_val,) classes, for the path's accuracies.
        seed: of the landmarks.
    """
    count = min(_LANDMARKS, len(Z))
    chosen = np.random.default_rng(seed).choice(len(Z), count, replace=False)
    landmarks = Z[np.sort(chosen)]
    between = _distances(landmarks, landmarks)
    for scale in _GAMMAS:
        gamma = scale / Z.shape[1]
        values, vectors = eigh(np.exp(-gamma * between))
        kept = values > 1e-8 * values[-1]
        whiten = (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)

        def features(
            X: NDArray[np.float32], gamma: float = gamma, whiten: Any = whiten
        ) -> NDArray[np.float32]:
            kernel = np.exp(-gamma * _distances(X, landmarks)).astype(np.float32)
            return kernel @ whiten

        m, C = whiten.shape[1], targets(slice(0, 1)).shape[1]
        moment, cross, centre = np.zeros((m, m)), np.zeros((m, C)), np.zeros(m)
        shares = np.zeros(C)
        for start in range(0, len(Z), _BLOCK):
            rows = slice(start, start + _BLOCK)
            phi, Y = features(Z[rows]), targets(rows)
            weighted = phi * weights[rows, None]
            moment += weighted.T @ phi
            cross += weighted.T @ Y
            centre += weighted.sum(axis=0, dtype=np.float64)
            shares += (weights[rows, None] * Y).sum(axis=0, dtype=np.float64)
        centre, shares = centre / len(Z), shares / len(Z)
        moment = moment / len(Z) - np.outer(centre, centre)
        cross = cross / len(Z) - np.outer(centre, shares)
        phi_val = features(Z_val)
        path = ridge_path(moment, cross, centre, shares, phi_val, y_val, _PENALTIES * m)
        yield scale, features, path


def _scores(
    transform: Callable[[Part], NDArray[np.float32]],
    features: Features,
    W: NDArray[np.floating],
    offset: NDArray[np.floating],
) -> Callable[[Part], NDArray[np.floating]]:
    def scores(part: Part) -> NDArray[np.floating]:
        X = transform(part)
        starts = range(0, len(X), _BLOCK)
        return np.concatenate([features(X[i : i + _BLOCK]) @ W + offset for i in starts])

    return scores


def _chosen(train: Part, at: int, scale: float) -> dict[str, Any]:
    exact = len(train) <= _LANDMARKS
    return {
        "kernel": "exact, least squares" if exact else f"Nyström, {_LANDMARKS} landmarks",
        "penalty": float(_PENALTIES[at]),
        "gamma_times_d": scale,
    }


def _parameters(train: Part, W: NDArray[np.floating]) -> int:
    landmarks = min(_LANDMARKS, len(train))
    return W.size + W.shape[1] + landmarks * (train.features.shape[1] + W.shape[0])
