"""The temperature: that of the likelihood where rows are many, no certainty where they are few."""

from __future__ import annotations

import numpy as np
import pytest

from convex_heads.decode import probabilities
from tasks.calibration import fit_temperature


@pytest.mark.parametrize(("loss", "C"), [("softmax", 2), ("softmax", 20), ("logistic", 1)])
@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_that_drew_the_labels_is_found(loss, C, true):
    rng = np.random.default_rng(0)
    z = 2 * rng.normal(size=(20_000, C))
    p = probabilities(z, loss, true)
    labels = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1)
    found = fit_temperature(z, loss, labels)
    assert found == pytest.approx(true, rel=0.05)
    assert fit_temperature(10 * z, loss, labels) == pytest.approx(10 * found, rel=0.02)


@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_few_rows_that_are_all_right_hardly_move_it(loss):
    """The likelihood alone would send the temperature to zero, and every score to 1."""
    found = []
    for n in (1, 14, 500):
        labels = np.arange(n) % 2
        z = np.where(labels == 1, 3.0, -3.0)[:, None]
        T = fit_temperature(np.hstack([-z, z]) / 2 if loss == "softmax" else z, loss, labels)
        assert T is not None
        # d/d(log T) of the n rows' -log sigmoid(3 / T) and of the prior's cost is zero.
        slope = n * (3 / T) / (1 + np.exp(3 / T)) + np.log(T) / 0.25
        assert slope == pytest.approx(0, abs=1e-3 * n)
        found.append(T)
    assert 1 > found[0] > 0.9 > found[1] > found[2] > 0.3


@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_few_rows_of_honest_scores_are_left_nearly_as_they_are(loss):
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=(20_000, 1 if loss == "logistic" else 4))
    p = probabilities(z, loss, 1.0)
    labels = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1)
    found = [
        fit_temperature(z[i : i + 15], loss, labels[i : i + 15]) or 0 for i in range(0, 3000, 15)
    ]
    spread = np.log(found)
    assert abs(spread.mean()) < 0.15 and spread.std() < 0.35 and np.abs(spread).max() < 1.2


def test_the_squared_loss_has_none():
    assert fit_temperature(np.eye(2), "squared", np.array([0, 1])) is None
