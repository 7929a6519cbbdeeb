"""The server as a client meets it: answers, refusals, limits, metrics, batches, a graceful end."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extractors.toy import ToyText
from tasks.pipeline import ConvexHeadPipeline

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

TESTS = Path(__file__).parent
HEAD = TESTS / "artefacts" / "schema-1-first"

# Answers wait while the file HELD is there, and say in HELD.met that they do.
_HELD = """
import os, pathlib, sys, time
from extractors.toy import ToyText
held = pathlib.Path(os.environ["HELD"])
encode = ToyText.encode
def wait_and_encode(self, rows):
    while held.exists():
        held.with_suffix(".met").touch()
        time.sleep(0.01)
    return encode(self, rows)
ToyText.encode = wait_and_encode
from tasks.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Server:
    """`convex-heads serve` in a process of its own."""

    def __init__(self, *options: str, held: Path | None = None) -> None:
        how = ["-c", _HELD] if held else ["-m", "tasks.cli"]
        self.process = subprocess.Popen(
            [sys.executable, *how, "serve", str(HEAD), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS.parent), "HELD": str(held)},
        )
        assert self.process.stderr is not None
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if "http://127.0.0.1:" in line:
                self.port = int(line.rpartition(":")[2])
                break
        else:
            raise AssertionError("".join(self.said))
        deadline = time.monotonic() + 30
        while True:
            try:
                assert self.ask("GET", "/health")[0] == 200
                return
            except ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, content if body is not None else None)
        answer = connection.getresponse()
        found = answer.status, answer.read().decode()
        connection.close()
        return found

    def predict(self, **asked: object) -> tuple[int, dict]:
        status, text = self.ask("POST", "/predict", asked)
        return status, json.loads(text)

    def end(self) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out + err


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server("--max-rows", "20", "--max-body-mb", "0.01")
    yield made
    code, said = made.end()
    assert code == 0, said
    assert "Traceback" not in said


def test_answers_are_those_of_the_pipeline(server):
    clf = ConvexHeadPipeline.from_pretrained(HEAD)
    texts = ["a fine film", "ants and bees", ""]
    status, found = server.predict(inputs=texts, top_k=2, certificate=True)
    assert status == 200
    expected = clf(texts, top_k=2, return_certificate=True)
    for row, wanted in zip(found["predictions"], expected, strict=True):
        assert row["label"] == wanted["label"]
        assert row["score"] == pytest.approx(wanted["score"], abs=1e-6)
        assert [each["label"] for each in row["top_k"]] == [e["label"] for e in wanted["top_k"]]
        assert row["robustness_radius"] == pytest.approx(wanted["robustness_radius"], rel=1e-4)
    assert server.predict(inputs=texts[:1])[1]["predictions"][0].keys() == {"label", "score"}
    assert server.predict(inputs=[]) == (200, {"predictions": []})


