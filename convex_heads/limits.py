"""When a solve stops."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Limits:
    """When a solve stops.

    Attributes:
        tolerance: relative gap to reach, in (0, 1). Default 1e-3.
        max_passes: data passes to spend. Default 1000.
        max_seconds: wall-clock seconds to spend; None for no limit (the default).

    Raises:
        ValueError: a field is out of its range.
    """

    tolerance: float = 1e-3
    max_passes: int = 1000
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.tolerance) and 0 < self.tolerance < 1):
            raise ValueError(
                f"tolerance is a relative gap between 0 and 1, for example 0.01; got "
                f"{self.tolerance!r}"
            )
        if not (is_number(self.max_passes) and self.max_passes >= 1):
            raise ValueError(f"max_passes must be at least 1; got {self.max_passes!r}")
        seconds = self.max_seconds
        if seconds is not None and not (is_number(seconds) and seconds > 0):
            raise ValueError(f"max_seconds must be positive or None; got {seconds!r}")

    def after(self, passes: float, seconds: float) -> Limits:
        """What is left of them after so many passes and seconds; never nothing."""
        left = None if self.max_seconds is None else max(1e-3, self.max_seconds - seconds)
        return replace(self, max_passes=max(1, self.max_passes - int(passes)), max_seconds=left)


def is_number(value: Any) -> bool:
    """Whether an option is a real number, which NaN is not."""
    return isinstance(value, numbers.Real) and not math.isnan(value)
