"""The three ways in which work on raw data can fail, told apart by who can cure them.

Every message is one line: what is wrong, then what would be right. Messages are written with
options as the command line has them, ``--train-rows``; in Python they are read as the names of
parameters, ``train_rows``, unless a command line is being answered (`command_line`). Notes and
warnings are too, by `worded`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# What is between backticks is a command to type, in Python too. A part of a path is no option.
OPTION = re.compile(
    r"`[^`]*`|(?<![\w/\\.-])--(no-)?([a-z]+(?:-[a-z]+)*)(?![\w/\\-]|\.\w)",
)
_answering = False


@contextmanager
def command_line() -> Iterator[None]:
    """While it lasts, messages in this process name options as a command line does."""
    global _answering
    before, _answering = _answering, True
    try:
        yield
    finally:
        _answering = before


def worded(text: str) -> str:
    """`text` as its reader writes options: as the command line has them, or as parameters.

    >>> worded("--drop-leaks leaves such rows out; `convex-heads info --json` tells them")
    'drop_leaks leaves such rows out; `convex-heads info --json` tells them'
    """
    return text if _answering else OPTION.sub(_parameter, text)


class _Sayable(Exception):
    def __str__(self) -> str:
        return worded(super().__str__())


def _parameter(option: re.Match[str]) -> str:
    switched_off, name = option.groups()
    if name is None:
        return option[0]
    return name.replace("-", "_") + ("=False" if switched_off else "")


class InputError(_Sayable, ValueError):
    """Misuse or unusable input: the person who asked can cure it (exit code 2).

    Example:
        >>> from extractors.errors import InputError
        >>> issubclass(InputError, ValueError)
        True
        >>> print(InputError("--train-rows 0: ask for at least one row"))
        train_rows 0: ask for at least one row
    """


class MachineError(_Sayable, RuntimeError):
    """The machine around us failed: disk full, read-only, no network (exit code 1)."""


class BadRow(ValueError):
    """One row that cannot be encoded; the message is the reason, without the row's name.

    Raised by ``Extractor.prepare``. Whoever knows the row's id decides whether this ends the work
    or only skips the row.
    """
