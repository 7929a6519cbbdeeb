"""A fit that was interrupted ends with the head that it would have ended with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from convex_heads import ConvexHeadClassifier, Limits, Options, Shards, solve
from convex_heads.checkpoint import checkpoints
from convex_heads.solution import Record

REPOSITORY = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
X = RNG.normal(size=(500, 6)).astype("float32")
Y = np.where(X[:, 0] * X[:, 1] > 0, "same", "different")


class Stop(Exception):
    """An interruption."""


WANTED = {"n_gates": 16, "beta": [0.1, 0.02], "penalty": "group", "tolerance": 1e-4}


def fit(stop_after: int | None = None, **options: object) -> ConvexHeadClassifier:
    """A head of a path of two points; or an interruption after so many records."""
    seen: list[Record] = []

    def on_record(record: Record) -> None:
        seen.append(record)
        if len(seen) == stop_after:
            raise Stop

    head = ConvexHeadClassifier(**WANTED | options).fit(X, Y, on_record=on_record)
    head.n_records_ = len(seen)
    return head


@pytest.fixture(scope="module")
def whole() -> ConvexHeadClassifier:
    """The head of a fit without interruptions."""
    return fit()


def assert_same(head: ConvexHeadClassifier, whole: ConvexHeadClassifier) -> None:
    """To the bit, history included."""
    np.testing.assert_array_equal(head.network_.weights, whole.network_.weights)
    np.testing.assert_equal(head.certificate_, whole.certificate_)
    assert head.passes_ == whole.passes_
    for mine, other in zip(head.path_, whole.path_, strict=True):
        assert [r[:4] for r in mine.history] == [r[:4] for r in other.history]


@pytest.mark.slow
def test_every_place_to_stop_at_leads_to_the_same_head(whole, tmp_path):
    n = whole.n_records_
    for stop in (1, n // 4, n // 2, n - 6, n - 1, n):
        with checkpoints(tmp_path, every=0):
            with pytest.raises(Stop):
                fit(stop)
            again = fit()
        assert_same(again, whole)
        # What was done is taken from the files: one record for each of the solves.
        assert again.n_records_ <= n - (stop - 1) + 4
        assert not list(tmp_path.iterdir())


def test_other_fits_damage_and_a_full_disk_do_no_harm(whole, tmp_path, monkeypatch):
    with checkpoints(tmp_path, every=0):
        with pytest.raises(Stop):
            fit(whole.n_records_)
        files = sorted(tmp_path.iterdir())
        assert len(files) >= 3 and all(file.suffix == ".npz" for file in files)
        fit(tolerance=1e-2)
        assert sorted(tmp_path.iterdir()) == files  # another fit takes and removes its own alone
        files[0].write_bytes(files[0].read_bytes()[:-50])
        assert_same(fit(), whole)
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.warns(UserWarning, match="no checkpoints from here on.*full"):
            assert_same(fit(), whole)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="every is a time"), checkpoints(tmp_path, every=-1):
        pass


def test_a_fit_whose_gates_are_drawn_anew_takes_no_solve_from_another(tmp_path):
    with checkpoints(tmp_path, every=0):
        with pytest.raises(Stop):
            fit(stop_after=4, random_state=None)  # one of the two solves is finished
        left = sorted(tmp_path.iterdir())
        head = fit(random_state=None)
        assert left and sorted(tmp_path.iterdir()) == left
    assert head.certificate_.relative_gap <= 1e-4


def test_short_fits_write_nothing(tmp_path):
    with checkpoints(tmp_path / "never"), pytest.raises(Stop):
        fit(3)
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"solver": "fista"}, {"solver": "kernel", "penalty": "ridge"}, {"activation": "relu"}],
    ids=str,
)
def test_every_solver_goes_on(tmp_path, options):
    options = options | {"n_gates": 8, "tolerance": 5e-2}
    whole = fit(**options)
    with checkpoints(tmp_path, every=0):
        with pytest.raises(Stop):
            fit(whole.n_records_ - 1, **options)
        np.testing.assert_equal(fit(**options).certificate_, whole.certificate_)


KILLED = """
import os, signal, sys
import test_checkpoint as t
from convex_heads.checkpoint import checkpoints

left = int(sys.argv[2])
def on_record(record):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

with checkpoints(sys.argv[1], every=0):
    if sys.argv[3] == "solve":
        t.solved(on_record)
    else:
        t.ConvexHeadClassifier(**t.WANTED).fit(t.X, t.Y, on_record=on_record)
"""


def solved(on_record=None):
    """One solve."""
    target = np.eye(2, dtype="float32")[(Y == "same").astype(int)]
    options = Options(beta=0.02, n_gates=16, limits=Limits(tolerance=1e-4))
    ones = np.c_[X, np.ones(len(X), "float32")]
    return solve(ones, target, options, jax.random.key(0), on_record=on_record)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["path", "solve"])
def test_after_kill_9(whole, tmp_path, what):
    paths = (str(REPOSITORY), str(REPOSITORY / "tests"))
    reference = solved() if what == "solve" else None
    killed_after = 3 if reference else whole.n_records_ - 1
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, str(killed_after), what],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        timeout=240,
    )
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir())
    with checkpoints(tmp_path, every=0):
        if reference:
            seen: list[Record] = []
            found = solved(seen.append)
            np.testing.assert_array_equal(found.value, reference.value)
            assert len(seen) < len(reference.history)
        else:
            assert_same(fit(), whole)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_rows_is_not_taken(tmp_path):
    # Small whole numbers, the rows in another order: all moments are the same to the bit.
    rng = np.random.default_rng(1)
    first = rng.integers(-3, 4, size=(256, 6)).astype(np.float32)
    second, label = rng.permutation(first), (first[:, 0] * first[:, 1] > 0).astype(int)

    def stop_at_third() -> object:
        seen: list[Record] = []

        def on_record(record: Record) -> None:
            seen.append(record)
            if len(seen) == 3:
                raise Stop

        return on_record

    def head(rows: np.ndarray, on_record: object = None) -> np.ndarray:
        options = {"n_gates": 8, "beta": 0.01, "penalty": "group", "tolerance": 1e-4}
        found = ConvexHeadClassifier(**options).fit(Shards([rows]), label, on_record=on_record)
        return found.network_.weights

    def weights(rows: np.ndarray, on_record: object = None) -> np.ndarray:
        X, Y = np.c_[rows, np.ones_like(rows[:, :1])], np.eye(2, dtype=np.float32)[label]
        asked = Options(beta=0.01, n_gates=8, limits=Limits(1e-4))
        return np.asarray(solve(X, Y, asked, jax.random.key(0), on_record=on_record).value)

    for solved in (head, weights):
        expected = solved(second)
        with checkpoints(tmp_path, every=0):
            with pytest.raises(Stop):
                solved(first, stop_at_third())
            assert list(tmp_path.iterdir())
            found = solved(second)
        np.testing.assert_array_equal(found, expected)


def test_a_checkpoint_that_is_empty_is_none(tmp_path, whole):
    with checkpoints(tmp_path, every=0):
        with pytest.raises(Stop):
            fit(stop_after=4)
        files = list(tmp_path.iterdir())
        assert files
        for file in files:
            file.write_bytes(b"")
        head = fit()
    assert_same(head, whole)
