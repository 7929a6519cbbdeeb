"""A saved head behind HTTP: JSON in, labels out, in batches; health, metrics and a page to try it.

    POST /predict   {"inputs": [...], "top_k": 1, "certificate": false} -> {"predictions": [...]}
    GET  /health    whether requests are taken
    GET  /metrics   counters and latencies as Prometheus reads them
    GET  /          a page to try it by hand

Texts are strings, images base64 of an encoded file, features lists of numbers. No path and no
address in a request is ever opened, nothing of a request is logged or kept.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import signal
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors.encode import encode_rows
from extractors.errors import InputError, MachineError
from tasks.batching import Batcher, Closed, QueueFull
from tasks.card import shown_backbone
from tasks.config_saved import ServeConfig
from tasks.console import Reporter

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from tasks.pipeline import ConvexHeadPipeline

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RETRY_SECONDS = 1
_BACKLOG = 2048


class Refused(Exception):
    """A request that cannot be answered: an HTTP status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Metrics:
    """Counters of the process, and their text for Prometheus."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._answers: dict[int, int] = {}
        self._seconds = [0] * (len(_BUCKETS) + 1)
        self._seconds_sum = 0.0
        self._items = self._batches = 0
        self._batch_seconds = 0.0

    def answered(self, status: int, seconds: float) -> None:
        """Counts one answer to /predict."""
        with self._lock:
            self._answers[status] = self._answers.get(status, 0) + 1
            self._seconds[bisect_left(_BUCKETS, seconds)] += 1
            self._seconds_sum += seconds

    def batch(self, items: int, seconds: float) -> None:
        """Counts one batch."""
        with self._lock:
            self._items += items
            self._batches += 1
            self._batch_seconds += seconds

    def text(self, waiting: int) -> str:
        """In the Prometheus text format, version 0.0.4."""
        with self._lock:
            lines = ["# TYPE convex_heads_requests_total counter"]
            for status, n in sorted(self._answers.items()):
                lines.append(f'convex_heads_requests_total{{status="{status}"}} {n}')
            lines.append("# TYPE convex_heads_request_seconds histogram")
            total = 0
            for edge, n in zip((*_BUCKETS, "+Inf"), self._seconds, strict=True):
                total += n
                lines.append(f'convex_heads_request_seconds_bucket{{le="{edge}"}} {total}')
            lines.append(f"convex_heads_request_seconds_sum {self._seconds_sum:.6f}")
            lines.append(f"convex_heads_request_seconds_count {total}")
            for name, value in (
                ("items_total", self._items),
                ("batches_total", self._batches),
                ("batch_seconds_total", round(self._batch_seconds, 6)),
            ):
                lines += [f"# TYPE convex_heads_{name} counter", f"convex_heads_{name} {value}"]
            lines += [
                "# TYPE convex_heads_queue_items gauge",
                f"convex_heads_queue_items {waiting}",
            ]
        return "\n".join(lines) + "\n"


def run_serve(config: ServeConfig, *, reporter: Reporter) -> None:
    """Serves until it is told to end (Ctrl-C, SIGTERM), then answers what it has taken.

    Raises:
        InputError: no artefact, or the package's extra `serve` is missing.
        MachineError: the address cannot be listened on.
    """
    _need_packages()
    import socket

    import uvicorn

    from tasks.pipeline import ConvexHeadPipeline

    pipeline = ConvexHeadPipeline.from_pretrained(
        config.artefact, device=config.device, trust_remote_code=config.trust_remote_code
    )
    with reporter.stage("load", total=None):
        assert pipeline.extractor.dim  # loaded before the first request comes
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
        listening.listen(_BACKLOG)  # whoever comes before the loop runs waits, and is not refused
    except OSError as error:
        listening.close()
        raise MachineError(
            f"cannot listen on {config.host}, port {config.port}: {error.strerror}; choose "
            "another --port or --host"
        ) from error
    port = listening.getsockname()[1]
    shown = f"[{config.host}]" if ":" in config.host else config.host
    reporter.note(f"serving {config.artefact} on http://{shown}:{port}")
    server = _ending_quietly(uvicorn.Server)(
        uvicorn.Config(
            make_app(pipeline, config),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=config.shutdown_seconds,
        )
    )
    try:
        asyncio.run(server.serve(sockets=[listening]))
    finally:
        listening.close()


def _ending_quietly(kind: type[uvicorn.Server]) -> type[uvicorn.Server]:
    """A server that ends at SIGINT and SIGTERM, and does not raise them again when it has ended."""

    class Server(kind):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            told = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in told}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Server


def make_app(pipeline: ConvexHeadPipeline, config: ServeConfig) -> FastAPI:
    """The application, for any ASGI server.

    Args:
        pipeline: answers.
        config: limits.
    """
    _need_packages()
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

    metrics = Metrics()
    batcher: Batcher[Any, _Found] = Batcher(
        lambda items: _answers(pipeline, items),
        most_batch=config.max_batch,
        most_queue=config.max_queue,
        on_batch=metrics.batch,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, batcher.close)

    app = FastAPI(
        title="convex-heads", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )

    async def predict(request: Request) -> JSONResponse:
        began = time.perf_counter()
        headers: dict[str, str] = {}
        try:
            status, content = 200, await _predict(request)
        except Refused as refused:
            status, content = refused.status, {"error": str(refused)}
            if status == 503:
                headers["Retry-After"] = str(_RETRY_SECONDS)
        except Exception as error:
            # Its class is enough for whoever asks; the message might name files of this machine.
            status, content = 500, {"error": f"the head failed ({type(error).__name__})"}
        metrics.answered(status, time.perf_counter() - began)
        return JSONResponse(content, status, headers)

    async def _predict(request: Request) -> dict[str, Any]:
        asked = parse_request(await _body(request, config.max_body_mb), pipeline, config)
        try:
            waiting = batcher.submit(asked.items)
            found = await asyncio.wait_for(waiting, config.timeout_seconds)
        except QueueFull:
            raise Refused(503, "too many requests are waiting: try again later") from None
        except Closed:
            raise Refused(503, "the server is ending") from None
        except TimeoutError:
            raise Refused(504, f"no answer within {config.timeout_seconds:g} s") from None
        for i, each in enumerate(found):
            if isinstance(each, str):
                raise Refused(422, f"input {i}: {each}")
        return {"predictions": _shown(found, pipeline, asked)}

    async def health() -> JSONResponse:
        return JSONResponse(
            {
                "status": "ok",
                "modality": pipeline.modality,
                "classes": list(pipeline.classes),
                "backbone": shown_backbone(pipeline.backbone),
                "waiting": batcher.waiting,
            }
        )

    async def show_metrics() -> PlainTextResponse:
        return PlainTextResponse(
            metrics.text(batcher.waiting), media_type="text/plain; version=0.0.4"
        )

    async def no_such_place(_: Request, error: Any) -> JSONResponse:
        said = f"{error.detail}; there are POST /predict, GET /health, GET /metrics and GET /"
        return JSONResponse({"error": said}, error.status_code, error.headers)

    for status in (404, 405):
        app.add_exception_handler(status, no_such_place)
    page = _page(pipeline)

    async def show_page() -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        policy += "connect-src 'self'; img-src blob:; base-uri 'none'; form-action 'none'"
        return HTMLResponse(
            page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        )

    for path, call, method in (
        ("/predict", predict, "POST"),
        ("/health", health, "GET"),
        ("/metrics", show_metrics, "GET"),
        ("/", show_page, "GET"),
    ):
        # Annotations are strings here, and Request is known in this function alone.
        call.__annotations__ = {"request": Request} if call is predict else {}
        app.add_api_route(path, call, methods=[method], response_model=None)
    return app


class Asked:
    """A checked request: raw rows, and what to say of each."""

    def __init__(self, items: Sequence[Any], top_k: int, certificate: bool) -> None:
        self.items, self.top_k, self.certificate = items, top_k, certificate


def parse_request(body: bytes, pipeline: ConvexHeadPipeline, config: ServeConfig) -> Asked:
    """A request's body as rows.

    Raises:
        Refused: 400 for what is no such JSON, 413 for too many rows, 422 for rows of another kind.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, 'the body is not JSON such as {"inputs": ["a text"]}') from None
    if not isinstance(asked, dict) or not isinstance(asked.get("inputs"), list):
        raise Refused(400, 'the body must be an object with a list "inputs"')
    if unknown := asked.keys() - {"inputs", "top_k", "certificate"}:
        raise Refused(
            400, f"unknown field '{min(unknown)[:40]}'; known: inputs, top_k, certificate"
        )
    top_k, certificate = asked.get("top_k", 1), asked.get("certificate", False)
    if type(top_k) is not int or top_k < 1 or not isinstance(certificate, bool):
        raise Refused(400, "top_k must be a number from 1 on, certificate true or false")
    inputs = asked["inputs"]
    if len(inputs) > config.max_rows:
        raise Refused(413, f"{len(inputs)} inputs: at most {config.max_rows} in one request")
    items = [_item(i, value, pipeline) for i, value in enumerate(inputs)]
    return Asked(items, top_k, certificate)


