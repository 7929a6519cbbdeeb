"""The command line: the process around a verb, its exit code and its one line about an error.

Results go to stdout, progress and notes to stderr. Exit codes: 0 done; 2 misuse or unusable input;
1 failure of the machine around us; 130 interrupted. Anything but 0 comes with one line on stderr,
but for output that nobody reads any more (`convex-heads tasks | head`).
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from extractors.errors import InputError, MachineError, command_line
from tasks.console import rows_in_words
from tasks.verbs import app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: this process's own) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    # All must be in place before the library in question is first imported. JAX would take most
    # of a GPU's memory at once and leave none to torch; tokenizers would warn of forked processes.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "--quiet" in arguments:  # downloads too
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    with command_line(), _own_warnings_in_a_line():
        try:
            code = app(arguments, prog_name="convex-heads", standalone_mode=False)
        except (Exception, KeyboardInterrupt) as error:
            if "--debug" in arguments:
                raise
            code, message = explain(error)
            print(f"error: {message}", file=sys.stderr)
            return code
    if code == 130:
        print(_INTERRUPTED, file=sys.stderr)
    return code if isinstance(code, int) else 0


@contextmanager
def _own_warnings_in_a_line() -> Iterator[None]:
    """A warning of ours is a sentence, without the place in our code; others stay as they are."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, kind: Any, filename: str, *more: Any) -> None:
            if any(home in Path(filename).parents for home in _HOMES):
                print(f"warning: {message}", file=sys.stderr)
            else:
                others(message, kind, filename, *more)

        warnings.showwarning = show
        yield


_HOMES = [Path(__file__).parents[1] / name for name in ("convex_heads", "extractors", "tasks")]
_INTERRUPTED = (
    "interrupted; what was finished, if anything, is kept, and the same command goes on from there"
)


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and the one line that is said about it.

    >>> explain(InputError("reviews.csv is empty"))
    (2, 'reviews.csv is empty')
    """
    if isinstance(error, InputError):
        return 2, _one_line(error)
    if isinstance(error, MachineError):
        return 1, _one_line(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, _INTERRUPTED
    # A GPU that is full: JAX's status code, torch's exception.
    full = "RESOURCE_EXHAUSTED" in str(error) or type(error).__name__ == "OutOfMemoryError"
    if isinstance(error, MemoryError) or full:
        return 1, "out of memory; use fewer rows (--train-rows) or fewer gates (--n-gates)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 1, f"no space left on the disk of {error.filename or 'the output'}"
    # Click's usage errors; typer carries a copy of click whose classes have no public place.
    say: Any = getattr(error, "format_message", None)
    if say is not None:
        said = " ".join(say().split()).rstrip(".")
        more = " See --help" if said.endswith("?") else "; see --help"
        return getattr(error, "exit_code", 2), said + more
    return 1, f"{type(error).__name__}: {_one_line(error)} (--debug shows where)"


def _one_line(error: BaseException) -> str:
    return rows_in_words(" ".join(str(error).split()))


if __name__ == "__main__":
    sys.exit(main())
