r"""CRONOS-AM: the convex head and the top blocks of the backbone, trained in turn.

.. math:: \min_{W,\,\theta}\; J(W, \theta) = \frac1n \sum_j
          l\big(f_W(\phi_\theta(x_j)), y_j\big) + \beta\, h(W)

(Feng, Frangella & Pilanci 2024, section 5). A head half-step solves for W to a proven gap with
theta fixed; a block half-step trains theta with W fixed. Scaling, gates and beta stay as the first
solve has chosen them, so that all rounds are about one J. A block half-step is kept if J did not
rise, or does not with the head solved anew, or a part of it where J did not rise that far, and
rolled back otherwise. Of all that was kept with a head that was solved for on these very blocks,
so that its certificate is its own, what has the highest validation accuracy is returned, and it
must be preferred to the frozen backbone by more than one standard error: with few rows, the frozen
one stays without a reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convex_heads.decode import TwoLayer
from convex_heads.limits import Limits
from extractors.errors import InputError
from tasks.console import Reporter
from tasks.cronos_am import checkpoint
from tasks.cronos_am.block_step import BlockOptions
from tasks.cronos_am.checkpoint import Model, State
from tasks.cronos_am.half_steps import HalfSteps, Joint

__all__ = ["Alternated", "Joint", "alternate"]

PATIENCE = 2


@dataclass(frozen=True)
class Alternated:
    """What an alternation ends with.

    Attributes:
        model: blocks and head that validation rows prefer; the cut backbone holds these blocks.
        changed: the blocks that differ from the published ones by name; empty: none do.
        first: head of the frozen backbone.
        usable: features that the heads read (d,) bool; the others are taken as constant.
        certificate: of the model's head, on the features of the model's blocks.
        beta: absolute.
        penalty: of the heads, ``group`` or ``ridge``.
        history: a line for each half-step, see `State`.
        rounds: that were begun.
        interrupted: whether Ctrl-C ended it.
    """

    model: Model
    changed: dict[str, np.ndarray]
    first: TwoLayer
    usable: np.ndarray
    certificate: Mapping[str, Any]
    beta: float
    penalty: str
    history: list[dict[str, Any]]
    rounds: int
    interrupted: bool


def alternate(
    joint: Joint,
    *,
    rounds: int = 5,
    options: BlockOptions | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    budget_seconds: float | None = None,
    checkpoints: Path | None = None,
    about: Mapping[str, Any] | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Alternated:
    """Alternates until validation stops improving.

    Args:
        joint: backbone, rows and first head.
        rounds: at most so many; a round is a block half-step and a head half-step.
        options: of the block half-steps.
        limits: of the head half-steps.
        seed: of everything random.
        budget_seconds: wall-clock time of all; the first head is always solved.
        checkpoints: folder for a checkpoint after each half-step; None: none.
        about: what the job is, JSON-able; a checkpoint of another job is refused.
        resume: go on from the checkpoint.
        reporter: hears of progress.

    Returns:
        The best model. After Ctrl-C the best so far, and ``interrupted`` is true.

    Raises:
        InputError: no checkpoint to resume from, or options that cannot be met.
        MachineError: disk or memory.
    """
    run = HalfSteps(joint, options or BlockOptions(), limits or Limits(), seed, reporter)
    began = time.monotonic()
    published = joint.cut.state()

    def keep(state: State) -> None:
        state.seconds = round(spent + time.monotonic() - began, 3)
        if checkpoints is not None:
            checkpoint.save(checkpoints, state, about or {})

    spent = 0.0
    if resume:
        if checkpoints is None:
            raise InputError("--resume needs the folder of the checkpoints")
        state = checkpoint.load(checkpoints, about or {})
        spent = state.seconds
        joint.cut.restore(dict(state.now.blocks))
        run.use(state)
    else:
        state = run.begin()
        keep(state)
    deadline = math.inf if budget_seconds is None else began + budget_seconds - spent
    interrupted = False
    while state.round < rounds or state.next_half == "head":
        if state.next_half == "block" and state.idle >= PATIENCE:
            break
        reserve = run.reserve(state)
        if time.monotonic() + reserve >= deadline:
            break
        try:
            if state.next_half == "block":
                run.block_half(state, deadline - reserve)
            else:
                run.head_half(state)
            keep(state)
        except KeyboardInterrupt:
            interrupted = True
            break
    joint.cut.restore(dict(state.best.blocks))
    changed = {
        name: values
        for name, values in state.best.blocks.items()
        if not np.array_equal(values, published[name])
    }
    return Alternated(
        model=state.best,
        changed=changed,
        first=state.first,
        usable=state.usable,
        certificate=state.best_certificate,
        beta=state.beta,
        penalty=state.penalty,
        history=state.history,
        rounds=state.round,
        interrupted=interrupted,
    )
