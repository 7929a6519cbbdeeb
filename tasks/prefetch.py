"""Batches of a feature store on a JAX device, read and sent while the batch before is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from extractors.errors import InputError
from extractors.store import Batch

if TYPE_CHECKING:
    import jax


class DeviceBatch(NamedTuple):
    """Rows on a device."""

    rows: np.ndarray  # (b,) positions in the split, on the host
    features: jax.Array  # (b, dim) float32
    labels: jax.Array  # (b,) int32


def prefetch(
    batches: Iterable[Batch], *, device: Any = None, ahead: int = 2
) -> Iterator[DeviceBatch]:
    """Send batches to a device, `ahead` of them before they are asked for.

    Narrow features (``FeatureStore.batches(..., decode=False)``) travel as they are stored and
    become float32 on the device. The batches come in their order; an error of reading is raised
    where its batch would have come. Leaving the loop early ends the reading.

    Args:
        batches: for example of ``FeatureStore.batches``.
        device: a `jax.Device`; None is the default one.
        ahead: batches on the device besides the one in use, at least 1.

    Raises:
        InputError: ahead below 1.

    Example:
        >>> batch = Batch(np.arange(2), np.array([[2], [4]], np.int8), np.array([0, 1]),
        ...               np.array([0.5, 0.25], np.float32))
        >>> [sent.features.tolist() for sent in prefetch([batch])]
        [[[1.0], [1.0]]]
    """
    if ahead < 1:
        raise InputError(f"prefetch reads at least 1 batch ahead, got {ahead}")
    return _prefetch(batches, device, ahead)


def _prefetch(batches: Iterable[Batch], device: Any, ahead: int) -> Iterator[DeviceBatch]:
    ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for batch in batches:
                if not put(_send(batch, device)):
                    return
            put(None)
        except BaseException as error:  # raised again where the batch is waited for
            put(error)

    reader = threading.Thread(target=read, name="prefetch", daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        reader.join()


def _send(batch: Batch, device: Any) -> DeviceBatch:
    import jax

    labels = batch.labels.astype(np.int32)
    features, scale, labels = jax.device_put((batch.features, batch.scale, labels), device)
    if features.dtype != np.float32:
        features = _decoder()(features, scale)
    return DeviceBatch(batch.rows, features, labels)


@cache
def _decoder() -> Any:
    import jax

    def decode(features: jax.Array, scale: jax.Array | None) -> jax.Array:
        wide = features.astype(np.float32)
        return wide if scale is None else wide * scale[:, None]

    return jax.jit(decode)
