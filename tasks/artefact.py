"""The artefact: a folder with everything that rebuilds a fitted head, and nothing that executes.

``config.json`` says what it is, ``model.safetensors`` holds the arrays. Both are checked when they
are read: schema, shapes, dtypes, checksum. A folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convex_heads.decode import Network, ReluNetwork, TwoLayer
from convex_heads.scaling import Scaling
from extractors.errors import InputError
from extractors.storage import plain_disk_errors, write_atomically
from tasks import publish
from tasks.records import to_json
from tasks.weights import check_weights

if TYPE_CHECKING:
    from tasks.torch_head import TorchHead

SCHEMA_VERSION = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
SAMPLES_NAME = "samples.jsonl"
_FILES = ("README.md", "report.html", SAMPLES_NAME, WEIGHTS_NAME, CONFIG_NAME)
CHANGED = "backbone."  # before the names of the backbone's weights that were fine-tuned


@dataclass(frozen=True)
class Head:
    """A deployed head: the network, the names of its classes, the calibration.

    Attributes:
        network: raw features -> scores.
        classes: C names.
        temperature: scores are divided by it before they become probabilities.
    """

    network: TwoLayer
    classes: tuple[str, ...]
    temperature: float = 1.0

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Raw features (n, d) -> probabilities (n, C)."""
        return self.network.probabilities(features, self.temperature)

    def to_torch(self) -> TorchHead:
        """The same head as a torch module in evaluation mode; see `tasks.torch_head.TorchHead`.

        In float32 it agrees with the head to 1e-5, but for rows that lie within round-off of a
        gate: a gated network jumps there, and which side is right depends on the order of a sum.
        """
        from tasks.torch_head import TorchHead

        return TorchHead(self.network, self.temperature).eval()


@dataclass(frozen=True)
class Artefact:
    """What an artefact's folder says.

    Attributes:
        head: the head.
        config: the whole of ``config.json``.
        changes: weights of the backbone that were fine-tuned, by their names in its state.
    """

    head: Head
    config: dict[str, Any]
    changes: Mapping[str, np.ndarray] = field(default_factory=dict)


