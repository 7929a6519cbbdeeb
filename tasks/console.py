"""How a job tells a person about its progress: on stderr, so that stdout holds results alone.

A job is given a Reporter and says when a stage begins, that n more units are done, and what should
be noted. It does not know whether anyone watches.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from textwrap import wrap
from typing import IO, Any, Protocol

_SECONDS_BETWEEN_LINES = 15.0
_WARM_UP_SECONDS = 5.0
WIDE = 66  # columns of a terminal that has room for a bar


_ROW_ID = re.compile(
    r"(?<![\w/.'-])(?:row )?('?)"
    r"(row|line|train|validation|valid|dev|val|test)/(\d{6,})\1(?!\.?\w|/)"
)


def rows_in_words(text: str) -> str:
    """A sentence with rows called as a person counts them, and not by the ids that files keep.

    >>> rows_in_words("row 'row/000071' cannot be encoded; the first: train/000000 (it is empty)")
    'data row 72 cannot be encoded; the first: data row 1 of train (it is empty)'
    >>> rows_in_words("the first: line/000003 (it is empty)")
    'the first: line 3 (it is empty)'
    """

    def words(found: re.Match[str]) -> str:
        kind, number = found[2], int(found[3])
        if kind == "line":  # these begin with 1
            return f"line {number}"
        return f"data row {number + 1}" + ("" if kind == "row" else f" of {kind}")

    return _ROW_ID.sub(words, text)


class Stage(Protocol):
    """A stage that has begun."""

    def advance(self, n: int = 1) -> None:
        """Say that `n` more units (rows, settings, passes) are done."""
        ...

    def detail(self, text: str) -> None:
        """Show a few words on how it stands, in place of those before."""
        ...


class Reporter(Protocol):
    """Where a job says how far it is."""

    def stage(
        self, name: str, total: int | None, done: int = 0, *, even: bool = True
    ) -> AbstractContextManager[Stage]:
        """Begin a stage of `total` units (None: unknown), of which `done` were done before.

        even: whether one unit takes about as long as another; where not, no time left is told.

        >>> with QuietReporter().stage("encode", total=2) as stage:
        ...     stage.advance(2)
        """
        ...

    def note(self, text: str) -> None:
        """Say one sentence that a person should read."""
        ...


class QuietReporter:
    """Says nothing: for --quiet, and the default in Python."""

    @contextmanager
    def stage(
        self, name: str, total: int | None, done: int = 0, *, even: bool = True
    ) -> Iterator[Stage]:
        """Do nothing."""
        yield self

    def advance(self, n: int = 1) -> None:
        """Do nothing."""

    def detail(self, text: str) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class LineReporter:
    """A line when a stage begins and ends, and every quarter of a minute between: for log files."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr

    @contextmanager
    def stage(
        self, name: str, total: int | None, done: int = 0, *, even: bool = True
    ) -> Iterator[Stage]:
        """Begin a stage."""
        stage, over = _Lines(self._stream, name, total, done, even), threading.Event()
        # What takes minutes between two units is told to be alive too.
        threading.Thread(target=stage.keep_saying, args=(over,), daemon=True).start()
        try:
            yield stage
        finally:
            over.set()
        stage.finish()

    def note(self, text: str) -> None:
        """Print the sentence."""
        print(f"note: {rows_in_words(text)}", file=self._stream, flush=True)


class _Lines:
    def __init__(
        self, stream: IO[str], name: str, total: int | None, done: int, even: bool
    ) -> None:
        self._stream, self._name, self._total, self._even = stream, name, total, even
        self._before, self._done = done, done
        self._began = self._rate_from = self._last = self._advanced = time.monotonic()
        self._moving = False
        self._detail = ""
        before = f", {done} of {total} already done" if done else ""
        self._say(f"begins{before}")

    def advance(self, n: int = 1) -> None:
        self._done += n
        self._advanced = now = time.monotonic()
        self._say_now_and_then(now)
        if not self._moving:
            self._moving = True
            if now - self._began > _WARM_UP_SECONDS:  # a model was loaded: no measure of the rate
                self._rate_from, self._before = now, self._done

    def detail(self, text: str) -> None:
        self._detail = f", {text}"
        self._say_now_and_then(time.monotonic())

    def keep_saying(self, over: threading.Event) -> None:
        while not over.wait(_SECONDS_BETWEEN_LINES):
            self._say_now_and_then(time.monotonic())

    def _say_now_and_then(self, now: float) -> None:
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            times = self._time_left(now) or f", {duration(now - self._began)} so far"
            # Units that are counted when all of them are done say nothing on the way.
            counted = self._total is not None and self._done > 0
            count = f"{self._done}/{self._total}" if counted else ""
            self._say(f"{count}{times}{self._detail}".removeprefix(", "))

    def _time_left(self, now: float) -> str:
        if self._total is None or self._done == self._before or not self._moving or not self._even:
            return ""
        pace = (self._advanced - self._rate_from) / (self._done - self._before)
        seconds = pace * (self._total - self._done) - (now - self._advanced)
        return f", {duration(seconds)} left" if seconds > 0 else ""

    def finish(self) -> None:
        self._say(f"done in {duration(time.monotonic() - self._began)}{self._detail}")

    def _say(self, text: str) -> None:
        print(f"{self._name}: {text}", file=self._stream, flush=True)


