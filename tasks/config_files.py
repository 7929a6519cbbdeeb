"""Options and where they come from: a TOML file, the command line, and back to both.

A TOML file has one flat key per field; flags on the command line win over the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import shlex
import tomllib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

from extractors.errors import OPTION, InputError
from tasks.config_base import CommonConfig

# What to say when a field without a default is not given.
_MISSING = {
    "data": "say which data: a task's name (`convex-heads tasks` lists them), a file or a folder",
    "path": "say which store or artefact: a folder that `extract` or `fit` wrote",
    "artefact": "say which artefact: the folder that `convex-heads fit` wrote",
    "out": "say where to write, with --out",
}

Config = TypeVar("Config", bound=CommonConfig)


def load_config(
    kind: type[Config], path: Path | None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Build a `kind` from a TOML file (or None) and from `overrides`, which win.

    An override of None means: not given. Values are validated; text such as "64" is converted
    where a number is wanted. Raises InputError for a file that cannot be read, an unknown key
    (with the closest known one), and a value of the wrong kind, which names the file if it is from
    there.

    >>> from tasks.config import FitConfig
    >>> load_config(FitConfig, None, {"data": "digits", "n_gates": "64", "beta": None}).n_gates
    64
    """
    of_file = read_toml(path, kind) if path is not None else {}
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    values = of_file | given
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise InputError(_MISSING[field.name])
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        said = _refusal(error)
        raise InputError(_in_file(said, path, of_file.keys() - given.keys())) from None


def _refusal(error: Any) -> str:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause.args[0]
    name = first["loc"][0]
    wanted = [_wanted(each) for each in error.errors() if each["loc"][0] == name]
    *some, last = dict.fromkeys(wanted)  # of a union, one for each kind
    either = [part for each in some for part in each.split(" or ")]
    must = f"must be {', '.join(either)} or {last}" if either else f"must be {last}"
    if name == "action":  # not an option
        return f"cache {first['input']}: " + must.replace("'", "")
    return f"--{str(name).replace('_', '-')} {first['input']}: {must}"


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "path": "a path"}


def _wanted(error: Any) -> str:
    """What pydantic would have accepted, in words that fit behind an option."""
    kind = str(error["type"]).partition("_")[0]
    return _KINDS.get(kind) or str(error["msg"]).removeprefix("Input should be ")


def _in_file(said: str, path: Path | None, keys: Set[str]) -> str:
    """A refusal of what stands in a file, with its name and the option as it is called there."""
    named: list[str] = []

    def key(option: re.Match[str]) -> str:
        off, name = option[1], (option[2] or "").replace("-", "_")
        if name not in keys:
            return option[0]
        named.append(name)
        return f"{name} = false" if off else name

    there = OPTION.sub(key, said)
    return f"{path}: {there}" if named else said


def read_toml(path: Path, kind: type[CommonConfig]) -> dict[str, Any]:
    """The keys and values of a flat TOML file, after checking that `kind` has such fields."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read --config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    values = {key.replace("-", "_"): value for key, value in values.items()}
    known = [field.name for field in dataclasses.fields(kind)]
    for key, value in values.items():
        if isinstance(value, dict):
            raise InputError(f"{path}: [{key}] is a table; write options without one, one a line")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"
            raise InputError(f"{path}: unknown option '{key}'{hint}")
    return values


def to_toml(config: CommonConfig) -> str:
    """The options as a TOML file that `load_config` reads back to an equal object.

    Options that are None are left out, since TOML has no such value.

    >>> from tasks.config import ExtractConfig
    >>> print(to_toml(ExtractConfig(data="imdb")), end="")
    seed = 0
    data = "imdb"
    classes = []
    on_bad_row = "fail"
    long_text = "truncate"
    pairs = "text"
    autocast = "none"
    quantize = "none"
    engine = "local"
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return "".join(
        f"{key} = {_toml(value)}\n" for key, value in values.items() if value is not None
    )


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        # A TOML basic string is a JSON string, except that DEL must be escaped too.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


_ARGUMENTS = ("artefact", "data")  # not options, and in this order


def as_command(verb: str, config: CommonConfig) -> str:
    """The command line that these options come from; what has its default value is left out.

    >>> from tasks.config import FitConfig
    >>> as_command("fit", FitConfig(data="my reviews.csv", backbone="minilm", n_gates=32))
    "convex-heads fit 'my reviews.csv' --backbone minilm --n-gates 32"
    """
    words = ["convex-heads", verb]
    words += [getattr(config, name) for name in _ARGUMENTS if hasattr(config, name)]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = field.name.replace("_", "-")
        if field.name in _ARGUMENTS or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif field.name in ("backbone", "classes") and isinstance(value, tuple):
            for each in value:  # a class may have a comma in its name
                words += [f"--{name}", each]
        elif isinstance(value, tuple):
            words += [f"--{name}", ",".join(map(str, value))]
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)
