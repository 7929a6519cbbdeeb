"""CRONOS-AM on small random backbones of every family: what it promises, measured."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from joints import FAMILIES, QUICK, ROWS, joint, never_rises, rows
from tiny_models import save_backbone as backbone

from convex_heads.limits import Limits
from convex_heads.losses import targets
from convex_heads.warm import objective
from extractors import load_extractor
from extractors.blocks import CutBackbone
from extractors.changes import with_changes
from extractors.encode import encode_rows
from extractors.errors import InputError
from tasks.cli import main
from tasks.cronos_am.activations import cached_rows
from tasks.cronos_am.alternate import alternate
from tasks.cronos_am.block_step import BlockOptions, features_of, train_blocks
from tasks.cronos_am.half_steps import Answers, HalfSteps, prefers


def saves_the_best(history: list[dict]) -> bool:
    """What is saved is the frozen backbone, or has the highest accuracy since it was left.

    Blocks on which the head was not solved for are not saved.
    """
    frozen, saved = history[0]["validation_accuracy"], history[0]["best_validation_accuracy"]
    assert saved == frozen
    since: list[float] = []
    for line in history[1:]:
        proven = line["kept"] and (line["half"] == "head" or line["solved"])
        found = line["best_validation_accuracy"]
        if proven and (since or found > frozen):
            since.append(line["validation_accuracy"])
        if found != (max(since) if since else frozen):
            return False
    return True


@pytest.mark.parametrize(
    "family",
    [
        family if family in QUICK else pytest.param(family, marks=pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_objective_never_rises_and_the_delta_is_the_model(family, tmp_path):
    name = backbone(family, tmp_path)
    problem = joint(family, name, k=2)
    inputs, _ = rows(family)
    # The cut changes no number: frozen features are those of a plain pass.
    plain = encode_rows(load_extractor(name), inputs, list(map(str, range(ROWS)))).features
    np.testing.assert_allclose(
        features_of(problem.cut, problem.train), plain, atol=2e-5 * np.abs(plain).max()
    )
    before = problem.cut.state()
    options = BlockOptions(epochs=2, batch_size=8)
    done = alternate(problem, rounds=3, options=options)
    assert never_rises(done.history) and saves_the_best(done.history)
    kept = [line for line in done.history if line["half"] == "block" and line["kept"]]
    assert kept and done.history[-1]["objective"] < 0.999 * done.history[0]["objective"]
    # A delta in a backbone that is loaded anew gives what the model in memory gives.
    # (The mean square of features of length one is no objective.)
    step = train_blocks(problem.cut, problem.train, lambda f, _: f.abs().mean(), options, seed=0)
    assert step.steps == 2 * math.ceil(ROWS / 8)
    after = problem.cut.state()
    changed = {key: after[key] for key in after if not np.array_equal(after[key], before[key])}
    assert changed
    again = with_changes(load_extractor(name), changed)
    found = encode_rows(again, inputs, list(map(str, range(ROWS)))).features
    memory = features_of(problem.cut, problem.train)
    np.testing.assert_allclose(found, memory, atol=1e-5 * np.abs(memory).max())
    assert np.abs(found - plain).max() > 1e-3 * np.abs(plain).max()
    assert again.fingerprint() != load_extractor(name).fingerprint()


def test_blocks_may_move_under_a_head_that_fits_closely_if_it_is_solved_anew(tmp_path):
    problem = joint("bert", backbone("bert", tmp_path), beta=0.02)
    options = BlockOptions(epochs=1, batch_size=8, rate=1e-3)
    run = HalfSteps(problem, options, Limits(), 0, None)
    state = run.begin()
    first = state.now.network
    run.block_half(state, math.inf)
    line = state.history[-1]
    assert line["kept"] and line["share"] == 1 and line["objective"] < state.history[0]["objective"]
    X = features_of(problem.cut, problem.train)
    Y, ones = targets(problem.train.labels, first.loss, 2), np.ones(ROWS)
    # The head of before is above where it began, the one solved anew is proven.
    assert objective(first, X, Y, ones, state.beta) > state.history[0]["objective"]
    found = objective(state.now.network, X, Y, ones, state.beta)
    assert found == pytest.approx(line["objective"], rel=1e-5)
    assert found == pytest.approx(state.certificate["primal"], rel=1e-4)
    assert state.certificate["relative_gap"] <= 1e-3
    # So the head half-step has nothing to do.
    solved = state.now.network
    run.head_half(state)
    after = state.history[-1]
    assert line["solved"] and state.now.network is solved and state.next_half == "block"
    assert after["kept"] and after["objective"] == line["objective"]
    assert after["relative_gap"] == state.certificate["relative_gap"]


def test_what_is_saved_has_a_certificate_of_its_own(tmp_path):
    problem = joint("bert", backbone("bert", tmp_path), beta=0.1)
    # So small a rate that the objective falls without the head being solved anew.
    options = BlockOptions(epochs=1, batch_size=8, rate=1e-4)
    run = HalfSteps(problem, options, Limits(), 0, None)
    state = run.begin()
    state.frozen_right, state.best_accuracy = np.zeros(16, bool), -1.0  # whatever comes is better
    run.block_half(state, math.inf)
    assert state.history[-1]["kept"] and not state.history[-1]["solved"]
    for _ in range(2):
        blocks, head = state.best.blocks, state.best.network
        after = problem.cut.state()
        problem.cut.restore(dict(blocks))
        X, ones = features_of(problem.cut, problem.train), np.ones(ROWS)
        problem.cut.restore(after)
        Y = targets(problem.train.labels, head.loss, 2)
        found = objective(head, X, Y, ones, state.beta)
        assert found == pytest.approx(state.best_certificate["primal"], rel=1e-5)
        if state.next_half == "head":
            assert any(np.any(blocks[name] != after[name]) for name in blocks)
            run.head_half(state)
    assert state.best is state.now and state.best.network is not state.first


def test_a_head_that_is_not_kept_leaves_the_certificate_alone(tmp_path):
    problem = joint("bert", backbone("bert", tmp_path), beta=0.1)
    options = BlockOptions(epochs=1, batch_size=8, rate=1e-4)
    run = HalfSteps(problem, options, Limits(), 0, None)
    state = run.begin()
    run.block_half(state, math.inf)
    assert state.next_half == "head" and not state.history[-1]["solved"]
    before, certificate = state.now.network, state.certificate
    state.objective = 1e-9  # as no head can have
    run.head_half(state)
    assert not state.history[-1]["kept"] and state.objective == 1e-9
    assert state.now.network is before and state.certificate == certificate


def test_a_certificate_survives_its_checkpoint_as_it_is(tmp_path):
    problem = joint("bert", backbone("bert", tmp_path), penalty="ridge")
    given = {"rounds": 0, "checkpoints": tmp_path / "kept"}
    first = alternate(problem, **given).certificate
    again = alternate(problem, **given, resume=True).certificate
    np.testing.assert_equal(again, first)
    assert math.isnan(first["pattern_violation"])  # a ridge head has none


def test_a_budget_leaves_time_for_the_head_of_the_last_blocks(tmp_path, monkeypatch):
    problem = joint("bert", backbone("bert", tmp_path))
    clock, halves = [0.0], []
    monkeypatch.setattr(
        "tasks.cronos_am.alternate.time", SimpleNamespace(monotonic=lambda: clock[0])
    )
    block_half, head_half = HalfSteps.block_half, HalfSteps.head_half

    def until_its_end(run, state, deadline):
        halves.append("block")
        took = run._extracting, run._solving
        block_half(run, state, math.inf)
        run._extracting, run._solving = took  # as expected, whatever else the machine does
        clock[0] = deadline + run._extracting

    def solved(run, state):
        halves.append("head")
        assert clock[0] + run._solving < 1e6
        head_half(run, state)

    monkeypatch.setattr(HalfSteps, "block_half", until_its_end)
    monkeypatch.setattr(HalfSteps, "head_half", solved)
    options = BlockOptions(epochs=1, batch_size=8, rate=1e-4)
    done = alternate(problem, rounds=5, options=options, budget_seconds=1e6)
    assert halves == ["block", "head"] and done.rounds == 1


def test_a_head_that_was_solved_in_part_only_is_solved_on(tmp_path):
    problem = joint("bert", backbone("bert", tmp_path), beta=0.02)
    options = BlockOptions(epochs=1, batch_size=8, rate=1e-3)
    run = HalfSteps(problem, options, Limits(tolerance=1e-7, max_passes=40), 0, None)
    state = run.begin()
    run.block_half(state, math.inf)
    line, before = state.history[-1], state.now.network
    assert line["kept"] and state.certificate["relative_gap"] > 1e-7 and not line["solved"]
    run.head_half(state)
    assert state.now.network is not before and state.objective < line["objective"]


@pytest.mark.slow
def test_the_same_for_a_relu_head(tmp_path):
    name = backbone("bert", tmp_path)
    problem = joint("bert", name, activation="relu", beta=0.1)
    done = alternate(problem, rounds=1, options=BlockOptions(epochs=2, batch_size=8, rate=1e-3))
    assert never_rises(done.history) and done.history[-1]["half"] == "head"


def test_a_step_that_raises_the_objective_is_rolled_back(tmp_path):
    problem = joint("bert", backbone("bert", tmp_path))
    before = problem.cut.state()
    done = alternate(problem, rounds=2, options=BlockOptions(epochs=1, batch_size=8, rate=30.0))
    blocks = [line for line in done.history if line["half"] == "block"]
    assert not blocks[0]["kept"] and blocks[0]["tried"] > blocks[0]["objective"]
    assert never_rises(done.history)
    if not any(line["kept"] for line in blocks):
        assert not done.changed
        after = problem.cut.state()
        assert all(np.array_equal(after[key], before[key]) for key in before)


def test_few_rows_need_a_reason():
    right, ones = np.array([True] * 9 + [False]), np.ones(10)
    found, near = Answers(right, ones), np.array([True] * 8 + [False] * 2)
    assert not prefers(found, Answers(near, ones))  # one row is noise
    assert prefers(found, Answers(np.array([True] * 4 + [False] * 6), ones))
    # Losses say more than answers do, but not against them.
    one_row, rows = np.eye(10)[0], np.linspace(0.1, 0.3, 10)
    assert prefers(Answers(right, ones - rows), Answers(near, ones))
    assert not prefers(Answers(right, ones - one_row), Answers(near, ones))  # of one row alone
    assert not prefers(Answers(near, ones - rows), Answers(right, ones))


def test_what_cannot_be_cut_is_refused(tmp_path):
    bert = load_extractor(backbone("bert", tmp_path))
    with pytest.raises(InputError, match="has 4 blocks, 1 to 4 can be unfrozen"):
        CutBackbone(bert, 5, ["a film"])
    with pytest.raises(InputError, match="has no blocks to train"):
        CutBackbone(load_extractor("toy:text-8"), 1, ["a film"])


def test_activations_on_disk_are_those_in_memory(tmp_path):
    inputs, labels = rows("bert")
    cut = CutBackbone(load_extractor(backbone("bert", tmp_path)), 2, inputs[:3])
    fresh = cached_rows(cut, inputs, labels, tmp_path / "kept" / "a")
    memory = cached_rows(cut, inputs, labels, None)
    seen: list[int] = []
    cut.lower = lambda rows: seen.append(len(rows)) or CutBackbone.lower(cut, rows)
    again = cached_rows(cut, inputs, labels, tmp_path / "kept" / "a", progress=None)
    assert seen == [1]  # the width; no row is computed again
    for i in range(ROWS):
        np.testing.assert_array_equal(fresh.activations(i), memory.activations(i))
        np.testing.assert_array_equal(again.activations(i), memory.activations(i))
    # Half a file is none.
    file = tmp_path / "kept" / "a" / "values.f32"
    file.write_bytes(file.read_bytes()[:-4])
    cached_rows(cut, inputs, labels, tmp_path / "kept" / "a")
    assert sum(seen) > ROWS


# ---- the verb ----


def write_csv(folder: Path) -> Path:
    file = folder / "films.csv"
    lines = ["text,label"]
    for seed in range(3):
        texts, labels = rows("bert", 40, seed)
        lines += [
            f"{t} {seed}{i},{'good' if y else 'bad'}"
            for i, (t, y) in enumerate(zip(texts, labels, strict=True))
        ]
    file.write_text("\n".join(lines) + "\n")
    return file


def command(folder: Path, out: str, *more: str) -> list[str]:
    fixed = ["--unfreeze", "2", "--rounds", "3", "--learning-rate", "1e-3", "--epochs", "3"]
    fixed += ["--batch-size", "8", "--n-gates", "3", "--beta", "0.05", "--no-leak-check", "--json"]
    name = f"hf:{folder / 'bert'}"
    cache = ["--cache-dir", str(folder / "cache")]
    given = ["finetune", str(folder / "films.csv"), "--backbone", name, "--quiet"]
    return [*given, "--out", str(folder / out), *fixed, *cache, *more]


@pytest.mark.slow
def test_finetune_predict_and_pipeline_agree(tmp_path, capsys):
    write_csv(tmp_path)
    backbone("bert", tmp_path)
    assert main(command(tmp_path, "model")) == 0
    record = json.loads(capsys.readouterr().out)
    assert {"rounds", "test_accuracy", "relative_gap", "linear_probe_test_accuracy"} <= set(record)
    assert never_rises(record["rounds"])
    assert record["changed_parameters"] > 0, "the rows are easy: validation prefers trained blocks"
    assert record["validation_accuracy"] > record["rounds"][0]["validation_accuracy"]
    assert not (tmp_path / "model.checkpoint").exists()
    report = (tmp_path / "model" / "report.html").read_text()
    assert "joint objective" in report and "fine-tuned" in report
    from tasks import ConvexHeadPipeline

    clf = ConvexHeadPipeline.from_pretrained(tmp_path / "model")
    texts, _ = rows("bert", 8, seed=5)
    p = clf.predict_proba(texts)
    assert main(["predict", str(tmp_path / "model"), "--text", texts[0], "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["predictions"][0]
    assert answer["score"] == pytest.approx(float(p[0].max()), abs=1e-5)
    clf.save_pretrained(tmp_path / "copy")
    copy = ConvexHeadPipeline.from_pretrained(tmp_path / "copy")
    np.testing.assert_allclose(copy.predict_proba(texts), p, atol=1e-6)
    # The published backbone is another one.
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "changed_sha256" in config["backbone_fingerprint"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "the fine-tuned backbone" in card and "not\ncontained" not in card
    assert config["backbone_fingerprint"]["changed_sha256"] in card
    # (`tests/test_export.py` compares the program of such an artefact with the pipeline.)
    export = ["export", str(tmp_path / "model"), "--out", str(tmp_path / "model.pt2"), "--quiet"]
    assert main([*export, "--format", "torch", "--with-backbone", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_difference"] <= 1e-4
    refit = ["refit", str(tmp_path / "model"), str(tmp_path / "films.csv"), "--quiet"]
    assert main([*refit, "--out", str(tmp_path / "more")]) == 2
    said = capsys.readouterr().err
    assert "was made by `finetune`" in said and "finetune` again" in said and said.count("\n") == 1


def run_until(checkpoint: Path, arguments: list[str], how: int, lines: int) -> int:
    """Starts the verb, and sends a signal once so many half-steps are on disk."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        stdout=subprocess.DEVNULL,
    )
    state, end = checkpoint / "state.json", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < end:
        try:
            if len(json.loads(state.read_text())["history"]) >= lines:
                break
        except (OSError, ValueError):
            pass
        time.sleep(0.002)
    assert process.poll() is None, "it ended before it could be stopped"
    process.send_signal(how)
    return process.wait(timeout=120)


