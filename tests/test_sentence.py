"""Text backbones: a tiny one built here, the bundled MiniLM, and a Hub served from this process."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from extractors import BadRow, InputError, load_extractor
from extractors.encode import encode_rows
from extractors.options import FeatureOptions
from extractors.sentence import MINILM_PACKAGE, SentenceExtractor

REPOSITORY = Path(__file__).parents[1]
TEXTS = [
    "a fine film",
    "a",
    "dull " * 40,
    "the film that nobody has eyes for , and yet fine",
    "",
    "a dull film",
    "ünknown ✓ words \n and lines",
]


@pytest.fixture(scope="module")
def minilm() -> SentenceExtractor:
    """The real thing: all-MiniLM-L6-v2 from the package in the demo and test extras."""
    extractor = load_extractor("minilm", device="cpu")
    assert isinstance(extractor, SentenceExtractor)
    return extractor


# ---- the numbers ---------------------------------------------------------------------------------


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", ["tiny_sentence_extractor", "minilm"])
def test_a_row_has_one_vector_whatever_its_batch_order_and_neighbours(
    name: str, request: pytest.FixtureRequest
) -> None:
    extractor: SentenceExtractor = request.getfixturevalue(name)
    ids = [str(i) for i in range(len(TEXTS))]
    alone = np.concatenate([extractor.encode([text]) for text in TEXTS])
    together = encode_rows(extractor, TEXTS, ids).features
    reverse = encode_rows(extractor, TEXTS[::-1], ids).features[::-1]
    assert alone.dtype == together.dtype == np.float32
    assert alone.shape == (len(TEXTS), extractor.dim)
    assert relative_error(together, alone) <= 1e-5
    assert relative_error(reverse, alone) <= 1e-5
    np.testing.assert_array_equal(extractor.encode(TEXTS), extractor.encode(TEXTS))
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)


def test_features_are_the_models_own_mean_pooling_in_float32(
    tiny_sentence: Path, tiny_sentence_extractor: SentenceExtractor
) -> None:
    """An independent computation, from the transformer up, in float64."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_sentence)
    model = AutoModel.from_pretrained(tiny_sentence, dtype=torch.float64).eval()
    expected = []
    for text in TEXTS:
        tokens = tokenizer(text.strip(), truncation=True, max_length=24, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**tokens).last_hidden_state[0].mean(0).numpy()
        expected.append(mean / np.linalg.norm(mean))
    assert relative_error(tiny_sentence_extractor.encode(TEXTS), np.array(expected)) <= 1e-5


def test_minilm_is_the_real_one(minilm: SentenceExtractor) -> None:
    film, movie, bank = minilm.encode(
        ["a wonderful film", "what a great movie", "the bank raised its interest rates"]
    )
    assert minilm.dim == 384
    assert film @ movie > 0.6 > 0.3 > film @ bank


@pytest.mark.parametrize(("name", "limit"), [("tiny_sentence_extractor", 24), ("minilm", 256)])
def test_truncation_is_counted_in_real_tokens(
    name: str, limit: int, request: pytest.FixtureRequest
) -> None:
    extractor: SentenceExtractor = request.getfixturevalue(name)
    assert extractor.max_length == limit
    fits, cut = "film " * (limit - 2), "film " * (limit - 1)  # and [CLS] and [SEP]
    assert extractor.token_counts([fits, cut, "film"]).tolist() == [limit, limit + 1, 3]
    a, b = extractor.encode([fits, cut])
    assert relative_error(a, b) <= 1e-5
    shorter = extractor.encode(["film " * (limit - 3)])[0]
    assert relative_error(a, shorter) > 1e-5


@pytest.mark.parametrize("item", [None, 3.5, float("nan"), b"bytes", ["a film"]])
def test_what_is_no_text_is_a_bad_row(minilm: SentenceExtractor, item: object) -> None:
    with pytest.raises(BadRow, match=type(item).__name__):
        minilm.prepare(item)


def test_broken_unicode_is_a_bad_row_and_odd_text_is_not(minilm: SentenceExtractor) -> None:
    with pytest.raises(BadRow, match="not valid Unicode"):
        minilm.prepare("half a \ud83d smile")
    odd = ["", " \n\t", "\x00", "🙂" * 2000, "x" * 100_000]
    assert np.isfinite(minilm.encode([minilm.prepare(text) for text in odd])).all()


# ---- fingerprints --------------------------------------------------------------------------------


