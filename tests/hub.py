"""A hub on this machine: the part of its HTTP interface with which huggingface_hub makes repositories, fills and reads them."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Files", "serve_hub"]

Files = dict[str, bytes]


@contextmanager
def serve_hub(repositories: dict[str, Files]) -> Iterator[str]:
    """Serve `repositories`, and put what is pushed into them; gives the address, for HF_ENDPOINT."""

    class Handler(_Handler):
        stored = repositories

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    stored: dict[str, Files]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/whoami-v2":
            return self._json({"name": "me", "type": "user", "orgs": [], "auth": {}})
        if path.startswith("/api/models/"):
            owner, name, *what = path.removeprefix("/api/models/").split("/")
            files = self.stored.get(f"{owner}/{name}")
            if files is None:
                return self._missing("RepoNotFound")
            if what[:1] == ["tree"]:
                return self._json([{"type": "file", "path": key, "size": len(data), "oid": _etag(data)} for key, data in files.items()])
            siblings = [{"rfilename": key} for key in files]
            return self._json({"id": f"{owner}/{name}", "modelId": f"{owner}/{name}", "sha": _commit(files), "siblings": siblings})
        repository, _, file = path.removeprefix("/").partition("/resolve/")
        files = self.stored.get(repository)
        if files is None:
            return self._missing("RepoNotFound")
        data = files.get(file.partition("/")[2])
        if data is None:
            return self._missing("EntryNotFound", _commit(files))
        return self._send(200, data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": _commit(files)})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.stored.setdefault(name, {})
            return self._json({"url": f"http://{self.headers['Host']}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        name = "/".join(self.path.removeprefix("/api/models/").split("/")[:2])
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self._json({"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]})
        files = self.stored[name]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = _commit(files)
        return self._json({"success": True, "commitOid": commit, "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{commit}"})

    def _missing(self, what: str, commit: str | None = None) -> None:
        self._send(404, b"", {"X-Error-Code": what} | ({"X-Repo-Commit": commit} if commit else {}))

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return sha1(data).hexdigest()


def _commit(files: Files) -> str:
    return sha1(b"".join(key.encode() + data for key, data in sorted(files.items()))).hexdigest()
