r"""Features shaped like those of ImageNet: a mixture of classes with a margin and a spectrum.

In coordinates in which the noise is white, class c is a mixture of ``modes`` Gaussians,

.. math:: v = u_{c,j} + \epsilon, \quad u_{c,j} \sim N(0, \tfrac{2 m^2}{d} I), \quad
          \epsilon \sim N(0, I), \qquad x = (1 + 2 m^2 / d)^{-1/2}\, Q \Lambda^{1/2} v,

so that two means are 2 m apart (in the root mean square) and the best rule confuses two modes with
probability Phi(-m): m is the margin. Q is a random rotation and Lambda_k proportional to k^-decay
with sum d: the covariance of x has these eigenvalues whatever the margin is.

Rows are made shard by shard, each from a random stream of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

IMAGENET_ROWS = 1_281_167
SHARD_ROWS = 16_384
# The random streams of one seed.
_MIXTURE, _STREAMS = 0, {"train": 1, "test": 2}


@dataclass(frozen=True)
class ImageNetShaped:
    """What the rows are drawn from.

    Attributes:
        d: features.
        classes: C.
        margin: half the distance of two means, in units of the noise, >= 0.
        decay: exponent of the spectrum, >= 0.
        modes: Gaussians of a class; with more than one, gates have something to do.
        seed: of everything.

    Example:
        >>> X, y = ImageNetShaped(d=6, classes=3).rows("train", 0, 10)
        >>> X.shape, X.dtype.name, np.bincount(y).tolist()
        ((10, 6), 'float32', [4, 3, 3])
    """

    d: int = 384
    classes: int = 1000
    margin: float = 4.0
    decay: float = 1.0
    modes: int = 2
    seed: int = 0

    @property
    def spectrum(self) -> np.ndarray:
        """Eigenvalues (d,) of the covariance, falling, with sum d."""
        falling = np.arange(1, self.d + 1, dtype=np.float64) ** -self.decay
        return falling * (self.d / falling.sum())

    @cached_property
    def _mixture(self) -> tuple[np.ndarray, np.ndarray]:
        """Means (C, modes, d) in white coordinates, and the map (d, d) of rows to features."""
        rng = np.random.default_rng((self.seed, _MIXTURE))
        variance = 2 * self.margin**2 / self.d
        shape = self.classes, self.modes, self.d
        means = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(variance))
        Q, _ = np.linalg.qr(rng.standard_normal((self.d, self.d)))
        root = np.sqrt(self.spectrum / (1 + variance))[:, None] * Q.T
        return means, root.astype(np.float32)

    def rows(self, split: str, shard: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, d) float32 and labels (n,) of a shard; all classes as often as another."""
        means, root = self._mixture
        rng = np.random.default_rng((self.seed, _STREAMS[split], shard))
        y = rng.permutation(np.arange(n) % self.classes)
        v = rng.standard_normal((n, self.d), np.float32)
        v += means[y, rng.integers(self.modes, size=n)]
        return v @ root, y

    def shards(self, split: str, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """n rows, some thousands at a time."""
        for start in range(0, n, SHARD_ROWS):
            yield self.rows(split, start // SHARD_ROWS, min(SHARD_ROWS, n - start))

    def write(self, path: Path, n: int, dtype: str = "float16") -> tuple[np.memmap, np.ndarray]:
        """Writes n training rows to ``path`` (.npy) and their labels beside it; both reopened.

        The names are those that ``convex-heads`` reads as data. Memory: that of one shard.
        """
        file = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (n, self.d))
        labels, start = np.empty(n, np.int64), 0
        for X, y in self.shards("train", n):
            file[start : start + len(X)] = X
            labels[start : start + len(X)] = y
            start += len(X)
        file.flush()
        np.save(path.with_name(path.stem + ".labels.npy"), labels)
        mapped = np.load(path, mmap_mode="r")
        assert isinstance(mapped, np.memmap)
        return mapped, labels
