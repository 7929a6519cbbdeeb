"""Which torch device was asked for, and whether it is there: said before the work begins."""

from __future__ import annotations

import re

from extractors.errors import MachineError

DEVICE = re.compile(r"cpu|cuda(:\d+)?|mps")


def require_device(device: str | None) -> None:
    """Raises MachineError where the device that was asked for is not on this machine.

    device: None and "cpu" are always there, and torch is not imported for them.

    >>> require_device("cpu")
    """
    if device is None or not device.startswith(("cuda", "mps")):
        return
    try:
        import torch
    except ImportError:
        return  # a backbone without torch has no device; one with it says what is missing
    if device.startswith("mps"):
        if not torch.backends.mps.is_available():
            raise MachineError("--device mps: this machine has no MPS device; leave --device out")
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise MachineError(
            f"--device {device}: no CUDA device here; leave --device out, or say --device cpu"
        )
    number = int(device.partition(":")[2] or 0)
    if number >= found:
        raise MachineError(
            f"--device {device}: CUDA devices here are numbered from 0 to {found - 1}"
        )
