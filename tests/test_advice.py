"""Advice about the data: wrong labels are found, classes and mistakes are counted right."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from tasks.comparison.advice import LabelledRows, confusion, label_errors, label_errors_csv
from tasks.comparison.draws import folds
from tasks.comparison.figures import label_points
from tasks.comparison.label_errors import nearest_neighbours, suspects, together
from tasks.reports.figures import new_figure


def rows(split: str, X: np.ndarray, y: np.ndarray) -> LabelledRows:
    ids = [f"{split}/{i}" for i in range(len(y))]
    digests = [row.tobytes() for row in X]
    return LabelledRows(ids, [split] * len(y), y, X, digests)


def test_flipped_labels_are_found_and_named() -> None:
    X, y = load_digits(return_X_y=True)
    X, y = X.astype(np.float32), y.astype(np.int64)
    rng = np.random.default_rng(0)
    wrong = y.copy()
    flipped = rng.choice(len(y), 90, replace=False)
    wrong[flipped] = (y[flipped] + rng.integers(1, 10, 90)) % 10
    pool, test = rows("train", X[:1400], wrong[:1400]), rows("test", X[1400:], wrong[1400:])
    found = label_errors(pool, test, [str(c) for c in range(10)])
    truth = {f"{'train' if i < 1400 else 'test'}/{i if i < 1400 else i - 1400}" for i in flipped}
    top = found["rows"][:80]
    assert np.mean([row["row"] in truth for row in top]) > 0.9
    assert len(truth & {row["row"] for row in found["rows"]}) > 85
    assert sum(found["suspected"].values()) == len(found["rows"]) < 160
    right = {
        f"{'train' if i < 1400 else 'test'}/{i if i < 1400 else i - 1400}": y[i] for i in flipped
    }
    named = [row["suggested"] == str(right[row["row"]]) for row in top if row["row"] in right]
    assert np.mean(named) > 0.95
    table = list(csv.DictReader(io.StringIO(label_errors_csv(found["rows"]))))
    assert [row["row"] for row in table] == [row["row"] for row in found["rows"]]


def test_a_row_has_no_voice_about_itself() -> None:
    X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    X[1] = X[0]
    y = np.arange(60) % 2
    found = nearest_neighbours(X, y, 2, k=3)
    assert found.nearest[0] == 1 and found.nearest[1] == 0
    assert (found.nearest != np.arange(60)).all()
    assert found.agree[0] <= 2  # its twin has the other label


def test_neighbours_stand_alone_where_the_head_has_no_opinion() -> None:
    near, head = np.array([[0.2, 0.8], [0.2, 0.8]]), np.array([[0.9, 0.1], [np.nan, np.nan]])
    p = together(near, head)
    np.testing.assert_allclose(p, [[2 / 3, 1 / 3], [0.2, 0.8]])
    assert suspects(p, np.array([0, 0])).rows.tolist() == [1]


def test_folds_keep_equal_rows_together_and_classes_apart() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    digests = [bytes([i // 2, int(label)]) for i, label in enumerate(labels)]
    fold = folds(labels, digests)
    assert (fold[::2] == fold[1::2]).all()
    assert set(fold[labels == 0]) == set(range(5))
    fewer = folds(labels, digests, most_rows=40)
    assert (fewer >= 0).sum() == 40 and set(labels[fewer >= 0]) == {0, 1, 2}


def test_confusion_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 300)
    p = [rng.dirichlet(np.ones(4), 300) + 0.2 * np.eye(4)[y] for _ in range(2)]
    found = confusion(p, y, tuple("abcd"), "kNN")
    said = [each.argmax(axis=1) for each in p]
    expected = sum(confusion_matrix(y, each) for each in said) / 2
    np.testing.assert_allclose(found["counts"], expected)
    one = confusion(p[:1], y, tuple("abcd"), "kNN")
    by_name = {c["name"]: c for c in one["classes"]}
    np.testing.assert_allclose(
        [by_name[c]["recall"] for c in "abcd"],
        recall_score(y, said[0], average=None),
        atol=1e-4,
    )
    np.testing.assert_allclose(
        [by_name[c]["f1"] for c in "abcd"], f1_score(y, said[0], average=None), atol=1e-4
    )
    assert [c["f1"] for c in one["classes"]] == sorted(c["f1"] for c in one["classes"])
    assert one["pairs"][0]["rows"] == max(pair["rows"] for pair in one["pairs"])


@pytest.mark.parametrize("seed", range(3))
def test_names_of_points_cover_neither_names_nor_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = [(10 ** rng.uniform(0.5, 1), rng.uniform(89, 92)) for _ in range(9)]
    points.append((100.0, 70.0))
    figure, (axes,) = new_figure(height=3.9)
    axes.plot(*zip(*points, strict=True), "o", ms=6)
    axes.set_xscale("log")
    names = [f"method {'x' * k}" for k in range(len(points))]
    texts = label_points(figure, axes, names, points, ["#000000"] * len(points))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), (names[i], seed)
        for at in axes.transData.transform(points):
            assert not box.contains(*at), names[i]
