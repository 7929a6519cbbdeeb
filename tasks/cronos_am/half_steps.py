"""The half-steps of CRONOS-AM: blocks trained through the head, the head solved on their features.

What is kept never raises the joint objective, the rest is rolled back; validation rows judge what
was kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from convex_heads import ConvexHeadClassifier
from convex_heads.decode import TwoLayer
from convex_heads.limits import Limits
from convex_heads.losses import targets
from convex_heads.warm import Again, objective, solve_again
from extractors.blocks import CutBackbone
from tasks.console import QuietReporter, Reporter
from tasks.cronos_am.activations import CachedRows
from tasks.cronos_am.block_step import BlockOptions, features_of, train_blocks
from tasks.cronos_am.checkpoint import Model, State
from tasks.torch_head import TorchHead, row_losses

# Of the way that a block half-step went: all of it, or so much of it, before it is rolled back.
_SHARES = (1.0, 0.5, 0.2)
# By which factor J may be higher where solving the head anew can be enough; beyond, blocks diverge.
_NEAR = 2.0
# The learning rate, after a half-step that did not go all of its way.
_SLOWER = 0.3
# A feature whose spread is so far below the others' is a weight that has decayed, not a signal; the
# first change of a block would carry it out of all proportion to its scale.
_LEAST_SPREAD = 1e-4


@dataclass(frozen=True)
class Joint:
    """The joint problem.

    Attributes:
        cut: the backbone, cut below the blocks that are trained.
        train: rows below the cut.
        validation: rows that choose and are never trained on.
        n_classes: C; labels run from 0 to C - 1.
        fit_head: (train features, validation features) -> the first head, fitted.
        omega: weights (n,) of the training rows; None: all alike.
    """

    cut: CutBackbone
    train: CachedRows
    validation: CachedRows
    n_classes: int
    fit_head: Callable[[np.ndarray, np.ndarray], ConvexHeadClassifier]
    omega: np.ndarray | None = None


class Answers(NamedTuple):
    """What a model says of the validation rows: which it gets right (m,) bool, and losses (m,)."""

    right: np.ndarray
    losses: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of them that it gets right."""
        return float(self.right.mean())

    @property
    def loss(self) -> float:
        """Mean over them."""
        return float(self.losses.mean())


def prefers(found: Answers, before: Answers) -> bool:
    """Whether validation rows prefer a model by more than one standard error.

    More of them must be right, or no fewer of them with a lower loss, which says more where rows
    are few.

    Example:
        >>> ones = np.ones(4)
        >>> all_right, one_wrong = np.array([True] * 4), np.array([True] * 3 + [False])
        >>> prefers(Answers(all_right, ones), Answers(~all_right, ones))
        True
        >>> prefers(Answers(all_right, ones), Answers(one_wrong, ones))
        False
        >>> prefers(Answers(all_right, ones / 2), Answers(one_wrong, ones))
        True
    """
    wins = int(np.sum(found.right & ~before.right))
    losses = int(np.sum(~found.right & before.right))
    lower = before.losses - found.losses
    # Variances of the two sums under "both are as good".
    more_right = wins - losses > math.sqrt(wins + losses)
    return more_right or (wins >= losses and bool(lower.sum() > np.linalg.norm(lower)))


def usable_features(X: np.ndarray) -> np.ndarray:
    """Which columns (d,) of features (n, d) a head may read while the backbone is trained.

    Example:
        >>> X = np.array([[1.0, 1e-9, 5.0], [2.0, 2e-9, 5.0]])
        >>> usable_features(X).tolist()
        [True, False, False]
    """
    spread = X.std(axis=0, dtype=np.float64)
    varying = spread[spread > 0]
    return spread > (_LEAST_SPREAD * np.median(varying) if len(varying) else 0.0)


