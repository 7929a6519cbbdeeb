"""Every method of `compare` keeps one contract; some are checked against what they should equal."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from convex_heads.programs import AUTO
from tasks.methods import METHODS, load_method
from tasks.methods.base import Part, Problem, Unavailable
from tasks.methods.ridge import ridge_path
from tasks.methods.settings import SETTINGS, settings_of

FAST = ("linear", "ridge", "knn", "svm")
LONG = ("mlp", "convex", "ntk", "cronos", "relu")


def problem(seed: int = 0) -> tuple[Problem, Part]:
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float32)
    made = [Part(X[a:b], y[a:b].astype(np.int64)) for a, b in ((0, 400), (400, 500), (500, 800))]
    return Problem(made[0], made[1], 10, seed), made[2]


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]
)
def test_method_keeps_its_contract(name: str) -> None:
    given, test = problem()
    fit = load_method(name)
    fitted = fit(given)
    p = fitted.predict_proba(test)
    assert p.shape == (300, 10)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-4)
    assert (p >= 0).all()
    assert np.mean(p.argmax(axis=1) == test.labels) > 0.7
    assert fitted.settings_tried >= 3 and fitted.parameters > 0
    assert np.array_equal(fit(problem()[0]).predict_proba(test), p)  # to the bit


@pytest.mark.parametrize(("method", "penalty"), [("convex", "ridge"), ("ntk", "group")])
def test_records_tell_the_gates_and_the_path_of_the_head(method: str, penalty: str) -> None:
    default, said = AUTO["gated_relu", penalty], SETTINGS[method]
    assert tuple(said["betas"]) == default.betas
    assert (said["most_gates"], said.get("begin")) == (default.gates, default.begin)


def test_every_point_of_the_ridge_path_is_scikit_learns() -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 5)) + 3, rng.integers(0, 3, 80)
    Y = np.eye(3)[y]
    centre, shares = X.mean(axis=0), Y.mean(axis=0)
    moment = (X - centre).T @ (X - centre) / 80
    cross = (X - centre).T @ (Y - shares) / 80
    path = ridge_path(moment, cross, centre, shares, X, y, [1.0, 0.01])
    for k, penalty in enumerate([1.0, 0.01]):
        theirs = Ridge(alpha=80 * penalty * np.trace(moment) / 5).fit(X, Y)
        np.testing.assert_allclose(X @ path.weights[k] + path.offsets[k], theirs.predict(X))


def test_nystrom_features_stand_in_for_the_kernel_of_many_rows(monkeypatch) -> None:
    from tasks.methods import svm

    given, test = problem()
    exact = svm.fit(given)
    monkeypatch.setattr(svm, "EXACT_ROWS", 100)
    monkeypatch.setattr(svm, "_LANDMARKS", 300)
    near = svm.fit(given)
    accuracies = [
        np.mean(f.predict_proba(test).argmax(axis=1) == test.labels) for f in (exact, near)
    ]
    assert "Nyström" in near.chosen["kernel"]
    assert accuracies[1] > accuracies[0] - 0.03


def test_tfidf_reads_words_and_only_words() -> None:
    rng = np.random.default_rng(0)
    words = (["oak", "rose", "fern"], ["dog", "cat", "wolf"])
    labels = rng.integers(0, 2, 200)
    texts = [f"a {rng.choice(words[label])} number {i % 7}" for i, label in enumerate(labels)]
    part = Part(np.zeros((200, 1), np.float32), labels, texts)
    fitted = load_method("tfidf")(Problem(part, part, 2, 0))
    assert np.mean(fitted.predict_proba(part).argmax(axis=1) == labels) == 1
    with pytest.raises(Unavailable, match="not texts"):
        load_method("tfidf")(problem()[0])


@pytest.mark.parametrize(
    "name",
    [
        "linear",
        "ridge",
        "svm",
        "nystrom",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp", "convex", "ntk")),
    ],
)
def test_balanced_classes_find_more_of_the_rare_one(name: str, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(1500) < 0.1).astype(np.int64)
    X = (rng.normal(size=(1500, 6)) + 1.0 * y[:, None]).astype(np.float32)
    parts = [Part(X[a:b], y[a:b]) for a, b in ((0, 700), (700, 1000), (1000, 1500))]
    if name == "nystrom":
        from tasks.methods import svm

        monkeypatch.setattr(svm, "EXACT_ROWS", 100)
        monkeypatch.setattr(svm, "_LANDMARKS", 200)
        name = "svm"
    recalls = []
    for weight in (None, "balanced"):
        given = Problem(parts[0], parts[1], 2, 0, class_weight=weight)
        p = load_method(name)(given).predict_proba(parts[2])
        recalls.append(np.mean(p.argmax(axis=1)[parts[2].labels == 1]))
    assert recalls[1] > recalls[0] + 0.1, recalls


def test_every_method_says_what_it_tries() -> None:
    assert list(SETTINGS) == list(METHODS)
    for several in (False, True):
        told = {name: settings_of(name, several) for name in METHODS}
        assert json.loads(json.dumps(told)) == told  # so that a record can be compared with it


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if n not in (*FAST, *LONG)])
def test_a_method_that_cannot_run_says_why_in_a_sentence(name: str) -> None:
    try:
        load_method(name)(problem()[0])
    except Unavailable as error:
        assert len(str(error)) > 20 and "\n" not in str(error)
