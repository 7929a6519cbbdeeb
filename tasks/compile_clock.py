"""How much of a stretch of time JAX spent on compiling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_COMPILE_EVENTS = "/jax/core/compile/"


@dataclass
class CompileClock:
    """Seconds spent on tracing, lowering and compiling so far."""

    seconds: float = 0.0


@contextmanager
def compile_clock() -> Iterator[CompileClock]:
    """Count JAX's compile time within the block.

    Example:
        >>> import jax
        >>> with compile_clock() as clock:
        ...     _ = jax.jit(lambda x: x * 3.0 + 1.0)(2.0)
        >>> clock.seconds > 0
        True
    """
    from jax import monitoring

    clock = CompileClock()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith(_COMPILE_EVENTS):
            clock.seconds += duration_secs

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield clock
    finally:
        monitoring.unregister_event_duration_listener(listen)
