"""More rows and classes: the optimum of the union, reached from the old weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from convex_heads import ConvexHeadClassifier
from convex_heads.decode import Network, ReluNetwork
from convex_heads.limits import Limits
from convex_heads.refit import solve_more
from tasks.artefact import read_artefact
from tasks.cli import main

WORDS = {
    "animal": "dog cat horse bird wolf",
    "plant": "oak rose fern moss grass",
    "stone": "marble flint quartz slate granite",
}


def write(path, labels, start, stop, header="text,label"):
    lines = [header]
    for i in range(start, stop):
        for label in labels:
            words = WORDS[label].split()
            lines.append(f"the {words[i % 5]} and a {words[i // 5 % 5]} number {i},{label}")
    path.write_text("\n".join(lines) + "\n")


def data(n: int, C: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(C, 6))
    labels = rng.integers(C, size=n)
    return (centres[labels] + rng.normal(size=(n, 6))).astype("f"), labels


def objective(network: Network, X, labels, C: int, beta: float) -> float:
    """In double precision from the definition: nothing of the solver's."""
    z = network.astype(np.float64).scores(X.astype(np.float64))
    if network.loss == "logistic":
        loss = np.logaddexp(0, np.where(labels == 1, -z[:, 0], z[:, 0]))
    else:
        loss = np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels]
    norms = np.linalg.norm(network.weights.astype(np.float64), axis=(1, 2))
    return float(loss.mean() + beta * norms.sum())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (3, 4),
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(3, 3, marks=pytest.mark.slow),
        pytest.param(2, 3, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_optimum_of_the_union_and_the_way_is_short(old, new):
    X, labels = data(240, old)
    first = ConvexHeadClassifier(beta=0.05, n_gates=8, tolerance=1e-3).fit(X, labels)
    more, more_labels = data(120, new, seed=1)
    X, labels = np.concatenate([X, more]), np.concatenate([labels, more_labels])
    beta = first.certificate_.beta
    limits = Limits(1e-3)
    warm = solve_more(first.network_, X, labels, new, beta, limits=limits)
    cold = solve_more(first.network_, X, labels, new, beta, limits=limits, warm=False)
    found = objective(warm.network, X, labels, new, beta)
    expected = objective(cold.network, X, labels, new, beta)
    assert warm.certificate.relative_gap <= 1e-3
    assert warm.certificate.primal == pytest.approx(found, rel=1e-4)
    # Both are within the gap of the same optimum.
    assert found == pytest.approx(expected, rel=2e-3)
    assert found >= cold.certificate.dual * (1 - 1e-5)
    assert expected >= warm.certificate.dual * (1 - 1e-5)
    assert warm.certificate.primal <= warm.primal_before + 1e-6
    np.testing.assert_array_equal(warm.network.scaling.mean, first.network_.scaling.mean)
    offered = {gate.tobytes() for gate in first.network_.gates}
    linear = np.zeros(7, "f")
    linear[-1] = 1
    assert {gate.tobytes() for gate in warm.network.gates} <= offered | {linear.tobytes()}
    if old == new:
        assert warm.passes <= cold.passes + 5


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(2, 3), (3, 3)])
def test_the_neurons_of_a_relu_head_go_on_and_new_classes_get_their_own(old, new):
    X, labels = data(240, old)
    first = ConvexHeadClassifier(activation="relu", beta=0.05, n_gates=4).fit(X, labels)
    more, more_labels = data(120, new, seed=1)
    X, labels = np.concatenate([X, more]), np.concatenate([labels, more_labels])
    beta = first.certificate_.beta
    limits = Limits(1e-2)
    warm = solve_more(first.network_, X, labels, new, beta, limits=limits)
    cold = solve_more(first.network_, X, labels, new, beta, limits=limits, warm=False)
    assert isinstance(warm.network, ReluNetwork)
    assert warm.certificate.relative_gap <= 1e-2
    assert warm.certificate.primal <= warm.primal_before
    # The objective, in double precision from the definition.
    z = warm.network.astype(np.float64).scores(X.astype(np.float64))
    loss = np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels])
    norms = np.linalg.norm(warm.network.hidden.astype(np.float64), axis=1).sum()
    assert loss + beta * norms == pytest.approx(warm.certificate.primal, rel=1e-4)
    # Not convex, so another descent may end elsewhere; it is no better by more than this.
    assert warm.certificate.primal <= 1.03 * cold.certificate.primal
    accuracy = np.mean(warm.network.scores(X).argmax(1) == labels)
    assert accuracy >= np.mean(cold.network.scores(X).argmax(1) == labels) - 0.02
    assert set(np.unique(warm.network.scores(X).argmax(1))) == set(range(new))
    np.testing.assert_array_equal(warm.network.scaling.mean, first.network_.scaling.mean)


