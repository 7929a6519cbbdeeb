"""`convex-heads serve` on loopback: latency at half load, and what becomes of requests at overload.

The head has random weights and MiniLM before it (or any --artefact); every request is a text of
its own whose answer is known, so that a lost or a mixed-up answer is seen. Measured in one run:

    bare         median seconds of the pipeline for one text, before and after the load `half`
    sustainable  answers a second of --clients connections that each wait for their answer
    half         requests come at half that rate, one text each: latency / bare
    overload     requests come at 4 times that rate: answered rightly, refused with 503, lost, mixed

    python tests/benchmarks/serve_load.py [--artefact DIR] [--seconds 10]
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from shared import Row, parser, show

from convex_heads.decode import Network
from convex_heads.scaling import Scaling
from tasks.artefact import Head, write_artefact
from tasks.pipeline import ConvexHeadPipeline

WORDS = (
    *("a", "fine", "dull", "long", "short", "quiet", "film", "story", "day", "bird", "house"),
    *("river", "night", "of", "the", "and", "with"),
)


def main() -> None:
    """Runs and prints the table."""
    made = parser(__doc__)
    made.add_argument("--artefact", type=Path)
    made.add_argument("--seconds", type=float, default=10.0)
    made.add_argument("--clients", type=int, default=16)
    made.add_argument("--texts", type=int, default=2000)
    options = made.parse_args()
    rng = np.random.default_rng(0)
    texts = [f"{' '.join(rng.choice(WORDS, 12))} {i}" for i in range(options.texts)]
    with tempfile.TemporaryDirectory() as folder:
        artefact = options.artefact or random_head(Path(folder) / "head")
        clf = ConvexHeadPipeline.from_pretrained(artefact)
        known = dict(zip(texts, clf.predict_proba(texts).max(axis=1).tolist(), strict=True))
        server = start(artefact)
        try:
            rows, bare = asyncio.run(load(server[1], known, clf, options))
        finally:
            server[0].send_signal(signal.SIGTERM)
            code = server[0].wait(60)
    said = " and ".join(f"{1000 * np.median(part):.1f}" for part in bare)
    title = f"Latency of the pipeline for one text: {said} ms; server ended with {code}"
    show(title, rows, options)


def random_head(folder: Path) -> Path:
    """An artefact with random weights on MiniLM."""
    from extractors import load_extractor

    extractor = load_extractor("minilm", device="cpu")
    rng, d = np.random.default_rng(0), extractor.dim
    scaling = Scaling(np.zeros(d, "f"), np.full(d, 0.05, "f"), np.ones(d, bool))
    gates = rng.normal(size=(64, d + 1)).astype("f")
    weights = 0.01 * rng.normal(size=(64, d + 1, 6)).astype("f")
    network = Network(scaling, gates, weights, np.zeros(6, "f"), "softmax")
    write_artefact(
        folder,
        Head(network, tuple("abcdef")),
        modality="text",
        backbone="minilm",
        backbone_fingerprint=extractor.fingerprint(),
        facts={},
    )
    return folder


def start(artefact: Path) -> tuple[subprocess.Popen[str], int]:
    """The server's process and port."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.cli", "serve", str(artefact), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "http://" in line:
            return process, int(line.rpartition(":")[2])
    raise SystemExit("the server did not start")


async def ask(port: int, text: str) -> tuple[int, float, float]:
    """Status, score and seconds of one request on a connection of its own; status 0 if lost."""
    body = json.dumps({"inputs": [text]}).encode()
    began = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        answer = await reader.read()
        writer.close()
        status = int(answer.split(b" ", 2)[1])
        found = json.loads(answer.partition(b"\r\n\r\n")[2])
        score = found["predictions"][0]["score"] if status == 200 else float("nan")
    except (OSError, ValueError, IndexError):
        return 0, float("nan"), time.perf_counter() - began
    return status, score, time.perf_counter() - began


class Tally:
    """What became of requests."""

    def __init__(self, known: dict[str, float]) -> None:
        self.known, self.seconds = known, []
        self.right = self.mixed = self.refused = self.lost = 0

    async def one(self, port: int, text: str) -> None:
        """Asks and judges."""
        status, score, seconds = await ask(port, text)
        if status == 200 and abs(score - self.known[text]) < 1e-4:
            self.right += 1
            self.seconds.append(seconds)
        elif status == 200:
            self.mixed += 1
        elif status == 503:
            self.refused += 1
        else:
            self.lost += 1

    def row(self, name: str, rate: float, bare: float) -> Row:
        """A line of the table."""
        seconds = np.array(self.seconds or [np.nan])
        return {
            "load": name,
            "requests/s": rate,
            "right": self.right,
            "refused (503)": self.refused,
            "lost": self.lost,
            "mixed up": self.mixed,
            "median ms": 1000 * float(np.median(seconds)),
            "p95 ms": 1000 * float(np.percentile(seconds, 95)),
            "median / bare": float(np.median(seconds)) / bare,
        }


def alone(clf: ConvexHeadPipeline, texts: list[str]) -> list[float]:
    """Seconds of the pipeline for each text by itself, without a server."""
    times = []
    for text in texts:
        began = time.perf_counter()
        clf(text)
        times.append(time.perf_counter() - began)
    return times[20:]


async def load(
    port: int, known: dict[str, float], clf: ConvexHeadPipeline, options
) -> tuple[list[Row], list[list[float]]]:
    """The three loads, one after the other, and the seconds of single texts around the second."""
    texts = list(known)

    async def waiting_clients(seconds: float) -> tuple[Tally, float]:
        tally, began = Tally(known), time.perf_counter()

        async def client(k: int) -> None:
            i = k
            while time.perf_counter() - began < seconds:
                await tally.one(port, texts[i % len(texts)])
                i += options.clients

        await asyncio.gather(*(client(k) for k in range(options.clients)))
        return tally, tally.right / (time.perf_counter() - began)

    async def at_rate(rate: float) -> Tally:
        tally, jobs = Tally(known), []
        gaps = np.random.default_rng(1).exponential(1 / rate, int(rate * options.seconds))
        due = time.perf_counter()
        for i, gap in enumerate(gaps):
            due += gap
            await asyncio.sleep(max(0, due - time.perf_counter()))
            jobs.append(asyncio.create_task(tally.one(port, texts[i % len(texts)])))
        await asyncio.gather(*jobs)
        return tally

    await waiting_clients(1)
    full, rate = await waiting_clients(options.seconds)
    times = [alone(clf, texts[:150])]
    half = await at_rate(rate / 2)
    times.append(alone(clf, texts[:150]))
    bare = float(np.median(np.concatenate(times)))
    more = await at_rate(4 * rate)
    rows = [
        full.row("sustainable", rate, bare),
        half.row("half", rate / 2, bare),
        more.row("4 times", 4 * rate, bare),
    ]
    return rows, times


if __name__ == "__main__":
    main()
