"""The block half-step of CRONOS-AM: every way to train, its learning rate, what stands still."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from joints import joint, needs_peft, never_rises
from tiny_models import save_backbone as backbone
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tasks.cronos_am import block_step
from tasks.cronos_am.alternate import alternate
from tasks.cronos_am.block_step import BlockOptions, features_of, find_rate, train_blocks


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "schedule-free", "rate": 1e-3},
        {"optimizer": "prodigy"},
        {"lora": 2, "rate": 3e-3},
        {"layer_decay": 0.5},  # the rate from the range test
        {"accumulate": 3, "dropout": True, "rate": 1e-3},
    ],
    ids=lambda o: "-".join(o),
)
def test_every_way_to_train_lowers_the_objective(options, tmp_path):
    pytest.importorskip("schedulefree")
    problem = joint("bert", backbone("bert", tmp_path), k=2)
    names = set(problem.cut.parameters)
    done = alternate(problem, rounds=2, options=BlockOptions(epochs=4, batch_size=8, **options))
    assert never_rises(done.history)
    assert done.history[-1]["objective"] < 0.999 * done.history[0]["objective"]
    assert set(problem.cut.parameters) == names  # LoRA leaves nothing behind
    assert not any("lora" in n for n, _ in problem.cut.model.named_parameters())


def test_the_range_test_takes_the_largest_rate_that_does_no_great_harm(tmp_path):
    problem = joint("bert", backbone("bert", tmp_path))
    before, home = problem.cut.state(), torch.from_numpy(features_of(problem.cut, problem.train))
    trained = [(p, problem.cut.depth[name]) for name, p in problem.cut.parameters.items()]

    def rate(harm: float) -> float:
        before: list[float] = []
        along: list[float] = []

        def loss(features: torch.Tensor, batch: np.ndarray) -> torch.Tensor:
            value = 1 + harm * (features - home[torch.from_numpy(batch)]).square().mean()
            (along if torch.is_grad_enabled() else before).append(value.item())
            return value

        rng, options = np.random.default_rng(0), BlockOptions(batch_size=8)
        with problem.cut.training(dropout=False):
            for parameter, _ in trained:
                parameter.requires_grad_(True)
            found = find_rate(problem.cut, problem.train, loss, options, trained, [], rng, math.inf)
        if found > 3e-5:  # the losses on the way decide, and a rate is left as soon as they have
            refused, taken = along[: -len(before)], along[-len(before) :]
            assert sum(taken) <= 2 * sum(before)
            assert not refused or sum(refused) > 2 * sum(before)
        return found

    # Nothing is to be gained: the dearer it is to leave home, the shorter the steps.
    found = [rate(harm) for harm in (0.0, 1e2, 1e4, 1e6, 1e8)]
    assert found[0] == 3e-3 and found[-1] == 3e-5
    assert found == sorted(found, reverse=True) and len(set(found)) >= 3
    after = problem.cut.state()
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("seconds", "steps"), [(20.0, 20), (6.0, 6), (math.inf, 300)], ids=["half", "soon", "never"]
)
def test_the_rate_ends_at_zero_with_the_steps_or_with_the_time(
    seconds, steps, tmp_path, monkeypatch
):
    problem = joint("bert", backbone("bert", tmp_path))
    now = [1000.0]  # a clock on which every step takes one second
    monkeypatch.setattr(block_step, "time", SimpleNamespace(monotonic=lambda: now[0]))
    rates: list[float] = []

    def loss(features: torch.Tensor, batch: np.ndarray) -> torch.Tensor:
        now[0] += 1
        return features.square().mean()

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(note)
    try:
        options = BlockOptions(epochs=50, batch_size=8, rate=1e-3)  # 300 steps
        deadline = now[0] + seconds
        done = train_blocks(problem.cut, problem.train, loss, options, seed=0, deadline=deadline)
    finally:
        hook.remove()
    assert len(rates) == done.steps == steps
    # Half a cosine of what has passed of the time or of the steps, whichever is more.
    for step, rate in enumerate(rates):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        warm = max(step, int(step / steps * 300)) + 1
        assert rate == pytest.approx(1e-3 * min(cosine, warm / 30), abs=1e-5)
    assert max(rates) > 8e-4 and rates[-1] < 1e-3 * (1 - math.cos(math.pi / steps))


def test_low_rank_changes_have_low_rank(tmp_path):
    needs_peft()
    problem = joint("bert", backbone("bert", tmp_path))
    before = problem.cut.state()
    options = BlockOptions(epochs=1, batch_size=8, lora=2, rate=1e-2)
    train_blocks(problem.cut, problem.train, lambda f, _: f.square().mean(), options, seed=0)
    after = problem.cut.state()
    ranks = {
        name: int(np.linalg.matrix_rank(after[name] - before[name], tol=1e-5))
        for name in before
        if not np.array_equal(after[name], before[name])
    }
    assert ranks and set(ranks.values()) <= {1, 2}


def test_batch_norms_stand_still(tmp_path):
    family = "mobilenetv3_small_050"
    problem = joint(family, backbone(family, tmp_path), k=2)
    buffers = {n: b.clone() for n, b in problem.cut.model.named_buffers()}
    options = BlockOptions(epochs=1, batch_size=8, rate=1e-3, dropout=True)
    train_blocks(problem.cut, problem.train, lambda f, _: f.square().mean(), options, seed=0)
    assert buffers and all(
        bool((b == buffers[n]).all()) for n, b in problem.cut.model.named_buffers()
    )