def _item(i: int, value: Any, pipeline: ConvexHeadPipeline) -> Any:
    if pipeline.modality == "features":
        d = pipeline.head.network.dim
        good = isinstance(value, list) and len(value) == d
        good = good and all(type(x) in (int, float) and abs(x) < 1e30 for x in value)
        if not good:
            raise Refused(422, f"input {i} must be a list of {d} finite numbers")
        return np.array(value, np.float32)
    if not isinstance(value, str):
        kind = "base64 of an image file" if pipeline.modality == "image" else "a string"
        raise Refused(422, f"input {i} must be {kind}")
    if pipeline.modality == "text":
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise Refused(422, f"input {i}: text is not valid Unicode")
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"input {i} is not base64 of an image file") from None


async def _body(request: Any, most_mb: float) -> bytes:
    """The body, read no further than it may be long."""
    most = int(most_mb * 2**20)
    too_long = Refused(413, f"the body is longer than {most_mb:g} MB")
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > most:
        raise too_long
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_long
        parts.append(part)
    return b"".join(parts)


# (features, probabilities) of an item, or why it has none.
_Found = tuple[np.ndarray, np.ndarray] | str


def _answers(pipeline: ConvexHeadPipeline, items: Sequence[Any]) -> list[_Found]:
    ids = [str(i) for i in range(len(items))]
    rows = encode_rows(pipeline.extractor, items, ids, on_bad_row="skip")
    answers: list[_Found] = [rows.skipped.get(name, "no features") for name in ids]
    if len(rows.kept):
        p = pipeline.head.predict_proba(rows.features)
        for i, features, probabilities in zip(rows.kept, rows.features, p, strict=True):
            answers[i] = features, probabilities
    return answers


