"""The header of a safetensors file, read and checked before anything it asks for is done.

A header says how large the arrays are; believing it could cost any amount of memory. Here it is
compared with the size of the file first, so that nothing larger than the file is ever made.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from extractors.errors import InputError

# Those of safetensors that numpy has too.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MOST_HEADER = 8 << 20


def check_weights(path: Path) -> None:
    """Raises InputError unless the file is a safetensors file whose header tells the truth.

    The header is at most 8 MB of JSON; every array has a known dtype and a shape that fills its
    bytes; the arrays fill the file, one after the other.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _MOST_HEADER):
                raise InputError(
                    f"{path} is no safetensors file: it begins with a header of {length} bytes and "
                    f"has {size} in all"
                )
            text = file.read(length)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise InputError(f"{path} is no safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    spans = sorted(_span(path, name, entry) for name, entry in header.items())
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise InputError(f"{path}: the array '{name}' does not begin where the last one ends")
        end = stop
    if end != size - 8 - length:
        raise InputError(
            f"{path} is not whole: its header speaks of {end} bytes, {size - 8 - length} are there"
        )


def _span(path: Path, name: str, entry: Any) -> tuple[int, int, str]:
    """First byte and the one after the last of an array."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    name = name if len(name) <= 60 else f"{name[:57]}..."
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise InputError(f"{path}: the array '{name}' has the dtype {str(dtype)[:20]!r}, not F32")
    if not _whole_numbers(shape) or len(shape) > 8:
        raise InputError(f"{path}: the array '{name}' has no shape")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{path}: the array '{name}' has no place in the file")
    start, stop = offsets
    if math.prod(shape) * _BYTES[dtype] != stop - start:
        raise InputError(
            f"{path}: the array '{name}' of shape {str(tuple(shape))[:60]} does not fill its "
            f"{stop - start} bytes"
        )
    return start, stop, name


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 62 for value in values
    )
