"""The same extraction on Ray: shards are encoded by a pool of workers, and written by one process.

The work is cut into shards exactly as without Ray, every shard is encoded whole by one worker, and
this process appends them in their order; so the store has the same key, the same shards and the
same rows. A worker that dies is started anew and its shard encoded again; if this process dies, the
next run continues from the shards that are written. Workers load the backbone themselves and refuse
to encode unless its fingerprint is the one of the store.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors.base import Extractor
from extractors.encode import Chunk, EncodedRows, OnBadRow, encode_rows
from extractors.errors import InputError, MachineError

if TYPE_CHECKING:
    from extractors.fill import Encode

# Ray Data runs small tasks of its own. If the workers took every logical CPU, these would wait for
# ever, and the workers for them.
SPARE_CPUS = 2
DEFAULT_WORKERS = 2
_AHEAD = 2  # shards that wait at each worker


@dataclass(frozen=True)
class RayEngine:
    """Encodes shards on a local or a remote Ray.

    Args:
        make: returns the extractor; called once in every worker, so it must be picklable:
            ``functools.partial(load_extractor, "minilm")``.
        workers: how many.
        threads: CPU threads of each; None divides those of this machine.
        gpus: of each worker.
        address: of a running Ray ("auto" finds it); None starts one here, and stops it.
    """

    make: Callable[[], Extractor]
    workers: int = DEFAULT_WORKERS
    threads: int | None = None
    gpus: float = 0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"--workers {self.workers}: must be at least 1")

    @contextmanager
    def encoder(
        self, extractor: Extractor, chunks: Sequence[Chunk], on_bad_row: OnBadRow
    ) -> Iterator[Encode]:
        """A function with the arguments of ``encode_chunks`` for these very chunks.

        Args:
            extractor: the backbone as this process knows it.
            chunks: all that will be asked for.
            on_bad_row: "fail" or "skip".

        Raises:
            InputError: Ray is not installed, or it has no CPU left beside the workers.
            MachineError: Ray fails; what was appended before is kept.
        """
        ray = import_ray()
        own = not ray.is_initialized()
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.workers)
        if own:
            start = {"address": self.address} if self.address else _local(self.workers * threads)
            with _plain_ray_errors(ray):
                ray.init(logging_level="ERROR", log_to_driver=False, **start)
        try:
            _check_cpus(ray, self.workers * threads)
            results = self._results(ray, extractor, chunks, on_bad_row, threads)

            def encode(
                extractor: Extractor,
                chunks: Iterable[Chunk],
                *,
                on_bad_row: OnBadRow,
                progress: Callable[[int], None] | None,
            ) -> Iterator[tuple[Chunk, EncodedRows]]:
                yield from _paired(chunks, results, progress)

            # Ray prints that a worker died to stdout, where only results belong.
            with closing(results), redirect_stdout(sys.stderr):
                yield encode
        finally:
            if own:
                ray.shutdown()

    def _results(
        self,
        ray: Any,
        extractor: Extractor,
        chunks: Sequence[Chunk],
        on_bad_row: OnBadRow,
        threads: int,
    ) -> Generator[EncodedRows, None, None]:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        # Small arguments only: a worker that is started anew needs them again.
        rows = [ray.put((list(chunk.ids), list(chunk.inputs))) for chunk in chunks]
        plan = ray.put(rows)
        numbers = ray.data.from_items(
            [{"shard": i} for i in range(len(chunks))], override_num_blocks=len(chunks)
        )
        encoded = numbers.map_batches(
            _Worker,
            fn_constructor_kwargs={
                "make": self.make,
                "fingerprint": extractor.fingerprint(),
                "plan": [plan],
                "on_bad_row": on_bad_row,
                "threads": threads,
            },
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(
                size=min(self.workers, len(chunks)), max_tasks_in_flight_per_actor=_AHEAD
            ),
            num_cpus=threads,
            num_gpus=self.gpus or None,
        )
        expected = 0
        with _plain_ray_errors(ray):
            for batch in encoded.iter_batches(batch_size=1, batch_format="numpy"):
                if int(batch["shard"][0]) != expected:
                    raise MachineError("Ray returned shards out of order; run it again")
                expected += 1
                yield _unpack({name: column[0] for name, column in batch.items()})


class _Worker:
    """Lives in a process of Ray: loads the backbone once, encodes a shard at a time."""

    def __init__(
        self,
        make: Callable[[], Extractor],
        fingerprint: Mapping[str, Any],
        plan: Sequence[Any],
        on_bad_row: OnBadRow,
        threads: int,
    ) -> None:
        import ray  # pyright: ignore[reportMissingImports]
        import torch

        torch.set_num_threads(threads)
        self.ray, self.rows = ray, ray.get(plan[0])
        self.on_bad_row: OnBadRow = on_bad_row
        self.extractor = make()
        self.refused = ""
        if self.extractor.fingerprint() != fingerprint:
            self.refused = (
                f"a worker finds another {self.extractor.name} than this machine has: give all "
                "machines the same model files and the same packages"
            )

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        number = int(batch["shard"][0])
        packed: dict[str, Any] = {"shard": number, "kept": b"", "features": b"", "tokens": b""}
        header: dict[str, Any] = {}
        try:
            if self.refused:
                raise MachineError(self.refused)
            ids, inputs = self.ray.get(self.rows[number])
            done = encode_rows(self.extractor, inputs, ids, on_bad_row=self.on_bad_row)
            header = {"skipped": done.skipped, "shape": done.features.shape}
            packed["kept"] = done.kept.astype(np.int64).tobytes()
            packed["features"] = np.ascontiguousarray(done.features).tobytes()
            if done.tokens is not None:
                header["tokens"] = True
                packed["tokens"] = done.tokens.astype(np.int32).tobytes()
        except (InputError, MachineError) as error:
            # An exception would come back wrapped in pages of Ray's own.
            header = {"error": str(error), "misuse": isinstance(error, InputError)}
        packed["header"] = json.dumps(header)
        return {name: [value] for name, value in packed.items()}


def _paired(
    chunks: Iterable[Chunk],
    results: Iterator[EncodedRows],
    progress: Callable[[int], None] | None,
) -> Iterator[tuple[Chunk, EncodedRows]]:
    """Each chunk with its rows.

    Raises:
        MachineError: there are more of the one than of the other.
    """
    for chunk in chunks:
        encoded = next(results, None)
        if encoded is None:
            raise MachineError(
                "Ray ended before all shards were encoded; what was finished is kept, and the same "
                "command continues"
            )
        if progress is not None:
            progress(len(chunk.ids))
        yield chunk, encoded
    if next(results, None) is not None:
        raise MachineError("Ray returned more shards than it was given; run it again")


def _unpack(packed: Mapping[str, Any]) -> EncodedRows:
    header = json.loads(str(packed["header"]))
    if "error" in header:
        raise (InputError if header["misuse"] else MachineError)(header["error"])
    return EncodedRows(
        np.frombuffer(packed["kept"], np.int64).astype(np.intp),
        np.frombuffer(packed["features"], np.float32).reshape(header["shape"]),
        np.frombuffer(packed["tokens"], np.int32) if header.get("tokens") else None,
        header["skipped"],
    )


def import_ray() -> Any:
    """Ray with Ray Data.

    Raises:
        InputError: it is not installed; the message names the extra.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home
    # Ray warns of how Ray Data makes its workers.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "--engine ray needs Ray Data, which is not installed: pip install 'convex-heads[ray]'"
        ) from error
    return ray


def _local(cpus: int) -> dict[str, Any]:
    return {"num_cpus": cpus + SPARE_CPUS, "include_dashboard": False}


def _check_cpus(ray: Any, wanted: int) -> None:
    there = int(ray.cluster_resources().get("CPU", 0))
    if there < wanted + 1:
        raise InputError(
            f"the workers would take {wanted} CPUs and this Ray has {there}: nothing would be left "
            "for Ray's own tasks, and the job would hang; ask for fewer --workers, or start Ray "
            f"with --num-cpus {wanted + SPARE_CPUS}"
        )


@contextmanager
def _plain_ray_errors(ray: Any) -> Iterator[None]:
    try:
        yield
    except (ray.exceptions.RayError, ConnectionError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise MachineError(
            f"Ray failed: {first[-1]}; what was finished is kept, and the same command continues"
        ) from error
