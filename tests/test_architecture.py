"""The import graph, asserted on the source and in fresh processes.

tasks -> extractors (torch and its world), tasks -> convex_heads (jax); the two never meet.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
PRODUCT = ("convex_heads", "extractors", "tasks")
TORCH_WORLD = {
    "torch",
    "torchvision",
    "transformers",
    "sentence_transformers",
    "timm",
    "datasets",
    "huggingface_hub",
}
FORBIDDEN = {
    "convex_heads": TORCH_WORLD | {"extractors", "tasks"},
    "extractors": {"jax", "jaxlib", "convex_heads", "tasks"},
}
# What `import tasks.cli` may not wait for: `convex-heads --help` answers at once.
HEAVY = TORCH_WORLD | {"jax", "jaxlib", "sklearn", "scipy", "matplotlib", "faiss", "pyarrow"}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# Settings that stay off, and what they may be set to instead: the name that a person gave, passed
# on, and whether it is this model's.
OFF = {
    "allow_pickle": set(),
    "trust_remote_code": {
        "self._trusted",
        "trust_remote_code",
        "self.trust_remote_code",
        "self._trust_remote_code",
        "config.trust_remote_code",
    },
}
LOADERS = {"torch.load", "torch.save", "eval", "exec", "builtins.eval", "builtins.exec"}


def sources(package: str) -> list[Path]:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files, f"no source in {package}"
    return files


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module named by an import statement or import_module("...") at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value), node.lineno


def settings(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Keyword arguments, and the entries of dictionaries that become them."""
    if isinstance(node, ast.keyword) and node.arg:
        yield node.arg, node.value
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, value


def run(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process that may not leave bytecode behind."""
    return subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CONVEX_HEADS")}
    return kept | {"HOME": str(home), "PYTHONPATH": str(REPOSITORY)}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_source_imports_nothing_it_must_not_know(package: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for path in sources(package)
        for name, line in imports(ast.parse(path.read_text("utf-8")))
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_import_finder_sees_every_kind_of_import() -> None:
    code = """
def f():
    import torch.nn as nn
    from transformers import AutoModel
    import_module("timm")
    importlib.import_module("datasets.load")
"""
    found = {name.split(".")[0] for name, _ in imports(ast.parse(code))}
    assert found == {"torch", "transformers", "timm", "datasets"}


@pytest.mark.parametrize("package", PRODUCT)
def test_source_never_touches_pickles_or_runs_strings(package: str) -> None:
    wrong = []
    for path in sources(package):
        tree = ast.parse(path.read_text("utf-8"))
        where = path.relative_to(REPOSITORY)
        for name, line in imports(tree):
            if name.split(".")[0] in PICKLES or name in LOADERS:
                wrong.append(f"{where}:{line} imports {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in LOADERS:
                wrong.append(f"{where}:{node.lineno} calls {ast.unparse(node.func)}")
            for name, value in settings(node):
                off = isinstance(value, ast.Constant) and value.value is False
                if name in OFF and not off and ast.unparse(value) not in OFF[name]:
                    wrong.append(f"{where}:{value.lineno} sets {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_every_module_loads_without_the_other_side(package: str, tmp_path: Path) -> None:
    forbidden = FORBIDDEN[package]
    code = f"""
import importlib, pkgutil, sys
import {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    importlib.import_module(module.name)
there = sorted({forbidden!r} & set(sys.modules))
assert not there, f"loading all of {package} loads {{there}}"
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PRODUCT)
def test_importing_a_package_is_silent_and_leaves_no_trace(package: str, tmp_path: Path) -> None:
    # The audit hook sees every open, mkdir, rename, ... of the process, also those undone later.
    code = f"""
import os, sys
writes = []
def hook(event, args):
    if event == "open":
        path, mode, flags = args
        writing = flags is not None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writing and str(path) != os.devnull:
            writes.append(f"{{event}} {{path}}")
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "tempfile.mkstemp"):
        writes.append(f"{{event}} {{args}}")
sys.addaudithook(hook)
import {package}
for name in dir({package}):
    pass
there = sorted({HEAVY - {"scipy", "sklearn", "jax", "jaxlib"}!r} & set(sys.modules))
assert not there, f"import {package} loads {{there}}"
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized(), "import {package} starts a JAX backend"
assert not writes, writes
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert not list(tmp_path.rglob("*"))


def test_the_public_names_of_convex_heads_start_no_backend(tmp_path: Path) -> None:
    code = """
import convex_heads
for name in convex_heads.__all__:
    getattr(convex_heads, name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_fitting_a_head_never_loads_torch(tmp_path: Path) -> None:
    code = f"""
import sys
import numpy as np
from convex_heads import ConvexHeadClassifier
X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
head = ConvexHeadClassifier(n_gates=4, beta=0.1).fit(X, X[:, 0] > 0)
head.predict_proba(X)
there = sorted({TORCH_WORLD | {"extractors", "tasks"}!r} & set(sys.modules))
assert not there, there
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_line_answers_without_heavy_libraries(tmp_path: Path) -> None:
    code = f"""
import sys
import tasks.cli
there = sorted({HEAVY!r} & set(sys.modules))
assert not there, f"tasks.cli loads {{there}} before it knows what to do"
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    for extra in ("ray", "onnx", "serve", "finetune", "setfit"):
        named += project["optional-dependencies"][extra]
    declared = {canonicalize_name(Requirement(line).name) for line in named}
    distributions = importlib.metadata.packages_distributions()
    ours = {*sys.stdlib_module_names, *PRODUCT}
    missing = set()
    for package in PRODUCT:
        for path in sources(package):
            for name, _ in imports(ast.parse(path.read_text("utf-8"))):
                module = name.split(".")[0]
                providers = {canonicalize_name(d) for d in distributions.get(module, [module])}
                if module not in ours and not providers & declared:
                    missing.add(f"{path.relative_to(REPOSITORY)} imports {module}")
    assert not missing, "not in pyproject.toml: " + ", ".join(sorted(missing))


def test_every_declared_package_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name) for pin in pins}
    for pin in pins:
        assert [s.operator for s in pin.specifier] == ["=="], f"{pin} is no pin"
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        assert canonicalize_name(Requirement(line).name) in pinned, f"{line} has no pin"


