"""Rows with several labels: one-vs-rest heads, which share what can be shared.

Every method here gives probabilities (n, C) of C labels, each on its own between 0 and 1.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from convex_heads.head import ConvexHead
from convex_heads.training import TrainingSet, feature_dtype
from tasks.methods.base import Fitted, Part, Problem, Unavailable, platt, standardised
from tasks.methods.convex import certificate_notes, training_of
from tasks.methods.ridge import PENALTIES, ridge_path
from tasks.methods.settings import settings_of
from tasks.metrics import binary_nll

_LINEAR = settings_of("linear", several_labels=True)
_C_TIMES_D = np.array(_LINEAR["C_times_d"])
_FEWEST, _PATIENCE = _LINEAR["fewest"], _LINEAR["patience"]
_TFIDF_C = np.array(settings_of("tfidf", several_labels=True)["C"])
_PENALTY = settings_of("convex", several_labels=True)["penalty"]
_NEIGHBOURS = settings_of("knn", several_labels=True)["neighbours"]


class MultiLabelHead(ConvexHead):
    r"""C logistic heads with the same gates, and one penalty on each gate's weights for all labels.

    .. math:: \min_W\; \frac1n \sum_j \sum_c \log(1 + e^{z_{jc}}) - y_{jc} z_{jc}
              + \beta \sum_i \|W_i\|_F

    With ``penalty="group"`` a gate is on for all labels or off for all. The program is that of
    :class:`convex_heads.ConvexHeadClassifier` with C logistic outputs in place of one, and so is
    the certificate.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
        >>> Y = np.stack([X[:, 0] > 0, X[:, 1] > 0], axis=1)
        >>> head = MultiLabelHead(beta=0.05, penalty="group")
        >>> head = head.fit(X[:150], Y[:150], X[150:], Y[150:])
        >>> bool(np.mean((head.network_.scores(X) > 0) == Y) > 0.9)
        True
    """

    def fit(
        self,
        X: NDArray[np.floating],
        Y: NDArray[Any],
        X_val: NDArray[np.floating],
        Y_val: NDArray[Any],
    ) -> MultiLabelHead:
        """Fits features X (n, d) to labels Y (n, C) of 0 and 1; validation rows choose beta."""
        dtype = feature_dtype()
        data = TrainingSet.build(
            X,
            np.asarray(Y, dtype),
            np.ones(len(X)),
            validation=(X_val, np.asarray(Y_val, dtype)),
            hold_out=False,
            classes=False,
        )
        self._fit(data, "logistic", _share_right, None, None)
        return self


def _share_right(z: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(((z > 0) == (target > 0.5)).mean(axis=1), weights=weight))


def fit_convex(problem: Problem) -> Fitted:
    """Logistic heads over shared gates; the lowest validation loss chooses beta."""
    options = dict(problem.options)
    if options.pop("loss", "logistic") != "logistic":
        raise Unavailable("rows with several labels have the logistic loss: leave out --loss")
    if problem.class_weight is not None:
        raise Unavailable("it has no class weights for several labels: leave out --class-weight")
    train, validation = problem.train, problem.validation
    head = MultiLabelHead(
        **{"penalty": _PENALTY, **options},
        min_spread=train.min_spread,
        random_state=problem.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the notes
        head.fit(
            train.features, problem.targets(train), validation.features, problem.targets(validation)
        )
    network = head.network_
    arrays = [value for value in vars(network).values() if hasattr(value, "size")]
    return Fitted(
        lambda part: expit(network.scores(part.features).astype(np.float64)),
        settings_tried=len(head.path_),
        chosen={
            "beta": head.beta_,
            "gates": len(head.gates_),
            "active_gates": head.certificate_.active_gates,
            "relative_gap": head.certificate_.relative_gap,
        },
        parameters=sum(int(array.size) for array in arrays),
        notes=certificate_notes(head),
        training=training_of(head),
    )


def fit_linear(problem: Problem) -> Fitted:
    """Logistic regression for each label, its C by the label's own validation NLL."""
    transform = standardised(problem.train)
    Z, Z_val = transform(problem.train), transform(problem.validation)
    fitted, tried, chosen = _one_vs_rest(problem, Z, Z_val, _C_TIMES_D / Z.shape[1])

    def predict_proba(part: Part) -> NDArray[np.floating]:
        return _probabilities(fitted, transform(part))

    return Fitted(
        predict_proba,
        settings_tried=tried,
        chosen={"median_C": chosen},
        parameters=(Z.shape[1] + 1) * len(fitted),
    )


def fit_tfidf(problem: Problem) -> Fitted:
    """Words and pairs of words, logistic regression for each label."""
    from tasks.methods.tfidf import vectorizer_for

    train, validation = problem.train, problem.validation
    if train.texts is None or validation.texts is None:
        raise Unavailable("TF-IDF reads texts, and these rows are not texts")
    vectorizer, X = vectorizer_for(train.texts)
    fitted, tried, chosen = _one_vs_rest(
        problem, X, vectorizer.transform(validation.texts), _TFIDF_C
    )

    def predict_proba(part: Part) -> NDArray[np.floating]:
        assert part.texts is not None
        return _probabilities(fitted, vectorizer.transform(part.texts))

    return Fitted(
        predict_proba,
        settings_tried=tried,
        chosen={"median_C": chosen, "terms": X.shape[1]},
        parameters=(X.shape[1] + 1) * len(fitted),
    )


