"""Rows over several devices and processes: the same optimum, and each device has its own rows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from convex_heads import Limits, Options, sharding, solve

REPOSITORY = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
# Not a multiple of anything.
X = np.c_[RNG.normal(size=(1237, 6)), np.ones(1237)].astype("float32")
Y = np.eye(3, dtype="float32")[(X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 1)]
OPTIONS = Options(beta=0.05, n_gates=8, limits=Limits(tolerance=1e-4, max_seconds=100))

SOLVE = """
import json, sys
import jax
import test_sharding as t
from convex_heads import sharding, solve

if len(sys.argv) > 1:
    sharding.join(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
with sharding.rows_over("all") as mesh:
    found = solve(t.X, t.Y, t.OPTIONS, jax.random.key(0))
W = found.value
print(json.dumps({
    "devices": mesh.size,
    "own": len(mesh.local_devices),
    "primal": found.stats.primal,
    "gap": found.stats.relative_gap,
    "status": found.status.name,
    "rows": found.scores.size // 3,
    "of one device": found.scores.addressable_shards[0].data.size // 3,
    "weights": [float(w) for w in W.ravel()],
}))
"""


def start(devices: int, *arguments: object, code: str = SOLVE) -> subprocess.Popen[str]:
    """A process of its own with so many devices."""
    flags = (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_cpu_use_fusion_emitters=false"
    )
    paths = (str(REPOSITORY), str(REPOSITORY / "tests"))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(paths)},
    )


def result(process: subprocess.Popen[str]) -> dict:
    """What it printed last."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def alone() -> dict:
    """The solve on one device."""
    found = solve(X, Y, OPTIONS, jax.random.key(0))
    return {"primal": found.stats.primal, "weights": np.asarray(found.value).ravel()}


def check(found: dict, alone: dict, devices: int) -> None:
    """The same solution, its rows in equal shares."""
    assert found["status"] == "CONVERGED" and found["gap"] <= 1e-4
    assert found["primal"] == pytest.approx(alone["primal"], rel=1e-5)
    size = np.linalg.norm(alone["weights"])
    assert np.linalg.norm(found["weights"] - alone["weights"]) <= 2e-2 * size
    assert found["devices"] == devices
    assert found["of one device"] * devices == found["rows"]


def test_two_processes_of_four_devices_find_the_same_solution(alone):
    address = f"127.0.0.1:{free_port()}"
    processes = [start(4, address, 2, k) for k in range(2)]
    first, second = map(result, processes)
    for found in (first, second):
        check(found, alone, 8)
        assert found["own"] == 4
    assert first == second


def test_eight_devices_find_the_same_solution(alone):
    check(result(start(8)), alone, 8)
