"""The block half-step: the top blocks are trained through a head that stands still.

The optimiser begins anew in every half-step, so that a half-step depends on the weights it starts
from and on its seed alone. AdamW's learning rate is found by a range test (after Smith 2017,
"Cyclical learning rates", section 3.3): the largest of five rates at which a few steps do no great
harm on their way. *Some* harm they do at any rate: AdamW's first steps are as long as later ones
and mostly noise, so that the lowest loss after a few steps is that of the rate that hardly moves
(Wu, Ren, Liao & Grosse 2018, "Understanding short-horizon bias").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from extractors.blocks import CutBackbone
from extractors.errors import InputError, MachineError
from tasks.cronos_am.activations import CachedRows

__all__ = ["BlockOptions", "BlockStep", "features_of", "find_rate", "train_blocks"]

OPTIMIZERS = ("adamw", "schedule-free", "prodigy")
# Of the range test: rates, steps of each, and by which factor the mean loss along them may be above
# that of the same rows before. (On SST-2 3e-3 raises it 2.2 to 3.0 times and 1e-3 1.4 to 2.2 times:
# an epoch at 3e-3 with two blocks gained nothing, at 1e-3 or 3e-4 four points.)
_RATES, _TRIAL, _HARM = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5), 30, 2.0
_WARM_UP = 0.1
_CLIP = 1.0
_PACKAGES = {"schedule-free": "schedulefree", "prodigy": "prodigyopt"}
_FEATURE_BATCH = 64


@dataclass(frozen=True)
class BlockOptions:
    """How blocks are trained.

    Attributes:
        optimizer: ``adamw``, ``schedule-free`` (Defazio et al. 2024) or ``prodigy`` (Mishchenko &
            Defazio 2023, D-adaptation), which needs no rate.
        epochs: of one half-step, above 0; parts of one are allowed.
        batch_size: rows of one optimiser step.
        accumulate: forward passes that a step's rows are divided into.
        rate: learning rate; None: by the range test (1 for prodigy).
        layer_decay: each block's rate is so many times that of the block above it.
        weight_decay: decoupled.
        dropout: whether the backbone's own dropout is on.
        lora: rank of the change of every linear layer in a half-step; None: full rank.

    Raises:
        InputError: an option out of its range, two that contradict each other, or one whose package
            is not installed.
    """

    optimizer: str = "adamw"
    epochs: float = 1.0
    batch_size: int = 32
    accumulate: int = 1
    rate: float | None = None
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    dropout: bool = False
    lora: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"--optimizer {self.optimizer}: must be one of {', '.join(OPTIMIZERS)}"
            )
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"--layer-decay {self.layer_decay}: must be above 0 and at most 1")
        if self.optimizer == "prodigy" and self.layer_decay != 1:
            raise InputError("--layer-decay: prodigy finds one rate for all blocks; leave it out")
        if self.accumulate > self.batch_size:
            raise InputError(
                f"--accumulate {self.accumulate}: a batch has {self.batch_size} rows only"
            )
        optimizer = f"--optimizer {self.optimizer}"
        needed = {optimizer: _PACKAGES.get(self.optimizer), "--lora": self.lora and "peft"}
        for option, package in needed.items():
            if package and find_spec(package) is None:
                raise InputError(
                    f"{option} needs {package}: run pip install 'convex-heads[finetune]'"
                )


@dataclass(frozen=True)
class BlockStep:
    """What a block half-step did: mean training loss of its steps, their number and their rate."""

    loss: float
    steps: int
    rate: float


Loss = Callable[[torch.Tensor, np.ndarray], torch.Tensor]


def train_blocks(
    cut: CutBackbone,
    rows: CachedRows,
    loss: Loss,
    options: BlockOptions,
    *,
    seed: int,
    more: Callable[[], list[nn.Parameter]] | None = None,
    deadline: float = math.inf,
    advance: Callable[[int], None] | None = None,
) -> BlockStep:
    """Trains the parameters above the cut, in place.

    Args:
        cut: the backbone.
        rows: training rows below the cut.
        loss: (features (b, d), row numbers (b,)) -> () mean loss of these rows.
        options: how.
        seed: of the order of rows, dropout and LoRA's first weights.
        more: parameters that are trained too, such as those of a head of another kind.
        deadline: of ``time.monotonic()``; the last step ends before or at it.
        advance: called with the rows of every step.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    with _low_rank(cut, options.lora) as trained, cut.training(dropout=options.dropout):
        for parameter, _ in trained:
            parameter.requires_grad_(True)
        extra = [] if more is None else more()
        rate = options.rate
        if rate is None:
            rate = 1.0
            if options.optimizer != "prodigy":
                rate = find_rate(cut, rows, loss, options, trained, extra, rng, deadline)
        total = max(1, round(options.epochs * math.ceil(len(rows) / options.batch_size)))
        optimizer, train_mode = _optimizer(options, trained, extra, rate, total)
        base = [group["lr"] for group in optimizer.param_groups]
        losses: list[float] = []
        began = time.monotonic()
        with train_mode():
            for step, batch in enumerate(_endless(rows, options.batch_size, rng)):
                if step == total or (step and time.monotonic() >= deadline):
                    break
                if options.optimizer == "adamw":  # the others have schedules of their own
                    # Whatever ends first, steps or time, ends with the rate at zero.
                    spent = min(1.0, (time.monotonic() - began) / max(deadline - began, 1e-9))
                    _set_rates(optimizer, base, max(step, int(spent * total)), total)
                losses.append(_backward(cut, rows, batch, loss, options))
                parameters = [p for p, _ in trained] + extra
                torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if advance is not None:
                    advance(len(batch))
    return BlockStep(float(np.mean(losses[-max(1, len(losses) // 4) :])), len(losses), rate)


def find_rate(
    cut: CutBackbone,
    rows: CachedRows,
    loss: Loss,
    options: BlockOptions,
    trained: list[tuple[nn.Parameter, int]],
    extra: list[nn.Parameter],
    rng: np.random.Generator,
    deadline: float,
) -> float:
    """The learning rate of the range test; everything is then as it was before.

    From the largest rate down, each takes the same steps, warmed up and decayed as a half-step is,
    until the losses along them are too high in sum. The loss after them would not tell: whatever
    the rate, they end at a rate of zero.
    """
    parameters = [*(p for p, _ in trained), *extra]
    kept = [p.detach().clone() for p in parameters]
    endless = _endless(rows, options.batch_size, rng)
    batches = [next(endless) for _ in range(_TRIAL)]
    with torch.no_grad():
        most = _HARM * sum(float(loss(_upper(cut, rows, b).float(), b)) for b in batches)
    for rate in _RATES[:-1]:
        optimizer = torch.optim.AdamW(_groups(options, trained, extra, rate))
        base = [group["lr"] for group in optimizer.param_groups]
        total = 0.0
        for step, batch in enumerate(batches):
            _set_rates(optimizer, base, step, len(batches))
            total += _backward(cut, rows, batch, loss, options)
            if time.monotonic() >= deadline or not total <= most:
                break
            torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        sound = time.monotonic() < deadline and total <= most
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)
        if sound:
            return rate
    return _RATES[-1]


def _set_rates(optimizer: torch.optim.Optimizer, base: list[float], step: int, total: int) -> None:
    """Linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(_WARM_UP * total))
    factor = min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / total)))
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate * factor


def features_of(
    cut: CutBackbone, rows: CachedRows, *, advance: Callable[[int], None] | None = None
) -> np.ndarray:
    """Features (n, d) float32 of all rows with the blocks as they are now."""
    out: np.ndarray | None = None
    lengths = np.array([rows.length(i) for i in range(len(rows))])
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), _FEATURE_BATCH):
        batch = order[start : start + _FEATURE_BATCH]
        with torch.inference_mode():
            found = _upper(cut, rows, batch).float().cpu().numpy()
        if out is None:
            out = np.empty((len(rows), found.shape[1]), np.float32)
        out[batch] = found
        if advance is not None:
            advance(len(batch))
    assert out is not None
    return out


def _upper(cut: CutBackbone, rows: CachedRows, batch: np.ndarray) -> torch.Tensor:
    return cut.upper([rows.tokens[i] for i in batch], [rows.activations(i) for i in batch])


def _backward(
    cut: CutBackbone, rows: CachedRows, batch: np.ndarray, loss: Loss, options: BlockOptions
) -> float:
    """Gradients of the mean loss of a batch, in one pass or several; the loss."""
    total = 0.0
    # Half precision where the device has it; gradients in bfloat16 need no scaling of the loss.
    half = cut.device.startswith("cuda")
    try:
        for part in np.array_split(batch, min(options.accumulate, len(batch))):
            with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
                features = _upper(cut, rows, part)
            value = loss(features.float(), part) * (len(part) / len(batch))
            value.backward()
            total += float(value.detach())
    except RuntimeError as error:
        if "memory" not in str(error).lower():
            raise
        raise MachineError(
            "out of memory while training: divide a step with --accumulate, or use a smaller "
            "--batch-size"
        ) from error
    return total


def _endless(rows: CachedRows, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        batches = rows.batches(rng.permutation(len(rows)), size)
        for i in rng.permutation(len(batches)):
            yield batches[i]


# ---- optimisers ----


def _groups(
    options: BlockOptions,
    trained: list[tuple[nn.Parameter, int]],
    extra: list[nn.Parameter],
    rate: float,
) -> list[dict[str, Any]]:
    """One group for every depth and for what decays and what does not (vectors do not)."""
    by_kind: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter, depth in trained:
        by_kind.setdefault((depth, parameter.ndim > 1), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": rate * options.layer_decay**depth,
            "weight_decay": options.weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in sorted(by_kind.items(), key=lambda item: item[0])
    ]
    if extra:
        groups.append({"params": extra, "lr": rate, "weight_decay": 0.0})
    return groups


def _optimizer(
    options: BlockOptions,
    trained: list[tuple[nn.Parameter, int]],
    extra: list[nn.Parameter],
    rate: float,
    total: int,
) -> tuple[torch.optim.Optimizer, Callable[[], Any]]:
    groups = _groups(options, trained, extra, rate)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups), nullcontext
    if options.optimizer == "schedule-free":
        from schedulefree import AdamWScheduleFree

        free: Any = AdamWScheduleFree(groups, warmup_steps=max(1, round(_WARM_UP * total)))

        @contextmanager
        def averaging() -> Iterator[None]:
            free.train()
            try:
                yield
            finally:
                free.eval()  # the averaged weights

        return free, averaging
    from prodigyopt import Prodigy

    # The safeguard of its authors for a warm start of the estimate.
    prodigy: Any = Prodigy(groups, safeguard_warmup=True, use_bias_correction=True, decouple=True)
    return prodigy, nullcontext


# ---- LoRA ----


@contextmanager
def _low_rank(cut: CutBackbone, rank: int | None) -> Iterator[list[tuple[nn.Parameter, int]]]:
    """What is trained, with depths: the parameters, or low-rank changes merged at the end."""
    if rank is None:
        yield [(parameter, cut.depth[name]) for name, parameter in cut.parameters.items()]
        return
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel
    from transformers.pytorch_utils import Conv1D

    names = {name.rsplit(".", 1)[0] for name in cut.parameters}
    modules = dict(cut.model.named_modules())
    target = sorted(
        name
        for name in names
        if isinstance(modules.get(name), nn.Linear | Conv1D)
        or (isinstance(layer := modules.get(name), nn.Conv2d) and layer.groups == 1)
    )
    if not target:
        raise InputError("--lora: the unfrozen blocks have no linear layers: leave --lora out")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=target)
    # Parameters as they are, under their names: the wrapped layers hold the very same tensors.
    own = dict(cut.parameters)
    cut.parameters = {}
    wrapped: Any = None
    try:
        wrapped = LoraModel(cut.model, config, "default")
        low = [(n, p) for n, p in cut.model.named_parameters() if ".lora_" in n]
        depth = {name.rsplit(".", 1)[0]: cut.depth[name] for name in own}
        yield [(p, depth.get(n.split(".lora_")[0], 0)) for n, p in low]
    finally:
        if wrapped is not None:
            wrapped.merge_and_unload()
        cut.parameters = own
        for parameter in cut.model.parameters():
            parameter.requires_grad_(False)
        found = dict(cut.model.named_parameters())
        cut.parameters = {name: found[name] for name in own}
