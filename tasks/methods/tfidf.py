"""TF-IDF and logistic regression: what texts say without any backbone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from tasks.methods.base import Fitted, Part, Problem, Unavailable, best_of
from tasks.methods.settings import SETTINGS

_TRIED = SETTINGS["tfidf"]
_C = np.array(_TRIED["C"])
_FEWEST, _PATIENCE = _TRIED["fewest"], _TRIED["patience"]
_MOST_TERMS = _TRIED["most_terms"]


def vectorizer_for(texts: Sequence[str]) -> tuple[TfidfVectorizer, Any]:
    """Learnt from training texts, and their counts (n, terms)."""
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2 if len(texts) >= 1000 else 1,
        max_features=_MOST_TERMS,
        token_pattern=r"(?u)\b\w+\b",  # one-letter words too: "I", and digits
        dtype=np.float32,  # pyright: ignore[reportArgumentType]
    )
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError:
        raise Unavailable("the training texts hold no words") from None


def fit(problem: Problem) -> Fitted:
    """Words and pairs of words, sublinear counts; a path of up to 12 C by validation accuracy."""
    train, validation = problem.train, problem.validation
    if train.texts is None or validation.texts is None:
        raise Unavailable("TF-IDF reads texts, and these rows are not texts")
    vectorizer, X = vectorizer_for(train.texts)
    X_val = vectorizer.transform(validation.texts)
    model = LogisticRegression(
        max_iter=1000,
        warm_start=True,
        class_weight=problem.class_weight,
        random_state=problem.seed,
    )
    models, accuracies = [], []
    for C in _C:
        tried = len(accuracies)
        if tried >= _FEWEST and tried - 1 - best_of(accuracies) >= _PATIENCE:
            break  # as the linear probe's path ends
        model.C = float(C)
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X, train.labels)
        accuracies.append(float(np.mean(model.predict(X_val) == validation.labels)))
        models.append(copy.deepcopy(model))
    best = models[best_of(accuracies)]

    def predict_proba(part: Part) -> NDArray[np.floating]:
        assert part.texts is not None
        p = np.zeros((len(part), problem.n_classes))
        p[:, best.classes_] = best.predict_proba(vectorizer.transform(part.texts))
        return p

    return Fitted(
        predict_proba,
        settings_tried=len(accuracies),
        chosen={"C": best.C, "terms": len(vectorizer.vocabulary_)},
        parameters=best.coef_.size + best.intercept_.size,
    )
