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
from tasks.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
# Not a multiple of anything.
X = np.c_[RNG.normal(size=(1237, 6)), np.ones(1237)].astype("float32")
Y = np.eye(3, dtype="float32")[(X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 1)]
OPTIONS = Options(beta=0.05, n_gates=8, limits=Limits(tolerance=1e-4, max_seconds=500))

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
    out, err = process.communicate(timeout=500)
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


@pytest.mark.parametrize("own", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_two_processes_of_several_devices_find_the_same_solution(alone, own):
    address = f"127.0.0.1:{free_port()}"
    processes = [start(own, address, 2, k) for k in range(2)]
    first, second = map(result, processes)
    for found in (first, second):
        check(found, alone, 2 * own)
        assert found["own"] == own
    assert first == second


SUMS = """
import json, re
import jax, jax.numpy as jnp
import numpy as np
import test_sharding as t
from convex_heads import gated, sharding, subspace
from convex_heads.losses import LOSSES

with sharding.rows_over("all"):
    p = gated.prepare(t.X, t.Y, np.ones(1237, "f4"), LOSSES["softmax"], 8, jax.random.key(0))
    state = gated.resume(p, jnp.zeros(p.program.shape))
    beta = jnp.float32(0.1)
    step = subspace.advance.lower(p.program, p.loss, p.penalty, beta, beta, state, 8)
    text = step.compile().as_text()
print(json.dumps(re.findall("= (.*) (all-[a-z]*)[(]", text)))
"""


def test_the_sum_of_weights_travels_once_a_step_and_once_a_levelling():
    found = result(start(8, code=SUMS))
    P, d, C = OPTIONS.n_gates, X.shape[1], Y.shape[1]
    assert sum(f"f32[{d},{C * P}]" in shape for shape, _ in found) == 2
    # Neither do features, nor patterns.
    assert not [shape for shape, _ in found if f",{d}]" in shape or "pred" in shape]


@pytest.mark.slow
def test_eight_devices_of_one_process_find_the_same_solution(alone):
    check(result(start(8)), alone, 8)


def test_a_task_of_slurm_keeps_all_gpus_of_its_node():
    code = """
import json, sys
import jax
from convex_heads import sharding

sharding.join(sys.argv[1], 1, 0)
print(json.dumps({"visible": jax.config.values["jax_cuda_visible_devices"]}))
"""
    slurm = {"JOB_ID": 7, "STEP_NODELIST": "node1", "NTASKS": 1, "PROCID": 0, "LOCALID": 0}
    slurm["STEP_NUM_NODES"] = 1
    with pytest.MonkeyPatch.context() as patch:
        for name, value in slurm.items():
            patch.setenv(f"SLURM_{name}", str(value))
        task = start(1, f"127.0.0.1:{free_port()}", code=code)
    assert result(task) == {"visible": "all"}


@pytest.mark.slow
def test_processes_wait_for_one_that_is_late():
    # Left alone, JAX gives up on a process that comes 30 s later than the others.
    code = """
import json, sys, time
import numpy as np
from convex_heads import sharding

sharding.join(sys.argv[1], 2, int(sys.argv[2]))
with sharding.rows_over("all"):
    if sys.argv[2] == "0":
        time.sleep(35)
    print(json.dumps({"agreed": float(sharding.agreed(np.float32(1 + int(sys.argv[2]))))}))
"""
    address = f"127.0.0.1:{free_port()}"
    both = [start(1, address, k, code=code) for k in range(2)]
    assert [result(each) for each in both] == [{"agreed": 1.0}] * 2


@pytest.mark.slow
def test_the_command_on_two_processes(tmp_path):
    code = "import sys; from tasks.cli import main; sys.exit(main(sys.argv[1:]))"
    fit = ("fit", "digits", "--backbone", "toy:image-16", "--n-gates", "4", "--beta", "0.1")
    address = f"127.0.0.1:{free_port()}"
    processes = []
    for k in range(2):
        where = (
            "--cache-dir",
            tmp_path / "cache",
            "--out",
            tmp_path / f"of {k}",
            "--no-leak-check",
        )
        which = ("--coordinator", address, "--processes", 2, "--process", k, "--json")
        processes.append(start(1, *fit, *where, *which, code=code))
    speaks, silent = processes
    record = result(speaks)
    assert silent.communicate(timeout=500)[0] == "" and silent.returncode == 0
    assert record["relative_gap"] <= record["tolerance"]
    assert (tmp_path / "of 0" / "model.safetensors").is_file()
    assert not (tmp_path / "of 1").exists()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: sharding.mesh_of(4096), "JAX has"),
        (lambda: sharding.mesh_of("some"), "devices is 'all' or at most so many; got 'some'"),
        (lambda: sharding.join("node0", 2, 0), "coordinator is host:port"),
        (lambda: sharding.join("node0:1", 2, 2), "from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(call, expected):
    with pytest.raises(ValueError, match=expected):
        call()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--devices", "4096"), "--devices 4096: JAX has"),
        (("--process", "1"), "--processes N and --process I go together"),
        (("--coordinator", "a:1", "--processes", "2", "--process", "2"), "at most 1"),
        (("--coordinator", "a", "--processes", "2", "--process", "0"), "coordinator is host:port"),
    ],
)
def test_the_command_refuses_before_the_work(arguments, expected, capsys):
    assert main(["fit", "digits", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and expected in error
