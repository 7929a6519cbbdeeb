"""Tables and lines as a terminal takes them, and as a file does."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from textwrap import wrap
from typing import IO, TYPE_CHECKING

from tasks.console import WIDE

if TYPE_CHECKING:
    from rich.table import Table


def columns_of(out: IO[str]) -> int | None:
    """Of the terminal; None for a file, which has no width: folding at 80 would cut paths."""
    there = out.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if there else None


def say(text: str, indent: str = "") -> None:
    """A line in a file; on a terminal several, broken between words."""
    columns = columns_of(sys.stdout)
    lines = [text]
    if columns is not None:
        lines = wrap(
            text,
            columns,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    print("\n".join(lines))


def make_table(*columns: str, header: bool = True) -> Table:
    """Make a table without lines; the first column is never folded."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if header else None, show_header=header, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
    return table


def print_table(table: Table, stream: IO[str] | None = None) -> None:
    """Print a table on stdout or into a file."""
    from rich.console import Console

    out = sys.stdout if stream is None else stream
    columns_there = columns_of(out)
    console = Console(
        file=out, width=columns_there or 1000, highlight=False, markup=False, emoji=False
    )
    columns = [(str(c.header), [str(cell) for cell in c.cells]) for c in table.columns]
    words = [[len(w) for cell in (head, *cells) for w in cell.split()] for head, cells in columns]
    if table.show_header and console.width < min(WIDE, sum(max(w, default=0) + 3 for w in words)):
        # Columns too narrow for their words: a line for each cell reads better.
        for row in range(table.row_count):
            for i, (header, cells) in enumerate(columns):
                if i == 0 or cells[row]:
                    print(f"  {header}: {cells[row]}" if i else cells[row], file=out)
        return
    if columns_there is not None:
        console.print(table)
        return
    with console.capture() as drawn:  # for a file, without what a screen alone needs
        console.print(table)
    lines = "\n".join(line.rstrip() for line in drawn.get().split("\n"))
    print(lines.strip("\n"), file=out)


def fitting(header: Sequence[str], lines: Sequence[Sequence[str]]) -> int:
    """How many columns, from the first on, a terminal shows without breaking a figure.

    All where they fit, or where so few do that `print_table` writes a line for each cell.
    """
    columns = columns_of(sys.stdout)
    if columns is None or columns < WIDE:
        return len(header)
    needed = 0
    for shown, (head, *cells) in enumerate(zip(header, *lines, strict=True)):
        needed += max(map(len, (*head.split(), *cells))) + 3
        if needed > columns:
            return shown
    return len(header)
