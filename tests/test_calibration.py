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
    assert fit_temperature(10 * z, loss, labels) == pytest.approx(10 * found, rel=1e-3)


@pytest.mark.parametrize("n", [1, 14, 500])
@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_rows_that_are_all_right_prove_no_more_than_their_number(loss, n):
    """Of n rows of equal margin, all right, the next one is right with (n + 1) / (n + 2)."""
    labels = np.arange(n) % 2
    z = np.where(labels == 1, 3.0, -3.0)[:, None]
    if loss == "softmax":
        z = np.hstack([-z, z]) / 2
    found = fit_temperature(z, loss, labels)
    assert found is not None
    confidence = probabilities(z, loss, found)[np.arange(n), labels]
    np.testing.assert_allclose(confidence, (n + 1) / (n + 2), rtol=1e-3)


def test_the_squared_loss_has_none():
    assert fit_temperature(np.eye(2), "squared", np.array([0, 1])) is None
