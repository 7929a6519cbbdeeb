"""Features that are read as they are needed give the heads that arrays give, in little memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from stores import manifest

from convex_heads import ConvexHeadClassifier, ConvexHeadRegressor, Options, Shards, solve
from convex_heads.scratch import spooled
from convex_heads.sources import chunks, is_streamed
from extractors.store import FeatureStore, StoredRows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 6)).astype("f4")
Y = np.where(X[:, 0] * X[:, 1] > 0, "same", "different")


def mapped(folder: Path, X: np.ndarray) -> np.memmap:
    """X as a memory-mapped file."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "X.npy"
    np.save(path, X)
    found = np.load(path, mmap_mode="r")
    assert isinstance(found, np.memmap)
    return found


def stored(folder: Path) -> FeatureStore:
    """X in a store of four shards."""
    new = manifest(modality="image", classes=("different", "same"), max_length=None)
    labels = (Y == "same").astype(int)
    with FeatureStore.writer(folder / "store", new) as writer:
        for part in np.array_split(np.arange(len(X)), 4):
            ids = [f"r{i}" for i in part]
            writer.append("train", StoredRows(ids, labels[part], X[part], None))
    return FeatureStore.open(folder / "store")


def sources(folder: Path) -> dict:
    """The same rows in every form that is streamed."""
    return {
        "mapped file": mapped(folder, X),
        "slice of it": mapped(folder, np.r_[X[:5], X])[5:],
        "shards": Shards([X[:100], mapped(folder, X)[100:350], X[350:]]),
        "store": stored(folder).source("train"),
    }


def test_what_is_streamed(tmp_path: Path) -> None:
    for source in sources(tmp_path).values():
        assert is_streamed(source)
        np.testing.assert_array_equal(source[np.array([599, 0, 0, 120])], X[[599, 0, 0, 120]])
        np.testing.assert_array_equal(source[90:410], X[90:410])
    # Rows picked from a mapping are in memory, whatever their class.
    assert not is_streamed(mapped(tmp_path, X)[np.arange(3)])
    assert not any(map(is_streamed, (X, X.tolist(), jax.numpy.asarray(X))))


def fit(X: object, y: np.ndarray, *rest: object, **options: object) -> ConvexHeadClassifier:
    """A head with few gates, solved well."""
    wanted = {"n_gates": 16, "beta": 0.03, "tolerance": 1e-4} | options
    return ConvexHeadClassifier(**wanted).fit(X, y, *rest)


def test_streamed_rows_give_the_same_head(tmp_path: Path) -> None:
    reference = fit(X, Y)
    for name, source in sources(tmp_path).items():
        head = fit(source, Y)
        np.testing.assert_allclose(
            head.certificate_.primal, reference.certificate_.primal, rtol=2e-4, err_msg=name
        )
        # Chunks are summed in another order, so it is another point within the gap.
        np.testing.assert_allclose(
            head.predict_proba(source), reference.predict_proba(X), atol=2e-2, err_msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"beta": "auto"},
        {"gates": "pairs"},
        {"n_gates": "grow"},
        {"activation": "relu", "n_gates": 8, "beta": 0.1},
    ],
    ids=str,
)
def test_streamed_rows_serve_every_option(tmp_path: Path, options: dict) -> None:
    options = {"tolerance": 1e-2} | options
    reference, head = fit(X, Y, **options), fit(mapped(tmp_path, X), Y, **options)
    assert head.beta_ == reference.beta_
    # Other pairs of rows are drawn, and descent ends elsewhere: not the same, but as good.
    assert head.score(X, Y) > reference.score(X, Y) - 0.05


def test_streamed_rows_repeat_to_the_bit(tmp_path: Path) -> None:
    heads = [fit(mapped(tmp_path, X), Y) for _ in range(2)]
    np.testing.assert_array_equal(*(head.network_.weights for head in heads))


def test_several_chunks_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(mapped(tmp_path, X), Y)
    monkeypatch.setattr("convex_heads.sources._CHUNK_ENTRIES", 1000)
    assert len(list(chunks(mapped(tmp_path, X)))) == 4
    parts = fit(mapped(tmp_path, X), Y)
    np.testing.assert_allclose(parts.certificate_.primal, whole.certificate_.primal, rtol=2e-4)
    np.testing.assert_allclose(
        parts.predict_proba(X), whole.predict_proba(mapped(tmp_path, X)), atol=2e-2
    )


@pytest.mark.slow
def test_regressor_validation_rows_and_half_precision(tmp_path: Path) -> None:
    y = np.abs(X[:, 0])
    half = mapped(tmp_path, X.astype("f2"))
    head, plain = (
        ConvexHeadRegressor(n_gates=16, beta=[0.03, 0.01]).fit(
            kind(half[:400]), y[:400], X_val=kind(half[400:]), y_val=y[400:]
        )
        for kind in (lambda rows: rows, np.asarray)
    )
    assert head.beta_ == plain.beta_
    np.testing.assert_allclose(head.predict(half), plain.predict(np.asarray(half)), atol=0.1)
    assert head.score(half[400:], y[400:]) > 0.85


