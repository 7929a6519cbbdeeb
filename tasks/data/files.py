"""A person's own data: a table file, a folder of split files, or a folder of images.

Everything here ends in a RawData; which rows are held out is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from extractors.errors import InputError
from tasks.data.arrays import LABELS_SUFFIX, as_vector
from tasks.data.columns import ColumnChoice, Columns, find_columns
from tasks.data.labels import read_class_names
from tasks.data.raw import WHOLE, RawData, RawSplit
from tasks.data.tables import SUFFIXES, open_table

# What files and folders call a split -> our name. "val" may also stand in for a missing test.
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "val": "validation",
    "test": "test",
}
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
# train.csv, or the pieces train-00000-of-00002.parquet the Hub's exports come in.
_SPLIT_FILE = re.compile(rf"({'|'.join(SPLIT_NAMES)})(-\d+-of-\d+)?\Z")


def read_path(path: Path, choice: ColumnChoice) -> RawData:
    r"""Read a data set from a file or a folder.

    Raises InputError when the path does not exist, or is nothing that can be read as data.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "reviews.csv"
    >>> _ = file.write_text("text,label\nfine,pos\ndull,neg\n")
    >>> read_path(file, ColumnChoice()).splits["all"].labels
    ['pos', 'neg']
    """
    if path.is_file():
        return _read_tables(path.stem, path.parent, {WHOLE: [path]}, choice)
    if not path.is_dir():
        raise InputError(f"{path} does not exist")
    tables = find_split_files(path)
    if tables:
        return _read_tables(path.resolve().name, path, tables, choice)
    images = _read_image_folder(path)
    if images is not None:
        return images
    lone = [
        file
        for file in _visible(path)
        if file.suffix.lower() in SUFFIXES and not file.name.lower().endswith(LABELS_SUFFIX)
    ]
    if len(lone) == 1:
        return _read_tables(path.resolve().name, path, {WHOLE: lone}, choice)
    if lone:
        raise InputError(
            f"{path} holds {len(lone)} tables and none is called train.*; name one file, "
            "or call them train.*, validation.* and test.*"
        )
    raise InputError(
        f"{path} holds no data: expected train.* ({', '.join(SUFFIXES)}) "
        "or one folder of images per class"
    )


def find_split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of `folder` that are called after a split, as {name found: pieces in order}.

    {} when there are none. Raises InputError when a split is there twice (train.csv and
    train.parquet, or dev.csv and validation.csv).
    """
    found: dict[str, list[Path]] = {}
    for file in _visible(folder):
        match = _SPLIT_FILE.match(file.stem.lower())
        if match is not None and file.is_file() and file.suffix.lower() in SUFFIXES:
            found.setdefault(match.group(1), []).append(file)
    for name, pieces in found.items():
        whole = [file for file in pieces if file.stem.lower() == name]
        if len(pieces) > 1 and whole:
            raise InputError(
                f"{folder} holds {pieces[0].name} and {pieces[1].name}; keep one of them"
            )
    _refuse_double(folder, found)
    return found


def _read_tables(
    name: str, folder: Path, files: Mapping[str, Sequence[Path]], choice: ColumnChoice
) -> RawData:
    tables = {found: [open_table(file) for file in pieces] for found, pieces in files.items()}
    first = next(iter(tables.values()))[0]
    columns = find_columns(first.names, choice, first.path.name)
    assert columns.label is not None
    class_names = read_class_names(folder) or first.class_names(columns.label)
    splits = {}
    for found, pieces in tables.items():
        inputs: list[Any] = []
        labels: list[Any] = []
        places: list[tuple[int, str]] = []  # first row of each piece, and the piece in words
        for table in pieces:
            named = ColumnChoice(
                text=columns.input if columns.modality == "text" else None,
                image=columns.input if columns.modality == "image" else None,
                features=columns.input if columns.modality == "features" else None,
                label=columns.label,
            )
            find_columns(table.names, named, table.path.name)
            places.append((len(inputs), f"{table.path.name}, {table.row_word}"))
            inputs += read_inputs(table.path.parent, columns, columns.read_input(table.read))
            labels += table.read(columns.label)
        if not inputs:
            raise InputError(f"{pieces[0].path} has no rows")
        ids = [f"{'row' if found == WHOLE else found}/{i:06d}" for i in range(len(inputs))]
        splits[found] = RawSplit(ids, inputs, labels, _where(places))
    modality = columns.modality
    return use_val_as_test(RawData(name, modality, splits, class_names))


