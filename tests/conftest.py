"""What the tests have in common: threads, no network, a cache of their own, data to borrow."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from extractors.sentence import SentenceExtractor

REPOSITORY = Path(__file__).resolve().parent.parent

# Before numpy, torch or jax are imported. Test processes run side by side: one thread for each
# (NPROC is what XLA's CPU client reads). The Makefile sets the same.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A test that needs the Hub is wrong: what is tested is what happens without it.
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell starts what runs in the background with Ctrl-C ignored, and so would be what tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiled code is shared by the test processes and kept for the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# No deadlines: the first call of a jitted function compiles. CI draws the same examples each time.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A feature cache that lives as long as the session, also for the command line."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVEX_HEADS_CACHE", str(path))
        yield path


@pytest.fixture(scope="module", autouse=True)
def room_for_programs() -> Iterator[None]:
    """What a module has compiled is dropped where it has become much, as fits do."""
    yield
    if "jax" in sys.modules:
        from convex_heads.mappings import make_room

        make_room()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the named data sets (TASK/train.parquet, ...), or a skip."""
    named = os.environ.get("CONVEX_HEADS_DATA")
    path = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no data sets at {path}: set CONVEX_HEADS_DATA to a folder that has them")
    return path


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder with the timm backbones (timm_mobilenetv2_100, ...), or a skip."""
    named = os.environ.get("CONVEX_HEADS_MODELS")
    path = Path(named) if named else REPOSITORY.parent / "shared" / "models"
    if not path.is_dir():
        pytest.skip(f"no backbones at {path}: set CONVEX_HEADS_MODELS to a folder that has them")
    return path


@pytest.fixture(scope="session")
def tiny_sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random model as sentence-transformers saves it; for reading alone."""
    from tiny_models import save_half_sentence_model

    return save_half_sentence_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_sentence_extractor(tiny_sentence: Path) -> SentenceExtractor:
    from extractors import load_extractor
    from extractors.sentence import SentenceExtractor

    extractor = load_extractor(f"st:{tiny_sentence}")
    assert isinstance(extractor, SentenceExtractor)
    return extractor


def _jax_setting(name: str, value: object) -> Iterator[None]:
    import jax

    before = getattr(jax.config, name)
    jax.config.update(name, value)
    yield
    jax.config.update(name, before)


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX in double precision for one test; the marker x64 does the same."""
    yield from _jax_setting("jax_enable_x64", True)


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """An error for every silent change of dtype in JAX for one test."""
    yield from _jax_setting("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True)
def _marked_x64(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("x64"):
        request.getfixturevalue("x64")
