"""The linear probe: multinomial logistic regression, tuned by :mod:`tasks.baselines`."""

from __future__ import annotations

from tasks.baselines import linear_probe
from tasks.methods.base import Fitted, Problem


def fit(problem: Problem) -> Fitted:
    """A warm-started path of up to 12 values of C; the best validation accuracy chooses."""
    train, validation = problem.train, problem.validation
    probe = linear_probe(
        train.features,
        train.labels,
        validation.features,
        validation.labels,
        n_classes=problem.n_classes,
        seed=problem.seed,
    )
    return Fitted(
        lambda part: probe.predict_proba(part.features),
        settings_tried=probe.settings_tried,
        chosen={"C": probe.C},
        parameters=probe.weights.size + probe.intercept.size,
    )
