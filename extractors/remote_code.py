"""Whose code a model that may run code names: only its own is executed.

A configuration can name a class of another repository (``OWNER/NAME--module.Class``), which the
libraries would download and run under the trust that was given to this one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extractors.errors import InputError
from extractors.fingerprint import files_below

# Large, and nothing in them is ever imported.
_DATA = {"tokenizer.json", "vocab.json"}


def refuse_foreign_code(folder: Path, own: str) -> None:
    """Read the configurations of a model that may run code, before a library does.

    Args:
        folder: the model's files.
        own: the model as the libraries are given it, a folder or ``owner/name``.

    Raises:
        InputError: a class of another repository is named, or weights of one, whose code would be
            trusted too.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     path = Path(name, "config.json")
        ...     _ = path.write_text('{"auto_map": {"AutoModel": "b/c--mod.M"}}')
        ...     refuse_foreign_code(Path(name), "a/b")
        Traceback (most recent call last):
        ...
        extractors.errors.InputError: a/b names code of another repository, b/c (in config.json), \
which is not executed: load a copy of the model that carries its own code
    """
    for path in sorted(files_below(folder)):
        if path.suffix != ".json" or path.name in _DATA or path.name.endswith(".index.json"):
            continue
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue  # whoever needs this file will say so
        for other in _repositories(content, modules=path.name == "modules.json"):
            if other != own:
                raise InputError(
                    f"{own} names code of another repository, {other} (in {path.name}), which is "
                    "not executed: load a copy of the model that carries its own code"
                )
        if path.name == "adapter_config.json" and isinstance(content, dict):
            base = content.get("base_model_name_or_path")
            if base and base != own:
                raise InputError(
                    f"{own} is an adapter of another model, {base}, whose code would be trusted "
                    "with it: load a copy of the model with the adapter merged into it"
                )


def _repositories(value: Any, *, modules: bool, mapped: bool = False) -> Iterator[str]:
    """The repositories named in class references below a value."""
    if isinstance(value, str):
        if mapped and "--" in value:
            yield value.rpartition("--")[0]
    elif isinstance(value, list):
        for one in value:
            yield from _repositories(one, modules=modules, mapped=mapped)
    elif isinstance(value, dict):
        for key, one in value.items():
            named = mapped or key == "auto_map" or (modules and key == "type")
            yield from _repositories(one, modules=modules, mapped=named)
