"""Which devices a head is fitted on, and how the processes of a cluster take their turns.

Every process runs the whole command; process 0 alone fills the store first, prints and writes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from extractors.errors import InputError, MachineError
from tasks.config import FitConfig


def join_cluster(config: FitConfig) -> None:
    """Finds the other processes and the devices, where any are named; before JAX is used.

    Raises:
        InputError: an address or numbers that cannot be, or more devices than there are.
        MachineError: the others did not come.
    """
    if config.coordinator is not None:
        _join(config)
    _check_devices(config)


def _join(config: FitConfig) -> None:
    from convex_heads import sharding

    assert config.coordinator is not None
    assert config.processes is not None and config.process is not None
    try:
        sharding.join(config.coordinator, config.processes, config.process)
    except ValueError as error:
        raise InputError(str(error)) from error
    except RuntimeError as error:
        raise MachineError(
            f"process {config.process} of {config.processes} did not find the others at "
            f"{config.coordinator} ({str(error).splitlines()[0]}): start all of them with the same "
            "--coordinator, at an address of process 0's machine that the others reach"
        ) from error
    _keep_stdout()


def _keep_stdout() -> None:
    """JAX's transport between CPUs prints on file 1: from now on that is stderr, print() is not."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    os.dup2(2, 1)


@contextmanager
def after_the_first(config: FitConfig) -> Iterator[None]:
    """Process 0 goes first, the others when it is through: one of them writes the store."""
    if config.coordinator is None:
        yield
        return
    from convex_heads.sharding import meet

    if config.process:
        meet()
    yield
    if not config.process:
        meet()


@contextmanager
def chosen_devices(config: FitConfig) -> Iterator[None]:
    """Programs that are built and solved within have their rows over the devices of `--devices`."""
    if config.devices is None and config.coordinator is None:
        yield
        return
    from convex_heads import sharding

    with sharding.rows_over(config.devices or "all"):
        yield


def _check_devices(config: FitConfig) -> None:
    if config.devices is None and config.coordinator is None:
        return
    from convex_heads import sharding

    try:
        sharding.mesh_of(config.devices or "all")
    except ValueError as error:
        raise InputError(f"--devices {config.devices}: {error}") from error
