"""One table format each: CSV, TSV, JSON lines, Parquet, Arrow and arrays, read column by column.

Reading is by column because a file may carry far more than the two columns a task needs. Values
stay what the file says: a number in a JSON text column is reported as that, not turned into text.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractors.errors import InputError

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow", ".npy", ".npz")


@dataclass(frozen=True)
class Broken:
    """Stands in every column for a row that has no cells to read; reason: why, in words."""

    reason: str


@dataclass(frozen=True)
class Table:
    """An open file: its columns, and how to read one of them.

    path: the file. names: its columns in order. row_word: what a row is called in messages.
    read: column name -> list of Python values, None where there is none; rows of a list column of
    numbers are arrays.
    class_names: column name -> names by integer label where the file itself carries them
    (Parquet files written by Hugging Face `datasets` do), else None.
    """

    path: Path
    names: tuple[str, ...]
    row_word: str
    read: Callable[[str], list[Any]]
    class_names: Callable[[str], list[str] | None]


def open_table(path: Path) -> Table:
    r"""Open a table file by its suffix.

    Raises InputError for a suffix that is not in SUFFIXES, an empty or an unreadable file.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "t.csv").write_text("text,label\nfine,1\n")
    >>> open_table(folder / "t.csv").read("text")
    ['fine']
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path} is not a table this reads; use one of {', '.join(SUFFIXES)}")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes)")
        if suffix == ".parquet":
            return _open_parquet(path)
        if suffix == ".arrow":
            return _open_arrow(path)
        if suffix in (".npy", ".npz"):
            return _open_arrays(path)
        if suffix in (".jsonl", ".ndjson"):
            return _open_json_lines(path)
        return _open_delimited(path, "," if suffix == ".csv" else "\t")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> InputError:
    """The one-line refusal for a file that cannot be read."""
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return InputError(f"cannot read {path}: {reason or type(error).__name__}")


def not_utf8(path: Path) -> InputError:
    """The one-line refusal for a file in another encoding, with the command that converts it.

    Of a file that is UTF-8 but for some lines the first of these is named: to convert the whole of
    it would spoil the others.
    """
    number = stray_line(path)
    if number is not None:
        return InputError(
            f"{path}, line {number}: not UTF-8 text, as the rest of the file is; put the line "
            "right, or take it out"
        )
    with path.open("rb") as file:
        begin = file.read(4)
    if begin in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        encoding = "UTF-32"
    elif begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "UTF-16"
    elif b"\0" in begin:
        encoding = "UTF-16LE" if begin[1::2] == b"\0\0" else "UTF-16BE"
    else:
        encoding = "WINDOWS-1252"
    return InputError(
        f"{path} is not UTF-8 text; save it as UTF-8 and try again, or convert it: "
        f"iconv -f {encoding} -t UTF-8 {path.name} > NEW{path.suffix}"
    )


def stray_line(path: Path) -> int | None:
    """The first line that is no UTF-8 in a file that otherwise is; None where it is not.

    It is where it says so in its first bytes, where other lines have letters beyond ASCII in UTF-8
    (which text in another encoding hardly ever has), or where at most a line in a hundred is not.
    """
    first, strays, lines, proven = None, 0, 0, False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                if b"\0" in line[:4] or line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                    return None
                proven = line.startswith(codecs.BOM_UTF8)
            lines = number
            try:
                proven = not line.decode().isascii() or proven
            except UnicodeDecodeError:
                first, strays = first or number, strays + 1
    return first if proven or 100 * strays <= lines else None


def _text_or_broken(cell: bytes) -> str | Broken:
    try:
        return cell.decode()
    except UnicodeDecodeError as error:
        # Its place and not its text: what is left out is listed in reports, which hold no rows.
        letter = len(cell[: error.start].decode()) + 1
        return Broken(f"not UTF-8 text, as the rest of the file is, at letter {letter}")


def _no_class_names(column: str) -> None:
    return None


