"""Rows over several devices, in one process or in many: the mesh, where arrays go, the one sum.

Weights are on every device, rows on one each. Within :func:`rows_over` programs are built with
their rows over a mesh, and the same solvers run: what they compute row by row needs no other
device, and the product F'R is summed over the devices once a pass (:func:`sum_blocks`). Beside it
only figures of the search on the span travel, at most a few hundred numbers at a time.

Every block holds rows of every device, so blocks are as many times larger as there are devices.
All processes of a cluster run the same program on the same data; each keeps its own rows on its
devices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "rows"
_MEETINGS = itertools.count()
_A_WEEK = 7 * 24 * 3600 * 1000  # milliseconds
T = TypeVar("T")


def join(coordinator: str, processes: int, process: int) -> None:
    """Makes this process one of several that solve together; before JAX is used otherwise.

    It has all devices of its machine that it sees; JAX_LOCAL_DEVICE_IDS (``0,1``) names fewer.

    Args:
        coordinator: ``host:port`` of process 0, reachable from all others.
        processes: how many there are.
        process: which one this is, from 0.

    Raises:
        ValueError: numbers that do not fit, or an address without a port.
        RuntimeError: the others did not come, or JAX has been used before.
    """
    if not 0 <= process < processes:
        raise ValueError(
            f"process is a number from 0 to {processes - 1} (of {processes} processes); got "
            f"{process}"
        )
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ValueError(f"coordinator is host:port, for example node0:1234; got {coordinator!r}")
    # All is told. Left to look around, JAX would give a process that Slurm or Open MPI has started
    # one GPU of its machine, whatever the number of processes there.
    jax.distributed.initialize(
        coordinator, processes, process, cluster_detection_method="deactivate"
    )


def meet() -> None:
    """Waits for all processes, however long they take.

    What devices do together has to begin within half a minute everywhere (on CPUs), and what
    comes before it may take hours in one process: encoding, reading, checking.
    """
    if jax.process_count() == 1:
        return
    # As JAX's own array serialization does; jax.experimental's barrier is one of the devices.
    from jax._src.distributed import global_state

    client = global_state.client
    assert client is not None
    client.wait_at_barrier(f"convex_heads {next(_MEETINGS)}", _A_WEEK)


def mesh_of(devices: int | str = "all") -> Mesh:
    """A mesh of so many devices, of all processes.

    Args:
        devices: a number, or ``all``.

    Raises:
        ValueError: there are not so many, or some process would be left without.
    """
    found = jax.devices()
    if devices == "all":
        devices = len(found)
    if not isinstance(devices, int) or not 1 <= devices <= len(found):
        raise ValueError(
            f"JAX has {len(found)} {found[0].platform} device{'s'[: len(found) > 1]} here: devices "
            f"is 'all' or at most so many; got {devices!r}"
        )
    if devices < len(found) and jax.process_count() > 1:
        raise ValueError(f"{jax.process_count()} processes use all of their devices: 'all'")
    return Mesh(np.array(found[:devices]), (AXIS,), axis_types=(AxisType.Auto,))


@contextmanager
def rows_over(devices: int | str = "all") -> Iterator[Mesh]:
    """Programs that are built and solved within have their rows over these devices.

    Args:
        devices: a number, or ``all``, those of other processes too.

    Example:
        >>> from convex_heads import ConvexHeadClassifier
        >>> X = np.random.default_rng(0).normal(size=(300, 4))
        >>> with rows_over("all"):
        ...     head = ConvexHeadClassifier(beta=0.1, n_gates=8).fit(X, X[:, 0] * X[:, 1] > 0)
        >>> head.certificate_.relative_gap <= 1e-3
        True
    """
    mesh = mesh_of(devices)
    with jax.set_mesh(mesh):
        yield mesh


def _here() -> Mesh | None:
    """The mesh that rows are over, None without."""
    mesh = jax.sharding.get_mesh()
    return mesh if AXIS in mesh.axis_names else None


def devices_here() -> int:
    """Over how many devices rows go here; 1 outside of :func:`rows_over`."""
    # Known under jit too, other than the devices themselves.
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def place(A: np.ndarray) -> Array:
    """Blocks (B, b, ...) as a JAX array, the rows b over the devices here.

    A process reads the rows of its own devices alone.
    """
    mesh = _here()
    if mesh is None:
        return jnp.asarray(A)
    sharding = NamedSharding(mesh, P(None, AXIS))
    return jax.make_array_from_callback(A.shape, sharding, lambda index: np.asarray(A[index]))


def like_rows(A: Array, axis: int | None) -> Array:
    """A on the devices here: its rows, along that axis, over them; all of it on each for None."""
    mesh = _here()
    if mesh is None:
        return A
    spec = P() if axis is None else P(*[None] * axis, AXIS)
    return jax.device_put(A, NamedSharding(mesh, spec))


def sum_blocks(block: Callable[[T, Any], tuple[T, None]], start: T, blocks: tuple[Array, ...]) -> T:
    """``jax.lax.scan(block, start, blocks)[0]`` where blocks add to a total that starts at zero.

    Over several devices each scans its own rows, and the totals are summed once.

    Args:
        block: (total, rows of one block) -> (total, None).
        start: zeros.
        blocks: arrays (B, b, ...).
    """

    def scanned(start: T, blocks: tuple[Array, ...]) -> T:
        return jax.lax.scan(block, start, blocks)[0]

    mesh = jax.sharding.get_abstract_mesh()
    if AXIS not in mesh.axis_names:
        return scanned(start, blocks)
    return jax.shard_map(
        lambda start, blocks: jax.lax.psum(scanned(start, blocks), AXIS),
        in_specs=(P(), P(None, AXIS)),
        out_specs=P(),
        check_vma=False,
    )(start, blocks)


def to_host(A: Array) -> np.ndarray:
    """All of an array, whichever processes hold it."""
    if A.is_fully_addressable or A.is_fully_replicated:
        return np.asarray(A)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(A, tiled=True))


def agreed(value: T) -> T:
    """What process 0 has in the place of this number or array: clocks and round-off differ."""
    if _here() is None or jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    meet()
    return broadcast_one_to_all(value)
