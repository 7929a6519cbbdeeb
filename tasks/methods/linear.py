"""The linear probe: multinomial logistic regression, tuned by :mod:`tasks.baselines`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from tasks.baselines import linear_probe
from tasks.methods.base import Fitted, Part, Problem, for_all_classes, standardised


def fit(problem: Problem) -> Fitted:
    """A warm-started path of up to 12 values of C; the best validation accuracy chooses."""
    train, validation = problem.train, problem.validation
    probe = linear_probe(
        train.features,
        train.labels,
        validation.features,
        validation.labels,
        n_classes=problem.n_classes,
        class_weight=problem.class_weight,
        min_spread=train.min_spread,
        seed=problem.seed,
    )

    def refit(part: Part) -> Callable[[Part], NDArray[np.floating]]:
        transform = standardised(part)
        again = LogisticRegression(C=probe.C, max_iter=2000, class_weight=problem.class_weight)
        again.fit(transform(part), part.labels)
        return lambda rows: for_all_classes(
            again.predict_proba(transform(rows)), again.classes_, problem.n_classes
        )

    return Fitted(
        lambda part: probe.predict_proba(part.features),
        settings_tried=probe.settings_tried,
        chosen={"C": probe.C},
        parameters=probe.weights.size + probe.intercept.size,
        refit=refit,
    )
