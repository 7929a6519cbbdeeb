"""Make ``import torchvision`` work when its compiled part does not fit the installed torch.

A CPU build of torch beside PyPI's torchvision (built against CUDA) is common, since timm and
transformers pull torchvision in. Its shared library then fails to load; torchvision itself
tolerates that, except for one line: it registers a Python kernel for ``torchvision::nms``, an
operator that only the shared library declares. So ``import torchvision`` dies with "operator
torchvision::nms does not exist", and with it transformers, sentence-transformers and timm, none of
which ever calls that operator.

The cure is to declare the two schemas that torchvision registers kernels for. What is pure Python
in torchvision (transforms, models) then works; calling ``nms`` still fails, as it must.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def ensure_torchvision_imports() -> str:
    """Declare torchvision's operators where its compiled part cannot; call before importing it.

    Returns:
        What was found: ``"absent"``, ``"imported"`` (already, nothing to do), ``"compiled"``
        (the shared library loads) or ``"declared"`` (the schemas were declared here).

    Example:
        >>> ensure_torchvision_imports() in {"absent", "imported", "compiled", "declared"}
        True
    """
    if "torchvision" in sys.modules:
        return "imported"
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return "absent"

    import torch

    folder = Path(next(iter(spec.submodule_search_locations)))
    for library in (folder / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES):
        if not library.exists():
            continue
        try:
            torch.ops.load_library(str(library))
        except (ImportError, OSError):
            continue
        return "compiled"

    global _declared
    _declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        try:
            _declared.define(operator + _SCHEMA)
        except RuntimeError:
            # Somebody else (another library with the same cure) declared it before us.
            continue
    return "declared"


# torch takes a schema back when its Library object is collected, so one must outlive the call.
_declared: object = None
