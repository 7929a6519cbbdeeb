"""Two-layer (gated) ReLU heads on fixed features, solved to a certified gap, in JAX.

This package is the mathematics: arrays in, arrays out. It knows nothing of backbones, files or
data sets (see the packages ``extractors`` and ``tasks``). Names are imported on first use, so
``import convex_heads`` is cheap and starts no JAX backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convex_heads.certificate import Certificate
    from convex_heads.classifier import ConvexHeadClassifier
    from convex_heads.decode import Network, ReluNetwork
    from convex_heads.limits import Limits
    from convex_heads.programs import Options, solve
    from convex_heads.regressor import ConvexHeadRegressor
    from convex_heads.robustness import robustness_radius
    from convex_heads.solution import Solution, Status
    from convex_heads.sources import Shards
    from convex_heads.verify import certify

_HOME = {
    "Certificate": "convex_heads.certificate",
    "ConvexHeadClassifier": "convex_heads.classifier",
    "ConvexHeadRegressor": "convex_heads.regressor",
    "Limits": "convex_heads.limits",
    "Network": "convex_heads.decode",
    "Options": "convex_heads.programs",
    "ReluNetwork": "convex_heads.decode",
    "Shards": "convex_heads.sources",
    "Solution": "convex_heads.solution",
    "Status": "convex_heads.solution",
    "certify": "convex_heads.verify",
    "robustness_radius": "convex_heads.robustness",
    "solve": "convex_heads.programs",
}

__all__ = [
    "Certificate",
    "ConvexHeadClassifier",
    "ConvexHeadRegressor",
    "Limits",
    "Network",
    "Options",
    "ReluNetwork",
    "Shards",
    "Solution",
    "Status",
    "certify",
    "robustness_radius",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'convex_heads' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
