"""A hub on this machine: the part of its HTTP interface with which huggingface_hub makes repositories, fills and reads them."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs

import pytest

__all__ = ["Files", "data_set", "reading_from", "serve_hub"]

Files = dict[str, bytes]


@contextmanager
def serve_hub(repositories: dict[str, Files]) -> Iterator[str]:
    """Serve `repositories`, and put what is pushed into them; gives the address, for HF_ENDPOINT. Data sets are `datasets/OWNER/NAME`."""

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


@contextmanager
def reading_from(url: str, cache: Path) -> Iterator[None]:
    """huggingface_hub and datasets ask `url` in this block, in the place of the hub, and keep what they read in `cache`."""
    import datasets
    from huggingface_hub import constants

    from srm import hub

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    with pytest.MonkeyPatch.context() as patch:
        # They read their environment once, when they are imported.
        for name, value in (("ENDPOINT", url), ("HUGGINGFACE_CO_URL_TEMPLATE", template), ("HF_HUB_CACHE", str(cache / "hub"))):
            patch.setattr(constants, name, value)
        for name, setting in (("HF_ENDPOINT", url), ("HF_DATASETS_CACHE", cache / "datasets")):
            patch.setattr(datasets.config, name, setting)
        # Whether there is a way to the hub is remembered for a while.
        patch.setattr(hub._Way, "asked", float("-inf"))
        patch.setattr(hub._Way, "problem", None)
        yield


def data_set(split: str, rows: list[dict[str, Any]], config: str | None = None) -> Files:
    """The files of a data set on the hub, one of rows for the split; its folder is that of `config`, if there is one."""
    import pyarrow
    from pyarrow import parquet

    path = f"{config or 'data'}/{split}-00000-of-00001"
    buffer = io.BytesIO()
    if rows:
        path += ".parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    else:
        # `datasets` cannot read a Parquet file without rows.
        path += ".csv"
        buffer.write(b"prompt,chosen,rejected\n")
    head = f"configs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {path}\n" if config else "license: mit\n"
    return {path: buffer.getvalue(), "README.md": f"---\n{head}---\n".encode()}


class _Handler(BaseHTTPRequestHandler):
    stored: dict[str, Files]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/whoami-v2":
            return self._json({"name": "me", "type": "user", "orgs": [], "auth": {}})
        if path.startswith("/api/") and path.count("/") >= 4:
            kind, owner, name, *what = path.removeprefix("/api/").split("/")
            files = self.stored.get(_key(kind, f"{owner}/{name}"))
            if files is None:
                return self._missing("RepoNotFound")
            if what[:1] == ["tree"]:
                everything, folder = "recursive=true" in self.path.lower(), "/".join(what[2:]) or "."
                return self._json([info for info in _infos(files) if everything or str(PurePosixPath(info["path"]).parent) == folder])
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
        kind, owner, name, *_ = self.path.removeprefix("/api/").split("/")
        name = _key(kind, f"{owner}/{name}")
        if "/paths-info/" in self.path:
            asked = parse_qs(body)["paths"]
            return self._json([info for info in _infos(self.stored[name]) if info["path"] in asked])
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


def _key(kind: str, repository: str) -> str:
    """The name under which a repository is stored: data sets have `datasets/` in front, as in the addresses of their files."""
    return repository if kind == "models" else f"{kind}/{repository}"


def _infos(files: Files) -> list[dict[str, Any]]:
    """What the hub says of files, and of the folders they are in."""
    folders = {str(parent) for key in files for parent in PurePosixPath(key).parents} - {"."}
    of_files = [{"type": "file", "path": key, "size": len(data), "oid": _etag(data)} for key, data in files.items()]
    return [*of_files, *({"type": "directory", "path": folder, "oid": _etag(folder.encode())} for folder in sorted(folders))]


def _etag(data: bytes) -> str:
    return sha1(data).hexdigest()


def _commit(files: Files) -> str:
    return sha1(b"".join(key.encode() + data for key, data in sorted(files.items()))).hexdigest()
