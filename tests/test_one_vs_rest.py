"""Logistic heads of many classes, each told from the rest: program, probabilities, verbs."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import expit
from test_export import make_head, make_rows

from convex_heads import ConvexHeadClassifier, Network, ReluNetwork, certify
from convex_heads.decode import probabilities
from convex_heads.losses import LOGISTIC, targets
from convex_heads.refit import solve_more
from extractors.errors import InputError
from tasks.artefact import read_artefact, write_artefact
from tasks.calibration import fit_temperature
from tasks.cli import main
from tasks.pipeline import ConvexHeadPipeline
from tasks.torch_head import row_losses

NAMES = np.array(["ant", "bee", "cat", "dog"])
WORDS = {"animal": "dog cat horse bird wolf", "plant": "oak rose fern moss grass"}
WORDS |= {"stone": "flint slate chalk basalt gneiss", "metal": "iron zinc gold lead tin"}


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=400)
    centres = rng.normal(size=(4, 5))
    return (centres[labels] + 0.8 * rng.normal(size=(400, 5))).astype("f"), NAMES[labels]


def objective(network: Network, X: np.ndarray, Y: np.ndarray, beta: float) -> float:
    """From the definition, in double precision."""
    z = network.astype(np.float64).scores(X.astype(np.float64))
    norms = np.linalg.norm(network.weights.astype(np.float64), axis=(1, 2))
    return float(np.mean((np.logaddexp(0, z) - Y * z).sum(axis=1)) + beta * norms.sum())


def test_a_head_of_four_binary_losses_is_certified_as_one(blobs):
    X, y = blobs
    Y = (y[:, None] == NAMES).astype(float)
    head = ConvexHeadClassifier(loss="logistic", beta=0.03, n_gates=8, penalty="group").fit(X, y)
    network, proof = head.network_, head.certificate_
    assert isinstance(network, Network)
    assert (head.loss_, network.weights.shape[2]) == ("logistic", 4)
    assert proof.relative_gap <= 1e-3
    assert proof.primal == pytest.approx(objective(network, X, Y, proof.beta), rel=1e-5)
    again = certify(network, X, Y, proof.beta, gates=head.gates_)
    assert again.primal == pytest.approx(proof.primal, rel=1e-5)
    # A group is a gate's weights for all classes: it is on for all of them or off for all.
    assert (network.weights != 0).any(axis=1).all()
    # Zero weights have the scores of the shares; what was found is better.
    mean = Y.mean(axis=0)
    assert proof.primal < -(mean * np.log(mean) + (1 - mean) * np.log1p(-mean)).sum()
    p, z = head.predict_proba(X), head.decision_function(X)
    np.testing.assert_allclose(p, expit(z) / expit(z).sum(axis=1, keepdims=True), rtol=1e-4)
    assert (head.predict(X) == NAMES[p.argmax(axis=1)]).all() and head.score(X, y) > 0.75


def test_under_ridge_the_classes_are_fitted_apart(blobs):
    """C binary heads over the same gates, each certified alone, are the same program."""
    X, y = blobs
    options = {"loss": "logistic", "penalty": "ridge", "n_gates": 6, "tolerance": 1e-4}
    together = ConvexHeadClassifier(beta=0.03, **options).fit(X, y)
    beta, total, bound = together.certificate_.beta, 0.0, 0.0
    for k, name in enumerate(NAMES):
        alone = ConvexHeadClassifier(beta=0.03, **options).fit(X, y == name)
        np.testing.assert_array_equal(alone.gates_, together.gates_)
        # The same absolute penalty: fractions are of each program's own beta_max.
        fraction = 0.03 * beta / alone.certificate_.beta
        alone = ConvexHeadClassifier(beta=fraction, **options).fit(X, y == name)
        assert alone.certificate_.beta == pytest.approx(beta, rel=1e-5)
        z = together.network_.scores(X)[:, k]
        np.testing.assert_allclose(alone.network_.scores(X)[:, 0], z, atol=0.05)
        total, bound = total + alone.certificate_.primal, bound + alone.certificate_.dual
    assert total == pytest.approx(together.certificate_.primal, rel=2e-4)
    assert bound <= together.certificate_.primal * (1 + 1e-5)


def test_probabilities_are_normalised_and_tempered_without_a_change_of_order():
    z = np.random.default_rng(0).normal(size=(50, 6)) * 4
    p = expit(z) / expit(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(z, "logistic"), p, rtol=1e-12)
    tempered = p**0.5 / (p**0.5).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(z, "logistic", 2.0), tempered, rtol=1e-12)
    assert (tempered.argmax(axis=1) == z.argmax(axis=1)).all()
    # No class at all: sigmoids underflow, their logarithms do not.
    far = probabilities(np.array([[-1000.0, -1001.0, -1002.0]], "f"), "logistic")
    np.testing.assert_allclose(far, [[0.6652, 0.2447, 0.09]], atol=1e-4)


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_that_drew_the_labels_is_found(true):
    rng = np.random.default_rng(0)
    z = 2 * rng.normal(size=(20_000, 6)) - 3
    p = probabilities(z, "logistic", true)
    labels = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1)
    assert fit_temperature(z, "logistic", labels) == pytest.approx(true, rel=0.05)


def test_losses_in_torch_are_those_of_the_program():
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(30, 4)).astype("f"), rng.integers(4, size=30)
    found = row_losses(torch.from_numpy(z), torch.from_numpy(labels), "logistic")
    expected = LOGISTIC.value(jnp.asarray(z), jnp.asarray(targets(labels, "logistic", 4)))
    np.testing.assert_allclose(found.numpy(), np.asarray(expected), rtol=1e-5)


def test_a_torch_head_can_be_trained_by_cross_entropy():
    head = make_head("gated_relu", "one-vs-rest")
    X, module = torch.from_numpy(make_rows(head, 20)), head.to_torch()
    loss = torch.nn.functional.cross_entropy(module(X), torch.zeros(len(X), dtype=torch.long))
    p = head.predict_proba(X.numpy())
    assert float(loss.detach()) == pytest.approx(-np.log(p[:, 0]).mean(), rel=1e-4)
    loss.backward()
    assert module.weights.grad is not None
    assert float(module.weights.grad.abs().sum()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gated_relu", "relu"])
def test_a_new_class_is_one_more_against_the_rest(blobs, activation):
    X, y = blobs
    labels = np.searchsorted(NAMES, y)
    few = labels < 3
    first = ConvexHeadClassifier(activation=activation, loss="logistic", beta=0.05, n_gates=6)
    first.fit(X[few], labels[few])
    assert isinstance(first.network_, Network | ReluNetwork)
    more = solve_more(first.network_, X, labels, 4, first.certificate_.beta)
    assert isinstance(more.network, ReluNetwork) == (activation == "relu")
    assert (more.network.loss, more.network.offset.shape) == ("logistic", (4,))
    assert more.certificate.primal < more.primal_before
    assert more.certificate.relative_gap <= (1e-3 if activation == "gated_relu" else 0.05)
    assert np.mean(more.network.scores(X).argmax(axis=1) == labels) > 0.75


def test_what_is_read_is_what_was_written(tmp_path: Path):
    head = make_head("gated_relu", "one-vs-rest")
    fingerprint = {"name": "toy:text"}
    write_artefact(
        tmp_path / "head",
        head,
        modality="text",
        backbone="toy:text",
        backbone_fingerprint=fingerprint,
        facts={},
    )
    found = read_artefact(tmp_path / "head").head
    X = make_rows(head, 20)
    np.testing.assert_array_equal(found.predict_proba(X), head.predict_proba(X))
    config = tmp_path / "head" / "config.json"
    config.write_text(config.read_text().replace('"c",', "").replace('"c"', '"e"'))
    with pytest.raises(InputError, match="4 outputs"):
        read_artefact(tmp_path / "head")


@pytest.mark.slow
def test_every_verb_takes_the_head(tmp_path: Path, capsys):
    lines = ["text,label"]
    for i in range(60):
        for label, words in WORDS.items():
            chosen = words.split()
            lines.append(f"the {chosen[i % 5]} and a {chosen[i // 5 % 5]} number {i},{label}")
    data, out = tmp_path / "things.csv", tmp_path / "head"
    data.write_text("\n".join(lines) + "\n")

    def said(*arguments: object) -> dict:
        assert main([*map(str, arguments), "--json", "--quiet"]) == 0
        return json.loads(capsys.readouterr().out)

    fit = ("fit", data, "--backbone", "toy:text-32", "--out", out, "--loss", "logistic")
    record = said(*fit, "--n-gates", "8", "--beta", "0.03")
    assert record["loss"] == "logistic" and record["n_classes"] == 4
    assert record["relative_gap"] <= record["tolerance"]
    assert record["test_accuracy"] > 0.8 and record["calibration_temperature"] != 1
    evaluated = said("evaluate", out, data)
    assert evaluated["accuracy"] > 0.8
    exported = said("export", out, "--format", "torch", "--out", tmp_path / "head.pt2")
    assert exported["max_difference"] <= 1e-5
    assert main(["predict", str(out), "--text", "a wolf and a cat", "--quiet"]) == 0
    assert "animal" in capsys.readouterr().out
    clf = ConvexHeadPipeline.from_pretrained(out)
    p = clf.predict_proba(["iron and zinc", "a rose", "nothing of the kind"])
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    assert clf.describe()["loss"] == "logistic"
    clf.save_pretrained(tmp_path / "again")
    again = ConvexHeadPipeline.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(again.predict_proba(["iron and zinc", "a rose"]), p[:2])
