"""The templates that pages and model cards are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def templates(*, html: bool) -> Environment:
    """The pages' templates, with values escaped for HTML or taken as they are."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # StrictUndefined: a misspelt name is an error here, not a hole in somebody's report.
    return Environment(
        loader=PackageLoader("tasks.reports"),
        autoescape=html,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
