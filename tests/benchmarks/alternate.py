"""CRONOS-AM against the frozen head: test accuracy, and what a round costs.

    python tests/benchmarks/alternate.py sst2 minilm DATA --unfreeze 1 --train-rows 4000
    python tests/benchmarks/alternate.py cifar10 timm:local-dir:FOLDER DATA --train-rows 5000

DATA is the folder with the named tasks. A line for each seed, then means. The last columns are the
median seconds of a round (block half-step, features, head half-step), and of what every step of
full fine-tuning would have cost for the same rows and epochs: a forward and backward pass of the
whole backbone, timed in turn with those of the top blocks alone on the same batches.
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
from tasks.config import FinetuneConfig
from tasks.console import LineReporter
from tasks.data import load_task
from tasks.finetune import run_finetune

_STEPS, _BATCH = 5, 32


def step_ratio(task: str, backbone: str, data: Path, k: int, rows: int) -> float:
    """Forward and backward of the top k blocks over that of all of them: median of pairs."""
    inputs = load_task(task, data_root=data, train_rows=rows).splits["train"].inputs
    inputs = list(inputs[: _STEPS * _BATCH])
    labels = np.zeros(len(inputs), np.int64)
    cuts = [CutBackbone(load_extractor(backbone), k, inputs[:3])]
    cuts.append(CutBackbone(load_extractor(backbone), cuts[0].n_blocks, inputs[:3]))
    cached = [cached_rows(cut, inputs, labels, None) for cut in cuts]
    ratios = []
    for start in range(0, len(inputs), _BATCH):
        batch, seconds = np.arange(start, min(start + _BATCH, len(inputs))), []
        for cut, below in zip(cuts, cached, strict=True):
            began = time.perf_counter()
            with cut.training(dropout=False):
                found = cut.upper(
                    [below.tokens[i] for i in batch], [below.activations(i) for i in batch]
                )
                found.square().mean().backward()
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])


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
        share = step_ratio(given.task, given.backbone, given.data, given.unfreeze, given.train_rows)
        print(f"mean gain {np.mean(gains):+.2f} points; a step costs {share:.2f} of a full one")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
