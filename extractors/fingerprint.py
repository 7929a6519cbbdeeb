"""Content hashes and store keys: equal numbers have equal keys, different numbers never do."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extractors.errors import InputError

# What a model folder may hold without changing any feature: words, and other runtimes' weights.
_IRRELEVANT_SUFFIXES = {".md", ".onnx", ".h5", ".msgpack", ".ot", ".gguf", ".mlmodel", ".png"}
_IRRELEVANT_FOLDERS = {"onnx", "openvino", "coreml", "__pycache__"}


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def folder_sha256(folder: Path, *, without: tuple[str, ...] = ()) -> str:
    """One sha256 for the content of a model folder, wherever the folder lies.

    Every file below it counts with its relative path, except documentation, hidden files and
    weights for other runtimes than torch, which change no feature.

    Args:
        folder: an existing directory.
        without: relative paths (posix) to leave out.

    Raises:
        InputError: nothing in the folder counts, or a file cannot be read.
    """
    digest = hashlib.sha256()
    count = 0
    for path in sorted(files_below(folder), key=lambda p: p.relative_to(folder).as_posix()):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        elsewhere = _IRRELEVANT_FOLDERS.intersection(relative.parts)
        if hidden or elsewhere or path.suffix.lower() in _IRRELEVANT_SUFFIXES:
            continue
        if relative.as_posix() in without or not path.is_file():
            continue
        digest.update(f"{relative.as_posix()}\0{file_sha256(path)}\n".encode())
        count += 1
    if not count:
        raise InputError(f"{folder} holds no model files")
    return digest.hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder; a link to a folder counts as that folder.

    Libraries read a model through such links, so what lies behind them is part of it. A link back
    to a folder that holds it is not followed.
    """

    def within(here: Path, above: frozenset[str]) -> Iterator[Path]:
        real = os.path.realpath(here)
        if real in above:
            return
        for path in sorted(here.iterdir()):
            if path.is_dir():
                yield from within(path, above | {real})
            else:
                yield path

    try:
        yield from within(folder, frozenset())
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def store_key(fingerprint: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of a fingerprint ``{"data": ..., "extractor": ...}``.

    Raises:
        InputError: a value is not plain JSON (a NaN included).

    Example:
        >>> store_key({"data": {"a": 1}, "extractor": {}})[:12]
        '8420c55734eb'
    """
    try:
        text = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"a fingerprint must be plain JSON: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()
