"""A two-layer ReLU network as it is usually trained: AdamW, cosine schedule, early stopping."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.methods.base import Fitted, Part, Problem, standardised
from tasks.methods.settings import SETTINGS

_TRIED = SETTINGS["mlp"]
WIDTH, RATES, DECAYS = _TRIED["width"], _TRIED["rates"], _TRIED["decays"]
_EPOCHS, _PATIENCE = _TRIED["epochs"], _TRIED["patience"]
_PREDICT_ROWS = 8192
_WORST = (-np.inf, 0.0)


Score = tuple[float, float]


def fit(problem: Problem) -> Fitted:
    """4 learning rates, 5 weight decays; validation accuracy chooses setting and epoch.

    Every setting starts from the same weights and sees the rows in the same order, which are drawn
    anew for another seed. Of equal accuracies the lower loss wins.
    """
    loss = nn.CrossEntropyLoss(torch.from_numpy(_class_weights(problem)))
    y = torch.from_numpy(problem.train.labels)
    y_val = torch.from_numpy(problem.validation.labels)

    def judge(z: torch.Tensor) -> Score:
        return float((z.argmax(1) == y_val).double().mean()), -float(loss(z, y_val))

    return _best_of_all(problem, y, loss, judge, lambda z: z.softmax(1))


def fit_several(problem: Problem) -> Fitted:
    """The same with a logistic output for each label; validation NLL chooses setting and epoch."""
    Y = torch.from_numpy(problem.targets(problem.train).astype(np.float32))
    Y_val = torch.from_numpy(problem.targets(problem.validation).astype(np.float32))
    weight = None
    if problem.class_weight is not None:  # as many positive rows of a label as negative ones
        there = Y.sum(0).clamp(1, len(Y) - 1)
        weight = (len(Y) - there) / there
    loss = nn.BCEWithLogitsLoss(pos_weight=weight)

    def judge(z: torch.Tensor) -> Score:
        return -float(loss(z, Y_val)), 0.0

    return _best_of_all(problem, Y, loss, judge, torch.sigmoid)


def _best_of_all(
    problem: Problem,
    y: torch.Tensor,
    loss: nn.Module,
    judge: Callable[[torch.Tensor], Score],
    link: Callable[[torch.Tensor], torch.Tensor],
) -> Fitted:
    """Every setting from the same first weights; the highest score on validation rows wins."""
    transform = standardised(problem.train)
    X = torch.from_numpy(transform(problem.train))
    X_val = torch.from_numpy(transform(problem.validation))
    first = _network(X.shape[1], problem.n_classes, problem.seed)
    best: tuple[Score, nn.Module | None, dict[str, float]] = (_WORST, None, {})
    for rate in RATES:
        for decay in DECAYS:
            score, model, epoch = _train(
                copy.deepcopy(first), X, y, X_val, loss, judge, rate, decay, problem.seed
            )
            if score > best[0]:
                chosen = {"learning_rate": rate, "weight_decay": decay, "epochs": epoch}
                best = score, model, chosen
    model = best[1]
    assert model is not None

    def predict_proba(part: Part) -> NDArray[np.floating]:
        Z = torch.from_numpy(transform(part))
        with torch.inference_mode():
            pieces = [link(model(block).double()) for block in Z.split(_PREDICT_ROWS)]
        return torch.cat(pieces).numpy()

    return Fitted(
        predict_proba,
        settings_tried=len(RATES) * len(DECAYS),
        chosen=best[2],
        parameters=sum(p.numel() for p in model.parameters()),
    )


def _class_weights(problem: Problem) -> NDArray[np.float32]:
    """(C,) weights of the loss; equal unless classes are balanced."""
    weights = np.ones(problem.n_classes, np.float32)
    weights[problem.train.labels] = problem.row_weights()
    return weights


def _network(d: int, C: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the global generator is somebody else's
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, WIDTH), nn.ReLU(), nn.Linear(WIDTH, C))


def _train(
    model: nn.Module,
    X: torch.Tensor,
    y: torch.Tensor,
    X_val: torch.Tensor,
    loss: nn.Module,
    judge: Callable[[torch.Tensor], Score],
    rate: float,
    decay: float,
    seed: int,
) -> tuple[Score, nn.Module, int]:
    """The best epoch's score on validation rows, network and number."""
    n = len(X)
    rows = int(np.clip(2 ** round(np.log2(n / 32)), 32, 1024))  # about 32 steps an epoch
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    steps = _EPOCHS * -(-n // rows)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    draw = torch.Generator().manual_seed(seed)
    best, kept, at = _WORST, model, 0
    for epoch in range(1, _EPOCHS + 1):
        for batch in torch.randperm(n, generator=draw).split(rows):
            optimiser.zero_grad(set_to_none=True)
            loss(model(X[batch]), y[batch]).backward()
            optimiser.step()
            schedule.step()
        with torch.inference_mode():
            score = judge(model(X_val))
        if score > best:
            best, kept, at = score, copy.deepcopy(model), epoch
        elif epoch - at >= _PATIENCE:
            break
    return best, kept, at
