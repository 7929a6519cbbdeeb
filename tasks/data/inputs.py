"""New rows to label: texts, a table, a text file, an image, or a folder of images."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extractors.base import Modality
from extractors.errors import BadRow, InputError
from tasks.data.columns import ColumnChoice, find_columns, settle
from tasks.data.files import IMAGE_SUFFIXES, list_images, read_inputs
from tasks.data.labels import is_missing
from tasks.data.tables import SUFFIXES, Broken, Table, not_utf8, open_table

STDIN = Path("-")
_PLURAL = {"text": "texts", "image": "images", "features": "features"}


@dataclass(frozen=True)
class Items:
    """n inputs as an extractor takes them, and what to call each in the output."""

    ids: Sequence[str]
    inputs: Sequence[Any]


def text_items(texts: Sequence[str]) -> Items:
    """Texts from the command line, each called by itself.

    >>> text_items(["fine"]).ids
    ['fine']
    """
    return Items(list(texts), list(texts))


def read_items(
    path: Path, modality: Modality, choice: ColumnChoice, id_column: str | None = None
) -> Items:
    r"""Read a table, a text file with one text per line, an image file or a folder of images.

    `modality` is what the head was fitted on; "-" is standard input, one text per line. The rows of
    a table are called by its `id_column`, and numbered where there is none. Raises InputError for a
    path that does not exist or holds nothing of this kind, and for two rows with one id.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "new.txt"
    >>> _ = file.write_text("a fine film\na waste of time\n")
    >>> read_items(file, "text", ColumnChoice()).inputs
    ['a fine film', 'a waste of time']
    """
    if id_column is not None and path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"--id-column is a column of a table, but {_said(path)} is none of "
            f"{', '.join(SUFFIXES)}: leave it out"
        )
    if path == STDIN:
        if modality != "text":
            raise InputError(
                f"--input -: standard input is read as texts, one a line, but this head labels "
                f"{_PLURAL[modality]}; give a file"
            )
        items = _from_lines(path)
    elif not path.exists():
        raise InputError(f"{path} does not exist")
    elif path.is_dir():
        items = _from_folder(path, modality)
    elif path.suffix.lower() in SUFFIXES:
        items = _from_table(path, modality, choice, id_column)
    elif modality == "image":
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(f"{path} is neither an image nor one of {', '.join(SUFFIXES)}")
        items = Items([path.name], [path])
    elif modality == "features":
        raise InputError(f"{path} is none of {', '.join(SUFFIXES)}; vectors of features are read")
    else:
        items = _from_lines(path)
    if not items.ids:
        raise InputError(f"{_said(path)} holds nothing to label")
    return items


def _from_folder(path: Path, modality: Modality) -> Items:
    if modality != "image":
        kind = "texts" if modality == "text" else "vectors of features"
        raise InputError(f"{path} is a folder, but this head labels {kind}; give a file")
    images = list_images(path)
    return Items([image.relative_to(path).as_posix() for image in images], images)


def _from_table(
    path: Path, modality: Modality, choice: ColumnChoice, id_column: str | None
) -> Items:
    table = open_table(path)
    columns = find_columns(table.names, choice, path.name, labelled=False)
    if columns.modality != modality:
        raise InputError(
            f"the column '{columns.input}' of {path.name} holds {_PLURAL[columns.modality]}, "
            f"but this head labels {_PLURAL[modality]}; name a column with --{modality}-column"
        )
    values = columns.read_input(table.read)
    values = [BadRow(v.reason) if isinstance(v, Broken) else v for v in values]
    inputs = read_inputs(path.parent, columns, values)
    ids = [f"row/{i:06d}" for i in range(len(inputs))]
    if id_column is not None:
        _call_by(ids, table, settle(table.names, id_column, (), "--id-column", path.name))
    return Items(ids, inputs)


def _call_by(ids: list[str], table: Table, column: str) -> None:
    """Names rows by a column; those without a value keep their numbers."""
    first: dict[str, int] = {}
    for i, value in enumerate(table.read(column)):
        row = f"{table.path.name}, {table.row_word} {i + 1}"
        if not is_missing(value):
            ids[i] = _called(value, row)
        if (before := first.setdefault(ids[i], i)) != i:
            raise InputError(
                f"{row}: the column '{column}' has '{ids[i]}' as in {table.row_word} "
                f"{before + 1}; an id names one row: choose another --id-column, or leave it out "
                "and rows are numbered"
            )


def _called(value: Any, row: str) -> str:
    if not isinstance(value, np.ndarray | list | dict):
        with suppress(UnicodeError):
            called = value.decode() if isinstance(value, bytes) else str(value)
            called.encode()  # halves of surrogate pairs cannot be written
            return called
    raise InputError(f"{row}: an id is a text or a number; choose another --id-column")


def _said(path: Path) -> str:
    return "standard input" if path == STDIN else str(path)


def _from_lines(path: Path) -> Items:
    if path == STDIN and sys.stdin is None:
        raise InputError("--input -: there is no standard input")
    try:
        content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
        # Not str.splitlines: a form feed or U+2028 ends no line of a file.
        lines = io.StringIO(content.decode("utf-8-sig"), newline=None).read().split("\n")
    except OSError as error:
        raise InputError(f"cannot read {_said(path)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        if path == STDIN:
            raise InputError("--input -: standard input is not UTF-8 text") from error
        raise not_utf8(path) from error
    numbered = [(f"line/{i:06d}", line) for i, line in enumerate(lines, start=1) if line.strip()]
    return Items([name for name, _ in numbered], [line for _, line in numbered])
