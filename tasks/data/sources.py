"""From what a person calls a data set to its rows."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from extractors.base import Modality
from extractors.errors import InputError
from tasks.data.columns import ColumnChoice
from tasks.data.files import find_split_files, read_path
from tasks.data.hub import is_cached, parse_hub_name, read_hub
from tasks.data.labels import read_class_names
from tasks.data.raw import RawData
from tasks.data.registry import (
    TASKS,
    TaskSpec,
    read_digits,
    read_fashion_mnist,
    read_wordnet6,
    resolve_data_root,
)


@dataclass(frozen=True)
class TaskInfo:
    """A named task as `tasks` lists it.

    rows: by split, as published. at_hand: loads without a network. source: where from, in words.
    """

    name: str
    modality: Modality
    n_classes: int
    rows: Mapping[str, int]
    about: str
    at_hand: bool
    source: str


def list_tasks(data_root: str | os.PathLike[str] | None = None) -> list[TaskInfo]:
    """All named tasks, and where each would be read from now.

    data_root: as for `load_task`.

    >>> [task.name for task in list_tasks() if task.source == "installed"]
    ['wordnet6', 'digits']
    """
    root = resolve_data_root(data_root)
    infos = []
    for spec in TASKS.values():
        at_hand, source = _whereabouts(spec, root)
        infos.append(
            TaskInfo(
                spec.name, spec.modality, spec.n_classes, spec.rows, spec.about, at_hand, source
            )
        )
    return infos


def _whereabouts(spec: TaskSpec, root: Path | None) -> tuple[bool, str]:
    if spec.hub is None:
        return True, "installed"
    try:
        folder = find_task_folder(spec, root)
    except InputError as error:
        return False, str(error)
    if folder is not None:
        return True, str(folder)
    cached = is_cached(spec.hub.repository)
    return cached, f"hub:{spec.hub.repository}{' (cached)' if cached else ''}"


def read_source(data: str, root: Path | None, choice: ColumnChoice) -> RawData:
    """Read what a person means by DATA: a task, a path or a Hub data set.

    Raises InputError for anything else, with the tasks of a similar name.
    """
    if data in TASKS:
        return read_task(TASKS[data], root, choice)
    if data.startswith("hub:"):
        repository, config = parse_hub_name(data)
        instead = "download it elsewhere and give the folder instead"
        return read_hub(data.removeprefix("hub:"), repository, config, choice, instead)
    path = Path(os.path.expanduser(data))
    looks_like_path = path.exists() or path.suffix or len(path.parts) > 1
    if looks_like_path:
        return read_path(path, choice)
    raise InputError(unknown_task(data))


def unknown_task(name: str) -> str:
    """The sentence for a name that is neither a task nor a path.

    >>> unknown_task("imbd").partition("?")[0]
    "there is no task or path 'imbd'; did you mean 'imdb'"
    """
    near = difflib.get_close_matches(name.lower(), TASKS, n=2)
    hint = f" did you mean {' or '.join(repr(task) for task in near)}?" if near else ""
    return (
        f"there is no task or path '{name}';{hint} tasks are {', '.join(TASKS)}; "
        "or give a file, a folder or hub:owner/name"
    )


def read_task(spec: TaskSpec, root: Path | None, choice: ColumnChoice) -> RawData:
    """Read a named task from the installation, from `root/NAME`, or from the Hub."""
    if spec.name == "wordnet6":
        return read_wordnet6()
    if spec.name == "digits":
        return read_digits()
    folder = find_task_folder(spec, root)
    if folder is not None:
        if spec.name == "fashion_mnist" and not find_split_files(folder):
            return read_fashion_mnist(folder, read_class_names(folder))
        if spec.hub is not None and choice.before is None:
            choice = replace(choice, before=spec.hub.columns)
        return _without_secrets(replace(read_path(folder, choice), name=spec.name))
    assert spec.hub is not None
    searched = f"{root} has no {spec.name}/train.parquet" if root else "no --data-root was given"
    folders = ", or train/CLASS/*.jpg and val/CLASS/*.jpg," if spec.modality == "image" else ""
    instead = (
        f"{searched}: put train.parquet and test.parquet{folders} into ROOT/{spec.name} "
        "and give --data-root ROOT"
    )
    wanted = ColumnChoice(
        choice.text or spec.hub.columns.text,
        choice.image or spec.hub.columns.image,
        choice.label or spec.hub.columns.label,
    )
    raw = read_hub(
        spec.name, spec.hub.repository, spec.hub.config, wanted, instead, spec.hub.splits_as
    )
    return replace(raw, class_names=spec.classes or raw.class_names)


def _without_secrets(raw: RawData) -> RawData:
    """Validation rows as test where that has -1 for every label, as GLUE publishes its secrets."""
    whole = {"train", "validation", "test"} <= raw.splits.keys()
    if not whole or set(map(str, raw.splits["test"].labels)) != {"-1"}:
        return raw
    splits = {"train": raw.splits["train"], "test": raw.splits["validation"]}
    note = f"{raw.name}: the labels of test are secret (-1), so validation is the test split"
    return replace(raw, splits=splits, notes=(*raw.notes, note))


def find_task_folder(spec: TaskSpec, root: Path | None) -> Path | None:
    """`root/NAME` where it holds the task's files or its folders of images, else None."""
    folder = root / spec.name if root is not None else None
    if folder is None or not folder.is_dir():
        return None
    idx = spec.name == "fashion_mnist" and any(folder.glob("*-ubyte.gz"))
    images = spec.modality == "image" and (folder / "train").is_dir()
    return folder if idx or images or find_split_files(folder) else None