class RichReporter:
    """Progress bars with rate and time left, on a terminal."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        from rich.console import Console

        self._console = Console(file=stream if stream is not None else sys.stderr)

    @contextmanager
    def stage(
        self, name: str, total: int | None, done: int = 0, *, even: bool = True
    ) -> Iterator[Stage]:
        """Begin a stage with a bar of its own; the bar stays when it is done."""
        from rich.progress import BarColumn, Progress, TextColumn

        wide = self._console.width >= WIDE
        columns = (
            TextColumn("{task.description:<18}" if wide else "{task.description}"),
            *([BarColumn()] if wide else []),
            _count_column(wide, even),
        )
        progress = Progress(*columns, console=self._console, speed_estimate_period=60)
        task = progress.add_task(name, total=total, completed=done, detail="", at=0.0)
        with progress:
            yield _Bar(progress, task)
            if total is not None:  # no time is left, whatever there might have been to do
                progress.update(task, total=progress.tasks[0].completed)

    def note(self, text: str) -> None:
        """Print the sentence."""
        lines = [f"note: {rows_in_words(text)}"]
        if self._console.is_terminal:  # a file has no width
            # Not rich's folding, which cuts a path that is longer than a line, nor textwrap's at
            # the hyphens of an option.
            lines = wrap(
                lines[0], self._console.width, break_long_words=False, break_on_hyphens=False
            )
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _count_column(wide: bool, even: bool) -> Any:
    """How many of how many, the time so far and the time left, as far as they are known.

    What is left was reckoned when the last unit was done, and goes down from there; when it has
    passed and no other unit is done, it was wrong and is not told.
    """
    from rich.progress import ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            parts = [] if task.total is None else [f"{task.completed:,.0f}/{task.total:,.0f}"]
            if wide or task.total is None or task.finished:
                parts.append(duration(task.elapsed or 0.0))
            if even and not task.finished and task.time_remaining is not None:
                left = task.time_remaining - (task.get_time() - task.fields["at"])
                parts += [f"{duration(left)} left"] if left > 0 else []
            if wide and task.fields["detail"]:
                parts.append(task.fields["detail"])
            return Text(", ".join(parts), no_wrap=True)

    return Count(table_column=Column(no_wrap=True))  # what is too wide is taken from the bar


class _Bar:
    def __init__(self, progress, task) -> None:  # rich's types, not imported at the top
        self._progress, self._task = progress, task

    def advance(self, n: int = 1) -> None:
        self._progress.update(self._task, advance=n, at=self._progress.get_time())

    def detail(self, text: str) -> None:
        self._progress.update(self._task, detail=text)


def make_reporter(quiet: bool = False) -> Reporter:
    """Choose by what stderr is: bars on a terminal, lines in a file, nothing when `quiet`."""
    if quiet:
        return QuietReporter()
    return RichReporter() if sys.stderr.isatty() else LineReporter()


def passes_in_words(passes: float) -> str:
    """Data passes for people.

    >>> passes_in_words(1.0), passes_in_words(1600)
    ('1 pass', '1,600 passes')
    """
    return "1 pass" if f"{passes:.0f}" == "1" else f"{passes:,.0f} passes"


def duration(seconds: float) -> str:
    """Time for people.

    >>> [duration(seconds) for seconds in (0.42, 61, 3700)]
    ['0.4 s', '1 min 01 s', '1 h 01 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
