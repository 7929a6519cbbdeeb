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
import logging
import signal
import socket
import time
import traceback
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from convex_heads import robustness_radius
from extractors.encode import encode_rows
from extractors.errors import InputError, MachineError
from tasks.config_saved import ServeConfig
from tasks.console import Reporter
from tasks.reports.card import shown_backbone
from tasks.serving.batching import Batcher, Closed, QueueFull
from tasks.serving.metrics import Metrics
from tasks.serving.requests import Asked, Bodies, Refused, parse_request

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from tasks.pipeline import ConvexHeadPipeline

_RETRY_SECONDS = 1
_BACKLOG = 2048
_BODIES_TOGETHER = 16
_LOG = logging.getLogger(__name__)


def run_serve(config: ServeConfig, *, reporter: Reporter) -> None:
    """Serves until it is told to end (Ctrl-C, SIGTERM), then answers what it has taken.

    Raises:
        InputError: no artefact, or the package's extra `serve` is missing.
        MachineError: the address cannot be listened on.
    """
    _need_packages()
    from tasks.pipeline import ConvexHeadPipeline

    pipeline = ConvexHeadPipeline.from_pretrained(
        config.artefact,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        backbone=config.backbone,
    )
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _told_of_the_address(config):
            listening.bind((config.host, config.port))  # a port in use is said before the load
        with reporter.stage("load", total=None):
            app = make_app(pipeline, config)
        with _told_of_the_address(config):
            listening.listen(_BACKLOG)  # whoever comes before the loop runs waits
        _answer(app, listening, config, reporter)


def _answer(
    app: FastAPI, listening: socket.socket, config: ServeConfig, reporter: Reporter
) -> None:
    import uvicorn

    port = listening.getsockname()[1]
    shown = f"[{config.host}]" if ":" in config.host else config.host
    reporter.note(f"serving {config.artefact} on http://{shown}:{port}")
    server = _ending_quietly(uvicorn.Server)(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=config.shutdown_seconds,
        )
    )
    asyncio.run(server.serve(sockets=[listening]))


@contextmanager
def _told_of_the_address(config: ServeConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"cannot listen on {config.host}, port {config.port}: {error.strerror}; choose "
            "another --port or --host"
        ) from error


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
    """The application, for any ASGI server; its backbone is loaded here.

    Args:
        pipeline: answers.
        config: limits.
    """
    _need_packages()
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

    metrics = Metrics()
    bodies = Bodies(config.max_body_mb, _BODIES_TOGETHER, config.timeout_seconds)
    batcher: Batcher[_Row, _Found] = Batcher(
        lambda items: _answers(pipeline, items),
        most_batch=config.max_batch,
        most_queue=config.max_queue,
        first=lambda: pipeline.extractor.dim,
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
            # Its class is enough for whoever asks: the message might name files of this machine.
            # The log gets no message either: it might quote the request.
            place = traceback.extract_tb(error.__traceback__)[-1]
            _LOG.error(
                "the head failed: %s, %s line %s",
                type(error).__name__,
                place.filename,
                place.lineno,
            )
            status, content = 500, {"error": f"the head failed ({type(error).__name__})"}
        metrics.answered(status, time.perf_counter() - began)
        return JSONResponse(content, status, headers)

    async def _predict(request: Request) -> dict[str, Any]:
        async with bodies.of(request) as body:
            asked = parse_request(body, pipeline, config)
            found = await _found(asked)
        for i, each in enumerate(found):
            if isinstance(each, str):
                raise Refused(422, f"input {i}: {each}")
        return {"predictions": [_shown(each, pipeline, asked) for each in found]}

    async def _found(asked: Asked) -> list[_Found]:
        waiting = batcher.submit([(item, asked.certificate) for item in asked.items])
        try:
            return await asyncio.wait_for(waiting, config.timeout_seconds)
        except QueueFull:
            raise Refused(503, "too many requests are waiting: try again later") from None
        except Closed:
            raise Refused(503, "the server is ending") from None
        except TimeoutError:
            raise Refused(504, f"no answer within {config.timeout_seconds:g} s") from None

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
        policy += "connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'"
        return HTMLResponse(
            page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        )

    for path, call, methods in (
        ("/predict", predict, ["POST"]),
        ("/health", health, ["GET", "HEAD"]),
        ("/metrics", show_metrics, ["GET", "HEAD"]),
        ("/", show_page, ["GET", "HEAD"]),
    ):
        # Annotations are strings here, and Request is known in this function alone.
        call.__annotations__ = {"request": Request} if call is predict else {}
        app.add_api_route(path, call, methods=methods, response_model=None)
    return app


_Row = tuple[Any, bool]  # an item, and whether its radius is asked for
_Found = tuple[np.ndarray, float | None] | str  # probabilities and radius, or why there are none


def _answers(pipeline: ConvexHeadPipeline, items: Sequence[_Row]) -> list[_Found]:
    ids = [str(i) for i in range(len(items))]
    rows = encode_rows(pipeline.extractor, [item for item, _ in items], ids, on_bad_row="skip")
    answers: list[_Found] = [rows.skipped.get(name, "no features") for name in ids]
    if not len(rows.kept):
        return answers
    p = pipeline.head.predict_proba(rows.features)
    radius = np.full(len(p), np.inf)
    asked = np.array([items[i][1] for i in rows.kept])
    if asked.any():
        network: Any = pipeline.head.network
        radius[asked] = robustness_radius(network, rows.features[asked])
    for i, probabilities, r in zip(rows.kept, p, radius, strict=True):
        answers[i] = probabilities, float(r) if np.isfinite(r) else None
    return answers


def _shown(found: _Found, pipeline: ConvexHeadPipeline, asked: Asked) -> dict[str, Any]:
    assert not isinstance(found, str)
    p, radius = found
    best = np.argsort(-p, kind="stable")[: asked.top_k]
    each = [{"label": pipeline.classes[c], "score": float(p[c])} for c in best]
    answer = {**each[0], **({"top_k": each} if asked.top_k > 1 else {})}
    return answer | ({"robustness_radius": radius} if asked.certificate else {})


def _page(pipeline: ConvexHeadPipeline) -> str:
    from tasks.reports.pages import templates

    return (
        templates(html=True)
        .get_template("serve.html.j2")
        .render(
            task=pipeline.facts.get("record", {}).get("task"),
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
