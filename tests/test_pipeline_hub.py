"""The pipeline and the Hub: pushed, found again by revision, kept for offline; no token stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_server import Hub
from joints import rows
from tiny_models import save_backbone

from extractors.errors import InputError, MachineError
from tasks.cli import main
from tasks.pipeline import ConvexHeadPipeline

HEAD = Path(__file__).parent / "artefacts" / "schema-1-gated"

_SCRIPT = """
import json
import sys
from pathlib import Path
from tasks.pipeline import ConvexHeadPipeline
from extractors.errors import InputError

head, token = sys.argv[1], sys.argv[2]
clf = ConvexHeadPipeline.from_pretrained(head)
print("address", clf.push_to_hub("someone/my-head", private=True, token=token))
first = ConvexHeadPipeline.from_pretrained("someone/my-head")
assert first.predict_proba(["a film"]).tolist() == clf.predict_proba(["a film"]).tolist()

clf.save_pretrained("changed")
card = Path("changed/README.md")
card.write_text(
    f"---\\nlibrary_name: convex-heads\\n---\\n{Path.cwd()}/a b.csv\\nher/b.csv\\n# second\\n"
)
told = Path("changed/config.json")
config = json.loads(told.read_text())
config["record"] = {
    "store": f"{Path.cwd()}/cache/stores/mine",
    "command": f"convex-heads fit '{Path.cwd()}/a b.csv' --cache-dir {Path.cwd()}/cache",
    "artefact": "her/films/head",
    "more": "convex-heads refit her/films/head her/b.csv --prompt and/or --out ./her/films/new",
}
told.write_text(json.dumps(config))
ConvexHeadPipeline.from_pretrained("changed").push_to_hub("someone/my-head", token=token)
from huggingface_hub import HfApi
commits = {HfApi().model_info("someone/my-head").sha}
second = ConvexHeadPipeline.from_pretrained("someone/my-head", revision=commits.pop())
assert (second._folder / "README.md").read_text().endswith("# second\\n")
load = ConvexHeadPipeline.from_pretrained
for call, said in (
    (lambda: load("someone/my-head", revision="no-such"), "no revision"),
    (lambda: load("someone/nothing"), "no model 'someone/nothing'"),
    (lambda: clf.push_to_hub("someone/my-head", token=token, revision="no-such"), "no revision"),
    (lambda: clf.push_to_hub("my-head", token=token), "owner/name"),
):
    try:
        call()
    except InputError as error:
        assert said in str(error), error
        assert token not in str(error)
    else:
        raise AssertionError(said)
"""


def test_pushed_heads_are_found_again_and_tokens_are_kept_nowhere(tmp_path):
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "hf"),
            "PYTHONPATH": str(HEAD.parent.parent.parent),
        }
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(HEAD), hub.token],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr + "\n".join(hub.requests)
        assert "someone/my-head" in done.stdout
        assert hub.private == {"someone/my-head": True}
        tree = hub.commits["someone/my-head"][hub.branches["someone/my-head"]["main"]]
        assert {"config.json", "model.safetensors", "README.md"} <= tree.keys()
        assert tree["model.safetensors"] == (HEAD / "model.safetensors").read_bytes()
        told = json.loads(tree["config.json"])["record"]
        assert told["store"] == "mine"
        assert told["command"] == "convex-heads fit 'a b.csv' --cache-dir cache"
        assert told["artefact"] == "head"
        assert told["more"] == "convex-heads refit head b.csv --prompt and/or --out new"
        for name in ("config.json", "README.md"):
            assert str(tmp_path).encode() not in tree[name], name
        assert b"\na b.csv\nb.csv\n" in tree["README.md"]
        assert hub.token not in done.stdout + done.stderr
        for path in tmp_path.rglob("*"):
            if path.is_file():
                assert hub.token.encode() not in path.read_bytes(), path
        # Without the Hub, what was downloaded is still there.
        hub.shutdown()
        hub.server_close()
        again = subprocess.run(
            [
                sys.executable,
                "-c",
                "from tasks import ConvexHeadPipeline as P; "
                "print(P.from_pretrained('someone/my-head', local_files_only=True)('a film'))",
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert "label" in again.stdout, again.stderr
    finally:
        hub.shutdown()


_LOCAL = """
import sys, warnings
from tasks.pipeline import ConvexHeadPipeline
from extractors.errors import InputError

token, backbone = sys.argv[1:]
clf = ConvexHeadPipeline.from_pretrained("head")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    clf.push_to_hub("someone/local", token=token)
[warning] = [str(w.message) for w in said if "backbone" in str(w.message)]
assert "is not uploaded" in warning and "backbone=" in warning, warning
theirs = ConvexHeadPipeline.from_pretrained("someone/local")
try:
    theirs("a film")
except InputError as error:
    print("refused:", error)
named = ConvexHeadPipeline.from_pretrained("someone/local", backbone=backbone)
assert named("a film") == clf("a film")
"""


def test_a_backbone_that_is_a_folder_is_published_by_its_name_alone(tmp_path, capsys):
    name = save_backbone("bert", tmp_path / "ann & sons")
    texts, labels = rows("bert", 60)
    lines = [f"{text} {i},{'ny'[y]}" for i, (text, y) in enumerate(zip(texts, labels, strict=True))]
    (tmp_path / "films.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    fit = ["fit", str(tmp_path / "films.csv"), "--backbone", name, "--out", str(tmp_path / "head")]
    fit += ["--n-gates", "2", "--beta", "0.1", "--cache-dir", str(tmp_path / "cache"), "--quiet"]
    assert main(fit) == 0, capsys.readouterr().err
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LOCAL, hub.token, name],
            env={
                **os.environ,
                "HF_ENDPOINT": hub.address,
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HOME": str(tmp_path / "hf"),
                "PYTHONPATH": str(HEAD.parent.parent.parent),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr + "\n".join(hub.requests)
        tree = hub.commits["someone/local"][hub.branches["someone/local"]["main"]]
    finally:
        hub.shutdown()
        hub.server_close()
    assert "in a folder named bert" in done.stdout and "backbone hf:FOLDER" in done.stdout
    told = json.loads(tree["config.json"])
    assert told["backbone"] == told["record"]["backbone"] == "hf:./bert"
    assert "hf:./bert" in told["record"]["command"]
    for file in ("config.json", "README.md", "report.html"):
        assert b"ann &" not in tree[file] and str(tmp_path).encode() not in tree[file], file


def test_a_name_that_is_neither_folder_nor_reachable_repository():
    with pytest.raises(MachineError, match="there is no folder owner/head"):
        ConvexHeadPipeline.from_pretrained("owner/head")  # the tests are offline
    with pytest.raises(InputError, match="a revision is of a repository"):
        ConvexHeadPipeline.from_pretrained(HEAD, revision="main")
