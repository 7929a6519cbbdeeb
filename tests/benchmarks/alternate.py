"""CRONOS-AM against the frozen head: test accuracy, and what a round costs.

    python tests/benchmarks/alternate.py sst2 minilm DATA --unfreeze 1 --train-rows 4000
    python tests/benchmarks/alternate.py cifar10 timm:local-dir:FOLDER DATA --train-rows 5000

DATA is the folder with the named tasks. A line for each seed: accuracies of the linear probe, the
frozen head and CRONOS-AM in %, and the median seconds of a round (block half-step, features, head
half-step). The last line compares with full fine-tuning: steps of the top blocks alone and of the
whole backbone, timed in turn on the same rows, and a round as a share of an epoch of the latter.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from extractors import load_extractor
from extractors.blocks import CutBackbone
from tasks.activations import cached_rows
from tasks.block_step import BlockOptions, train_blocks
from tasks.config import FinetuneConfig
from tasks.console import LineReporter
from tasks.data import load_task
from tasks.finetune import run_finetune

_STEPS, _BATCH, _REPEATS = 8, 32, 5


def epoch_seconds(task: str, backbone: str, data: Path, k: int, n: int) -> tuple[float, float]:
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
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS):
        for cut, below, found in zip(cuts, cached, seconds, strict=True):
            began = time.perf_counter()
            train_blocks(cut, below, lambda f, _: f.square().mean(), options, seed=0)
            found.append((time.perf_counter() - began) * n / len(inputs))
    return statistics.median(seconds[0]), statistics.median(seconds[1])


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
    print("seed  linear  frozen     AM  gain  rounds  seconds  s/round  gap")
    gains, costs = [], []
    try:
        for seed in range(given.seeds):
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
            by_round: dict[int, float] = {}
            for line in record.rounds:
                by_round[line["round"]] = by_round.get(line["round"], 0) + line["seconds"]
                if given.verbose:
                    print({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()})
            gains.append(100 * (record.test_accuracy - record.frozen_test_accuracy))
            costs.append(statistics.median([by_round[r] for r in by_round if r]))
            print(
                f"{seed:4d}  {100 * record.linear_probe_test_accuracy:6.2f}"
                f"  {100 * record.frozen_test_accuracy:6.2f}  {100 * record.test_accuracy:5.2f}"
                f"  {gains[-1]:+4.1f}  {max(by_round):6d}  {record.seconds['alternate']:7.0f}"
                f"  {costs[-1]:7.1f}  {record.relative_gap:.0e}",
                flush=True,
            )
        error = np.std(gains, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.nan
        print(f"mean gain {np.mean(gains):+.2f} +- {error:.2f} points over seeds")
        top, full = epoch_seconds(
            given.task, given.backbone, given.data, given.unfreeze, record.n_train
        )
        print(
            f"an epoch of the top blocks {top:.1f} s, of all {full:.1f} s, share {top / full:.2f}; "
            f"a round {np.mean(costs):.1f} s, {np.mean(costs) / full:.2f} of an epoch of all"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