@pytest.mark.slow
def test_killed_and_resumed_is_as_if_it_had_not_been(tmp_path, capsys):
    write_csv(tmp_path)
    backbone("bert", tmp_path)
    more = ("--rounds", "6")
    assert main(command(tmp_path, "whole", *more)) == 0
    whole = json.loads(capsys.readouterr().out)
    arguments = command(tmp_path, "killed", *more)
    code = run_until(tmp_path / "killed.checkpoint", arguments, signal.SIGKILL, 2)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert main(arguments) == 2  # said, not overwritten
    assert "add --resume" in capsys.readouterr().err
    assert main([*arguments, "--seed", "3", "--resume"]) == 2
    assert "other options" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    for line, other in zip(whole["rounds"], resumed["rounds"], strict=True):
        same = {k for k in line if k != "seconds"}
        assert {k: line[k] for k in same} == {k: other[k] for k in same}
    assert resumed["test_nll"] == whole["test_nll"]
    from safetensors.numpy import load_file

    first = load_file(tmp_path / "whole" / "model.safetensors")
    second = load_file(tmp_path / "killed" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_ctrl_c_saves_the_best_so_far(tmp_path, capsys):
    write_csv(tmp_path)
    backbone("bert", tmp_path)
    arguments = command(tmp_path, "stopped", "--rounds", "50", "--epochs", "30")
    code = run_until(tmp_path / "stopped.checkpoint", arguments, signal.SIGINT, 2)
    assert code == 130
    assert main(["predict", str(tmp_path / "stopped"), "--text", "a dull film", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["label"] in ("good", "bad")
    assert main([*arguments, "--rounds", "2", "--resume"]) == 0
