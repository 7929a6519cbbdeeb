"""A stand-in for the Hugging Face Hub's HTTP interface: one process, one folder, small files.

What `huggingface_hub` asks for when it makes a repository, uploads a folder in one commit, and
downloads a snapshot: create, preupload, commit, revision, tree, resolve.
"""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """repositories: name -> commit -> path -> bytes, and the commits of branches."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.token = "hf_secretsecretsecretsecretsecret"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, value: Any = None, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code: str) -> None:
        self._answer(404, {"error": code}, X_Error_Code=code)

    def do_POST(self) -> None:
        hub, body = self.server, self._body()
        hub.requests.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._answer(401, {"error": "no right to write"})
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            if name in hub.commits:
                return self._answer(409, {"url": f"{hub.address}/{name}"})
            first = hashlib.sha1(name.encode()).hexdigest()
            hub.commits[name] = {first: {}}
            hub.branches[name] = {"main": first}
            hub.private[name] = "private" in (
                asked.get("visibility"),
                asked.get("private") and "private",
            )
            return self._answer(200, {"url": f"{hub.address}/{name}", "name": name})
        if parts[:1] == ["api"] and "preupload" in parts:
            files = json.loads(body)["files"]
            found = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self._answer(200, {"files": found})
        if parts[:1] == ["api"] and "commit" in parts:
            name, branch = "/".join(parts[2:4]), parts[5]
            if branch not in hub.branches.get(name, {}):
                return self._missing("RevisionNotFound")
            tree = dict(hub.commits[name][hub.branches[name][branch]])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    tree[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = hashlib.sha1(body + str(len(hub.commits[name])).encode()).hexdigest()
            hub.commits[name][commit] = tree
            hub.branches[name][branch] = commit
            return self._answer(
                200,
                {
                    "success": True,
                    "commitOid": commit,
                    "commitUrl": f"{hub.address}/{name}/commit/{commit}",
                    "hookOutput": "",
                },
            )
        if parts[:2] == ["api", "validate-yaml"]:
            return self._answer(200, {"errors": [], "warnings": []})
        self._missing("EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        hub.requests.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, more = "/".join(parts[2:4]), parts[4:]
        else:
            name, more = "/".join(parts[:2]), parts[2:]
        if name not in hub.commits:
            return self._missing("RepoNotFound")
        revision = more[1] if len(more) > 1 else "main"
        commit = hub.branches[name].get(revision, revision)
        if commit not in hub.commits[name]:
            return self._missing("RevisionNotFound")
        tree = hub.commits[name][commit]
        if parts[0] == "api" and more[:1] == ["tree"]:
            entries = [
                {
                    "type": "file",
                    "path": path,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for path, data in tree.items()
            ]
            return self._answer(200, entries)
        if parts[0] == "api":
            files = [{"rfilename": path} for path in tree]
            found = {"id": name, "modelId": name, "sha": commit, "siblings": files, "tags": []}
            return self._answer(200, found | {"private": hub.private[name], "downloads": 0})
        path = "/".join(more[2:])
        if path not in tree:
            return self._missing("EntryNotFound")
        self._answer(
            200,
            tree[path],
            ETag=f'"{_oid(tree[path])}"',
            X_Repo_Commit=commit,
        )
