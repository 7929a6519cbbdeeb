"""One raw text, once it is certain that it is one, or the reason why not."""

from __future__ import annotations

from typing import Any

from extractors.errors import BadRow


def checked_text(item: Any) -> str:
    """The text itself.

    Raises:
        BadRow: it is no ``str``, or holds half a surrogate pair, which no tokenizer reads.

    Example:
        >>> checked_text("a fine film")
        'a fine film'
    """
    if not isinstance(item, str):
        raise BadRow(f"text expected, got {type(item).__name__} ({item!r:.40})")
    try:
        item.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"text is not valid Unicode (character {error.start})") from error
    return item
