"""Solves that go on where they were after a crash: files beside a fit, removed at its end.

A fit is a sequence of solves (the points of a path, the final one), and everything between them
repeats to the bit. So a checkpoint is the state of one solve, and a fit that begins again takes
every solve that is there from its file: finished ones at once, the one that was running from its
last state on. It ends with the weights that it would have ended with.

Files are written to a temporary name and renamed: they are whole or not there. Their names carry
what the result depends on (options, all features, targets, weights, devices), so fits that share a
folder do not meet.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jax import Array

from convex_heads.sharding import devices_here
from convex_heads.solution import Record, Status
from convex_heads.sources import chunks, is_streamed


class _State(Protocol):
    @property
    def primal(self) -> Array: ...


S = TypeVar("S", bound=_State)


class _Where(NamedTuple):
    folder: Path
    every: float


_WHERE: ContextVar[_Where | None] = ContextVar("where", default=None)
_JOURNAL: ContextVar[Journal | None] = ContextVar("journal", default=None)


@contextmanager
def checkpoints(folder: str | os.PathLike[str], every: float = 300.0) -> Iterator[None]:
    """Fits and solves within keep checkpoints; one that was interrupted goes on from its own.

    Args:
        folder: where; made when the first checkpoint is written. Other fits may use it too.
        every: seconds between two checkpoints, >= 0. Default 300. At the end of a solve a tenth of
            it is enough.

    Where several processes solve together there are no checkpoints.

    Raises:
        ValueError: a negative time.

    Example:
        >>> import tempfile
        >>> from convex_heads import ConvexHeadClassifier
        >>> X = np.random.default_rng(0).normal(size=(300, 4))
        >>> with tempfile.TemporaryDirectory() as folder, checkpoints(folder, every=60):
        ...     head = ConvexHeadClassifier(beta=0.1, n_gates=8).fit(X, X[:, 0] * X[:, 1] > 0)
    """
    if not every >= 0:
        raise ValueError(f"every is a time in seconds, at least 0; got {every}")
    token = _WHERE.set(_Where(Path(folder), every))
    try:
        yield
    finally:
        _WHERE.reset(token)


@contextmanager
def one_fit(*identity: Any) -> Iterator[None]:
    """The solves of one fit, which depends on these things.

    Arrays, row sources (all rows of which are read, if there are checkpoints), or what repr tells
    apart.
    """
    where = _WHERE.get()
    if where is None or _JOURNAL.get() is not None or jax.process_count() > 1:
        yield
        return
    digest = hashlib.sha256(repr((jax.__version__, devices_here())).encode())
    for part in identity:
        _add(digest, part)
    journal = Journal(where, digest.hexdigest()[:24])
    token = _JOURNAL.set(journal)
    try:
        yield
        journal.remove()
    finally:
        _JOURNAL.reset(token)


def _add(digest: Any, part: Any) -> None:
    """An array or a row source enters with all its rows, some at a time; anything else as repr."""
    rows = is_streamed(part)
    if not (rows or isinstance(part, np.ndarray)):
        digest.update(repr(part).encode())
        return
    digest.update(repr((tuple(part.shape), np.dtype(part.dtype).str)).encode())
    for some in chunks(part) if rows else (...,):
        digest.update(np.ascontiguousarray(part[some]).data)


def here() -> Journal | None:
    """The checkpoints of the fit that is running; None without."""
    return _JOURNAL.get()


class Journal:
    """The checkpoints of one fit."""

    def __init__(self, where: _Where, name: str) -> None:
        self._folder, self._every = where
        self._name = name
        self._solves = 0
        self._written = 0.0
        self._begins = 0.0
        self._refused = False

    def next_solve(self, start: S) -> tuple[S, list[Record], Status | None]:
        """Where the next solve begins: its state, its records, and how it ended if it has.

        Args:
            start: its state without a checkpoint.
        """
        self._solves += 1
        self._written = 0.0
        # The objective there tells another penalty, and weights that came another way.
        self._begins = float(start.primal)
        fresh: tuple[S, list[Record], Status | None] = (start, [], None)
        try:
            # Opened here: numpy leaves a damaged file open.
            with open(self._file, "rb") as file, np.load(file, allow_pickle=False) as saved:
                leaves, tree = jax.tree.flatten(start)
                arrays = [saved[f"state{i}"] for i in range(len(leaves))]
                fits = float(saved["begins"]) == self._begins
                fits &= [(a.shape, a.dtype) for a in arrays] == [(b.shape, b.dtype) for b in leaves]
                records = [Record(*map(float, line)) for line in saved["records"]]
                ended = str(saved["ended"])
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return fresh
        if not (fits and records):
            return fresh
        placed = [jax.device_put(a, b.sharding) for a, b in zip(arrays, leaves, strict=True)]
        self._written = records[-1].seconds
        return jax.tree.unflatten(tree, placed), records, Status[ended] if ended else None

    def keep(self, state: Any, records: Sequence[Record], status: Status | None) -> None:
        """Writes the state of the solve that is running, or of one that has ended, if it is time.

        A disk that refuses is warned of once: the solve goes on.
        """
        due = self._every if status is None else self._every / 10
        if self._refused or records[-1].seconds - self._written < due:
            return
        leaves = enumerate(jax.tree.leaves(state))
        arrays: dict[str, Any] = {f"state{i}": np.asarray(leaf) for i, leaf in leaves}
        half = self._file.with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(half, "wb") as file:
                ended = "" if status is None else status.name
                arrays |= {"records": np.array(records, np.float64), "begins": self._begins}
                np.savez(file, ended=ended, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, self._file)
        except OSError as error:
            self._refused = True
            half.unlink(missing_ok=True)
            warnings.warn(
                f"no checkpoints from here on: {self._folder} cannot be written "
                f"({error.strerror or error})",
                stacklevel=2,
            )
        self._written = records[-1].seconds

    def remove(self) -> None:
        """Removes them all: the fit is done."""
        for file in self._folder.glob(f"{self._name}-*"):
            file.unlink(missing_ok=True)

    @property
    def _file(self) -> Path:
        return self._folder / f"{self._name}-{self._solves:04d}.npz"
