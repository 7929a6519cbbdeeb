"""The drawn features have the margin and the spectrum that were asked for; the benchmark runs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

from imagenet_shaped import SHARD_ROWS, ImageNetShaped  # noqa: E402


def probe_accuracy(drawn: ImageNetShaped, n: int) -> float:
    """Of a linear probe that is told the covariance is shared, on rows it has not seen."""
    probe = LinearDiscriminantAnalysis().fit(*drawn.rows("train", 0, n))
    return float(probe.score(*drawn.rows("test", 0, n)))


def test_accuracy_falls_with_the_margin():
    margins = (3.0, 1.5, 0.75, 0.0)
    found = [probe_accuracy(ImageNetShaped(16, 6, margin), 4000) for margin in margins]
    assert all(np.diff(found) < -0.05), found
    assert found[-1] == pytest.approx(1 / 6, abs=0.03)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_two_modes_are_confused_as_the_margin_says(margin):
    found = probe_accuracy(ImageNetShaped(100, 2, margin, modes=1), 12_000)
    assert found == pytest.approx(norm.cdf(margin), abs=0.03)


@pytest.mark.parametrize(("margin", "decay"), [(0.0, 1.0), (3.0, 0.0), (3.0, 1.0), (1.0, 2.0)])
def test_the_spectrum_is_the_one_asked_for(margin, decay):
    drawn = ImageNetShaped(12, 500, margin, decay)
    X, _ = drawn.rows("train", 0, 12_000)
    found = np.linalg.eigvalsh(np.cov(X.T))[::-1]
    np.testing.assert_allclose(found, drawn.spectrum, rtol=0.2)
    assert drawn.spectrum.sum() == pytest.approx(12)
    assert drawn.spectrum[0] / drawn.spectrum[-1] == pytest.approx(12**decay)


def test_shards_make_the_file_and_labels_lie_beside_it(tmp_path):
    drawn, n = ImageNetShaped(4, 10, decay=0.5, seed=3), SHARD_ROWS + 100
    X, y = drawn.write(tmp_path / "train.npy", n)
    assert X.dtype == np.float16 and X.shape == (n, 4)
    parts = list(drawn.shards("train", n))
    assert [len(labels) for _, labels in parts] == [SHARD_ROWS, 100]
    np.testing.assert_array_equal(X, np.concatenate([X for X, _ in parts]).astype("f2"))
    np.testing.assert_array_equal(np.load(tmp_path / "train.labels.npy"), y)
    np.testing.assert_array_equal(y, np.concatenate([labels for _, labels in parts]))
    assert np.ptp(np.bincount(y, minlength=10)) <= 2
    assert not np.array_equal(drawn.rows("test", 0, 100)[0], parts[0][0][:100])
    assert not np.array_equal(parts[0][0][:100], parts[1][0])


@pytest.mark.slow
def test_the_benchmark_reaches_its_gap(tmp_path, monkeypatch, capsys):
    imagenet = importlib.import_module("imagenet")
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    sizes = ("--rows", "600", "--dim", "8", "--classes", "80", "--gates", "3")
    monkeypatch.setattr(sys, "argv", ["imagenet.py", *sizes, "--json", str(tmp_path / "rows.json")])
    imagenet.main()
    assert "of plain" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text("utf-8"))["rows"]
    assert (row["n"], row["d"], row["C"], row["P"]) == (600, 8, 80, 3)
    assert row["gap"] <= 1e-2 and 1 < row["passes"] < 1000
    assert 1 / 80 < row["top-1"] <= row["top-5"] <= 1
    assert row["TFLOP/s"] > 0 and row["predicted"] > 1