def read_inputs(folder: Path | None, columns: Columns, values: Sequence[Any]) -> list[Any]:
    """Inputs as an extractor takes them: text as it is, an image as encoded bytes or a path.

    A Hub export keeps an image as {"bytes": ..., "path": ...}; a table may name a file, which is
    looked for in `folder`, where the table lies.

    >>> read_inputs(Path("d"), Columns("image", "image", None), ["a.png", {"bytes": b"x"}, None])
    [PosixPath('d/a.png'), b'x', None]
    """
    if columns.modality == "text":
        return list(values)
    if columns.modality == "features":
        return [as_vector(value) for value in values]
    inputs: list[Any] = []
    for value in values:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value:
            value = Path(value) if folder is None else folder / value
        inputs.append(value)
    return inputs


def _read_image_folder(folder: Path) -> RawData | None:
    """`folder/class/*.jpg`, or `folder/split/class/*.jpg` when a folder is called train."""
    below = [item for item in _visible(folder) if item.is_dir()]
    divided = {item.name.lower(): item for item in below if item.name.lower() in SPLIT_NAMES}
    if "train" not in divided:
        divided = {WHOLE: folder}
    _refuse_double(folder, divided)
    notes: list[str] = []
    splits = {}
    for found, root in divided.items():
        paths: list[Path] = []
        labels: list[str] = []
        for item in (item for item in _visible(root) if item.is_dir()):
            images = list_images(item)
            if not images:
                notes.append(f"the folder {item.relative_to(folder)} holds no images; left out")
            paths += images
            labels += [item.name] * len(images)
        if paths:
            ids = [path.relative_to(folder).as_posix() for path in paths]
            splits[found] = RawSplit(ids, paths, labels, ids.__getitem__)
    if not splits:
        return None
    raw = RawData(folder.resolve().name, "image", splits, read_class_names(folder), tuple(notes))
    return use_val_as_test(raw)


def list_images(folder: Path) -> list[Path]:
    """All image files below `folder`, by their suffix, in a fixed order; hidden ones left out."""
    files: list[Path] = []
    for item in _visible(folder):
        if item.is_dir():
            files += list_images(item)
        elif item.suffix.lower() in IMAGE_SUFFIXES:
            files.append(item)
    return files


def our_names(found: Iterable[str]) -> dict[str, str]:
    """Our names of splits by those of the data; without a test split validation is the test.

    >>> our_names(["train", "dev", "test"]), our_names(["train", "val"])
    ({'train': 'train', 'dev': 'validation', 'test': 'test'}, {'train': 'train', 'val': 'test'})
    """
    names = {each: SPLIT_NAMES.get(each, each) for each in found}
    if set(names.values()) == {"train", "validation"}:
        return {each: "test" if name == "validation" else name for each, name in names.items()}
    return names


def use_val_as_test(raw: RawData) -> RawData:
    """Give the splits our names; a data set with only train and val is tested on val."""
    notes = raw.notes
    names = our_names(raw.splits)
    if WHOLE not in raw.splits and "train" not in raw.splits:
        raise InputError(f"{raw.name} has {', '.join(raw.splits)} but no train split to learn from")
    stand_in = next((found for found in names if names[found] == "test" and found != "test"), None)
    if stand_in is not None:
        notes += (
            f"there is no test split: '{stand_in}' is used as test, "
            "and a validation split is taken from train",
        )
    splits = {names[found]: split for found, split in raw.splits.items()}
    return RawData(raw.name, raw.modality, splits, raw.class_names, notes)


def _refuse_double(folder: Path, found: Mapping[str, Any]) -> None:
    twins = [name for name in found if SPLIT_NAMES.get(name) == "validation"]
    if len(twins) > 1:
        raise InputError(
            f"{folder} holds both '{twins[0]}' and '{twins[1]}'; "
            "keep one validation split, or call the other one test"
        )


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(item for item in folder.iterdir() if not item.name.startswith((".", "__")))
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error


def _where(places: Sequence[tuple[int, str]]) -> Callable[[int], str]:
    def where(i: int) -> str:
        start, piece = max(place for place in places if place[0] <= i)
        return f"{piece} {i - start + 1}"

    return where