@pytest.mark.parametrize("activation", ["gated_relu", pytest.param("relu", marks=pytest.mark.slow)])
def test_weights_of_the_rows_count(activation):
    X, labels = data(200, 2)
    omega = np.where(labels == 1, 3.0, 1.0)
    options = {"beta": 0.05, "n_gates": 8, "penalty": "group", "activation": activation}
    first = ConvexHeadClassifier(**options).fit(X, labels, sample_weight=omega)
    given = (first.network_, X, labels, 2, first.certificate_.beta)
    again = solve_more(*given, omega=omega)
    assert again.primal_before == pytest.approx(first.certificate_.primal, rel=1e-3)
    assert again.certificate.primal == pytest.approx(first.certificate_.primal, rel=5e-3)
    alike = solve_more(*given)
    assert (alike.network.scores(X) > 0).mean() < (again.network.scores(X) > 0).mean()


def test_a_refit_weighs_classes_and_calibrates_as_the_fit_did(tmp_path, capsys):
    write(tmp_path / "first.csv", ("animal",), 0, 150)
    write(tmp_path / "more.csv", ("animal",), 200, 210)
    for name, rows in (("first", range(30)), ("more", range(30, 32))):
        with (tmp_path / f"{name}.csv").open("a") as file:
            file.writelines(f"the dog and an oak {i},plant\n" for i in rows)
    options = ["--cache-dir", str(tmp_path / "cache"), "--quiet", "--json"]
    fit = ["fit", str(tmp_path / "first.csv"), "--backbone", "toy:text-8", "--n-gates", "4"]
    fit += ["--beta", "0.1", "--class-weight", "balanced", "--calibrate", "none"]
    assert main([*fit, "--out", str(tmp_path / "head"), *options]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["class_weight"], first["calibration_temperature"]) == ("balanced", None)
    refit = ["refit", str(tmp_path / "head"), str(tmp_path / "more.csv")]
    assert main([*refit, "--out", str(tmp_path / "next"), *options]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["calibration_temperature"] is None
    # The program of nearly the same rows: with all rows alike its objective is another one.
    assert again["primal"] == pytest.approx(first["primal"], rel=0.1)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refit")
    write(folder / "first.csv", ("animal", "plant"), 0, 80)
    command = ["fit", str(folder / "first.csv"), "--backbone", "toy:text-32", "--quiet"]
    command += ["--out", str(folder / "head"), "--n-gates", "8", "--beta", "0.02"]
    assert main([*command, "--cache-dir", str(folder / "cache")]) == 0
    return folder


@pytest.mark.slow
def test_rows_of_a_new_class_are_added_twice_over(fitted, capsys):
    write(fitted / "stones.csv", ("stone",), 0, 60)
    write(fitted / "more.csv", ("animal", "stone"), 100, 130)
    options = ["--cache-dir", str(fitted / "cache"), "--quiet", "--json"]
    refit = ["refit", str(fitted / "head"), str(fitted / "stones.csv")]
    capsys.readouterr()
    assert main([*refit, "--out", str(fitted / "second"), *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["classes"] == ["animal", "plant", "stone"]
    assert record["new_classes"] == ["stone"]
    assert record["loss"] == "softmax"
    assert record["relative_gap"] <= 2e-2
    assert record["primal"] < record["primal_before"]
    assert sum(record["n"].values()) == 160 + 60
    assert record["test_accuracy"] > 0.9
    assert main(["predict", str(fitted / "second"), "--text", "slate and flint", *options]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["label"] == "stone"
    refit = ["refit", str(fitted / "second"), str(fitted / "more.csv")]
    assert main([*refit, "--out", str(fitted / "third"), *options]) == 0
    again = json.loads(capsys.readouterr().out)
    assert sum(again["n"].values()) == 160 + 60 + 60
    assert len(read_artefact(fitted / "third").config["stores"]) == 3
    path = fitted / "third" / "README.md"
    card = ModelCard.load(path)
    assert card.data.pipeline_tag == "text-classification"
    accuracy, f1 = card.data.eval_results
    assert accuracy.metric_value == pytest.approx(again["test_accuracy"], abs=1e-6)
    assert f1.metric_type == "f1"
    assert "solved again" in card.text
    new_rows = again["n"]["test_new"], again["test_accuracy_new_rows"]
    assert "| new | {} | {:.4f} |".format(*new_rows) in card.text
    assert "classes: 3: animal, plant, stone" in card.text
    for verb in ("fit ", "refit "):
        assert f"\nconvex-heads {verb}" in card.text
    assert len(again["commands"]) == 3
    assert "slate" not in card.content
    # Every row of every table has as many cells as its header.
    for table in re.findall(r"(?:^\|.*\|\n)+", card.content, re.M):
        assert len({row.count("|") for row in table.strip().splitlines()}) == 1, table


@pytest.mark.slow
def test_rows_that_the_head_has_seen_are_told(fitted, capsys):
    (fitted / "more").mkdir()
    write(fitted / "more" / "train.csv", ("animal", "plant"), 100, 120)
    write(fitted / "more" / "test.csv", ("animal", "plant"), 0, 40)  # rows of the first fit
    refit = ["refit", str(fitted / "head"), str(fitted / "more"), "--json"]
    capsys.readouterr()
    where = ["--out", str(fitted / "again"), "--cache-dir", str(fitted / "cache")]
    assert main([*refit, *where]) == 0
    streams = capsys.readouterr()
    leaks = json.loads(streams.out)["leaks"]
    exact = leaks["test_in_train"]["exact"]
    assert 40 < exact < 80 < leaks["checked"]["test"]
    said = " ".join(streams.err.split())
    assert "duplicates, of new rows and those of the first fit: " in said
    assert f"test rows are in train too ({exact} exact" in said


@pytest.mark.slow
def test_columns_of_the_first_fit_are_remembered_and_what_is_missing_is_named(
    fitted, tmp_path, capsys
):
    write(tmp_path / "first.csv", ("animal", "plant"), 0, 40, "Remark,Kind")
    write(tmp_path / "same.csv", ("stone",), 0, 30, "Remark,Kind")
    write(tmp_path / "other.csv", ("stone",), 0, 30, "Body,Verdict")
    write(tmp_path / "usual.csv", ("stone",), 0, 30)
    write(tmp_path / "half.csv", ("stone",), 0, 30, "Remark,Verdict")
    options = ["--cache-dir", str(fitted / "cache"), "--quiet", "--json"]
    fit = ["fit", str(tmp_path / "first.csv"), "--backbone", "toy:text-32", "--n-gates", "8"]
    fit += ["--text-column", "Remark", "--label-column", "Kind", "--out", str(tmp_path / "head")]
    assert main([*fit, "--beta", "0.02", *options]) == 0
    capsys.readouterr()

    def refit(name: str, *more: str) -> tuple[int, str, str]:
        command = ["refit", str(tmp_path / "head"), str(tmp_path / name), *more, *options]
        code = main([*command, "--out", str(tmp_path / "new")])
        return code, *capsys.readouterr()

    named = ("--text-column", "Body", "--label-column", "Verdict")
    primal = set()
    for name, *more in (("same.csv",), ("usual.csv",), ("other.csv", *named)):
        code, out, _ = refit(name, *more)
        assert code == 0
        record = json.loads(out)
        assert record["new_classes"] == ["stone"]
        primal.add(round(record["primal"], 6))
    assert len(primal) == 1  # the same rows, however their columns are called
    code, _, said = refit("other.csv")
    assert code == 2 and said.count("\n") == 1
    for words in ("'Remark'", "'Kind'", "--text-column", "--label-column", "Body, Verdict"):
        assert words in said
    code, _, said = refit("half.csv")
    assert code == 2 and "no column 'Kind', 'label'" in said and "--label-column" in said
    code, _, said = refit("other.csv", *named[2:])
    assert code == 2 and "no column 'Remark', 'text'" in said and "--text-column" in said


@pytest.mark.slow
def test_a_relu_head_is_refitted_from_its_store(fitted, capsys):
    write(fitted / "stones.csv", ("stone",), 0, 60)
    cache = ["--cache-dir", str(fitted / "cache"), "--quiet", "--json"]
    fit = ["fit", str(fitted / "first.csv"), "--backbone", "toy:text-32", "--activation", "relu"]
    assert (
        main([*fit, "--out", str(fitted / "relu"), "--n-gates", "4", "--beta", "0.02", *cache]) == 0
    )
    refit = ["refit", str(fitted / "relu"), str(fitted / "stones.csv")]
    capsys.readouterr()
    assert main([*refit, "--out", str(fitted / "relu-2"), *cache]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["new_classes"] == ["stone"]
    assert record["test_accuracy"] > 0.9
    assert "a two-layer ReLU head" in (fitted / "relu-2" / "README.md").read_text()
    assert isinstance(read_artefact(fitted / "relu-2").head.network, ReluNetwork)


@pytest.mark.slow
def test_three_rows_are_trained_on(fitted, capsys):
    (fitted / "few.csv").write_text("text,label\nthe dog,animal\nan oak,plant\nmoss,plant\n")
    refit = ["refit", str(fitted / "head"), str(fitted / "few.csv"), "--json"]
    cache = ["--cache-dir", str(fitted / "cache")]
    capsys.readouterr()
    assert main([*refit, "--out", str(fitted / "few"), *cache]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["n"]["train_new"] == 3
    assert "3 new rows are too few" in streams.err


@pytest.mark.slow
def test_what_cannot_be_refitted_is_said(fitted, tmp_path, capsys):
    write(tmp_path / "more.csv", ("animal",), 0, 9)
    head = str(fitted / "head")
    assert main(["refit", head, str(tmp_path / "more.csv")]) == 2
    assert "--out" in capsys.readouterr().err
    config = json.loads((fitted / "head" / "config.json").read_text())
    place = Path(config["stores"][0])
    config["stores"] = [str(tmp_path / "gone" / place.name)]
    moved = tmp_path / "head"
    moved.mkdir()
    (moved / "config.json").write_text(json.dumps(config))
    content = (fitted / "head" / "model.safetensors").read_bytes()
    (moved / "model.safetensors").write_bytes(content)
    refit = ["refit", str(moved), str(tmp_path / "more.csv"), "--quiet"]
    refit += ["--out", str(tmp_path / "y"), "--cache-dir"]
    assert main([*refit, str(tmp_path / "empty")]) == 2
    assert "is gone" in capsys.readouterr().err
    assert place.is_absolute()
    assert main([*refit, str(fitted / "cache"), "--tolerance", "5"]) == 2
    assert "--tolerance 5: must be below 1" in capsys.readouterr().err
    assert main([*refit, str(fitted / "cache")]) == 0  # found by its name