def _shown(
    found: Sequence[_Found], pipeline: ConvexHeadPipeline, asked: Asked
) -> list[dict[str, Any]]:
    pairs = [each for each in found if not isinstance(each, str)]
    answers = []
    for _, p in pairs:
        best = np.argsort(-p, kind="stable")[: max(1, asked.top_k)]
        each = [{"label": pipeline.classes[c], "score": float(p[c])} for c in best]
        answers.append({**each[0], **({"top_k": each} if asked.top_k > 1 else {})})
    if asked.certificate and pairs:
        from convex_heads import robustness_radius

        network: Any = pipeline.head.network
        radius = robustness_radius(network, np.stack([x for x, _ in pairs]))
        for answer, r in zip(answers, radius, strict=True):
            answer["robustness_radius"] = float(r) if np.isfinite(r) else None
    return answers


def _page(pipeline: ConvexHeadPipeline) -> str:
    from tasks.report import templates

    return (
        templates(html=True)
        .get_template("serve.html.j2")
        .render(
            modality=pipeline.modality,
            pairs=pipeline.describe()["backbone_options"].get("pairs") == "embeddings",
            classes=pipeline.classes,
            backbone=shown_backbone(pipeline.backbone),
            fine_tuned=bool(pipeline.changes),
            dim=pipeline.head.network.dim,
            gap=pipeline.certificate.get("relative_gap"),
        )
    )


def _need_packages() -> None:
    from importlib.util import find_spec

    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise InputError(f"`serve` needs {package}: run pip install 'convex-heads[serve]'")
