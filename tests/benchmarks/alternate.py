"""CRONOS-AM against the frozen head: test accuracy, and what a round costs.

    python tests/benchmarks/alternate.py sst2 minilm DATA --unfreeze 1 --train-rows 4000
    python tests/benchmarks/alternate.py cifar10 timm:local-dir:FOLDER DATA --train-rows 5000

DATA is the folder with the named tasks. A line for each seed: accuracies of the linear probe, the
frozen head and CRONOS-AM in %, and of a round (block half-step, features, head half-step) the
median seconds and processor seconds, and those of its head half-step (or of the solve that kept its
blocks). The last lines compare with full fine-tuning: steps of the top blocks alone and of the
whole backbone, timed in turn on the same rows, and a round as a share of an epoch of the latter, by
the clock and in processor seconds, which other jobs on the machine change little.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from extractors import load_extractor
from extractors.blocks import CutBackbone
from tasks.config import FinetuneConfig
from tasks.console import LineReporter
from tasks.cronos_am.activations import cached_rows
from tasks.cronos_am.block_step import BlockOptions, train_blocks
from tasks.cronos_am.checkpoint import State
from tasks.cronos_am.finetune import run_finetune
from tasks.cronos_am.half_steps import HalfSteps
from tasks.data.load import load_task

_STEPS, _BATCH, _REPEATS = 8, 32, 5


class Seconds(NamedTuple):
    """By the clock, and of all processors."""

    clock: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        return cls(time.perf_counter(), time.process_time())

    def since(self, began: Seconds) -> Seconds:
        return Seconds(self.clock - began.clock, self.cpu - began.cpu)

    @classmethod
    def median(cls, found: list[Seconds]) -> Seconds:
        return cls(*map(statistics.median, zip(*found, strict=True)))


class Rounds:
    """Seconds of every round of the alternations within :meth:`timed`, and of its head solves."""

    def __init__(self) -> None:
        self.whole: dict[int, list[Seconds]] = {}
        self.solves: dict[int, list[Seconds]] = {}

    @contextmanager
    def timed(self) -> Iterator[None]:
        original = HalfSteps.block_half, HalfSteps.head_half, HalfSteps._solve

        def kept(method: Callable[..., Any], into: dict[int, list[Seconds]]) -> Any:
            def wrapped(run: HalfSteps, state: State, *given: Any) -> Any:
                number, began = state.round + (state.next_half == "block"), Seconds.now()
                try:
                    return method(run, state, *given)
                finally:
                    into.setdefault(number, []).append(Seconds.now().since(began))

            return wrapped

        try:
            HalfSteps.block_half = kept(original[0], self.whole)
            HalfSteps.head_half = kept(original[1], self.whole)
            HalfSteps._solve = kept(original[2], self.solves)
            yield
        finally:
            HalfSteps.block_half, HalfSteps.head_half, HalfSteps._solve = original

    def medians(self) -> tuple[Seconds, Seconds]:
        """Of a round, and of the solves in it."""

        def median(of: dict[int, list[Seconds]]) -> Seconds:
            sums = [Seconds(*map(sum, zip(*parts, strict=True))) for parts in of.values()]
            return Seconds.median(sums)

        return median(self.whole), median(self.solves)


def epoch_seconds(task: str, backbone: str, data: Path, k: int, n: int) -> tuple[Seconds, Seconds]:
    """Training seconds of an epoch of n rows: through the top k blocks, and through all of them.

    Medians of steps that were timed in turn, on the first rows.
    """
    inputs = load_task(task, data_root=data, train_rows=n).splits["train"].inputs
    inputs = list(inputs[: _STEPS * _BATCH])
    labels = np.zeros(len(inputs), np.int64)
    cuts = [CutBackbone(load_extractor(backbone), k, inputs[:3])]
    cuts.append(CutBackbone(load_extractor(backbone), cuts[0].n_blocks, inputs[:3]))
    cached = [cached_rows(cut, inputs, labels, None) for cut in cuts]
    options = BlockOptions(rate=1e-6, batch_size=_BATCH)
    seconds: tuple[list[Seconds], list[Seconds]] = ([], [])
    times = n / len(inputs)
    for _ in range(_REPEATS):
        for cut, below, found in zip(cuts, cached, seconds, strict=True):
            began = Seconds.now()
            train_blocks(cut, below, lambda f, _: f.square().mean(), options, seed=0)
            found.append(Seconds(*(times * s for s in Seconds.now().since(began))))
    return Seconds.median(seconds[0]), Seconds.median(seconds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("backbone")
    parser.add_argument("data", type=Path)
    parser.add_argument("--unfreeze", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--train-rows", type=int, default=4000)
    parser.add_argument("--test-rows", type=int)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    print("seed  linear  frozen     AM  gain  rounds  seconds  s/round  CPU s  of head  gap")
    gains, costs = [], []
    try:
        for seed in range(given.seeds):
            rounds = Rounds()
            with rounds.timed():
                record = run_finetune(
                    FinetuneConfig(
                        data=given.task,
                        backbone=given.backbone,
                        data_root=given.data,
                        cache_dir=given.cache_dir or folder / "cache",
                        out=folder / f"model-{seed}",
                        unfreeze=given.unfreeze,
                        rounds=given.rounds,
                        learning_rate=given.learning_rate,
                        train_rows=given.train_rows,
                        test_rows=given.test_rows,
                        leak_check=False,
                        seed=seed,
                    ),
                    reporter=LineReporter(),
                )
            for line in record.rounds if given.verbose else []:
                print({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()})
            gains.append(100 * (record.test_accuracy - record.frozen_test_accuracy))
            whole, head = rounds.medians()
            costs.append(whole)
            print(
                f"{seed:4d}  {100 * record.linear_probe_test_accuracy:6.2f}"
                f"  {100 * record.frozen_test_accuracy:6.2f}  {100 * record.test_accuracy:5.2f}"
                f"  {gains[-1]:+4.1f}  {len(rounds.whole):6d}  {record.seconds['alternate']:7.0f}"
                f"  {whole.clock:7.1f}  {whole.cpu:5.1f}  {head.cpu:7.1f}"
                f"  {record.relative_gap:.0e}",
                flush=True,
            )
        error = np.std(gains, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
        print(f"mean gain {np.mean(gains):+.2f} +- {error:.2f} points over seeds")
        top, full = epoch_seconds(
            given.task, given.backbone, given.data, given.unfreeze, record.n_train
        )
        for name, i in (("by the clock", 0), ("processor", 1)):
            cost = np.mean([whole[i] for whole in costs])
            print(
                f"seconds ({name}): an epoch of the top blocks {top[i]:.1f}, of all {full[i]:.1f}, "
                f"share {top[i] / full[i]:.2f}; a round {cost:.1f}, {cost / full[i]:.2f} of an "
                "epoch of all"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
