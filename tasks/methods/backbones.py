"""Methods that train the backbone itself: CRONOS-AM, LoRA and fine-tuning, on one budget.

All three train by the same loop (:mod:`tasks.cronos_am.block_step`), CRONOS-AM the top blocks and
the others all of them; what differs is through which head, and who chooses the learning rate:
CRONOS-AM's is found by its range test, the others' by the validation rows, as a careful
practitioner would do it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from convex_heads import ConvexHeadClassifier
from convex_heads.scaling import Scaling
from extractors import load_extractor
from extractors.blocks import CutBackbone
from extractors.errors import InputError
from extractors.options import FeatureOptions
from tasks.calibration import fit_temperature
from tasks.cronos_am.activations import cached_rows
from tasks.cronos_am.alternate import Joint, alternate
from tasks.cronos_am.block_step import BlockOptions, features_of, train_blocks
from tasks.methods.base import Fitted, Part, Problem, Unavailable, best_of, scored
from tasks.methods.settings import SETTINGS
from tasks.standardise import scaling_of

_AM, _FINETUNE, _LORA = SETTINGS["cronos-am"], SETTINGS["finetune"], SETTINGS["lora"]
_BATCH = 32


def fit_cronos_am(problem: Problem) -> Fitted:
    """The top two blocks and the head in turn; the round with the best validation rows.

    A budget pays for the passes through the blocks below too.
    """
    end = time.monotonic() + (problem.budget_seconds or math.inf)
    cut = _cut(problem, min(_AM["unfreeze"], _n_blocks(problem)))
    train, validation = (
        cached_rows(cut, _raw(part), part.labels, None)
        for part in (problem.train, problem.validation)
    )

    def fit_head(X: np.ndarray, X_val: np.ndarray) -> ConvexHeadClassifier:
        # As `finetune` has it.
        weight = {"class_weight": problem.class_weight}
        same = {"min_spread": problem.train.min_spread, "random_state": problem.seed}
        options = {"penalty": _AM["penalty"], **weight, **problem.options}
        head = ConvexHeadClassifier(**options, **same)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return head.fit(X, problem.train.labels, X_val=X_val, y_val=problem.validation.labels)

    done = alternate(
        Joint(cut, train, validation, problem.n_classes, fit_head, problem.row_weights()),
        rounds=_AM["rounds"],
        seed=problem.seed,
        budget_seconds=None if math.isinf(end) else end - time.monotonic(),
    )
    network = done.model.network
    scores = network.scores(features_of(cut, validation))
    temperature = fit_temperature(scores, network.loss, problem.validation.labels)
    kept = [line for line in done.history if line["kept"]]
    return Fitted(
        lambda part: network.probabilities(_features(cut, part), temperature or 1.0),
        settings_tried=len(kept),
        chosen={
            "rounds": done.rounds,
            "beta": done.beta,
            "rate": next((line["rate"] for line in done.history if "rate" in line), None),
            "changed": sum(values.size for values in done.changed.values()),
            "relative_gap": done.certificate["relative_gap"],
        },
        parameters=sum(v.size for v in vars(network).values() if isinstance(v, np.ndarray))
        + sum(values.size for values in done.model.blocks.values()),
        notes=()
        if done.changed
        else ("validation rows preferred no round to the frozen backbone",),
    )


def fit_finetune(problem: Problem) -> Fitted:
    """All blocks and a linear head: AdamW, warm-up, cosine, 3 epochs; 3 learning rates.

    On a budget half of it tries the three, each with its whole schedule, and what is left goes to a
    run as long as it allows, at the rate that validation rows prefer: 20 epochs at most, with which
    small data are no longer a matter of luck (Mosbach, Andriushchenko & Klakow 2021).
    """
    rates = _FINETUNE["image_rates" if problem.train.texts is None else "rates"]
    return _tuned(problem, rates, _FINETUNE, lora=None)


def fit_lora(problem: Problem) -> Fitted:
    """Low-rank changes of all linear layers and a linear head; 3 learning rates."""
    return _tuned(problem, _LORA["rates"], _LORA, lora=_LORA["rank"])


def _tuned(
    problem: Problem, rates: list[float], settings: dict[str, Any], lora: int | None
) -> Fitted:
    cut = _cut(problem, _n_blocks(problem))
    train, validation = (
        cached_rows(cut, _raw(part), part.labels, None)
        for part in (problem.train, problem.validation)
    )
    published, labels = cut.state(), torch.from_numpy(problem.train.labels).to(cut.device)
    omega = torch.from_numpy(problem.row_weights()).float().to(cut.device)
    scaling = scaling_of(problem.train.features, problem.train.min_spread)
    budget = problem.budget_seconds or math.inf
    end = time.monotonic() + budget
    tried: list[_Tried] = []

    def attempt(rate: float, epochs: float, deadline: float) -> None:
        cut.restore(published)
        torch.manual_seed(problem.seed)
        head = _Linear(scaling, problem.n_classes).to(cut.device)

        def loss(features: torch.Tensor, batch: np.ndarray) -> torch.Tensor:
            at = torch.from_numpy(batch)
            each = nn.functional.cross_entropy(head(features), labels[at], reduction="none")
            return (omega[at] * each).mean()

        try:
            step = train_blocks(
                cut,
                train,
                loss,
                BlockOptions(epochs=epochs, batch_size=_BATCH, rate=rate, lora=lora, dropout=True),
                seed=problem.seed,
                more=lambda: list(head.parameters()),
                deadline=deadline,
            )
        except InputError as error:
            raise Unavailable(str(error)) from error
        z = head.scores(features_of(cut, validation))
        accuracy = float(np.mean(z.argmax(axis=1) == problem.validation.labels))
        steps = math.ceil(len(train) / _BATCH)
        tried.append(_Tried(accuracy, rate, step.steps / steps, cut.state(), head))

    def best() -> _Tried:
        return tried[best_of([one.accuracy for one in tried])]

    for rate in rates:
        attempt(rate, settings["epochs"], time.monotonic() + budget / 2 / len(rates))
    if math.isfinite(budget) and time.monotonic() < end:
        attempt(best().rate, settings["longest"], end)
    _, rate, epochs, state, head = best()
    cut.restore(state)
    scores: Callable[[Part], NDArray[np.floating]] = lambda part: head.scores(  # noqa: E731
        _features(cut, part)
    )
    return Fitted(
        scored(scores, problem.validation),
        settings_tried=len(tried),
        chosen={"rate": rate, "epochs": round(epochs, 2)}
        | ({} if lora is None else {"rank": lora}),
        parameters=sum(v.size for v in state.values()) + sum(p.numel() for p in head.parameters()),
    )


class _Tried(NamedTuple):
    """A run: its validation accuracy, its rate, the epochs that it had time for, what it gave."""

    accuracy: float
    rate: float
    epochs: float
    blocks: dict[str, np.ndarray]
    head: _Linear


class _Linear(nn.Module):
    """A linear layer on features in the scale they had before training; it starts at zero."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, scaling: Scaling, n_classes: int) -> None:
        super().__init__()
        # One scale for all: nearly constant features would otherwise be blown up.
        spread = float(np.sqrt(np.mean(np.square(scaling.scale[scaling.keep]))) or 1.0)
        self.register_buffer("mean", torch.tensor(np.asarray(scaling.mean, np.float32)))
        self.register_buffer("scale", torch.tensor(spread, dtype=torch.float32))
        self.linear = nn.Linear(len(scaling.mean), n_classes)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear((x - self.mean) / self.scale)

    def scores(self, X: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self(torch.from_numpy(X).to(self.mean.device)).cpu().numpy().astype(np.float64)


def _raw(part: Part) -> Any:
    return part.images if part.texts is None else part.texts


def _features(cut: CutBackbone, part: Part) -> NDArray[np.float32]:
    return features_of(cut, cached_rows(cut, _raw(part), part.labels, None))


def _n_blocks(problem: Problem) -> int:
    return _cut(problem, 1).n_blocks


def _cut(problem: Problem, k: int) -> CutBackbone:
    given = problem.backbone
    if given is None or _raw(problem.train) is None:
        raise Unavailable("a method that trains the backbone needs the rows themselves")
    if " + " in given.name:
        raise Unavailable("several backbones side by side are not trained together")
    trust_remote_code = given.trust_remote_code
    try:
        options = FeatureOptions.from_chosen(
            dict(given.options), trust_remote_code=trust_remote_code
        )
        extractor = load_extractor(given.name, device=given.device, options=options)
        return CutBackbone(extractor, k, list(_raw(problem.train)[:3]))
    except InputError as error:
        raise Unavailable(str(error)) from error