def write_artefact(
    folder: Path,
    head: Head,
    *,
    modality: str,
    backbone: str,
    backbone_fingerprint: dict[str, Any],
    facts: dict[str, Any],
    write_more: Callable[[Path], None] | None = None,
    changes: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes an artefact, replacing an older one at the same place.

    Args:
        folder: where; if it exists it must be empty or an artefact.
        head: what predicts.
        modality: ``text`` or ``image``.
        backbone: its name, as ``load_extractor`` takes it.
        backbone_fingerprint: what its features depend on.
        facts: JSON-able: the certificate, the training record.
        write_more: writes further files (model card, report) into the folder it is given.
        changes: weights of the backbone that were fine-tuned; the others stay where they are.

    Raises:
        InputError: the folder holds something else.
        MachineError: the disk refuses; an older artefact is then untouched.
    """
    with publish.whole_folder(folder, _FILES) as new:
        content = _tensors(head.network, changes or {})
        config = {
            "schema_version": SCHEMA_VERSION,
            "kind": "convex-head",
            "modality": modality,
            "backbone": backbone,
            "backbone_fingerprint": backbone_fingerprint,
            "classes": list(head.classes),
            "activation": _activation(head.network),
            "loss": head.network.loss,
            "temperature": head.temperature,
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            **facts,
        }
        write_atomically(new / WEIGHTS_NAME, content, "--out")
        write_atomically(new / CONFIG_NAME, (to_json(config, indent=2) + "\n").encode(), "--out")
        if write_more is not None:
            with plain_disk_errors(folder.parent, "--out"):
                write_more(new)


def check_destination(folder: Path) -> None:
    """Raises InputError unless an artefact may be written there. Cheap: ask before the work."""
    publish.check_destination(folder, _FILES)


def read_artefact(folder: Path) -> Artefact:
    """Reads and checks an artefact. Nothing in it is executed.

    Raises:
        InputError: what is missing, altered, or of another schema version.
    """
    config = _read_config(folder)
    check_weights(folder / WEIGHTS_NAME)
    try:
        content = (folder / WEIGHTS_NAME).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {folder / WEIGHTS_NAME}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != config["weights_sha256"]:
        raise InputError(f"{folder / WEIGHTS_NAME} was altered (its checksum differs)")
    network, changes = _network(
        content, config["activation"], config["loss"], folder / WEIGHTS_NAME
    )
    columns = network.offset.shape[0]
    expected = len(config["classes"])
    if expected == 2 and config["loss"] == "logistic":
        expected = 1
    if columns != expected:
        raise InputError(
            f"{folder}: the weights have {columns} outputs, the settings ask for {expected}"
        )
    head = Head(network, tuple(config["classes"]), float(config["temperature"]))
    return Artefact(head, config, changes)


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "modality": str,
    "backbone": str,
    "backbone_fingerprint": dict,
    "classes": list,
    "loss": str,
    "temperature": (int, float),
    "weights_sha256": str,
}
_OPTIONAL_OBJECTS = ("certificate", "backbone_options", "record", "refit")
_MODALITIES = ("text", "image", "features")
_LOSSES = ("softmax", "logistic", "squared")
_MOST_CONFIG = 64 << 20


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not folder.exists():
        raise InputError(f"{folder} does not exist: name a folder that `convex-heads fit` wrote")
    if not path.is_file():
        raise InputError(f"{folder} is no artefact: it has no {CONFIG_NAME}")
    try:
        if path.stat().st_size > _MOST_CONFIG:
            raise InputError(f"{path} has more than {_MOST_CONFIG >> 20} MB: it is no artefact's")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read {path}: {said}") from error
    version = config.get("schema_version") if isinstance(config, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {str(version)[:40]}, this release reads {SCHEMA_VERSION}: "
            "install the release that wrote it, or fit again"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(config.get(name), kind) or isinstance(config[name], bool):
            raise InputError(f"{path}: '{name}' is missing or of the wrong kind")
    for name in _OPTIONAL_OBJECTS:
        if not isinstance(config.get(name, {}), dict):
            raise InputError(f"{path}: '{name}' must be a JSON object")
    # Artefacts of the first releases do not name the only activation that there was.
    config.setdefault("activation", "gated_relu")
    for name, known in (
        ("activation", tuple(_ARRAYS)),
        ("loss", _LOSSES),
        ("modality", _MODALITIES),
    ):
        if not isinstance(config[name], str) or config[name] not in known:
            raise InputError(
                f"{path}: '{name}' must be one of {', '.join(known)}; got "
                f"{str(config[name])[:40]!r}"
            )
    names = config["classes"]
    if not all(isinstance(each, str) for each in names) or len(names) < 2:
        raise InputError(f"{path}: 'classes' must be a list of names, two at least")
    if len(set(names)) < len(names):
        raise InputError(f"{path}: 'classes' names a class twice")
    # What is beyond this is no float32 number.
    if not 1e-30 < config["temperature"] < 1e30:
        raise InputError(f"{path}: 'temperature' must be above 0 and finite")
    return config


# The arrays of each activation beside scaling and offset; a shape of (m, k) is a neuron or gate in
# every row and a standardised feature, then the constant one, in every column.
_ARRAYS: dict[str, tuple[type[Network] | type[ReluNetwork], tuple[str, str]]] = {
    "gated_relu": (Network, ("gates", "weights")),
    "relu": (ReluNetwork, ("hidden", "output")),
}


def _activation(network: TwoLayer) -> str:
    return next(name for name, (kind, _) in _ARRAYS.items() if isinstance(network, kind))


def _tensors(network: TwoLayer, changes: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    arrays = {
        "mean": network.scaling.mean,
        "scale": network.scaling.scale,
        "keep": network.scaling.keep.astype(np.uint8),
        "offset": network.offset,
    }
    for name in _ARRAYS[_activation(network)][1]:
        arrays[name] = getattr(network, name)
    arrays |= {CHANGED + name: values for name, values in changes.items()}
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _network(
    content: bytes, activation: str, loss: str, path: Path
) -> tuple[TwoLayer, dict[str, np.ndarray]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no safetensors file: {error}") from error
    kind, own = _ARRAYS[activation]
    names = {"mean", "scale", "keep", "offset", *own}
    if missing := names - arrays.keys():
        raise InputError(f"{path}: the array '{min(missing)}' is missing")
    changed = {name for name in arrays if name.startswith(CHANGED)}
    for name in (names - {"keep"}) | changed:
        if (
            arrays[name].dtype not in (np.float32, np.float64)
            or not np.isfinite(arrays[name]).all()
        ):
            raise InputError(f"{path}: the array '{name}' must hold finite floating-point numbers")
    if activation == "gated_relu":
        m, k, C = (*arrays["weights"].shape, 0, 0, 0)[:3]
    else:
        (m, k), C = (*arrays["hidden"].shape, 0, 0)[:2], arrays["offset"].size
    shapes = {
        "mean": (k - 1,),
        "scale": (k - 1,),
        "keep": (k - 1,),
        own[0]: (m, k),
        own[1]: (m, k, C) if activation == "gated_relu" else (m, C),
        "offset": (C,),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise InputError(
                f"{path}: the array '{name}' has shape {arrays[name].shape} instead of {shape}"
            )
    if arrays["keep"].dtype not in (np.uint8, np.bool_) or (arrays["keep"] > 1).any():
        raise InputError(f"{path}: the array 'keep' must hold zeros and ones")
    if not (arrays["scale"] > 0).all():
        raise InputError(f"{path}: the array 'scale' must be above 0")
    scaling = Scaling(arrays["mean"], arrays["scale"], arrays["keep"].astype(bool))
    network = kind(
        scaling=scaling,
        offset=arrays["offset"],
        loss=loss,
        **{name: arrays[name] for name in own},
    )
    return network, {name.removeprefix(CHANGED): arrays[name] for name in changed}
