"""CRONOS-AM against the scheme that was published: seconds to the same test accuracy.

    python tests/benchmarks/published_am.py sst2 minilm DATA --unfreeze 1
    python tests/benchmarks/published_am.py cifar10 timm:local-dir:FOLDER DATA --unfreeze 2

The published scheme (Feng, Frangella & Pilanci 2024, section 5) trains the blocks by an optimiser
that finds its own rate (D-adaptation; here Prodigy, its successor, one run through all steps) and
solves the head from scratch every few steps; nothing is rolled back. Here its head is the same
convex program, solved to `--gap` from zero weights by the same solver, so that what is compared is
the scheme. Both start from the same frozen head, whose time counts for neither. Test rows are
measured with the clock stopped, and choose nothing but the accuracy that both are asked for: the
lower of the two best ones.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from convex_heads import ConvexHeadClassifier
from convex_heads.decode import Network, TwoLayer
from convex_heads.limits import Limits
from convex_heads.losses import targets
from convex_heads.warm import solve_again
from extractors import load_extractor
from extractors.blocks import CutBackbone
from tasks.cronos_am.activations import CachedRows, cached_rows
from tasks.cronos_am.block_step import BlockOptions, features_of, train_blocks
from tasks.cronos_am.half_steps import HalfSteps, Joint
from tasks.data.load import load_task
from tasks.torch_head import TorchHead, row_losses


class Point(NamedTuple):
    """Test accuracy after so many seconds of training."""

    seconds: float
    accuracy: float


class Clock:
    """Seconds, but for those spent measuring."""

    def __init__(self) -> None:
        self._began, self._measuring = time.monotonic(), 0.0

    def seconds(self) -> float:
        return time.monotonic() - self._began - self._measuring

    def measure(self, accuracy: Callable[[], float]) -> Point:
        began, seconds = time.monotonic(), self.seconds()
        found = accuracy()
        self._measuring += time.monotonic() - began
        return Point(seconds, found)


class Rows(NamedTuple):
    """Rows below the cut."""

    train: CachedRows
    validation: CachedRows
    test: CachedRows


def ours(joint: Joint, test: CachedRows, rounds: int, epochs: float, seed: int) -> list[Point]:
    """Accuracy of what is best by validation after each half-step of so many rounds."""
    options = BlockOptions(epochs=epochs)
    run = HalfSteps(joint, options, Limits(), seed, None)
    state = run.begin()
    clock, cut = Clock(), joint.cut

    def accuracy() -> float:
        now = cut.state()
        cut.restore(dict(state.best.blocks))
        X = features_of(cut, test) * state.usable
        cut.restore(now)
        return correct(state.best.network, X, test.labels)

    points = [clock.measure(accuracy)]
    for _ in range(rounds):
        run.block_half(state, np.inf)
        points.append(clock.measure(accuracy))
        if state.next_half == "head":
            run.head_half(state)
            points.append(clock.measure(accuracy))
    return points


def published(
    joint: Joint, test: CachedRows, every: int, most: float, gap: float, seed: int
) -> list[Point]:
    """Accuracy after each solve of the head, for so many seconds."""
    cut, labels = joint.cut, torch.from_numpy(joint.train.labels)
    state = HalfSteps(joint, BlockOptions(), Limits(), seed, None).begin()
    network, usable = state.now.network, torch.from_numpy(state.usable)
    assert isinstance(network, Network)
    Y = targets(joint.train.labels, network.loss, joint.n_classes)
    blank = dataclasses.replace(network, weights=np.zeros_like(network.weights))
    clock, steps = Clock(), 0

    def accuracy() -> float:
        return correct(network, features_of(cut, test) * state.usable, test.labels)

    points = [clock.measure(accuracy)]
    head = TorchHead(network).requires_grad_(False)

    def loss(features: torch.Tensor, batch: np.ndarray) -> torch.Tensor:
        nonlocal head, network, steps
        if steps and steps % every == 0:
            X = features_of(cut, joint.train) * state.usable
            again = solve_again(
                blank, state.gates, X, Y, np.ones(len(X)), state.beta, limits=Limits(tolerance=gap)
            )
            assert isinstance(again.network, Network)
            network, head = again.network, TorchHead(again.network).requires_grad_(False)
            points.append(clock.measure(accuracy))
            if clock.seconds() > most:
                raise TimeoutError
        steps += 1
        z = head.scores(features * usable)
        return row_losses(z, labels[torch.from_numpy(batch)], network.loss).mean()

    with contextlib.suppress(TimeoutError):
        train_blocks(
            cut, joint.train, loss, BlockOptions(optimizer="prodigy", epochs=1e6), seed=seed
        )
    return points


def correct(network: TwoLayer, X: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows that are answered right."""
    return float(np.mean(network.probabilities(X).argmax(axis=1) == labels))


def first(points: list[Point], accuracy: float) -> float:
    """Seconds until it is reached."""
    return next(p.seconds for p in points if p.accuracy >= accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("backbone")
    parser.add_argument("data", type=Path)
    parser.add_argument("--unfreeze", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=BlockOptions.epochs, help="of a round")
    parser.add_argument("--every", type=int, nargs="+", default=[20, 100], help="steps of a head")
    parser.add_argument(
        "--times", type=float, default=3.0, help="of our seconds, for the published"
    )
    parser.add_argument("--gap", type=float, default=1e-2, help="of the published scheme's heads")
    parser.add_argument("--train-rows", type=int)
    parser.add_argument("--test-rows", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    print("seed  scheme                   best  heads  seconds   both reach  seconds to it  ratio")
    for seed in range(given.seeds):
        dataset = load_task(
            given.task,
            data_root=given.data,
            train_rows=given.train_rows,
            test_rows=given.test_rows,
            seed=seed,
        )
        parts = [dataset.splits[name] for name in ("train", "validation", "test")]
        cut = CutBackbone(
            load_extractor(given.backbone, device="cpu"), given.unfreeze, list(parts[0].inputs[:3])
        )
        rows = Rows(*(cached_rows(cut, part.inputs, part.labels, None) for part in parts))

        def fit_head(X: np.ndarray, V: np.ndarray) -> ConvexHeadClassifier:
            head = ConvexHeadClassifier(penalty="group", random_state=seed)  # noqa: B023
            labels = rows.train.labels, rows.validation.labels  # noqa: B023
            return head.fit(X, labels[0], X_val=V, y_val=labels[1])

        joint = Joint(cut, rows.train, rows.validation, len(dataset.classes), fit_head)
        frozen = cut.state()
        mine = ours(joint, rows.test, given.rounds, given.epochs, seed)
        for every in given.every:
            cut.restore(frozen)
            most = given.times * mine[-1].seconds
            theirs = published(joint, rows.test, every, most, given.gap, seed)
            reach = min(max(p.accuracy for p in points) for points in (mine, theirs))
            own = first(mine, reach)
            for name, points in (("ours", mine), (f"published, every {every}", theirs)):
                seconds = first(points, reach)
                print(
                    f"{seed:4d}  {name:20s}  {100 * max(p.accuracy for p in points):7.2f}"
                    f"  {len(points):5d}  {points[-1].seconds:7.0f}  {100 * reach:11.2f}"
                    f"  {seconds:13.1f}  {seconds / own if own else np.inf:5.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
