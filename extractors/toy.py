"""Tiny backbones with fixed random weights: no download, no torch, no meaning beyond tests.

They are real extractors in every other respect (deterministic, any input size, a token count), so
whatever is built on extractors can be tried in milliseconds.

    toy:text-D    hashed character n-grams (n = 1..4) -> random projection -> D features
    toy:image-D   three random 3x3 convolutions with ReLU -> pooled and last maps -> D features
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from extractors.names import TOY_DIM, BackboneName
from extractors.raw_text import checked_text

ADAPTER = "toy/1"
_BUCKETS = 4096
_MAX_TOKENS = 128
_SIDE = 16
_CHANNELS = (16, 32, 64)
_SEED = 20_240_401


def load_toy(name: BackboneName) -> ToyText | ToyImage:
    """The toy extractor that a parsed name means."""
    kind, _, dim = name.id.partition("-")
    return ToyText(int(dim)) if kind == "text" else ToyImage(int(dim))


class ToyText:
    """Hashed character n-grams of the first 128 words, counted, damped and projected.

    Args:
        dim: width of the features.

    Example:
        >>> ToyText(8).encode(["a fine film", "a dull film"]).shape
        (2, 8)
    """

    modality: Literal["text"] = "text"
    batch_size = 256
    max_length = _MAX_TOKENS

    def __init__(self, dim: int = TOY_DIM) -> None:
        self.dim = dim
        self.name = f"toy:text-{dim}"

    def fingerprint(self) -> dict[str, Any]:
        return {
            "adapter": ADAPTER,
            "source": "toy",
            "id": f"text-{self.dim}",
            "max_length": _MAX_TOKENS,
            "dtype": "float32",
        }

    def prepare(self, item: Any) -> str:
        return checked_text(item)

    def token_counts(self, prepared: Sequence[str]) -> np.ndarray:
        """(b,) int32: words, which is what this backbone cuts at."""
        return np.array([len(text.split()) for text in prepared], dtype=np.int32)

    def encode(self, prepared: Sequence[str]) -> np.ndarray:
        return np.stack([self._vector(text) for text in prepared])

    def _vector(self, text: str) -> np.ndarray:
        words = " ".join(text.lower().split()[:_MAX_TOKENS])
        padded = f" {words} ".encode()
        grams = (padded[i : i + n] for n in (1, 2, 3, 4) for i in range(len(padded) - n + 1))
        buckets = np.fromiter((zlib.crc32(gram) % _BUCKETS for gram in grams), dtype=np.intp)
        counts = np.bincount(buckets, minlength=_BUCKETS)
        used = np.flatnonzero(counts)
        damped = np.sqrt(counts[used]).astype(np.float32)
        # One row at a time, so that a vector does not depend on its neighbours by even one bit.
        projected = damped @ self._projection[used]
        return projected / np.float32(np.linalg.norm(damped))

    @cached_property
    def _projection(self) -> np.ndarray:
        """(4096, dim) float32, the same on every machine."""
        return _random(_SEED, (_BUCKETS, self.dim))


class ToyImage:
    """Three strided random convolutions on a 16 x 16 thumbnail; means and last maps, projected.

    Args:
        dim: width of the features.

    Example:
        >>> import numpy as np
        >>> toy = ToyImage(8)
        >>> toy.encode([toy.prepare(np.zeros((8, 8), dtype=np.uint8))]).shape
        (1, 8)
    """

    modality: Literal["image"] = "image"
    batch_size = 256
    max_length = None

    def __init__(self, dim: int = TOY_DIM) -> None:
        self.dim = dim
        self.name = f"toy:image-{dim}"

    def fingerprint(self) -> dict[str, Any]:
        return {
            "adapter": ADAPTER,
            "source": "toy",
            "id": f"image-{self.dim}",
            "preprocessing": f"RGB, bilinear {_SIDE}x{_SIDE}, [-1, 1]",
            "dtype": "float32",
        }

    def prepare(self, item: Any) -> np.ndarray:
        """(3, 16, 16) float32 in [-1, 1]."""
        from PIL import Image

        from extractors.raw_image import open_rgb

        small = open_rgb(item).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, dtype=np.float32).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels / np.float32(127.5) - np.float32(1))

    def token_counts(self, prepared: Sequence[np.ndarray]) -> None:
        return None

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([self._vector(pixels) for pixels in prepared])

    def _vector(self, pixels: np.ndarray) -> np.ndarray:
        maps, pooled = pixels, []
        for kernel in self._kernels:
            maps = np.maximum(_convolve(maps, kernel), 0)
            pooled.append(maps.mean((1, 2)))
        return np.concatenate([*pooled, maps.ravel()]) @ self._projection

    @cached_property
    def _kernels(self) -> list[np.ndarray]:
        """Three (out, in * 9 + 1) float32 matrices, He-scaled, the bias in the last column."""
        kernels, width = [], 3
        for out in _CHANNELS:
            scale = np.float32(np.sqrt(2 / (9 * width)))
            kernels.append(_random(_SEED + out, (out, 9 * width + 1)) * scale)
            width = out
        return kernels

    @cached_property
    def _projection(self) -> np.ndarray:
        """(16 + 32 + 64 + 64 * 2 * 2, dim) float32."""
        return _random(_SEED, (sum(_CHANNELS) + _CHANNELS[-1] * 4, self.dim))


def _random(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform weights of unit variance, float32.

    ``RandomState`` and plain uniform numbers, because both are frozen for ever: newer generators
    may change with a version of numpy, and the normal distribution with the machine's logarithm.
    """
    uniform = np.random.RandomState(seed).random_sample(shape)
    return ((2 * uniform - 1) * np.sqrt(3)).astype(np.float32)


def _convolve(maps: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A zero-padded 3 x 3 convolution: (c, h, w) -> (out, h, w), then every second pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(maps, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2)
    )[:, ::2, ::2]
    channels, height, width = windows.shape[:3]
    columns = windows.transpose(0, 3, 4, 1, 2).reshape(channels * 9, height * width)
    flat = kernel[:, :-1] @ columns + kernel[:, -1:]
    return flat.reshape(-1, height, width)
