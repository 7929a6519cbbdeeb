"""Models of the Hub: known by their commit, used without a network, refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from extractors import load_extractor
from extractors.sentence import SentenceExtractor

REPOSITORY = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
        elif path.startswith("/api/models/somebody/broken"):
            self.answer(503, b"")
        elif path.startswith("/api/models/somebody/closed"):
            self.answer(403, b"")
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


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a Hub that holds the folder as somebody/tiny."""
    handler = type("Handler", (HubHandler,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tiny_sentence: Path) -> Iterator[str]:
    """The address of a Hub that holds somebody/tiny."""
    with serving(tiny_sentence) as address:
        yield address


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
    hub: str, tmp_path: Path, tiny_sentence: Path, tiny_sentence_extractor: SentenceExtractor
) -> None:
    expected = f"{COMMIT} {tiny_sentence_extractor.encode(['a fine film']).tobytes().hex()}"
    home = {"HF_HOME": str(tmp_path)}
    online = try_names("st:somebody/tiny", HF_HUB_OFFLINE="0", HF_ENDPOINT=hub, **home)
    assert online == [expected]
    names = ("st:somebody/tiny", f"st:somebody/tiny@{COMMIT}")
    dead = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert try_names(*names, **dead, **home) == [expected] * 2

    # The same repository as a plain transformers model, from the cache of that download.
    plain = try_names("hf:somebody/tiny", **dead, **home)
    expected_plain = load_extractor(f"hf:{tiny_sentence}").encode(["a fine film"]).tobytes().hex()
    assert plain == [f"{COMMIT} {expected_plain}"]

    # Half a cache, without modules.json, would silently be read as another model.
    for known in tmp_path.rglob("modules.json"):
        known.unlink()
    (half,) = try_names("st:somebody/tiny", HF_HUB_OFFLINE="1", **home)
    assert half.startswith("MachineError somebody/tiny")


def test_what_the_hub_refuses_is_said_in_one_line(hub: str, tmp_path: Path) -> None:
    names = ("st:somebody/else", "st:somebody/gated", "st:somebody/tiny@nowhere")
    names += ("hf:somebody/broken", "hf:somebody/closed")
    refusals = try_names(*names, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub, HF_HOME=str(tmp_path))
    assert len(refusals) == 5
    assert "InputError there is no model 'somebody/else' on the Hugging Face Hub" in refusals[0]
    assert "InputError somebody/gated is gated" in refusals[1]
    assert refusals[2] == "InputError somebody/tiny has no revision 'nowhere'"
    assert refusals[3].startswith("MachineError the Hugging Face Hub answered somebody/broken with")
    assert "status 503" in refusals[3]
    assert refusals[4].startswith("InputError the Hugging Face Hub gives no access to somebody/cl")


def test_a_repository_without_a_configuration_is_no_failure_of_the_network(
    tmp_path: Path, tiny_sentence: Path
) -> None:
    bare = shutil.copytree(tiny_sentence, tmp_path / "bare")
    (bare / "config.json").unlink()
    with serving(bare) as address:
        home = str(tmp_path / "home")
        found = try_names("hf:somebody/tiny", HF_HUB_OFFLINE="0", HF_ENDPOINT=address, HF_HOME=home)
    at = f"somebody/tiny at revision '{COMMIT}'"
    assert found == [f"InputError {at} has no config.json: it is no model of this kind"]


def test_a_commit_is_downloaded_where_nothing_is_cached(hub: str, tmp_path: Path) -> None:
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)}
    (found,) = try_names(f"hf:somebody/tiny@{COMMIT}", **online)
    assert found.startswith(f"{COMMIT} ")


@pytest.mark.parametrize("damaged", ["", "0123", "../../elsewhere", "\0" * 40])
def test_a_damaged_note_of_a_branch_is_as_good_as_none(
    damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from extractors import MachineError
    from extractors.hub import HubModel, remember, resolve_model

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "models--somebody--tiny"
    (cached / "snapshots" / COMMIT).mkdir(parents=True)
    reference = cached / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text(damaged)
    with pytest.raises(MachineError, match="not in the local cache"):
        resolve_model("somebody/tiny")
    remember(HubModel("somebody/tiny", "main", COMMIT, online=True))
    assert resolve_model("somebody/tiny").commit == COMMIT
    assert [path.name for path in reference.parent.iterdir()] == ["main"]


def test_only_the_library_says_that_it_is_offline() -> None:
    from extractors.hub import plain_hub_errors

    with pytest.raises(ValueError, match="offline-rl"), plain_hub_errors("a/offline-rl"):
        raise ValueError("the tokenizer of a/offline-rl is broken")


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
