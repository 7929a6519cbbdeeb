"""The cost of a fit, predicted before it and compared with what then happens."""

from __future__ import annotations

import json

import numpy as np
import pytest

from convex_heads.cost import Shape, machine
from tasks.cli import main
from tasks.dry_run import _some

FIT = ("fit", "digits", "--backbone", "toy:image-16", "--n-gates", "4", "--beta", "0.1", "--json")


def test_cost_grows_as_it_should():
    shape = Shape(n=10_000, d=385, P=64, C=6)
    assert shape.flops_per_pass == 4 * 10_000 * 385 * 64 * 6
    assert shape.memory > 10_000 * 385 * 4 + 10_000 * 64
    one, eight = machine("1xH200"), machine("8 x h200")
    assert one.seconds(shape, 50) == pytest.approx(8 * eight.seconds(shape, 50))
    assert one.seconds(shape, 50) > 50 * shape.flops_per_pass / 67e12  # nobody exceeds the peak
    for wrong in ("H2000", "0xH200", "", "8x"):
        with pytest.raises(ValueError, match="a machine is described as 1xH200"):
            machine(wrong)


def test_every_class_is_in_the_pilot():
    labels = np.repeat([0, 1, 2], [9_000, 9_000, 1])
    chosen = _some(labels, 100, seed=0)
    assert 100 <= len(chosen) <= 103 and set(labels[chosen]) == {0, 1, 2}
    assert (_some(labels, 20_000, seed=0) == np.arange(len(labels))).all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--dry-run", "--as", "1xABACUS"), "--as: a machine is described as 1xH200"),
        (("--as", "1xH200"), "--as is for --dry-run"),
        (("--dry-run",), "have no features yet"),
    ],
)
def test_what_cannot_be_predicted(arguments, expected, capsys, tmp_path):
    assert main([*FIT, "--quiet", "--cache-dir", str(tmp_path), *arguments]) == 2
    streams = capsys.readouterr()
    assert expected in streams.err and streams.err.count("\n") == 1
    assert streams.out == ""


def test_a_streamed_fit_holds_what_is_no_feature():
    shape = Shape(n=10_000, d=385, P=64, C=6)
    assert shape.features == 10_000 * 385 * 4
    assert shape.memory == pytest.approx(shape.streamed_memory + 4 * shape.features)
    assert shape._replace(n=20_000).streamed_memory < 2 * shape.streamed_memory


@pytest.mark.slow
def test_few_rows_are_predicted_by_the_fit_itself(tmp_path, capsys, monkeypatch):
    where = ("--quiet", "--cache-dir", str(tmp_path), "--out", str(tmp_path / "head"))
    assert main([*FIT, *where]) == 0
    record = json.loads(capsys.readouterr().out)
    assert main([*FIT, *where, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passes"] == record["passes"]
    assert told["n_gates"] == record["n_gates"] and told["n_train"] == record["n_train"]
    assert told["flops"] == pytest.approx(
        told["pilot"]["passes"] * 4 * record["n_train"] * 17 * 4 * 10
    )
    assert main([*FIT, *where, "--dry-run", "--precision", "bfloat16"]) == 0
    doubled = json.loads(capsys.readouterr().out)
    per_pass = 4 * record["n_train"] * 17 * 4 * 10
    assert 1.5 < doubled["flops"] / (doubled["pilot"]["passes"] * per_pass) < 2
    assert main([*FIT, *where, "--dry-run", "--as", "1xH200"]) == 0
    there = json.loads(capsys.readouterr().out)
    assert there["machine"] == "1xH200" and there["fits"] is True
    assert set(there["seconds"]) == {"fit"}
    assert told["temporary_mb"] == there["temporary_mb"] == 0
    monkeypatch.setattr("tasks.streaming.free_memory", lambda: 1 << 16)
    assert main([*FIT[:-1], *where, "--dry-run"]) == 0
    megabytes = record["n_train"] * 17 * 4 / 2**20
    assert f"{megabytes:,.0f} MB go to a temporary file" in capsys.readouterr().out
