"""The body of a request, read no further than it may be long, as rows that a head can answer."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import math
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.config_saved import ServeConfig

if TYPE_CHECKING:
    from tasks.pipeline import ConvexHeadPipeline

# Reading texts into tokens takes about a second a million, and other requests wait for it.
_MOST_LETTERS = 2_000_000  # of a request
_DATA_URL = re.compile(r"\Adata:[\w.+/-]{1,100};base64,")
_EXAMPLES = {"text": '"a text"', "image": '"base64 of an image file"'}


class Refused(Exception):
    """A request that cannot be answered: an HTTP status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Asked:
    """A checked request: raw rows, and what to say of each."""

    def __init__(self, items: Sequence[Any], top_k: int, certificate: bool) -> None:
        self.items, self.top_k, self.certificate = items, top_k, certificate


def parse_request(body: bytes, pipeline: ConvexHeadPipeline, config: ServeConfig) -> Asked:
    """A request's body as rows.

    Raises:
        Refused: 400 for what is no such JSON, 413 for too many rows or pixels, 422 for rows of
            another kind.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, f"the body is not JSON such as {_example(pipeline)}") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("inputs"), list):
        raise Refused(
            400, f'the body must be an object with a list "inputs", such as {_example(pipeline)}'
        )
    if unknown := asked.keys() - {"inputs", "top_k", "certificate"}:
        raise Refused(
            400, f"unknown field '{min(unknown)[:40]}'; known: inputs, top_k, certificate"
        )
    top_k, certificate = asked.get("top_k", 1), asked.get("certificate", False)
    if type(top_k) is not int or top_k < 1 or not isinstance(certificate, bool):
        raise Refused(400, "top_k must be a number from 1 on, certificate true or false")
    inputs = asked["inputs"]
    most = min(config.max_rows, config.max_queue)  # more than the queue holds can never be answered
    if len(inputs) > most:
        raise Refused(413, f"{len(inputs)} inputs: at most {most} in one request")
    items = [_item(i, value, pipeline, config) for i, value in enumerate(inputs)]
    letters = sum(map(len, items)) if pipeline.modality == "text" else 0
    if letters > _MOST_LETTERS:
        raise Refused(
            413, f"the texts have {letters:,} characters: at most {_MOST_LETTERS:,} in one request"
        )
    return Asked(items, top_k, certificate)


def _example(pipeline: ConvexHeadPipeline) -> str:
    """The body of a request that this head can answer."""
    return f'{{"inputs": [{_EXAMPLES.get(pipeline.modality, "[0.1, ...]")}]}}'


def _item(i: int, value: Any, pipeline: ConvexHeadPipeline, config: ServeConfig) -> Any:
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
        # A browser's FileReader puts the kind of file before it.
        content = base64.b64decode(_DATA_URL.sub("", value, count=1), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"input {i} is not base64 of an image file") from None
    if _megapixels(content) > config.max_megapixels:
        raise Refused(
            413, f"input {i} is an image of more than {config.max_megapixels:g} megapixels"
        )
    return content


def _megapixels(content: bytes) -> float:
    """Of an encoded image, as its header has it: a few kilobytes can become gigabytes of pixels.

    0 for what is no image: that is told where it is decoded.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.width * image.height / 1e6
    # Pillow's own limit, beyond which it tells no size; a warning where warnings are errors.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return math.inf
    except Exception:  # damaged files raise nearly anything
        return 0.0


class Bodies:
    """Reads bodies, and refuses what would fill the memory or never ends.

    Args:
        most_mb: of one body.
        together: bodies of that size that may be held at once, each from its first byte until its
            request is answered.
        seconds: that a body may take to arrive.
    """

    def __init__(self, most_mb: float, together: int, seconds: float) -> None:
        self._most_mb, self._most = most_mb, int(most_mb * 2**20)
        self._room = together * self._most
        self._seconds = seconds

    @asynccontextmanager
    async def of(self, request: Any) -> AsyncIterator[bytes]:
        """The body of a request (FastAPI's).

        Raises:
            Refused: 413 too long, 408 too slow, 503 no room now, 499 the client has gone.
        """
        too_long = Refused(413, f"the body is longer than {self._most_mb:g} MB")
        said = request.headers.get("content-length", "")
        if said.isdigit() and int(said) > self._most:
            raise too_long
        parts: list[bytes] = []
        size, more = 0, True
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    while more:
                        message = await request.receive()
                        if message["type"] == "http.disconnect":
                            raise Refused(499, "the client has gone")
                        part, more = message.get("body", b""), message.get("more_body", False)
                        size += len(part)
                        self._room -= len(part)
                        if size > self._most:
                            raise too_long
                        if self._room < 0:
                            raise Refused(503, "too much is waiting: try again later")
                        parts.append(part)
            except TimeoutError:
                raise Refused(408, f"the body did not arrive within {self._seconds:g} s") from None
            yield b"".join(parts)
        finally:
            self._room += size
