"""Single requests in, batches to the backbone: a queue with a limit, and a thread that empties it.

While a batch is computed the next one gathers, so batches are as large as the load makes them and a
lone request waits for nobody. A full queue refuses at once, which is what keeps latency finite.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class QueueFull(Exception):
    """There is no room for the request now."""


class Closed(Exception):
    """No new requests are taken: the process is ending."""


@dataclass
class _Request(Generic[Item, Answer]):
    items: Sequence[Item]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Answer]]


class Batcher(Generic[Item, Answer]):
    """Answers requests of some items each, many requests at a time.

    Args:
        answer: n items -> n answers; runs in a thread of its own, one batch at a time. What it
            raises for a batch of several requests is found out by asking for each alone, so that
            one bad request harms no other.
        most_batch: items in a batch, unless one request alone has more.
        most_queue: items that may wait.
        first: called once in that thread before any batch; what it raises is raised here. A thread
            that computes with torch should also load what it computes with: with a second thread's
            OpenMP team beside its own, libgomp no longer lets workers wait awake, and a pass over
            one text takes half as long again.
        on_batch: called with the number of items and the seconds of every batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Item]], Sequence[Answer]],
        *,
        most_batch: int,
        most_queue: int,
        first: Callable[[], object] | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._answer = answer
        self._most_batch, self._most_queue = most_batch, most_queue
        self._on_batch = on_batch
        self._queue: deque[_Request[Item, Answer]] = deque()
        self._waiting = 0
        self._changed = threading.Condition()
        self._closed = False
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._work, args=(first, ready), name="batches", daemon=True
        )
        self._thread.start()
        ready.result()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return self._waiting

    async def submit(self, items: Sequence[Item]) -> list[Answer]:
        """The answers to some items.

        Raises:
            QueueFull: too many are waiting.
            Closed: after `close`.
        """
        loop = asyncio.get_running_loop()
        request: _Request[Item, Answer] = _Request(items, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise Closed
            if self._waiting + len(items) > self._most_queue:
                raise QueueFull
            self._queue.append(request)
            self._waiting += len(items)
            self._changed.notify()
        return await request.future

    def close(self) -> None:
        """Takes no more, and returns when all that was taken is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self, first: Callable[[], object] | None, ready: Future[None]) -> None:
        try:
            if first is not None:
                first()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        while batch := self._take():
            self._serve(batch)

    def _take(self) -> list[_Request[Item, Answer]]:
        """The next batch; empty when there will be none any more."""
        with self._changed:
            batch: list[_Request[Item, Answer]] = []
            size = 0
            while not batch:
                while not self._queue:
                    if self._closed:
                        return []
                    self._changed.wait()
                while self._queue:
                    first = self._queue[0]
                    if batch and size + len(first.items) > self._most_batch:
                        break
                    self._queue.popleft()
                    self._waiting -= len(first.items)
                    if not first.future.cancelled():  # whoever asked may have gone
                        batch.append(first)
                        size += len(first.items)
            return batch

    def _serve(self, batch: list[_Request[Item, Answer]]) -> None:
        items = [item for request in batch for item in request.items]
        began = time.perf_counter()
        found: list[Answer] = []
        failure = None
        try:
            found = list(self._answer(items))
        except Exception as error:
            if len(batch) > 1:
                for request in batch:
                    self._serve([request])
                return
            failure = error
        if self._on_batch is not None:  # before its answers: who has one finds it counted
            self._on_batch(len(items), time.perf_counter() - began)
        for request in batch:
            mine, found = found[: len(request.items)], found[len(request.items) :]
            _finish(request, failure or mine)


def _finish(request: _Request[Item, Answer], outcome: list[Answer] | Exception) -> None:
    def settle() -> None:
        if request.future.done():
            return
        if isinstance(outcome, Exception):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome)

    try:
        request.loop.call_soon_threadsafe(settle)
    except RuntimeError:  # its loop has ended: nobody waits any more
        return