def test_no_file_names_this_machine_or_a_registry() -> None:
    # The installation must work from any index and any folder.
    for name in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run"):
        text = (REPOSITORY / name).read_text("utf-8")
        for wrong in ("://", str(Path.home()) + "/", str(REPOSITORY.parent) + "/"):
            assert wrong not in text, f"{name} names {wrong}"


def test_the_public_api_is_listed_once_and_nothing_else_is_exported() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    for package in PRODUCT:
        module = importlib.import_module(package)
        line = next(line for line in text.splitlines() if line.startswith(f"| `{package}` | `"))
        assert re.findall(r"`(\w+)`", line.split("|")[2]) == sorted(module.__all__)
        assert sorted(module.__all__) == dir(module)
        assert (REPOSITORY / package / "py.typed").is_file()


def test_every_file_has_its_place_in_the_map_and_the_map_names_no_other() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    named: list[str] = []
    for line in text.partition("| files |")[2].partition("## The public API")[0].splitlines():
        folder = None
        for name in re.findall(r"`([\w/.]+\.py)`", line.split("|")[1] if "|" in line else ""):
            folder = name.rpartition("/")[0] or folder
            named.append(f"{folder}/{name.rpartition('/')[2]}")
    files = {
        str(path.relative_to(REPOSITORY))
        for package in PRODUCT
        for path in (REPOSITORY / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert len(named) == len(set(named)) > 100
    assert {name for name in named if not name.startswith("tests/")} == files


def test_every_declared_package_has_its_licence_named() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    text = (REPOSITORY / "THIRD_PARTY_LICENSES.md").read_text("utf-8")
    cells = [line.split("|")[1:-2] for line in text.splitlines() if line.startswith("|")]
    named = {name.strip() for row in cells if row for name in row[-1].split(",")}
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        assert Requirement(line).name in named, f"{line} is not in THIRD_PARTY_LICENSES.md"
    citation = (REPOSITORY / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {project['version']}\n" in citation
