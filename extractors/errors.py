"""The three ways in which work on raw data can fail, told apart by who can cure them.

Every message is one line: what is wrong, then what would be right.
"""

from __future__ import annotations


class InputError(ValueError):
    """Misuse or unusable input: the person who asked can cure it (exit code 2).

    Example:
        >>> from extractors.errors import InputError
        >>> issubclass(InputError, ValueError)
        True
    """


class MachineError(RuntimeError):
    """The machine around us failed: disk full, read-only, no network (exit code 1)."""


class BadRow(ValueError):
    """One row that cannot be encoded; the message is the reason, without the row's name.

    Raised by ``Extractor.prepare``. Whoever knows the row's id decides whether this ends the work
    or only skips the row.
    """
