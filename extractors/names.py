"""Backbone names: ``source:id@revision``, and refusals that offer what was probably meant.

    st:ID        a sentence-transformers text model, from the Hub or a folder (``st:./my-model``)
    hf:ID        a transformers model, text or image by its config.json; from the Hub or a folder
    minilm       all-MiniLM-L6-v2 as bundled in a Python package: real weights, no network
    timm:ID      a timm image model; also ``timm:local-dir:PATH`` and ``timm:hf-hub:OWNER/NAME``
    toy:KIND     tiny random features for tests: ``toy:text``, ``toy:image``, ``toy:text-64``
    precomputed:DIM  rows that are feature vectors already (``precomputed`` on the command line)
    module:NAME  a torch module of one's own, made in Python (see ``module.py``)

A folder alone (``./my-model``) is what its files say: modules.json is sentence-transformers', a
config.json with a model_type is transformers', one with an architecture is timm's.

A folder is made absolute; a revision is a branch, a tag or a commit of a Hub repository.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from extractors.errors import InputError

SOURCES = ("st", "hf", "timm", "minilm", "toy", "precomputed", "module")
_MEANING = {
    "st": "a sentence-transformers text model",
    "hf": "a transformers text or image model",
    "timm": "a timm image model",
}
_LOCAL_DIR = "local-dir:"
TOY_DIM = 32  # features of a toy backbone whose name does not say how many


@dataclass(frozen=True)
class BackboneName:
    """A parsed backbone name; ``str()`` gives the canonical form back.

    Attributes:
        source: one of ``SOURCES``.
        id: what the source calls the model, without revision; "" for ``minilm``. A folder is kept
            as an absolute path, so that the name means the same from everywhere.
        revision: branch, tag or commit on the Hub, or None for the default branch.
    """

    source: str
    id: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        name = f"{self.source}:{self.id}" if self.id else self.source
        return f"{name}@{self.revision}" if self.revision else name

    @property
    def folder(self) -> Path | None:
        """The local directory that is meant, or None for a model known by its id."""
        if self.source == "timm" and self.id.startswith(_LOCAL_DIR):
            return Path(self.id.removeprefix(_LOCAL_DIR))
        if self.source in ("st", "hf") and Path(self.id).is_absolute():
            return Path(self.id)
        return None

    @property
    def slug(self) -> str:
        """Letters, digits, dot, dash and underscore only, at most 60: for names of folders."""
        short = f"{self.source}-{self.folder.name}" if self.folder else str(self)
        return re.sub(r"[^A-Za-z0-9._-]+", "-", short).strip("-.")[:60]


def parse_name(name: str) -> BackboneName:
    """Read ``source:id[@revision]``.

    Args:
        name: what the user wrote. ``~`` and relative folders are resolved.

    Raises:
        InputError: no source, an unknown one, an id or a folder that cannot be meant.

    Example:
        >>> parse_name("st:sentence-transformers/all-mpnet-base-v2@main")
        BackboneName(source='st', id='sentence-transformers/all-mpnet-base-v2', revision='main')
        >>> str(parse_name("toy:image"))
        'toy:image-32'
        >>> parse_name("bert-base-uncased")
        Traceback (most recent call last):
        ...
        extractors.errors.InputError: 'bert-base-uncased' does not say where the backbone comes \