class HalfSteps:
    """The half-steps, with the features as they are now."""

    def __init__(
        self,
        joint: Joint,
        options: BlockOptions,
        limits: Limits,
        seed: int,
        reporter: Reporter | None,
    ) -> None:
        self.joint, self.options = joint, options
        self.limits, self.seed = limits, seed
        self.reporter = reporter or QuietReporter()
        n = len(joint.train)
        self.omega = np.ones(n) if joint.omega is None else np.asarray(joint.omega, np.float64)
        self._extracting = self._solving = 0.0
        self._features = self._validation = np.empty((0, 0), np.float32)
        self._usable = np.empty(0, bool)
        self._tried, self._Y = np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def reserve(self, state: State) -> float:
        """Seconds that the next half-step is likely to take, training apart.

        Of a block half-step: features, a solve to keep the blocks, and the head half-step after it,
        without which its blocks are not saved.
        """
        if state.next_half == "head":
            return 0.0 if _is_solved(state) else 1.1 * self._solving
        return 1.1 * (self._extracting + 2 * self._solving)

    def begin(self) -> State:
        """The frozen backbone's head: round 0."""
        joint, began = self.joint, time.monotonic()
        self._usable = np.ones(joint.cut.extractor.dim, bool)
        train, validation = self._extract()
        self._usable = usable_features(train)
        self._features, self._validation = train * self._usable, validation * self._usable
        solving = time.monotonic()
        head = joint.fit_head(self._features, self._validation)
        # A warm solve is one point of the path, with most of the code compiled.
        self._solving = (time.monotonic() - solving) / 3
        network, certificate = head.network_, head.certificate_
        self._Y = targets(joint.train.labels, network.loss, joint.n_classes)
        answers = self._answers(network)
        model = Model(joint.cut.state(), network)
        state = State(
            first=network,
            now=model,
            best=model,
            frozen_right=answers.right,
            frozen_losses=answers.losses,
            best_accuracy=answers.accuracy,
            best_loss=answers.loss,
            gates=np.asarray(head.gates_),
            usable=self._usable,
            beta=float(certificate.beta),
            penalty=head.penalty_,
            objective=self._objective(network, float(certificate.beta), head.penalty_),
            certificate=certificate._asdict(),
            best_certificate=certificate._asdict(),
            rate=self.options.rate,
            highest=answers.accuracy,
            lowest=answers.loss,
        )
        self._note(state, "head", True, state.objective, began, answers)
        return state

    def use(self, state: State) -> None:
        """Goes on from a state that was read; the cut backbone holds its blocks already."""
        joint = self.joint
        self._usable = state.usable
        self._Y = targets(joint.train.labels, state.now.network.loss, joint.n_classes)
        self._features, self._validation = self._extract()
        took = [line["seconds"] for line in state.history if line["half"] == "head"]
        self._solving = max(took[1:], default=took[0] / 3)

    def block_half(self, state: State, deadline: float) -> None:
        """Trains the blocks through the head; rolls back where J rose."""
        joint, began = self.joint, time.monotonic()
        head = TorchHead(state.now.network).to(joint.cut.device).requires_grad_(False)
        labels = torch.from_numpy(joint.train.labels).to(joint.cut.device)
        omega = torch.from_numpy(self.omega / self.omega.mean()).float().to(joint.cut.device)
        usable = torch.from_numpy(self._usable).to(joint.cut.device)
        loss_name = state.now.network.loss
        # beta h(W)
        norms = state.objective - self._objective(state.now.network, 0.0, state.penalty)

        def loss(features: torch.Tensor, batch: np.ndarray) -> torch.Tensor:
            at = torch.from_numpy(batch).to(joint.cut.device)
            losses = row_losses(head.scores(features * usable), labels[at], loss_name)
            return (losses * omega[at]).mean() + norms

        number = state.round + 1
        options = replace(self.options, rate=state.rate)
        rows = math.ceil(options.epochs * len(joint.train))
        try:
            with self.reporter.stage(f"blocks, round {number}", rows) as stage:
                step = train_blocks(
                    joint.cut,
                    joint.train,
                    loss,
                    options,
                    seed=self.seed + 1000 * number,
                    deadline=deadline,
                    advance=stage.advance,
                )
            found, share, again = self._backtrack(state)
            kept = found <= state.objective
            validation = self._extract_rows(joint.validation) if kept else self._validation
        except BaseException:
            joint.cut.restore(dict(state.now.blocks))
            raise
        state.round = number
        if self.options.optimizer != "prodigy":
            state.rate = step.rate if kept and share == 1 else step.rate * _SLOWER
        if kept:
            self._features, self._validation = self._tried, validation
            network = state.now.network if again is None else self._proven(state, again)
            state.now = Model(joint.cut.state(), network)
            state.objective = found
            state.next_half = "head"
        else:
            joint.cut.restore(dict(state.now.blocks))
            if self.options.optimizer == "prodigy":  # the others go on at a lower rate
                state.idle += 1
        figures = {"steps": step.steps, "rate": step.rate, "share": share}
        figures["block_loss"] = step.loss
        figures["solved"] = kept and again is not None and self._closes(again)
        self._judge(state, "block", kept, found, began, figures, figures["solved"])

    def _backtrack(self, state: State) -> tuple[float, float, Again | None]:
        """J of the trained blocks, or of a part of the way to them; that part, at most 1; the head.

        A head that fits its rows closely makes J rise with whatever moves them. So where J rose the
        head is solved anew before the way is shortened, and is returned if that was enough.
        """
        before, after = state.now.blocks, self.joint.cut.state()
        network, found = state.now.network, math.inf
        for share in _SHARES:
            if share < 1:
                parts = {k: before[k] + np.float32(share) * (after[k] - before[k]) for k in after}
                self.joint.cut.restore(parts)
            self._tried = self._extract_rows(self.joint.train)
            here = objective(network, self._tried, self._Y, self.omega, state.beta, state.penalty)
            if here <= state.objective:
                return here, share, None
            found = min(found, here)
            if share == 1 and here <= _NEAR * state.objective:
                again = self._solve(state, self._tried)
                if again.objective <= state.objective:
                    return again.objective, share, again
        return found, 0.0, None

    def head_half(self, state: State) -> None:
        """Solves the head on the features as they are now, from the weights before.

        Where the blocks were kept with the head solved on these very features, that was it.
        """
        began = time.monotonic()
        kept, found = True, state.objective
        if not _is_solved(state):
            again = self._solve(state, self._features)
            kept, found = again.objective <= state.objective, again.objective
            if kept:
                state.now = Model(state.now.blocks, self._proven(state, again))
                state.objective = found
        state.next_half = "block"
        self._judge(state, "head", kept, found, began, {}, kept)
        rose = any(line["rose"] for line in state.history[-2:])
        state.idle = 0 if rose else state.idle + 1

    def _proven(self, state: State, again: Again) -> TwoLayer:
        """The head that was solved for; its certificate is kept."""
        # beta_max is what beta was chosen as a fraction of, in the first solve.
        first = {"beta_max": state.certificate["beta_max"]}
        state.certificate = again.certificate._asdict() | first
        return again.network

    def _closes(self, again: Again) -> bool:
        return again.certificate.relative_gap <= self.limits.tolerance

    def _solve(self, state: State, features: np.ndarray) -> Again:
        began = time.monotonic()
        again = solve_again(
            state.now.network,
            state.gates,
            features,
            self._Y,
            self.omega,
            state.beta,
            penalty=state.penalty,
            limits=self.limits,
            seed=self.seed,
        )
        self._solving = time.monotonic() - began
        return again

    def _judge(
        self,
        state: State,
        half: str,
        kept: bool,
        found: float,
        began: float,
        figures: dict[str, Any],
        proven: bool,
    ) -> None:
        """Notes a half-step; the model is saved if it is the best whose certificate is its own."""
        answers = self._answers(state.now.network)
        rose = answers.accuracy > state.highest or answers.loss < state.lowest
        state.highest = max(state.highest, answers.accuracy)
        state.lowest = min(state.lowest, answers.loss)
        if kept and proven and self._is_best(state, answers):
            state.best, state.best_certificate = state.now, state.certificate
            state.best_accuracy, state.best_loss = answers.accuracy, answers.loss
        self._note(state, half, kept, found, began, answers, rose=rose, **figures)

    def _is_best(self, state: State, answers: Answers) -> bool:
        """The highest validation accuracy, of those that are a reason to leave the frozen one."""
        higher = (answers.accuracy, -answers.loss) > (state.best_accuracy, -state.best_loss)
        return higher and prefers(answers, Answers(state.frozen_right, state.frozen_losses))

    def _note(
        self,
        state: State,
        half: str,
        kept: bool,
        found: float,
        began: float,
        answers: Answers,
        **figures: Any,
    ) -> None:
        labels = self.joint.train.labels
        state.history.append(
            {
                "round": state.round,
                "half": half,
                "kept": kept,
                "objective": state.objective,
                "tried": found,
                "relative_gap": state.certificate["relative_gap"] if half == "head" else None,
                "train_accuracy": float(
                    np.mean(_classes(state.now.network.scores(self._features)) == labels)
                ),
                "validation_accuracy": answers.accuracy,
                "validation_loss": answers.loss,
                "best_validation_accuracy": state.best_accuracy,
                "seconds": round(time.monotonic() - began, 3),
                **figures,
            }
        )

    def _extract(self) -> tuple[np.ndarray, np.ndarray]:
        joint, began = self.joint, time.monotonic()
        train, validation = self._extract_rows(joint.train), self._extract_rows(joint.validation)
        self._extracting = time.monotonic() - began
        return train, validation

    def _extract_rows(self, rows: CachedRows) -> np.ndarray:
        with self.reporter.stage("features", len(rows)) as stage:
            return features_of(self.joint.cut, rows, advance=stage.advance) * self._usable

    def _answers(self, network: TwoLayer) -> Answers:
        z, labels = network.scores(self._validation), self.joint.validation.labels
        losses = row_losses(torch.from_numpy(z), torch.from_numpy(labels), network.loss)
        return Answers(_classes(z) == labels, losses.double().numpy())

    def _objective(self, network: TwoLayer, beta: float, penalty: str) -> float:
        return objective(network, self._features, self._Y, self.omega, beta, penalty)


def _is_solved(state: State) -> bool:
    """Whether the block half-step before has solved the head on its features already."""
    return bool(state.history[-1].get("solved"))


def _classes(z: np.ndarray) -> np.ndarray:
    """Scores -> class numbers."""
    return (z[:, 0] > 0).astype(np.int64) if z.shape[1] == 1 else z.argmax(axis=1)