REFUSED = {
    "no JSON": (b"{", 400, "not JSON"),
    "a list": ([1], 400, 'list "inputs"'),
    "no list": ({"inputs": "a"}, 400, 'list "inputs"'),
    "an unknown field": ({"inputs": ["a"], "k": 3}, 400, "unknown field 'k'"),
    "top_k zero": ({"inputs": ["a"], "top_k": 0}, 400, "top_k"),
    "a number": ({"inputs": ["a", 7]}, 422, "input 1 must be a string"),
    "half a character": (b'{"inputs": ["a", "\\ud800"]}', 422, "input 1: text is not valid"),
    "too many rows": ({"inputs": ["a"] * 21}, 413, "at most 20"),
    "too long": ({"inputs": ["a" * 20_000]}, 413, "longer than 0.01 MB"),
    "deep": (b'{"inputs":' + b"[" * 5000, 400, "not JSON"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
def test_what_cannot_be_answered_is_refused_in_one_sentence(server, case):
    body, status, said = REFUSED[case]
    found, text = server.ask("POST", "/predict", body)
    assert found == status
    assert said in json.loads(text)["error"]


def test_a_body_without_a_length_is_measured_as_it_comes(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/predict", iter([b" " * 4096] * 8), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_other_places_methods_and_the_page(server):
    for place, expected in (("/nothing", 404), ("/predict", 405)):
        status, text = server.ask("GET", place)
        assert status == expected
        assert "POST /predict" in json.loads(text)["error"]
    status, page = server.ask("GET", "/")
    assert status == 200
    assert "<textarea" in page and "toy:text-8" in page
    # An image that nobody has chosen yet is not there, whatever a rule for images says.
    assert "[hidden] { display: none !important; }" in page
    assert "http://" not in page and "https://" not in page  # nothing comes from elsewhere
    assert json.loads(server.ask("GET", "/health")[1])["status"] == "ok"


def test_slow_and_vanished_clients_and_requests_no_queue_could_hold(tmp_path):
    server = Server("--timeout-seconds", "0.5", "--max-queue", "5")
    status, found = server.predict(inputs=["a"] * 6)
    assert status == 413 and "at most 5 in one request" in found["error"]
    sent = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        slow.sendall(sent)
        answer = slow.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408 ")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as vanishing:
        vanishing.sendall(sent)
    _until(lambda: 'requests_total{status="499"} 1' in server.ask("GET", "/metrics")[1])
    assert "500" not in server.ask("GET", "/metrics")[1]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("HEAD", "/health")  # as load balancers ask
    assert connection.getresponse().status == 200
    connection.close()
    assert server.end() == (0, "")


def test_bodies_that_are_held_together_have_a_limit():
    from fastapi import Request

    from tasks.serving.requests import Bodies, Refused

    async def body(size: int) -> Request:
        async def receive() -> dict:
            return {"type": "http.request", "body": b"x" * size, "more_body": False}

        return Request({"type": "http", "headers": []}, receive)

    async def run() -> None:
        bodies = Bodies(100 / 2**20, together=2, seconds=5)
        async with bodies.of(await body(100)) as first, bodies.of(await body(90)):
            assert first == b"x" * 100
            with pytest.raises(Refused) as caught:
                async with bodies.of(await body(11)):
                    pass
            assert caught.value.status == 503
            async with bodies.of(await body(10)):
                pass
        with pytest.raises(Refused) as caught:
            async with bodies.of(await body(101)):
                pass
        assert caught.value.status == 413
        async with bodies.of(await body(100)), bodies.of(await body(100)):
            pass  # whatever was refused or answered has given its room back

    asyncio.run(run())


def test_a_failure_of_the_head_is_told_without_the_request(caplog):
    from fastapi.testclient import TestClient

    from tasks.config_saved import ServeConfig
    from tasks.serving.server import make_app

    class Failing(ToyText):
        def encode(self, prepared):
            raise RuntimeError(f"could not encode {prepared}")

    clf = ConvexHeadPipeline.from_pretrained(HEAD, extractor=Failing(8))
    with TestClient(make_app(clf, ServeConfig(artefact=str(HEAD)))) as client:
        answer = client.post("/predict", json={"inputs": ["a secret"]})
        assert answer.status_code == 500
        assert answer.json() == {"error": "the head failed (RuntimeError)"}
        assert "RuntimeError" in caplog.text and "test_serve.py line" in caplog.text
        assert "secret" not in caplog.text


def test_metrics_count_what_happened(server):
    def counted() -> dict[str, float]:
        lines = server.ask("GET", "/metrics")[1].splitlines()
        pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}

    before = counted()
    server.predict(inputs=["a", "b"])
    server.predict(inputs=[1])
    after = counted()

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grown('convex_heads_requests_total{status="200"}') == 1
    assert grown('convex_heads_requests_total{status="422"}') == 1
    assert grown("convex_heads_items_total") == 2
    assert grown('convex_heads_request_seconds_bucket{le="+Inf"}') == 2
    assert after["convex_heads_queue_items"] == 0


def test_it_listens_on_loopback_alone(server):
    listening = [
        line.split()[1]
        for name in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(name).exists()
        for line in Path(name).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{server.port:04X}")
    ]
    assert listening in ([], [f"0100007F:{server.port:04X}"])


def _until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_requests_share_batches_none_is_mixed_up_and_the_end_waits_for_all(tmp_path):
    held, met = tmp_path / "held", tmp_path / "held.met"
    server = Server("--max-queue", "40", "--max-batch", "30", held=held)
    texts = [f"{'a fine film' if i % 2 else 'ants'} {i}" for i in range(120)]
    expected = ConvexHeadPipeline.from_pretrained(HEAD)(texts)
    found: dict[int, tuple[int, dict]] = {}

    def ask(i: int) -> None:
        found[i] = server.predict(inputs=[texts[i]])

    def start(rows: range) -> list[threading.Thread]:
        threads = [threading.Thread(target=ask, args=(i,)) for i in rows]
        for thread in threads:
            thread.start()
        return threads

    def waiting() -> int:
        return json.loads(server.ask("GET", "/health")[1])["waiting"]

    # One batch is being computed, 40 requests wait, and all others are refused at once.
    held.touch()
    first = start(range(1))
    _until(met.exists)
    rest = start(range(1, len(texts)))
    _until(lambda: waiting() == 40 and len(found) == len(texts) - 41)
    held.unlink()
    for thread in first + rest:
        thread.join()
    statuses = [status for status, _ in found.values()]
    assert (statuses.count(200), statuses.count(503)) == (41, len(texts) - 41)
    for i, (status, answer) in found.items():
        if status == 200:
            assert answer["predictions"][0]["score"] == pytest.approx(expected[i]["score"])
        else:
            assert "too many requests are waiting" in answer["error"]
    lines = dict(
        line.rsplit(" ", 1)
        for line in server.ask("GET", "/metrics")[1].splitlines()
        if not line.startswith("#")
    )
    assert float(lines["convex_heads_batches_total"]) == 3  # of 1, 30 and 10 requests
    # Requests that are on the way when it is told to end are answered.
    found.clear()
    met.unlink()
    held.touch()
    first = start(range(1))
    _until(met.exists)
    rest = start(range(1, 21))
    _until(lambda: waiting() == 20)
    threading.Timer(0.5, held.unlink).start()
    code, said = server.end()
    for thread in first + rest:
        thread.join()
    assert code == 0, said
    assert [status for status, _ in found.values()] == [200] * 21


def test_options_and_an_address_in_use_are_refused(server, capsys):
    from tasks.cli import main

    assert main(["serve", str(HEAD), "--port", str(server.port)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: cannot listen on 127.0.0.1")  # before anything is loaded
    assert main(["serve", str(HEAD), "--port", "99999"]) == 2
    assert main(["serve", str(HEAD), "--max-batch", "0"]) == 2
    assert main(["serve", str(HEAD), "--max-megapixels", "0"]) == 2
