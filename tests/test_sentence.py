"""Text backbones: a tiny one built here, the bundled MiniLM, and a Hub served from this process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from extractors import BadRow, InputError, load_extractor
from extractors.encode import encode_rows
from extractors.sentence import MINILM_PACKAGE, SentenceExtractor

REPOSITORY = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
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
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of width 16 that reads 24 tokens, saved as sentence-transformers saves it."""
    from extractors.torchvision_compat import ensure_torchvision_imports

    ensure_torchvision_imports()
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "model"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef,", "##n", "##e", "##i"]
    words += ["fine", "dull", "film", "the", "that", "nobody", "has", "eyes", "for", "and", "yet"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    # Half precision on disk: the extractor must not compute in it.
    BertModel(config).to(torch.float16).save_pretrained(folder)
    kinds = ["Transformer", "Pooling", "Normalize"]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": f"{i}_{kind}" if i else "",
                    "type": f"sentence_transformers.models.{kind}",
                }
                for i, kind in enumerate(kinds)
            ]
        )
    )
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 24, "do_lower_case": False})
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    )
    return folder


@pytest.fixture(scope="module")
def tiny_extractor(tiny: Path) -> SentenceExtractor:
    extractor = load_extractor(f"st:{tiny}")
    assert isinstance(extractor, SentenceExtractor)
    return extractor


@pytest.fixture(scope="module")
def minilm() -> SentenceExtractor:
    """The real thing: all-MiniLM-L6-v2 from the package in the demo and test extras."""
    extractor = load_extractor("minilm", device="cpu")
    assert isinstance(extractor, SentenceExtractor)
    return extractor


# ---- the numbers ---------------------------------------------------------------------------------


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", ["tiny_extractor", "minilm"])
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
    tiny: Path, tiny_extractor: SentenceExtractor
) -> None:
    """An independent computation, from the transformer up, in float64."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModel.from_pretrained(tiny, dtype=torch.float64).eval()
    expected = []
    for text in TEXTS:
        tokens = tokenizer(text.strip(), truncation=True, max_length=24, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**tokens).last_hidden_state[0].mean(0).numpy()
        expected.append(mean / np.linalg.norm(mean))
    assert relative_error(tiny_extractor.encode(TEXTS), np.array(expected)) <= 1e-5


def test_minilm_is_the_real_one(minilm: SentenceExtractor) -> None:
    film, movie, bank = minilm.encode(
        ["a wonderful film", "what a great movie", "the bank raised its interest rates"]
    )
    assert minilm.dim == 384
    assert film @ movie > 0.6 > 0.3 > film @ bank


@pytest.mark.parametrize(("name", "limit"), [("tiny_extractor", 24), ("minilm", 256)])
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


def test_a_folder_is_known_by_its_content_and_not_by_its_place(tiny: Path, tmp_path: Path) -> None:
    first = load_extractor(f"st:{tiny}").fingerprint()
    copy = shutil.copytree(tiny, tmp_path / "copy")
    (copy / "README.md").write_text("words")
    assert load_extractor(f"st:{copy}").fingerprint() == first
    config = copy / "1_Pooling" / "config.json"
    config.write_text(config.read_text().replace("mean_tokens", "cls_token"))
    assert load_extractor(f"st:{copy}").fingerprint() != first


def test_fingerprints_and_names_need_no_torch(tiny: Path) -> None:
    script = f"""
import sys
from extractors import load_extractor
for name in ("minilm", "st:{tiny}"):
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
from extractors.sentence import _minilm_folder
from extractors.errors import InputError
try:
    _minilm_folder()
except InputError as error:
    print(error)