def test_the_fingerprint_of_minilm_never_changes() -> None:
    """Stores that took an hour are filed under it."""
    fingerprint = load_extractor("minilm").fingerprint()
    assert fingerprint == {
        "adapter": "sentence/1",
        "source": "minilm",
        "dtype": "float32",
        "id": "sentence-transformers/all-MiniLM-L6-v2",
        "weights_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "content_sha256": "77bac0deffb2617c741217313b51e8eda82063b002a276f68caedb17fac0274b",
        "pooling": "mean",
        "normalize": True,
        "max_length": 256,
    }


def test_a_folder_is_known_by_its_content_and_not_by_its_place(
    tiny_sentence: Path, tmp_path: Path
) -> None:
    first = load_extractor(f"st:{tiny_sentence}").fingerprint()
    copy = shutil.copytree(tiny_sentence, tmp_path / "copy")
    (copy / "README.md").write_text("words")
    assert load_extractor(f"st:{copy}").fingerprint() == first
    config = copy / "1_Pooling" / "config.json"
    config.write_text(config.read_text().replace("mean_tokens", "cls_token"))
    assert load_extractor(f"st:{copy}").fingerprint() != first


def test_fingerprints_and_names_need_no_torch(tiny_sentence: Path) -> None:
    script = f"""
import sys
from extractors import load_extractor
for name in ("minilm", "st:{tiny_sentence}"):
    extractor = load_extractor(name)
    extractor.fingerprint(), extractor.name, extractor.modality, extractor.prepare("a")
print("torch" in sys.modules, "{MINILM_PACKAGE}" in sys.modules)
"""
    done = python(script)
    assert done.stdout == "False False\n", done.stderr


# ---- the bundled package -------------------------------------------------------------------------


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | environment,
        timeout=600,
    )


def test_altered_minilm_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / MINILM_PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('located, never imported')")
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    extractor = load_extractor("minilm")
    other = hashlib.sha256(b"other weights").hexdigest()[:12]
    with pytest.raises(InputError, match=f"is not all-MiniLM-L6-v2 .*{other}.* reinstall"):
        extractor.fingerprint()
    with pytest.raises(InputError, match="is not all-MiniLM-L6-v2"):
        extractor.encode(["a"])


def test_a_missing_minilm_package_gives_the_pip_line() -> None:
    script = """
import sys
sys.path = [p for p in sys.path if "site-packages" not in p]
from extractors.options import FeatureOptions
from extractors.sentence import _minilm_folder
from extractors.errors import InputError
try:
    _minilm_folder()
except InputError as error:
    print(error)
"""
    bare = "import sys, numpy\n" + script  # numpy stays, the rest of site-packages goes
    assert "pip install 'convex-heads[demo]'" in python(bare).stdout


@pytest.mark.parametrize("linked", [False, True])
def test_trust_in_a_model_is_no_trust_in_the_code_of_another(
    linked: bool, tmp_path: Path, tiny_sentence: Path
) -> None:
    trace, other = tmp_path / "it ran", tmp_path / "other"
    other.mkdir()
    (other / "mod.py").write_text(
        f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
        "from sentence_transformers.models import Pooling\nclass Own(Pooling):\n    pass\n"
    )
    own = shutil.copytree(tiny_sentence, tmp_path / "own")
    changed, entry = own / "modules.json", "sentence_transformers.models.Pooling"
    if linked:  # a configuration behind a link is read by the library too
        (own / "1_Pooling").rename(tmp_path / "behind")
        (own / "1_Pooling").symlink_to(tmp_path / "behind")
        changed, entry = own / "1_Pooling" / "config.json", '"word_embedding_dimension"'
        text = changed.read_text()
        map_of_code = f'"auto_map": {{"AutoModel": "{other}--mod.Own"}}, {entry}'
        changed.write_text(text.replace(entry, map_of_code))
    else:
        changed.write_text(changed.read_text().replace(entry, f"{other}--mod.Own"))
    options = FeatureOptions(trust_remote_code=str(own))
    with pytest.raises(InputError, match=f"code of another repository, {other}"):
        load_extractor(f"st:{own}", device="cpu", options=options).encode(["a"])
    assert not trace.exists()


def test_a_linked_folder_counts_in_the_fingerprint_and_a_loop_ends(
    tmp_path: Path, tiny_sentence: Path
) -> None:
    plain = load_extractor(f"st:{tiny_sentence}").fingerprint()
    own = shutil.copytree(tiny_sentence, tmp_path / "own")
    (own / "1_Pooling").rename(tmp_path / "behind")
    (own / "1_Pooling").symlink_to(tmp_path / "behind")
    (own / "again").symlink_to(own)
    assert load_extractor(f"st:{own}").fingerprint() == plain  # wherever the files lie
    config = tmp_path / "behind" / "config.json"
    config.write_text(config.read_text().replace("mean_tokens", "cls_token"))
    assert load_extractor(f"st:{own}").fingerprint() != plain
