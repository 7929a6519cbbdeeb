"""The RBF support vector machine; of many rows, least squares on Nyström features of its kernel.

The exact machine keeps the kernel of all pairs of rows, n^2 numbers. Beyond EXACT_ROWS the kernel
is approximated by its rows at some landmarks (Williams & Seeger 2001), and the hinge is replaced by
squares (Suykens & Vandewalle 1999), whose path over C costs one eigendecomposition.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.svm import SVC

from tasks.methods.base import Fitted, Part, Problem, best_of, scored, standardised
from tasks.methods.ridge import ridge_path

EXACT_ROWS = 6000
_C = (1.0, 3.0, 10.0, 30.0)
_GAMMAS = (0.1, 0.3, 0.6, 1.2)  # divided by d: standardised rows are sqrt(2 d) apart
_LANDMARKS = 2048
_PENALTIES = np.geomspace(1e-1, 1e-8, 12)
_BLOCK = 4096


def fit(problem: Problem) -> Fitted:
    """4 gammas, 4 C (12 penalties beyond EXACT_ROWS); the best validation accuracy chooses."""
    return _exact(problem) if len(problem.train) <= EXACT_ROWS else _nystrom(problem)


def _distances(A: NDArray[np.floating], B: NDArray[np.floating]) -> NDArray[np.float64]:
    """Squared distances (n, m)."""
    A, B = A.astype(np.float64), B.astype(np.float64)
    square = (A * A).sum(axis=1)[:, None] + (B * B).sum(axis=1) - 2 * A @ B.T
    return np.maximum(square, 0, out=square)


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
            accuracy = float(model.fit(kernel, train.labels).score(kernel_val, validation.labels))
            if accuracy > best[0]:
                best = accuracy, copy.copy(model), gamma
    model, gamma = best[1:]

    def scores(part: Part) -> NDArray[np.floating]:
        z = model.decision_function(np.exp(-gamma * _distances(transform(part), Z)))
        if z.ndim == 1:  # two classes: the second one's
            z = np.stack([-z, z], axis=1)
        every = np.full((len(part), problem.n_classes), z.min() - 1)
        every[:, model.classes_] = z
        return every

    return Fitted(
        scored(scores, validation),
        settings_tried=len(_C) * len(_GAMMAS),
        chosen={"kernel": "exact", "C": model.C, "gamma_times_d": gamma * Z.shape[1]},
        parameters=model.dual_coef_.size + len(model.support_) * Z.shape[1],
    )


def _nystrom(problem: Problem) -> Fitted:
    train, validation = problem.train, problem.validation
    transform = standardised(train)
    Z, Z_val, C = transform(train), transform(validation), problem.n_classes
    chosen = np.random.default_rng(problem.seed).choice(len(Z), _LANDMARKS, replace=False)
    landmarks = Z[np.sort(chosen)]
    between = _distances(landmarks, landmarks)
    weights = problem.row_weights().astype(np.float32)
    shares = np.bincount(train.labels, weights, minlength=C) / len(Z)
    best: tuple[float, Any] = (-1.0, None)
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

        m = whiten.shape[1]
        moment, cross, centre = np.zeros((m, m)), np.zeros((m, C)), np.zeros(m)
        for start in range(0, len(Z), _BLOCK):
            phi = features(Z[start : start + _BLOCK])
            Y = np.eye(C, dtype=np.float32)[train.labels[start : start + _BLOCK]]
            weighted = phi * weights[start : start + _BLOCK, None]
            moment += weighted.T @ phi
            cross += weighted.T @ Y
            centre += weighted.sum(axis=0, dtype=np.float64)
        centre /= len(Z)
        moment = moment / len(Z) - np.outer(centre, centre)
        cross = cross / len(Z) - np.outer(centre, shares)
        path = ridge_path(
            moment, cross, centre, shares, features(Z_val), validation.labels, _PENALTIES * m
        )
        at = best_of(path.accuracies)
        if path.accuracies[at] > best[0]:
            best = path.accuracies[at], (features, path.weights[at], path.offsets[at], at, scale)
    features, W, offset, at, scale = best[1]

    def scores(part: Part) -> NDArray[np.floating]:
        X = transform(part)
        starts = range(0, len(X), _BLOCK)
        return np.concatenate([features(X[i : i + _BLOCK]) @ W + offset for i in starts])

    return Fitted(
        scored(scores, validation),
        settings_tried=len(_GAMMAS) * len(_PENALTIES),
        chosen={
            "kernel": f"Nyström, {_LANDMARKS} landmarks",
            "penalty": float(_PENALTIES[at]),
            "gamma_times_d": scale,
        },
        parameters=W.size + offset.size + landmarks.size + W.shape[0] * _LANDMARKS,
    )
