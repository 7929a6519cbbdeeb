"""Frozen features: raw rows in, float32 features on disk out.

The layer between data and heads. It knows torch, sentence-transformers, timm and Arrow; it knows
neither JAX nor the heads that are fitted on what it produces. Everything here is loaded at first
use, so ``import extractors`` costs nothing.

    >>> from extractors import FeatureStore, load_extractor
    >>> load_extractor("toy:text-8").dim
    8

The function that fills a store is ``extractors.extract.extract`` (the module keeps its name, so it
is not repeated here).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extractors.base import Extractor, Rows
    from extractors.errors import BadRow, InputError, MachineError
    from extractors.load import load_extractor
    from extractors.options import FeatureOptions
    from extractors.store import FeatureStore

__all__ = [
    "BadRow",
    "Extractor",
    "FeatureOptions",
    "FeatureStore",
    "InputError",
    "MachineError",
    "Rows",
    "load_extractor",
]

_HOME = {
    "BadRow": "extractors.errors",
    "Extractor": "extractors.base",
    "FeatureOptions": "extractors.options",
    "FeatureStore": "extractors.store",
    "InputError": "extractors.errors",
    "MachineError": "extractors.errors",
    "Rows": "extractors.base",
    "load_extractor": "extractors.load",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it, at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'extractors' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