"""
    bare = "import sys, numpy\n" + script  # numpy stays, the rest of site-packages goes
    assert "pip install 'convex-heads[demo]'" in python(bare).stdout


# ---- the Hub -------------------------------------------------------------------------------------


class HubHandler(BaseHTTPRequestHandler):
    """As much of the Hub's interface as a download uses: model info, HEAD and GET of files."""

    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if f"/tree/{COMMIT}" in path:
            below = path.partition(f"/tree/{COMMIT}")[2].strip("/")
            files = [file for file in (self.folder / below).rglob("*") if file.is_file()]
            tree = [
                {
                    "type": "file",
                    "path": file.relative_to(self.folder).as_posix(),
                    "size": file.stat().st_size,
                    "oid": hashlib.sha256(file.read_bytes()).hexdigest(),
                }
                for file in files
            ]
            self.answer(200, json.dumps(tree).encode())
        elif path.startswith("/api/models/somebody/tiny") and "nowhere" not in path:
            self.answer(200, json.dumps({"id": "somebody/tiny", "sha": COMMIT}).encode())
        elif path.startswith("/api/models/somebody/gated"):
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/somebody/tiny/"):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/"):
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        else:
            file = self.folder / path.partition(f"/resolve/{COMMIT}/")[2]
            if file.is_file():
                content = file.read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                self.answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})
            else:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tiny: Path) -> Iterator[str]:
    """The address of a Hub that holds somebody/tiny."""
    handler = type("Handler", (HubHandler,), {"folder": tiny})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


TRY_NAMES = """
import sys
from extractors import load_extractor
for name in sys.argv[1:]:
    try:
        extractor = load_extractor(name)
        features = extractor.encode(["a fine film"])
        print(extractor.fingerprint()["revision"], features.tobytes().hex())
    except Exception as error:
        print(type(error).__name__, error)
"""


def try_names(*names: str, **environment: str) -> list[str]:
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRY_NAMES, *names],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | quiet | environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_hub_model_is_known_by_its_commit_and_works_without_the_network_afterwards(
    hub: str, tmp_path: Path, tiny: Path, tiny_extractor: SentenceExtractor
) -> None:
    expected = f"{COMMIT} {tiny_extractor.encode(['a fine film']).tobytes().hex()}"
    home = {"HF_HOME": str(tmp_path)}
    online = try_names("st:somebody/tiny", HF_HUB_OFFLINE="0", HF_ENDPOINT=hub, **home)
    assert online == [expected]
    names = ("st:somebody/tiny", f"st:somebody/tiny@{COMMIT}")
    dead = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert try_names(*names, **dead, **home) == [expected] * 2

    # The same repository as a plain transformers model, from the cache of that download.
    plain = try_names("hf:somebody/tiny", **dead, **home)
    expected_plain = load_extractor(f"hf:{tiny}").encode(["a fine film"]).tobytes().hex()
    assert plain == [f"{COMMIT} {expected_plain}"]

    # Half a cache, without modules.json, would silently be read as another model.
    for known in tmp_path.rglob("modules.json"):
        known.unlink()
    (half,) = try_names("st:somebody/tiny", HF_HUB_OFFLINE="1", **home)
    assert half.startswith("MachineError somebody/tiny")


def test_what_the_hub_refuses_is_said_in_one_line(hub: str, tmp_path: Path) -> None:
    names = ("st:somebody/else", "st:somebody/gated", "st:somebody/tiny@nowhere")
    refusals = try_names(*names, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub, HF_HOME=str(tmp_path))
    assert len(refusals) == 3
    assert "InputError there is no model 'somebody/else' on the Hugging Face Hub" in refusals[0]
    assert "InputError somebody/gated is gated" in refusals[1]
    assert refusals[2] == "InputError somebody/tiny has no revision 'nowhere'"


@pytest.mark.parametrize(
    "network",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}],
)
def test_no_network_and_nothing_cached_is_one_line(network: dict[str, str], tmp_path: Path) -> None:
    names = ("st:somebody/tiny", "st:all-mpnet-base-v2", f"st:somebody/tiny@{COMMIT}")
    names += ("hf:somebody/tiny", f"hf:somebody/tiny@{COMMIT}")
    refusals = try_names(*names, **network, HF_HOME=str(tmp_path))
    assert len(refusals) == 5
    for refusal in refusals:
        assert refusal.startswith("MachineError ")
        assert "is not in the local cache and the Hugging Face Hub cannot be reached" in refusal