from: write 'st:bert-base-uncased' (a sentence-transformers text model), \
'hf:bert-base-uncased' (a transformers text or image model) or 'timm:bert-base-uncased' (a timm \
image model)
    """
    text = name.strip()
    source, colon, rest = text.partition(":")
    if not text.isprintable():
        raise InputError(f"{text!a} is no backbone name: it has unprintable characters")
    if text == "minilm":
        return BackboneName("minilm")
    if not colon:
        if text and (_looks_like_path(text) or _is_folder(text)):
            return parse_name(f"{_source_of_folder(text)}:{text}")
        raise InputError(_no_source(text))
    if source not in SOURCES:
        raise InputError(_unknown_source(text, source, rest))
    if source == "minilm":
        raise InputError(f"'{text}': write 'minilm' alone, it names one fixed bundled model")
    if not rest:
        raise InputError(f"'{text}' names no model: write '{source}:ID'")
    if source == "toy":
        return BackboneName("toy", _toy_id(rest))
    if source == "precomputed":
        from extractors.precomputed import canonical_width

        return BackboneName("precomputed", canonical_width(rest))
    if source == "module":
        if not re.fullmatch(r"[\w.-]+", rest):
            raise InputError(f"'{text}': a module's name has letters, digits, dots and dashes")
        return BackboneName("module", rest)
    return _parse_timm(rest) if source == "timm" else _parse_hub_or_folder(source, rest)


def _toy_id(text: str) -> str:
    """``text`` -> ``text-32``; refuses everything but ``text[-DIM]`` and ``image[-DIM]``.

    Raises:
        InputError: another kind, or a width outside 2..4096.

    Example:
        >>> _toy_id("image")
        'image-32'
    """
    match = re.fullmatch(r"(text|image)(?:-(\d+))?", text)
    if match is None:
        raise InputError(f"'toy:{text}': the toy backbones are 'toy:text[-DIM]', 'toy:image[-DIM]'")
    dim = int(match[2] or TOY_DIM)
    if not 2 <= dim <= 4096:
        raise InputError(f"'toy:{text}': DIM must lie between 2 and 4096")
    return f"{match[1]}-{dim}"


def _parse_hub_or_folder(source: str, rest: str) -> BackboneName:
    if _looks_like_path(rest):
        files = "modules.json or config.json" if source == "st" else "config.json"
        return BackboneName(source, str(_existing_folder(f"{source}:", rest, files)))
    model, revision = _split_revision(f"{source}:", rest)
    if not _is_id(model):
        raise InputError(
            f"'{source}:{rest}' is neither a model id ('{source}:owner/name') nor an existing "
            f"folder ('{source}:./folder')"
        )
    # sentence-transformers' own short names live under its organisation on the Hub.
    return BackboneName(source, model, revision)


def _parse_timm(rest: str) -> BackboneName:
    if rest.startswith(_LOCAL_DIR) or _looks_like_path(rest):
        folder = _existing_folder(
            "timm:local-dir:", rest.removeprefix(_LOCAL_DIR), "config.json and model.safetensors"
        )
        return BackboneName("timm", f"{_LOCAL_DIR}{folder}")
    model, revision = _split_revision("timm:", rest)
    hub, colon, repository = model.partition(":")
    if colon and (hub not in {"hf-hub", "hf_hub"} or not repository):
        raise InputError(
            f"'timm:{rest}': timm reads 'timm:NAME', 'timm:hf-hub:OWNER/NAME' and "
            "'timm:local-dir:PATH'"
        )
    if not _is_id(repository if colon else model):
        raise InputError(f"'timm:{rest}' is no timm model name (letters, digits, dots, one slash)")
    if colon:
        model = f"hf-hub:{repository}"
    elif "/" in model:
        # The Hub's own spelling of timm models; timm itself wants the prefix.
        model = f"hf-hub:{model}"
    return BackboneName("timm", model, revision)


def _is_id(model: str) -> bool:
    # A cache keeps a model in a folder of its name, and no folder's is longer than 255 bytes.
    return len(model) <= 200 and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) is not None


def _split_revision(prefix: str, rest: str) -> tuple[str, str | None]:
    model, at, revision = rest.partition("@")
    if at and not (model and re.fullmatch(r"[\w./-]+", revision)):
        raise InputError(f"'{prefix}{rest}': write '{prefix}ID@REVISION'")
    return model, revision or None


def _looks_like_path(text: str) -> bool:
    return (
        text.startswith(("/", "./", "../", "~", ".\\", "..\\"))
        or text in {".", ".."}
        # Without such a mark it may be an id as well: a folder of that name has to hold a model.
        or any(_is_file(Path(text, file)) for file in ("config.json", "modules.json"))
    )


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except OSError:  # longer than the name of a folder can be
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _existing_folder(prefix: str, text: str, contents: str) -> Path:
    folder = Path(os.path.expanduser(text))
    if not _is_folder(str(folder)):
        raise InputError(f"'{prefix}{text}': there is no folder {text}; it should hold {contents}")
    return folder.resolve()


def _source_of_folder(text: str) -> str:
    folder = Path(os.path.expanduser(text))
    if not _is_folder(str(folder)):
        raise InputError(f"there is no folder {text}, which should hold a backbone's config.json")
    if (folder / "modules.json").is_file():
        return "st"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if isinstance(config, dict):
        for key, source in (("model_type", "hf"), ("architecture", "timm")):
            if key in config:
                return source
    raise InputError(
        f"the folder {text} holds no backbone: neither modules.json nor a config.json with a "
        "model_type or an architecture"
    )


def _no_source(text: str) -> str:
    close = difflib.get_close_matches(text.lower(), SOURCES, n=1, cutoff=0.75)
    if close:
        example = "minilm" if close[0] == "minilm" else f"{close[0]}:ID"
        return f"unknown backbone '{text}': did you mean '{example}'?"
    if not text or re.search(r"\s", text):
        return f"'{text}' is no backbone name: write 'minilm', 'st:ID', 'hf:ID' or 'timm:ID'"
    *most, last = (f"'{source}:{text}' ({meaning})" for source, meaning in _MEANING.items())
    return f"'{text}' does not say where the backbone comes from: write {', '.join(most)} or {last}"


def _unknown_source(text: str, source: str, rest: str) -> str:
    close = difflib.get_close_matches(source.lower(), SOURCES, n=2, cutoff=0.5)
    offers = [s if s == "minilm" else f"{s}:{rest}" for s in close] or [
        f"{s}:{rest}" for s in _MEANING
    ]
    meant = " or ".join(f"'{offer}'" for offer in offers)
    return (
        f"unknown backbone source '{source}' in '{text}': did you mean {meant}? "
        f"(sources: {', '.join(SOURCES)})"
    )