def _open_delimited(path: Path, delimiter: str) -> Table:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    with path.open("rb") as file:
        header = file.readline(1 << 20)
    if delimiter == "," and b"," not in header and b";" in header:
        delimiter = ";"  # what spreadsheets write where the comma divides decimals
    names = _header(path, delimiter)
    broken: dict[int, str] = {}

    def note(row: arrow_csv.InvalidRow) -> str:
        # Numbers count the header.
        cells = "1 cell" if row.actual_columns == 1 else f"{row.actual_columns} cells"
        broken[(row.number or 2) - 2] = (
            f"{cells} where the header has {row.expected_columns}; "
            f"a cell that holds '{delimiter}' needs quotes around it"
        )
        return "skip"

    parse = arrow_csv.ParseOptions(
        delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note
    )
    # A row must fit in a block; the default of 1 MB is too small for long documents. Without
    # threads, which have one column to read, bad rows come with their numbers.
    blocks = arrow_csv.ReadOptions(block_size=1 << 26, use_threads=False)

    def read(column: str) -> list[Any]:
        # Every cell of such a file is text; letting pyarrow guess would turn a text column of
        # numbers into numbers and the label "007" into 7.
        def cells(kind: pa.DataType) -> list[Any]:
            convert = arrow_csv.ConvertOptions(
                include_columns=[column], column_types={column: kind}, strings_can_be_null=False
            )
            broken.clear()
            return arrow_csv.read_csv(path, blocks, parse, convert).column(0).to_pylist()

        try:
            values = cells(pa.string())
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error) or stray_line(path) is None:
                raise _bad_delimited(path, error) from error
            values = [_text_or_broken(cell) for cell in cells(pa.binary())]
        for i in sorted(broken):
            values.insert(i, Broken(broken[i]))
        return values

    return Table(path, names, "data row", read, _no_class_names)


def _header(path: Path, delimiter: str) -> tuple[str, ...]:
    """The names of the columns.

    Not by pyarrow's ``open_csv``: it reads ahead in a thread, which still holds `note` when the
    reader is closed, and a process that ends soon after is aborted there.
    """
    # What is no UTF-8 in a cell further down is not looked at here.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            names = next((row for row in csv.reader(file, delimiter=delimiter) if row), [])
            "".join(names).encode()
        except (csv.Error, UnicodeEncodeError) as error:
            raise _bad_delimited(path, error) from error
    if not names:
        raise InputError(f"{path} holds no rows")
    if any("\0" in name for name in names):  # every second byte of UTF-16
        raise not_utf8(path)
    return tuple(names)


def _bad_delimited(path: Path, error: Exception) -> InputError:
    if isinstance(error, UnicodeError) or "UTF8" in str(error):
        return not_utf8(path)
    return unreadable(path, error)


def _open_json_lines(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                # A blank line is kept as an empty object, so that row numbers are line numbers;
                # at the end of the file it is only a trailing newline.
                rows.append(_json_object(path, number, line) if line.strip() else {})
                names.update(dict.fromkeys(rows[-1]))
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    while rows and not rows[-1]:
        rows.pop()
    if not rows:
        raise InputError(f"{path} holds no rows")

    def read(column: str) -> list[Any]:
        return [row.get(column) for row in rows]

    return Table(path, tuple(names), "line", read, _no_class_names)


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not JSON ({error.msg})") from error
    if not isinstance(row, dict):
        raise InputError(
            f"{path}, line {number}: a {type(row).__name__}, not an object such as "
            '{"text": "...", "label": "..."}'
        )
    return row


def _open_parquet(path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        schema: pyarrow.Schema = parquet.read_schema(path)
    except pa.ArrowException as error:
        raise unreadable(path, error) from error

    def read(column: str) -> list[Any]:
        try:
            return _plain_values(parquet.read_table(path, columns=[column]).column(0))
        except (pa.ArrowException, OSError) as error:
            raise unreadable(path, error) from error

    def class_names(column: str) -> list[str] | None:
        return hub_class_names(schema.metadata, column)

    return Table(path, tuple(schema.names), "row", read, class_names)


def _open_arrow(path: Path) -> Table:
    """A stream (what `datasets` and the feature store write) or a file (what Feather is)."""
    import pyarrow as pa

    def table() -> pyarrow.Table:
        source = pa.memory_map(str(path))
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()

    try:
        whole = table()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error

    def class_names(column: str) -> list[str] | None:
        return hub_class_names(whole.schema.metadata, column)

    names = tuple(whole.schema.names)
    return Table(path, names, "row", lambda name: _plain_values(whole[name]), class_names)


def _open_arrays(path: Path) -> Table:
    from tasks.data.arrays import column_values, open_npy, open_npz

    columns = open_npy(path) if path.suffix.lower() == ".npy" else open_npz(path)
    return Table(
        path, tuple(columns), "row", lambda name: column_values(columns[name]), _no_class_names
    )


def _plain_values(column: pyarrow.ChunkedArray) -> list[Any]:
    from tasks.data.arrays import vectors_of

    vectors = vectors_of(column)
    return column.to_pylist() if vectors is None else vectors


def hub_class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """Label names that Hugging Face `datasets` wrote into an Arrow schema, or None.

    >>> text = b'{"info": {"features": {"y": {"_type": "ClassLabel", "names": ["no", "yes"]}}}}'
    >>> hub_class_names({b"huggingface": text}, "y")
    ['no', 'yes']
    """
    if not metadata or b"huggingface" not in metadata:
        return None
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names: Sequence[str] = features[column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return list(names)
