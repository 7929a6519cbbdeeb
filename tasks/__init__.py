"""What a person wants done: data in, a certified head on a frozen backbone out.

The only layer that knows both `extractors` and `convex_heads`. Names are loaded when they are
first used, so importing this package costs nothing.

>>> from tasks import load_task
>>> load_task("digits").modality
'image'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.comparison.run import compare as compare
    from tasks.data.load import load_task as load_task
    from tasks.pipeline import ConvexHeadPipeline as ConvexHeadPipeline

__all__ = ["ConvexHeadPipeline", "compare", "load_task"]

_HOME = {
    "ConvexHeadPipeline": "tasks.pipeline",
    "compare": "tasks.comparison.run",
    "load_task": "tasks.data.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tasks' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
