"""What the options of every verb share, and the checks that most of them need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from extractors.errors import InputError
from tasks.devices import DEVICE

OnBadRow = Literal["fail", "skip"]


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Options of every verb. cache_dir: None means CONVEX_HEADS_CACHE, then the usual place."""

    cache_dir: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("--seed", self.seed, 0)
        check_device(getattr(self, "device", None))  # of the verbs that have a backbone


def number(value: float) -> str:
    """As a person types it.

    >>> number(7.0), number(0.25)
    ('7', '0.25')
    """
    return str(value).removesuffix(".0")


def at_least(option: str, value: int | None, least: int, more: str = "") -> None:
    """Raises InputError for a number below `least`; None was not given and passes.

    >>> at_least("--seeds", 0, 1)
    Traceback (most recent call last):
    extractors.errors.InputError: seeds 0: must be at least 1
    """
    if value is not None and value < least:
        raise InputError(f"{option} {value}: must be at least {least}{more}")


def above_zero(option: str, value: float | None, more: str = "") -> None:
    """Raises InputError for a number that is not above 0, or not finite; None passes."""
    # `not >` rather than `<=`, so that NaN is refused too.
    if value is not None and not 0 < value < float("inf"):
        raise InputError(f"{option} {number(value)}: must be above 0{more}")


def check_device(device: str | None) -> None:
    """Raises InputError for what is no name of a device, also where none will be used.

    >>> check_device("gpu")
    Traceback (most recent call last):
    extractors.errors.InputError: device gpu: must be cpu, cuda, cuda:N (counted from 0) or mps
    """
    if device is not None and not DEVICE.fullmatch(device):
        raise InputError(f"--device {device}: must be cpu, cuda, cuda:N (counted from 0) or mps")


def check_gap(tolerance: float | None) -> None:
    """Raises InputError for a --tolerance that is no relative duality gap; None passes.

    >>> check_gap(5.0)
    Traceback (most recent call last):
    extractors.errors.InputError: tolerance 5: must be below 1 (a relative duality gap)
    """
    above_zero("--tolerance", tolerance, " (a relative duality gap)")
    if tolerance is not None and tolerance >= 1:
        raise InputError(
            f"--tolerance {number(tolerance)}: must be below 1 (a relative duality gap)"
        )
