"""Table models that learn in context: extras, for few rows and few columns."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.methods.base import Fitted, Part, Problem, Unavailable

# What their authors name as the range the models were trained for.
_LIMITS = {"tabicl": (60_000, 500, 10_000), "tabpfn": (10_000, 500, 10)}


def fit_tabicl(problem: Problem) -> Fitted:
    """TabICL (Qu et al. 2025) as published; nothing to tune."""
    return _fit(problem, "tabicl", "TabICLClassifier")


def fit_tabpfn(problem: Problem) -> Fitted:
    """TabPFN (Hollmann et al. 2025) as published; nothing to tune."""
    return _fit(problem, "tabpfn", "TabPFNClassifier")


def _fit(problem: Problem, package: str, name: str) -> Fitted:
    rows, columns, classes = _LIMITS[package]
    train = problem.train
    found = (len(train), train.features.shape[1], problem.n_classes)
    for value, most, what in zip(
        found, (rows, columns, classes), ("rows", "features", "classes"), strict=True
    ):
        if value > most:
            raise Unavailable(f"{package} is made for at most {most:,} {what}; here are {value:,}")
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise Unavailable(f"{package} is not installed: pip install {package}") from None
    model: Any = getattr(module, name)(random_state=problem.seed)
    model.fit(train.features, train.labels)

    def predict_proba(part: Part) -> NDArray[np.floating]:
        p = np.zeros((len(part), problem.n_classes))
        p[:, model.classes_] = model.predict_proba(part.features)
        return p

    return Fitted(predict_proba, settings_tried=1, chosen={}, parameters=train.features.size)
