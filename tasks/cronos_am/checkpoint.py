"""What an alternation stands at after a half-step, on disk: whole or not at all, nothing executed.

``state.json`` names the safetensors file that belongs to it and its checksum. It is written last
and in one piece; the file before is removed after that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convex_heads.decode import Network, ReluNetwork, TwoLayer
from convex_heads.scaling import Scaling
from extractors.errors import InputError
from extractors.storage import make_folder, write_atomically
from tasks.records import to_json

_STATE = "state.json"
_SCALING = ("mean", "scale", "keep")
_KINDS = {"gated_relu": Network, "relu": ReluNetwork}


@dataclass(frozen=True)
class Model:
    """Blocks and a head on them.

    Attributes:
        blocks: parameters above the cut by name.
        network: the head.
    """

    blocks: Mapping[str, np.ndarray]
    network: TwoLayer


@dataclass
class State:
    """Where an alternation stands between two half-steps.

    Attributes:
        first: the head of the frozen backbone.
        now: the model that goes on.
        best: the one that validation rows prefer.
        best_accuracy: of it on validation rows; best_loss: mean.
        frozen_right: which validation rows the frozen backbone's head gets right (m,) bool;
            frozen_losses: of them (m,).
        gates: all that the head may choose from (P, d + 1).
        usable: features that are not constant (d,) bool.
        beta: absolute penalty, of every round.
        penalty: of the head, ``group`` or ``ridge``.
        objective: J of ``now``.
        certificate: of the last head solve, and ``best_certificate`` of the best model's head.
        round: that is done or being done; 0 is the frozen backbone's.
        next_half: ``block`` or ``head``.
        rate: learning rate; None before it is known.
        highest: best validation accuracy of all half-steps, chance included; lowest: mean loss.
        idle: rounds since either was bettered; a lower rate after a step back is none.
        seconds: spent so far, those before an interruption included.
        history: a line for each half-step.
    """

    first: TwoLayer
    now: Model
    best: Model
    best_accuracy: float
    best_loss: float
    frozen_right: np.ndarray
    frozen_losses: np.ndarray
    gates: np.ndarray
    usable: np.ndarray
    beta: float
    penalty: str
    objective: float
    certificate: dict[str, Any]
    best_certificate: dict[str, Any]
    round: int = 0
    next_half: str = "block"
    rate: float | None = None
    highest: float = 0.0
    lowest: float = math.inf
    idle: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


_PLAIN = ("beta", "penalty", "objective", "certificate", "best_certificate", "round", "next_half")
_PLAIN += ("rate", "best_accuracy", "best_loss", "highest", "lowest", "idle", "seconds", "history")
_ARRAYS = ("frozen_right", "frozen_losses", "gates", "usable")


def save(folder: Path, state: State, about: Mapping[str, Any]) -> None:
    """Writes a checkpoint.

    Args:
        folder: of this alternation alone.
        state: what to keep.
        about: what the alternation is; ``load`` compares it.

    Raises:
        MachineError: the disk refuses; the checkpoint before is then untouched.
    """
    from safetensors.numpy import save as to_safetensors

    make_folder(folder, "--out")
    arrays = {name: getattr(state, name) for name in _ARRAYS}
    for which in ("now", "best"):
        model: Model = getattr(state, which)
        arrays |= {f"{which}/blocks/{name}": values for name, values in model.blocks.items()}
        arrays |= {f"{which}/head/{k}": v for k, v in network_arrays(model.network).items()}
    arrays |= {f"first/head/{k}": v for k, v in network_arrays(state.first).items()}
    plain = {
        name: values.astype(np.uint8) if values.dtype == bool else values
        for name, values in arrays.items()
    }
    content = to_safetensors({name: np.ascontiguousarray(v) for name, v in plain.items()})
    digest = hashlib.sha256(content).hexdigest()
    file = f"weights-{digest[:16]}.safetensors"
    write_atomically(folder / file, content, "--out")
    told = {
        "about": json.loads(to_json(about)),
        "weights": file,
        "weights_sha256": digest,
        "activation": _activation(state.now.network),
        "loss": state.now.network.loss,
        **{name: getattr(state, name) for name in _PLAIN},
    }
    # NaN (of a ridge head's pattern violation) survives, and numbers to the last digit: JSON as
    # Python writes it.
    text = json.dumps(told, default=_plain)
    write_atomically(folder / _STATE, text.encode("utf-8"), "--out")
    for old in folder.glob("weights-*.safetensors"):
        if old.name != file:
            old.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Of numpy scalars and the like."""
    return json.loads(to_json(value))


def is_there(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return (folder / _STATE).is_file()


def load(folder: Path, about: Mapping[str, Any]) -> State:
    """Reads the checkpoint that ``save`` wrote.

    Raises:
        InputError: none, one of another job, or an altered one.
    """
    from safetensors.numpy import load as from_safetensors

    try:
        told = json.loads((folder / _STATE).read_text("utf-8"))
        content = (folder / told["weights"]).read_bytes()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} holds no checkpoint: leave --resume out") from error
    differs = sorted(
        key
        for key in {*about, *told["about"]}
        if json.loads(to_json(about.get(key))) != told["about"].get(key)
    )
    if differs:
        raise InputError(
            f"the checkpoint in {folder} is of a job with other options ({', '.join(differs)} "
            "differ): give the same ones, or leave --resume out and name another --out"
        )
    if hashlib.sha256(content).hexdigest() != told["weights_sha256"]:
        raise InputError(f"{folder / told['weights']} was altered (its checksum differs)")
    arrays = from_safetensors(content)

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    def model(which: str) -> Model:
        head = part(f"{which}/head/")
        return Model(part(f"{which}/blocks/"), network_of(head, told["activation"], told["loss"]))

    return State(
        first=network_of(part("first/head/"), told["activation"], told["loss"]),
        now=model("now"),
        best=model("best"),
        frozen_right=arrays["frozen_right"].astype(bool),
        frozen_losses=arrays["frozen_losses"],
        gates=arrays["gates"],
        usable=arrays["usable"].astype(bool),
        **{name: told[name] for name in _PLAIN},
    )


def network_arrays(network: TwoLayer) -> dict[str, np.ndarray]:
    """A head's arrays by name."""
    arrays = {name: getattr(network.scaling, name) for name in _SCALING}
    return arrays | {k: v for k, v in vars(network).items() if isinstance(v, np.ndarray)}


def network_of(arrays: Mapping[str, np.ndarray], activation: str, loss: str) -> TwoLayer:
    """The head of these arrays."""
    scaling = Scaling(arrays["mean"], arrays["scale"], arrays["keep"].astype(bool))
    own = {name: values for name, values in arrays.items() if name not in _SCALING}
    return _KINDS[activation](scaling=scaling, loss=loss, **own)


def _activation(network: TwoLayer) -> str:
    return next(name for name, kind in _KINDS.items() if isinstance(network, kind))