def _one_vs_rest(
    problem: Problem, X: Any, X_val: Any, path: Sequence[float] | NDArray[np.floating]
) -> tuple[list[Any], int, float]:
    """A model (or a share) for every label, the most settings tried, and the median C."""
    Y, Y_val = problem.targets(problem.train), problem.targets(problem.validation)
    fitted: list[Any] = []
    most, chosen = 0, []
    for c in range(problem.n_classes):
        y, y_val = Y[:, c], Y_val[:, c]
        if y.min() == y.max():
            fitted.append(float(y.mean()))
            continue
        model = LogisticRegression(
            max_iter=2000,
            warm_start=True,
            class_weight=problem.class_weight,
            random_state=problem.seed,
        )
        losses, models = [], []
        for C in path:
            if len(losses) >= _FEWEST and len(losses) - 1 - int(np.argmin(losses)) >= _PATIENCE:
                break
            model.C = float(C)
            with warnings.catch_warnings(), threadpool_limits(1):
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(X, y)
            losses.append(binary_nll(model.predict_proba(X_val)[:, 1], y_val))
            models.append(copy.deepcopy(model))
        best = models[int(np.argmin(losses))]
        fitted.append(best)
        chosen.append(best.C)
        most = max(most, len(losses))
    return fitted, most, float(np.median(chosen)) if chosen else float("nan")


def _probabilities(fitted: Sequence[Any], X: Any) -> NDArray[np.floating]:
    p = np.empty((X.shape[0], len(fitted)))
    for c, model in enumerate(fitted):
        p[:, c] = model if isinstance(model, float) else model.predict_proba(X)[:, 1]
    return p


def fit_ridge(problem: Problem) -> Fitted:
    """Least squares for all labels at once; a logistic curve for each label on validation rows."""
    transform = standardised(problem.train)
    Z, Y = transform(problem.train), problem.targets(problem.train).astype(np.float64)
    validation = problem.validation
    Z_val, Y_val = transform(validation), problem.targets(validation)
    centre, shares = Z.mean(axis=0, dtype=np.float64), Y.mean(axis=0)
    centred = (Z - centre).astype(np.float32)
    moment = (centred.T @ centred).astype(np.float64) / len(Z)
    cross = centred.T @ (Y - shares) / len(Z)
    nobody = np.zeros(len(Z_val), np.int64)  # the path's own accuracy is for classes
    path = ridge_path(moment, cross, centre, shares, Z_val, nobody, PENALTIES)
    best: tuple[float, int, Callable[[NDArray[np.floating]], NDArray[np.floating]] | None]
    best = (np.inf, 0, None)
    for k in range(len(PENALTIES)):
        z = Z_val @ path.weights[k] + path.offsets[k]
        curve = platt(z, Y_val)
        loss = binary_nll(curve(z), Y_val)
        if loss < best[0]:
            best = loss, k, curve
    _, k, curve = best
    assert curve is not None
    W, offset = path.weights[k], path.offsets[k]
    return Fitted(
        lambda part: curve(transform(part) @ W + offset),
        settings_tried=len(PENALTIES),
        chosen={"penalty": float(PENALTIES[k])},
        parameters=W.size + offset.size,
    )


def fit_knn(problem: Problem) -> Fitted:
    """Shares of the labels among the nearest rows; k and scaling by validation NLL."""
    import faiss

    train, validation = problem.train, problem.validation
    Y, Y_val = problem.targets(train).astype(np.float64), problem.targets(validation)
    shares = Y.mean(axis=0)

    def unit(X: NDArray[np.floating]) -> NDArray[np.float32]:
        norms = np.linalg.norm(X, axis=1, keepdims=True)
        return np.ascontiguousarray(X / np.where(norms > 0, norms, 1), np.float32)

    spaces: dict[str, Callable[[Part], NDArray[np.float32]]] = {
        "raw": lambda part: np.array(part.features, np.float32),
        "standardised": standardised(train),
    }
    best: tuple[float, Any] = (np.inf, None)
    tried = 0
    for name, transform in spaces.items():
        index = faiss.IndexFlatIP(train.features.shape[1])
        index.add(unit(transform(train)))  # pyright: ignore[reportCallIssue]
        _, found = index.search(  # pyright: ignore[reportCallIssue]
            unit(transform(validation)), min(max(_NEIGHBOURS), len(train))
        )
        for k in sorted({min(k, len(train)) for k in _NEIGHBOURS}, reverse=True):
            p = (Y[found[:, :k]].sum(axis=1) + shares) / (k + 1)  # one more vote, of all rows
            tried += 1
            loss = binary_nll(p, Y_val)
            if loss < best[0]:
                best = loss, (name, k, index)
    name, k, index = best[1]

    def predict_proba(part: Part) -> NDArray[np.floating]:
        _, found = index.search(unit(spaces[name](part)), k)
        return (Y[found].sum(axis=1) + shares) / (k + 1)

    return Fitted(
        predict_proba,
        settings_tried=tried,
        chosen={"features": name, "k": k},
        parameters=train.features.size + Y.size,
    )
