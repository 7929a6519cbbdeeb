"""Random damage to an artefact: bytes, JSON values, safetensors headers; each seed one damage."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from extractors.errors import InputError

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.0, 1e308, -1e308, 10**400, 2**63, -(2**63), 2**31),
    *(float("nan"), float("inf"), "", "a", "relu", "\ud800", "x" * 10_000, "../../etc/passwd"),
    *([], {}, [[]], [None], ["a"] * 1000, {"a": {}}, [1, 2, 3], [-1], [2**62, 4], [0], [10**30]),
    *("F32", "F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "C64", "U8"),
)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """A few flips, cuts, insertions, repeats."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        i = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[min(i, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                del data[i : i + rng.choice((1, 4, 100))]
            case 2:
                data[i:i] = rng.randbytes(rng.choice((1, 8, 100)))
            case 3:
                del data[i:]
            case 4:
                data[i:i] = data[i : i + 64]
            case _ if data:
                data[min(i, len(data) - 1)] = rng.choice(b'\x00\xff{}[]",:0-e')
    return bytes(data)


def damage_json(value: Any, rng: random.Random) -> Any:
    """One to three values replaced, removed or added anywhere in a JSON value."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return rng.choice(HOSTILE)
        holder, key = rng.choice(places)
        match rng.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(rng.choice(("", "a", "mean", "weights", "__metadata__")))] = rng.choice(
                    HOSTILE
                )
            case _:
                holder[key] = copy.deepcopy(rng.choice(HOSTILE))
    return value


def _places(value: Any):
    if isinstance(value, dict):
        for key in value:
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for i, each in enumerate(value):
            yield value, i
            yield from _places(each)


def damage_header(content: bytes, rng: random.Random) -> bytes:
    """Another header before the same arrays; its length is told rightly or wrongly."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.7:
        changed = damage_json(json.loads(header), rng)
        header = json.dumps(changed).encode("utf-8", "surrogatepass")
    else:
        header = damage_bytes(header, rng)
    said = len(header)
    if rng.random() < 0.2:
        said = rng.choice((0, 1, said - 1, said + 1, 2**31, 2**63, 2**64 - 1, len(content)))
    return (said % 2**64).to_bytes(8, "little") + header + data


def damage(source: Path, target: Path, seed: int) -> str:
    """A damaged copy of an artefact; returns the kind of damage."""
    rng = random.Random(seed)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    config = (source / "config.json").read_bytes()
    weights = (source / "model.safetensors").read_bytes()
    kinds: dict[str, Callable[[], tuple[bytes, bytes]]] = {
        "config, bytes": lambda: (damage_bytes(config, rng), weights),
        "config, values": lambda: (
            json.dumps(damage_json(json.loads(config), rng)).encode("utf-8", "surrogatepass"),
            weights,
        ),
        "weights, bytes": lambda: _signed(config, damage_bytes(weights, rng), rng),
        "weights, header": lambda: _signed(config, damage_header(weights, rng), rng),
    }
    kind = rng.choice(list(kinds))
    new_config, new_weights = kinds[kind]()
    (target / "config.json").write_bytes(new_config)
    (target / "model.safetensors").write_bytes(new_weights)
    return kind


def _signed(config: bytes, weights: bytes, rng: random.Random) -> tuple[bytes, bytes]:
    """Mostly with the checksum of the damaged weights, which would otherwise hide all else."""
    if rng.random() < 0.1:
        return config, weights
    said = json.loads(config) | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    return json.dumps(said).encode(), weights


def outcome(folder: Path) -> str:
    """ "refused" in one line, or "loads" and predicts; anything else is raised."""
    from tasks.pipeline import ConvexHeadPipeline

    try:
        pipeline = ConvexHeadPipeline.from_pretrained(folder)
    except InputError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 600, said
        assert str(folder) in said, said
        return "refused"
    head = pipeline.head
    with np.errstate(all="ignore"):
        p = head.predict_proba(np.zeros((2, head.network.dim), np.float32))
    assert p.shape == (2, len(pipeline.classes))
    assert pipeline.modality in ("text", "image", "features")
    pipeline.describe()
    return "loads"
