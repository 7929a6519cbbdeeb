"""Loading without a library's own progress bars and reports, where they say nothing new."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_loading(*, bars: bool) -> Iterator[None]:
    """Keep transformers' report of weights it did not use out of the output, then put things back.

    Weights that lack are refused in words of our own (``check_complete``).

    Args:
        bars: whether progress bars stay: a download shows the Hub's own, and should.
    """
    from transformers.utils import logging

    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
