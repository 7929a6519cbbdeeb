"""The methods of `compare` that train the backbone, on small random backbones and real rows."""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest
from joints import needs_peft, rows
from tiny_models import save_backbone as backbone

from extractors import load_extractor
from extractors.encode import encode_rows
from tasks.cli import main
from tasks.comparison.images import image_bytes
from tasks.cronos_am.block_step import train_blocks
from tasks.methods import backbones, load_method
from tasks.methods.base import Backbone, Part, Problem, Unavailable
from tasks.methods.settings import SETTINGS

METHODS = ("cronos-am", "finetune", "lora")


def problem(family: str, folder, **more) -> tuple[Problem, Part]:
    name = backbone(family, folder)
    extractor = load_extractor(name)

    def part(n: int, seed: int) -> Part:
        inputs, labels = rows(family, n, seed)
        features = encode_rows(extractor, inputs, list(map(str, range(n)))).features
        if isinstance(inputs[0], str):
            return Part(features, labels, inputs)
        return Part(features, labels, images=[image_bytes(item) for item in inputs])

    options = {"n_gates": 3, "beta": 0.05}
    given = Problem(part(48, 0), part(24, 1), 2, 0, options, backbone=Backbone(name), **more)
    return given, part(16, 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "family", ["bert", pytest.param("mobilenetv3_small_050", marks=pytest.mark.slow)]
)
def test_methods_learn_the_rows(method, family, tmp_path):
    if method == "lora":
        needs_peft()
    given, asked = problem(family, tmp_path)
    fitted = load_method(method)(given)
    p = fitted.predict_proba(asked)
    assert p.shape == (16, 2) and np.allclose(p.sum(axis=1), 1, atol=1e-5)
    # Of rows in another order, and in smaller batches, the same.
    some = Part(
        asked.features[:3],
        asked.labels[:3],
        None if asked.texts is None else asked.texts[:3],
        images=None if asked.images is None else asked.images[:3],
    )
    np.testing.assert_allclose(fitted.predict_proba(some), p[:3], atol=1e-4)
    assert fitted.settings_tried >= 1 and fitted.parameters > 1000


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_is_kept(method, tmp_path):
    if method == "lora":
        needs_peft()
    given, _ = problem("bert", tmp_path, budget_seconds=1e-3)
    began = time.monotonic()
    fitted = load_method(method)(given)
    # One step of each setting, or the first head alone, is all that there is time for.
    assert time.monotonic() - began < 60
    if method == "cronos-am":
        assert fitted.chosen["rounds"] == 0


@pytest.mark.parametrize(("method", "learns"), [("finetune", 3e-3), ("lora", 2e-2)])
def test_what_three_rates_leave_of_a_budget_is_for_the_one_that_validation_rows_prefer(
    method, learns, tmp_path, monkeypatch
):
    if method == "lora":
        needs_peft()
    tried: list[tuple[float, float, float]] = []

    def told(cut, rows, loss, options, *, deadline, **more):
        tried.append((options.rate, options.epochs, deadline - time.monotonic()))
        return train_blocks(cut, rows, loss, options, deadline=deadline, **more)

    monkeypatch.setattr(backbones, "train_blocks", told)
    monkeypatch.setitem(SETTINGS[method], "epochs", 12.0)
    monkeypatch.setitem(SETTINGS[method], "longest", 14.0)
    # One that moves nothing, one that learns, one that ruins.
    monkeypatch.setitem(SETTINGS[method], "rates", [1e-8, learns, 30.0])
    given, _ = problem("bert", tmp_path, budget_seconds=6e6)
    fitted = load_method(method)(given)
    rates, epochs, seconds = zip(*tried, strict=True)
    # The three ended long before their time: all that is left is more than half.
    assert seconds == pytest.approx([1e6, 1e6, 1e6, 6e6], rel=1e-3)
    assert rates == (1e-8, learns, 30.0, learns) and fitted.chosen["rate"] == learns
    assert epochs == (12, 12, 12, 14)  # not the same run again


def test_time_that_is_left_buys_a_longer_schedule(tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS["finetune"], "epochs", 1.0)
    monkeypatch.setitem(SETTINGS["finetune"], "longest", 24.0)
    monkeypatch.setitem(SETTINGS["finetune"], "rates", [1e-2])
    given, asked = problem("bert", tmp_path, budget_seconds=6e6)
    short = load_method("finetune")(dataclasses.replace(given, budget_seconds=None))
    long = load_method("finetune")(given)
    assert short.chosen["epochs"] == 1 and long.chosen["epochs"] == 24

    def right(fitted) -> float:
        return float(np.mean(fitted.predict_proba(asked).argmax(axis=1) == asked.labels))

    assert right(long) > right(short)
    # Where it is of no use to validation rows, the three epochs are kept.
    monkeypatch.setitem(SETTINGS["finetune"], "rates", [1e-9])
    assert load_method("finetune")(given).chosen["epochs"] == 1


@pytest.mark.parametrize("method", METHODS)
def test_without_the_rows_there_is_a_reason(method, tmp_path):
    part = Part(np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]))
    with pytest.raises(Unavailable, match="needs the rows themselves"):
        load_method(method)(Problem(part, part, 2, 0))
    both = Problem(
        Part(part.features, part.labels, ["a"] * 4), part, 2, 0, backbone=Backbone("a + b")
    )
    with pytest.raises(Unavailable, match="side by side"):
        load_method(method)(both)


def test_setfit_is_refused_in_one_sentence():
    part = Part(np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]), ["a", "b", "c", "d"])
    fit = load_method("setfit")
    with pytest.raises(Unavailable, match="st:"):
        fit(Problem(part, part, 2, 0, backbone=Backbone("hf:bert")))
    try:
        import setfit  # noqa: F401
    except ImportError:
        with pytest.raises(Unavailable, match=r"convex-heads\[setfit\]"):
            fit(Problem(part, part, 2, 0, backbone=Backbone("minilm")))


@pytest.mark.slow
def test_compare_runs_them_on_texts_and_images(tmp_path, capsys):
    from PIL import Image

    name = backbone("mobilenetv3_small_050", tmp_path)
    inputs, labels = rows("mobilenetv3_small_050", 80)
    for i, (pixels, label) in enumerate(zip(inputs, labels, strict=True)):
        folder = tmp_path / "pictures" / ("upper" if label else "plain")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    arguments = ["compare", str(tmp_path / "pictures"), "--backbone", name, "--seeds", "1"]
    arguments += ["--methods", "linear,cronos-am,finetune,setfit", "--budget-seconds", "20"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--json", "--quiet"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {row["method"] for row in record["rows"]} == {"linear", "cronos-am", "finetune"}
    assert "SetFit" in record["skipped"]["setfit"]
