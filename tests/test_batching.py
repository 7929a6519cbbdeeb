"""The queue of the server: batches, limits, failures."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tasks.serving.batching import Batcher, Closed, QueueFull


def test_the_thread_that_answers_is_the_one_that_loads_and_says_what_failed():
    threads: list[str] = []

    def note(*_):
        threads.append(threading.current_thread().name)
        return ["A"]

    batcher = Batcher(note, most_batch=4, most_queue=6, first=note)
    assert threads == ["batches"]
    assert asyncio.run(batcher.submit(["a"])) == ["A"]
    assert threads == ["batches", "batches"]
    batcher.close()
    with pytest.raises(ZeroDivisionError):
        Batcher(note, most_batch=4, most_queue=6, first=lambda: 1 / 0)


def test_a_failing_request_harms_no_other_and_limits_hold():
    release = threading.Event()
    sizes: list[int] = []

    def answer(items):
        sizes.append(len(items))
        release.wait(10)
        if "bad" in items:
            raise ValueError("bad")
        return [item.upper() for item in items]

    async def run() -> None:
        batcher = Batcher(answer, most_batch=4, most_queue=6)
        first = asyncio.create_task(batcher.submit(["a"]))
        while not sizes:
            await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(batcher.submit([x])) for x in ("b", "bad", "c", "d", "e")]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 5
        with pytest.raises(QueueFull):
            await batcher.submit(["f", "g"])
        waiting[3].cancel()
        await asyncio.sleep(0)
        release.set()
        assert await first == ["A"]
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [found[i] for i in (0, 2, 4)] == [["B"], ["C"], ["E"]]
        assert isinstance(found[1], ValueError)
        assert isinstance(found[3], asyncio.CancelledError)
        assert sizes[:2] == [1, 4]
        batcher.close()
        with pytest.raises(Closed):
            await batcher.submit(["h"])

    asyncio.run(run())


def test_who_has_an_answer_finds_it_counted():
    counted: list[int] = []

    def count(items, seconds):
        time.sleep(0.05)
        counted.append(items)

    batcher = Batcher(list, most_batch=4, most_queue=6, on_batch=count)
    assert asyncio.run(batcher.submit(["a", "b"])) == ["a", "b"]
    assert counted == [2]
    batcher.close()


def test_a_good_request_does_not_wait_for_those_that_fail_beside_it():
    begun, first = threading.Event(), threading.Event()
    held = threading.Event()

    def answer(items):
        if items == ["hold"]:
            begun.set()
            held.wait(10)
        if "bad" in items:
            raise ValueError("bad")
        if items == ["slow"]:
            assert first.wait(10)
        return items

    async def run() -> None:
        batcher = Batcher(answer, most_batch=4, most_queue=6)
        hold = asyncio.create_task(batcher.submit(["hold"]))
        await asyncio.to_thread(begun.wait, 10)
        tasks = [asyncio.create_task(batcher.submit([x])) for x in ("good", "bad", "slow")]
        await asyncio.sleep(0.01)
        held.set()
        assert await hold == ["hold"]
        assert await asyncio.wait_for(tasks[0], 5) == ["good"]  # while the slow one waits
        first.set()
        found = await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert isinstance(found[0], ValueError) and found[1] == ["slow"]
        batcher.close()

    asyncio.run(run())
