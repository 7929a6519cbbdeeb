"""What comes from and goes to a network: artefacts on the Hugging Face Hub, images by address."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from extractors.errors import InputError, MachineError
from extractors.hub import plain_hub_errors

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+\Z")
_TEXTS = ["config.json", "README.md", "report.html"]
_FILES = [*_TEXTS, "model.safetensors"]
_MOST_BYTES = 20 << 20
_SECONDS = 20.0
# Of a config, what says which backbone it was.
_SOURCE = ("backbone", "backbone_fingerprint")
# What may be a path that begins where its command was given.
_PLACES = ("artefact", "before", "data", "store", "new_store")
_PATH_OPTIONS = ("--out", "--data-root", "--cache-dir", "--comparison")


def find_artefact(
    path: str | os.PathLike[str],
    revision: str | None,
    local_files_only: bool,
    token: str | None,
) -> Path:
    """The folder of an artefact: the one that is named, or a download of a Hub repository.

    Raises:
        InputError: neither, or a revision of a folder.
        MachineError: the Hub cannot be reached and nothing was downloaded before.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"{type(path).__name__} is no artefact: name a folder that `convex-heads fit` wrote, "
            "or owner/name of a repository on the Hub"
        )
    folder = Path(path)
    if folder.exists() or not _REPOSITORY.match(str(path)) or isinstance(path, Path):
        if revision is not None:
            raise InputError(f"{path} is a folder here: a revision is of a repository on the Hub")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = str(path)
    try:
        with plain_hub_errors(name, revision):
            return Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=_FILES,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
    except (MachineError, LocalEntryNotFoundError) as error:
        raise MachineError(
            f"there is no folder {name}, and the repository of that name on the Hugging Face Hub "
            "is not in the local cache and cannot be reached"
        ) from error
    except InputError as error:
        raise InputError(f"there is no folder {name}; {error}") from error


def push_folder(
    folder: Path,
    repository: str,
    revision: str | None,
    private: bool | None,
    token: str | None,
    commit_message: str,
) -> str:
    """Uploads a folder in one commit and returns the repository's address."""
    from huggingface_hub import HfApi

    if not _REPOSITORY.match(repository):
        raise InputError(f"'{repository}' is no repository: name it owner/name")
    api = HfApi(token=token)
    with plain_hub_errors(repository, revision):
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
        )
    return str(made)


def hide_places(folder: Path) -> None:
    """Leaves of every path in an artefact's texts (stores, commands) only its last part.

    A refit finds a store by its name in the cache directory. Of a backbone that is a folder the
    name stays (``timm:local-dir:./my-net``), by which `tasks.fitted_backbone` asks for it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text(
        ...     '{"record": {"command": "convex-heads fit /home/ann/films.csv --out head"}}'
        ... )
        >>> hide_places(folder)
        >>> (folder / "config.json").read_text()
        '{"record": {"command": "convex-heads fit films.csv --out head"}}'
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    told = {name: value for name, value in config.items() if name not in _SOURCE}
    places = {place: Path(place).name for place in _places(told)}
    if (backbone := folder_of(config.get("backbone", ""))) and Path(backbone).is_absolute():
        places[backbone] = f"./{Path(backbone).name}"
    for name in _TEXTS:
        path = folder / name
        if path.is_file():
            text = path.read_text("utf-8")
            for place in sorted(places, key=len, reverse=True):  # a folder after what is in it
                for spell in (str, escape, _in_json):
                    text = _put(text, spell(place), spell(places[place]))
            path.write_text(text, "utf-8")


def folder_of(backbone: str) -> str | None:
    """The folder that a backbone's name says, there or not; None where it is known by an id.

    Example:
        >>> folder_of("hf:/home/ann/bert"), folder_of("timm:local-dir:./net"), folder_of("hf:a/b")
        ('/home/ann/bert', './net', None)
    """
    place = backbone.partition(":")[2].removeprefix("local-dir:")
    return place if Path(place).is_absolute() or place.startswith("./") else None


def _put(text: str, place: str, name: str) -> str:
    # Not inside a longer word, and not the end of a tag: </a> is no path.
    return re.sub(rf"(?<![\w.<]){re.escape(place)}(?!\w)", lambda _: name, text)


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _places(value: Any) -> Iterator[str]:
    """Paths with folders among the strings of a config, or the words of one that is a command."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name in _PLACES and isinstance(each, str) and _relative(each):
                yield each
            yield from _places(each)
    elif isinstance(value, list):
        for each in value:
            yield from _places(each)
    elif isinstance(value, str):
        words = shlex.split(value) if value.startswith("convex-heads ") else []
        given = [word for before, word in pairwise(words) if before in _PATH_OPTIONS]
        yield from filter(_relative, words[2:4] + given)
        absolute = (word for word in words or [value] if Path(word).is_absolute())
        yield from (word for word in absolute if Path(word).name)


def _relative(word: str) -> bool:
    # Ids stand behind a colon: hub:owner/name.
    return "/" in word and ":" not in word and not Path(word).is_absolute()


def image_input(item: str, allow_urls: bool) -> Path | bytes:
    """An image that is named by a text: a path, or, if that is allowed, an address.

    Raises:
        InputError: an address where none is allowed, or one that gives no answer.

    Example:
        >>> image_input("cat.png", False).name
        'cat.png'
    """
    if not re.match(r"[a-z][a-z0-9+.-]+://", item, re.IGNORECASE):
        return Path(item)
    if not allow_urls:
        raise InputError(
            f"{item[:80]} is an address on a network, and none is fetched unless allow_urls=True "
            "is given: download the image, or allow it"
        )
    if not re.match(r"https?://", item, re.IGNORECASE):
        raise InputError(f"{item[:80]}: only http and https addresses are fetched")
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(item, timeout=_SECONDS) as answer:
            content = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"cannot fetch {item[:80]}: {' '.join(str(reason).split())}") from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"{item[:80]} is larger than {_MOST_BYTES >> 20} MB")
    return content
