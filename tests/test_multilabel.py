"""Rows with several labels: read, divided, compared; everything else refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import make_multilabel_classification
from sklearn.metrics import average_precision_score, f1_score

from extractors.errors import InputError
from tasks.cli import main
from tasks.data.load import load_task
from tasks.methods import SEVERAL_LABELS, load_method
from tasks.methods.base import Part, Problem, Unavailable
from tasks.metrics import best_threshold, binary_nll, evaluate_sets

SLOW = pytest.mark.slow
COLOURS, SHAPES = ("red", "blue", "green"), ("round", "square")


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """Texts that name what they are labelled with; some have no label at all."""
    path = tmp_path_factory.mktemp("own") / "things.jsonl"
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for i in range(400):
            named = [str(rng.choice(kind)) for kind in (COLOURS, SHAPES) if rng.random() < 0.7]
            text = f"thing {i} that is {' and '.join(named) or 'plain'}"
            file.write(json.dumps({"text": text, "labels": named}) + "\n")
    return path


def test_lists_of_labels_are_read_and_every_split_has_every_label(things: Path) -> None:
    data = load_task(things, several_labels=True)
    assert data.classes == tuple(sorted(COLOURS + SHAPES))
    assert data.targets is not None
    for split, rows in data.splits.items():
        sets = data.targets[split]
        assert sets.shape == (len(rows), 5) and sets.any(axis=0).all()
        for text, row in zip(rows.inputs, sets, strict=True):
            said = {name for name, there in zip(data.classes, row, strict=True) if there}
            assert said == set(text.split()) & {*COLOURS, *SHAPES}
    shares = [data.targets[split].mean(axis=0) for split in ("train", "test")]
    assert np.abs(shares[0] - shares[1]).max() < 0.1
    fewer = load_task(things, several_labels=True, train_rows=100, test_rows=30)
    assert fewer.targets is not None and len(fewer.targets["test"]) == 30
    assert fewer.fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([["a"], "b", ["c"]], "the label is 'b' where other rows have a list"),
        ([["a", "a"], ["b"], ["c"]], "names a label twice"),
        ([["a", None], ["b"], ["c"]], "one of its labels is missing"),
    ],
)
def test_lists_that_cannot_be_read_are_refused(tmp_path: Path, labels, told) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [json.dumps({"text": f"t{i}", "label": label}) for i, label in enumerate(labels * 4)]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=told):
        load_task(path, several_labels=True)


def test_everything_else_refuses_several_labels(things: Path, capsys) -> None:
    assert main(["fit", str(things), "--backbone", "toy:text-8", "--quiet"]) == 2
    assert "`convex-heads compare` takes rows with several labels" in capsys.readouterr().err
    shots = ["compare", str(things), "--backbone", "toy:text-8", "--shots", "2", "--quiet"]
    assert main(shots) == 2
    assert "--shots counts the rows of a class" in capsys.readouterr().err


def test_metrics_of_sets_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    Y = (rng.random((300, 4)) < [0.5, 0.2, 0.05, 0.3]).astype(int)
    p = np.clip(0.5 * Y + rng.random((300, 4)) * 0.6, 0, 1)
    found = evaluate_sets(p, Y, 0.6)
    said = p >= 0.6
    assert found.micro_f1 == pytest.approx(f1_score(Y, said, average="micro"))
    assert found.macro_f1 == pytest.approx(f1_score(Y, said, average="macro"))
    assert found.average_precision == pytest.approx(average_precision_score(Y, p))
    assert found.exact == pytest.approx(np.mean((said == Y).all(axis=1)))
    chosen = best_threshold(p, Y)
    assert evaluate_sets(p, Y, chosen).micro_f1 >= found.micro_f1
    assert binary_nll([[1.0]], [[0]]) < 20  # sure and wrong: large and finite


def problem() -> tuple[Problem, Part]:
    X, Y = make_multilabel_classification(
        900, n_features=12, n_classes=5, n_labels=2, random_state=0
    )  # type: ignore[misc]
    X, Y = np.asarray(X, np.float32), np.asarray(Y, np.uint8)
    parts = [
        Part(X[a:b], np.zeros(b - a, np.int64), targets=Y[a:b])
        for a, b in ((0, 500), (500, 650), (650, 900))
    ]
    return Problem(parts[0], parts[1], 5, 0), parts[2]


@pytest.mark.parametrize(
    "name",
    ["linear", "ridge", "knn", "svm", *(pytest.param(n, marks=SLOW) for n in ("mlp", "convex"))],
)
def test_method_keeps_its_contract(name: str) -> None:
    given, test = problem()
    fitted = load_method(name, several_labels=True)(given)
    p = fitted.predict_proba(test)
    assert p.shape == (250, 5) and (p >= 0).all() and (p <= 1).all()
    assert test.targets is not None
    shares = np.broadcast_to(given.targets(given.train).mean(axis=0), p.shape)
    found, nothing = evaluate_sets(p, test.targets), evaluate_sets(shares, test.targets)
    assert found.average_precision > nothing.average_precision + 0.2
    assert found.nll < nothing.nll - 0.1
    assert fitted.settings_tried >= 3 and fitted.parameters > 0
    again = load_method(name, several_labels=True)(problem()[0])
    assert np.array_equal(again.predict_proba(test), p)


def test_a_method_for_one_label_says_so() -> None:
    with pytest.raises(Unavailable, match="one label a row"):
        load_method("ntk", several_labels=True)
    assert set(SEVERAL_LABELS) == {"linear", "convex", "ridge", "knn", "svm", "mlp", "tfidf"}


@pytest.mark.slow
def test_the_shared_gates_are_optimal_for_all_labels_together() -> None:
    from tasks.methods.multilabel import MultiLabelHead

    given, _ = problem()
    X, Y = given.train.features, given.targets(given.train)
    X_val, Y_val = given.validation.features, given.targets(given.validation)
    head = MultiLabelHead(tolerance=1e-3, n_gates=16, penalty="group").fit(X, Y, X_val, Y_val)
    certificate = head.certificate_
    assert certificate.relative_gap <= 1e-3
    # The objective, from the deployed network: one penalty for each gate and all labels.
    network = head.network_.astype(np.float64)
    z = network.scores(X.astype(np.float64))
    loss = np.mean(np.sum(np.logaddexp(0, z) - Y * z, axis=1))
    norms = np.linalg.norm(network.weights.reshape(len(network.weights), -1), axis=1)
    assert loss < certificate.primal
    assert loss + certificate.beta * norms.sum() == pytest.approx(certificate.primal, rel=0.05)


@pytest.mark.slow
def test_compare_tells_of_sets_of_labels(things: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own = [str(things), "--backbone", "toy:text-16", "--out", str(out), "--seeds", "2", "--quiet"]
    assert main(["compare", *own, "--methods", "linear,knn,tfidf,ntk"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["several_labels"]
    rows = {row["method"]: row for row in summary["rows"]}
    assert set(rows) == {"linear", "knn", "tfidf"}
    assert "one label a row" in summary["skipped"]["ntk"]
    assert rows["tfidf"]["test_micro_f1"] > 0.9 and rows["tfidf"]["test_average_precision"] > 0.9
    assert rows["tfidf"]["test_accuracy"] > rows["linear"]["test_accuracy"]
    for line in (out / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        p = np.load(out / record["predictions"])
        assert p.shape[1] == 5 and 0.05 <= record["threshold"] <= 0.95
        assert {"test_micro_f1", "test_macro_f1", "test_average_precision"} <= set(record)
    page, table = (out / "report.html").read_text(), (out / "report.md").read_text()
    for text in (page, table):
        assert "micro F1" in text and "average precision" in text
        assert "share of rows whose whole set of labels is right" in text
    hardest = [c["name"] for c in summary["advice"]["confusion"]["classes"]]
    assert sorted(hardest) == sorted(COLOURS + SHAPES)