def test_weights_count_as_repeats(tmp_path: Path) -> None:
    weight = RNG.integers(0, 3, len(X))
    weighted = fit(mapped(tmp_path, X), Y, weight)
    repeated = fit(np.repeat(X, weight, axis=0), np.repeat(Y, weight))
    np.testing.assert_allclose(
        weighted.certificate_.primal, repeated.certificate_.primal, rtol=2e-4
    )


def test_more_features_than_rows(tmp_path: Path) -> None:
    wide = RNG.normal(size=(40, 200)).astype("f4")
    y = wide[:, 0] > 0
    streamed, plain = (fit(source, y, n_gates=5) for source in (mapped(tmp_path, wide), wide))
    np.testing.assert_allclose(streamed.certificate_.primal, plain.certificate_.primal, rtol=2e-4)


@pytest.mark.slow
def test_solve_takes_a_mapped_file(tmp_path: Path) -> None:
    rows, Y_ = np.c_[X, np.ones(len(X), "f4")], np.abs(X[:, :1])
    options = Options(beta=0.1, n_gates=8, loss="squared")
    values = [
        solve(source, Y_, options, jax.random.key(0)).stats.primal
        for source in (rows, mapped(tmp_path, rows))
    ]
    np.testing.assert_allclose(*values, rtol=1e-5)


def broken(folder: Path, row: int, value: float) -> np.memmap:
    """X with one bad entry."""
    bad = X.copy()
    bad[row, 2] = value
    return mapped(folder, bad)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_numbers_are_named(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="X holds NaN or infinity, first in row 311: drop"):
        ConvexHeadClassifier().fit(broken(tmp_path, 311, value), Y)
    head = fit(X, Y, n_gates=1)
    with pytest.raises(ValueError, match="first in row 7"):
        head.predict(broken(tmp_path, 7, value))
    with pytest.raises(ValueError, match="X_val holds NaN or infinity, first in row 0"):
        ConvexHeadClassifier().fit(X, Y, X_val=broken(tmp_path, 0, value), y_val=Y)


def test_bad_shapes_are_named(tmp_path: Path) -> None:
    head = fit(X, Y, n_gates=1)
    with pytest.raises(ValueError, match="X has 3 features, but ConvexHeadClassifier is expecting"):
        head.predict(mapped(tmp_path, X[:, :3]))
    with pytest.raises(ValueError, match=r"table \(n, d\) of real numbers.*got shape \(600,\)"):
        head.fit(mapped(tmp_path, X[:, 0]), Y)
    with pytest.raises(ValueError, match="X_val has 3 features, X has 6"):
        head.fit(X, Y, X_val=mapped(tmp_path, X[:, :3]), y_val=Y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        head.fit(mapped(tmp_path, X), Y[:-1])
    with pytest.raises(ValueError, match=r"shard 1 is \(2, 5\)"):
        Shards([X, np.zeros((2, 5))])
    with pytest.raises(ValueError, match="at least one array"):
        Shards([])


def test_temporary_files_have_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    A = spooled((100, 50), np.dtype("f4"), [np.full((60, 50), 2, "f4")])
    assert list(tmp_path.iterdir()) == []
    assert float(A.sum()) == 60 * 50 * 2


def test_a_program_that_does_not_fit_on_the_disk_is_refused() -> None:
    with pytest.raises(OSError, match=r"4000000\.0 GB of temporary data do not fit into .* TMPDIR"):
        spooled((10**12, 1000), np.dtype("f4"), [])


@pytest.mark.slow
def test_memory_stays_small_under_a_limit_of_the_operating_system(tmp_path: Path) -> None:
    # 614 MB of features, fitted by a process that may take 256 MB more than after a small fit.
    script = """
        import resource, sys
        import numpy as np
        from convex_heads import ConvexHeadClassifier

        n, d = 300_000, 512
        X = np.load(sys.argv[1], mmap_mode="r")
        y = np.load(sys.argv[2])
        head = ConvexHeadClassifier(n_gates=4, beta=0.3, tolerance=0.1)
        head.fit(X[:5000], y[:5000])  # compiled code, threads
        status = open("/proc/self/status").read().split()
        used = int(status[status.index("VmData:") + 1]) << 10
        limit = used + (256 << 20)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        assert X.nbytes > 2 * (256 << 20), X.nbytes
        try:
            np.array(X)
        except MemoryError:
            pass
        else:
            raise SystemExit("the limit does not hold")
        head.fit(X, y)
        assert head.certificate_.relative_gap <= 0.1
        print(head.score(X[-20_000:], y[-20_000:]))
        # The limit is the fit's: libraries that take leave under it may end the process.
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("limits of data segments are Linux's")
    n, d = 300_000, 512
    big = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.dtype("f4"), (n, d))
    for rows in chunks(big):
        big[rows] = np.random.default_rng(rows.start).standard_normal((rows.stop - rows.start, d))
    y = (big[:, 0] + 0.3 * np.abs(big[:, 1]) > 0.2).astype(int)
    np.save(tmp_path / "y.npy", y)
    del big
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "X.npy", tmp_path / "y.npy"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) > 0.8
