"""Numbers about probabilities: bins, coverage, noise, certified radii."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from tasks.comparison.reliability import (
    bins,
    certified_accuracy,
    noise_accuracy,
    selective_accuracy,
)
from tasks.methods import load_method
from tasks.methods.base import Part, Problem
from tasks.metrics import evaluate


@pytest.fixture(scope="module")
def probabilities() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    z = rng.normal(size=(400, 3)) + 2 * np.eye(3)[y]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return p, y


def test_bins_add_up_to_the_calibration_error(probabilities) -> None:
    p, y = probabilities
    found = bins(p, y)
    counts, confidence, accuracy = (np.nan_to_num(np.array(v)) for v in found.values())
    assert counts.sum() == 400
    error = np.sum(counts * np.abs(confidence - accuracy)) / 400
    assert error == pytest.approx(evaluate(p, y).ece, abs=1e-5)


def test_coverage_ends_at_the_accuracy_and_does_not_depend_on_the_order_of_rows(
    probabilities,
) -> None:
    p, y = probabilities
    p = p.round(1) + 1e-3  # many rows are equally sure
    found = selective_accuracy(p, y)
    assert found["accuracy"][-1] == pytest.approx(np.mean(p.argmax(axis=1) == y))
    assert found["accuracy"][0] > found["accuracy"][-1]
    order = np.random.default_rng(1).permutation(400)
    assert selective_accuracy(p[order], y[order]) == found
    # Nothing is gained where all rows are equally sure.
    level = selective_accuracy(np.full((400, 3), 1 / 3), y)
    assert np.ptp(level["accuracy"]) < 1e-6


def test_noise_hurts_a_head_and_not_a_method_that_reads_words() -> None:
    X, y = load_digits(return_X_y=True)
    X, y = X.astype(np.float32), y.astype(np.int64)
    train, test = Part(X[:1000], y[:1000]), Part(X[1000:], y[1000:], ["word"] * 797)
    head = LogisticRegression(max_iter=2000).fit(train.features, train.labels)
    found = noise_accuracy(lambda part: head.predict_proba(part.features), test, train, seed=0)
    assert found is not None
    assert found["accuracy"][0] == pytest.approx(head.score(test.features, test.labels))
    assert found["accuracy"][0] > found["accuracy"][3] + 0.02 > found["accuracy"][4] + 0.04
    assert noise_accuracy(lambda part: np.ones((len(part), 10)) / 10, test, train, 0) is None


def test_wrong_rows_are_certified_for_nothing() -> None:
    found = certified_accuracy(np.array([3.0, 3.0, 0.0]), np.array([True, False, True]))
    accuracy = np.array(found["accuracy"])
    assert accuracy[0] == pytest.approx(2 / 3, abs=1e-6)
    assert accuracy[1] == pytest.approx(1 / 3, abs=1e-6)
    assert (np.diff(accuracy) <= 0).all() and accuracy[-1] == 0


@pytest.mark.slow
def test_the_convex_head_keeps_its_radius_and_is_refitted_out_of_sample() -> None:
    X, y = load_digits(return_X_y=True)
    parts = [
        Part(X[a:b].astype(np.float32), y[a:b].astype(np.int64))
        for a, b in ((0, 600), (600, 800), (800, 1000))
    ]
    fitted = load_method("convex")(Problem(parts[0], parts[1], 10, 0))
    assert fitted.certified_radius is not None and fitted.refit is not None
    radius = fitted.certified_radius[0](parts[2])
    scale = parts[0].features.std(axis=0)
    rng = np.random.default_rng(0)
    direction = rng.normal(size=X[:200].shape)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    moved = parts[2].features + 0.99 * radius[:, None] * direction * scale
    before, after = (
        fitted.predict_proba(Part(features.astype(np.float32), parts[2].labels)).argmax(axis=1)
        for features in (parts[2].features, moved)
    )
    assert np.array_equal(before, after) and np.median(radius) > 0
    # A class that the other rows do not have has a column of zeros.
    rest = np.flatnonzero(parts[0].labels != 3)
    p = fitted.refit(Part(parts[0].features[rest], parts[0].labels[rest]))(parts[2])
    assert p.shape == (200, 10) and not p[:, 3].any()
    assert fitted.training is not None
    assert len(fitted.training["convergence"]) == len(fitted.training["path"]) + 1
