"""A stand-in for the Hugging Face hub: the HTTP interface its own client uses, in a thread.

Repositories live in memory, with commits, branches and tags. Binary files go the way of large ones
(LFS: a batch request, then an upload), text the way of small ones (inside the commit), as there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens of `ann`, who may write to her own repositories and `org`, and of `bob`, who may not."""

Files = dict[str, bytes]


@dataclass
class Repo:
    """One repository; `gated` is the way the hub does it: all can list it, few can read it."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, message: str = "files") -> str:
        """Make `files` the state of main; the commit's hash is 40 digits, as git's."""
        text = repr((len(self.commits), sorted(files), message)).encode()
        sha = hashlib.sha1(text).hexdigest()
        self.commits[sha] = dict(files)
        self.refs["main"] = sha
        self.messages.append(message)
        return sha

    @property
    def head(self) -> str:
        return self.refs["main"]

    @property
    def files(self) -> Files:
        return self.commits[self.head]

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag, hash or the beginning of one."""
        if revision in self.refs:
            return self.refs[revision]
        found = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return found[0] if found else None


class Hub(ThreadingHTTPServer):
    """The server; it notes its `requests`, and `broken_downloads` and `failing` make it fail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken_downloads = False
        self.failing: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, files: Files, **kind: bool) -> Repo:
        """A repository with one commit."""
        repo = self.repos[name] = Repo(**kind)
        repo.commit(files)
        return repo


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.server.requests.append(f"{self.command} {parts.path}")
        try:
            if self.server.failing is not None:
                raise _Refusal(self.server.failing)
            self._route([unquote(part) for part in parts.path.strip("/").split("/")])
        except _Refusal as refusal:
            error = json.dumps({"error": refusal.message}).encode()
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            headers = {name: value for name, value in headers.items() if value}
            self._send(refusal.status, error, headers)

    def _route(self, path: list[str]) -> None:
        match path:
            case ["api", "whoami-v2"]:
                user = self._user()
                if user is None:
                    raise _Refusal(401, message="Invalid username or password.")
                self._json({"name": user, "type": "user", "auth": {}})
            case ["api", "repos", "create"]:
                self._create(json.loads(self.body))
            case ["api", "validate-yaml"]:
                self._validate_yaml(json.loads(self.body)["content"])
            case ["api", "models", org, name]:
                self._info(f"{org}/{name}", "main")
            case ["api", "models", org, name, "revision", revision]:
                self._info(f"{org}/{name}", revision)
            case ["api", "models", org, name, "tree", revision]:
                self._tree(f"{org}/{name}", revision)
            case ["api", "models", org, name, "preupload", _]:
                self._preupload(f"{org}/{name}", json.loads(self.body))
            case ["api", "models", org, name, "commit", "main"]:
                self._commit(f"{org}/{name}")
            case [org, name, "info", "lfs", "objects", "batch"]:
                self._lfs_batch(f"{org}/{name.removesuffix('.git')}", json.loads(self.body))
            case ["uploads", oid]:
                assert hashlib.sha256(self.body).hexdigest() == oid
                self.server.uploads[oid] = self.body
                self._send(200, b"")
            case [org, name, "resolve", revision, *file]:
                self._file(f"{org}/{name}", revision, "/".join(file))
            case _:
                raise _Refusal(404, message=f"no such page: {self.path}")

    # --- reading -----------------------------------------------------------------------------

    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in (WRITER, READER):
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        return "ann" if token == WRITER else "bob"

    def _repo(self, name: str) -> Repo:
        repo, user = self.server.repos.get(name), self._user()
        if repo is None or (repo.private and user != "ann"):
            # The hub tells strangers 401 for what they may not know to exist.
            raise _Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        return repo

    def _files(self, name: str, revision: str) -> tuple[Repo, str, Files]:
        repo = self._repo(name)
        sha = repo.resolve(revision)
        if sha is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, sha, repo.commits[sha]

    def _info(self, name: str, revision: str) -> None:
        repo, sha, files = self._files(name, revision)
        gated = "manual" if repo.gated else False
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "modelId": name, "sha": sha, "siblings": siblings}
        self._json(about | {"private": repo.private, "gated": gated, "tags": [], "downloads": 0})

    def _tree(self, name: str, revision: str) -> None:
        entries = []
        for path, data in self._files(name, revision)[2].items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
            if _is_large(data):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def _file(self, name: str, revision: str, path: str) -> None:
        repo, sha, files = self._files(name, revision)
        if repo.gated and self._user() != "ann":
            raise _Refusal(403 if self._user() else 401, "GatedRepo", "Access is restricted")
        if path not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        data = files[path]
        etag = hashlib.sha256(data).hexdigest() if _is_large(data) else _git_oid(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        start = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0]
        part = data[int(start) :]
        if self.headers.get("Range"):
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if self.headers.get("Range") else 200, part, headers)

    # --- writing -----------------------------------------------------------------------------

    def _may_write(self, name: str) -> None:
        if self._user() is None:
            raise _Refusal(401, message="Invalid username or password.")
        if self._user() != "ann" or name.split("/")[0] not in ("ann", "org"):
            raise _Refusal(403, message="You don't have the rights to do this")

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        self._may_write(name)
        answer = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repos:
            self._json(answer, 409)
            return
        hidden = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.add(name, {".gitattributes": b"*.npy filter=lfs\n"}, private=bool(hidden))
        self._json(answer)

    def _validate_yaml(self, content: str) -> None:
        _, front, _ = content.split("---\n", 2)
        assert isinstance(yaml.safe_load(front), dict)
        self._json({"errors": [], "warnings": []})

    def _preupload(self, name: str, wanted: dict[str, Any]) -> None:
        self._may_write(name)
        held = self._repo(name).files
        answers = []
        for file in wanted["files"]:
            path, large = file["path"], _is_large(base64.b64decode(file["sample"]))
            answer = {"path": path, "uploadMode": "lfs" if large else "regular"}
            oid = None
            if path in held:
                data = held[path]
                oid = hashlib.sha256(data).hexdigest() if large else _git_oid(data)
            answers.append(answer | {"shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def _lfs_batch(self, name: str, wanted: dict[str, Any]) -> None:
        self._may_write(name)
        objects = []
        for file in wanted["objects"]:
            href = f"{self.server.url}/uploads/{file['oid']}"
            objects.append({**file, "actions": {"upload": {"href": href, "header": {}}}})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str) -> None:
        self._may_write(name)
        repo = self._repo(name)
        lines = [json.loads(line) for line in self.body.splitlines()]
        assert lines[0]["key"] == "header"
        files = dict(repo.files)
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.uploads[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case key:
                    raise AssertionError(f"unexpected operation {key}")
        sha = repo.commit(files, lines[0]["value"]["summary"])
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})

    # --- answers -----------------------------------------------------------------------------

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.broken_downloads and "/resolve/" in self.path:
            self.close_connection = True  # less than announced: the connection breaks
            return
        self.wfile.write(data)


def _is_large(data: bytes) -> bool:
    try:
        data[:512].decode()
    except UnicodeDecodeError:
        return True
    return b"\0" in data[:512]


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub talks to instead of the real one; caches in `folder`, no token."""
    from huggingface_hub import constants

    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    point_at(monkeypatch, hub.url)
    changes = {
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_TOKEN_PATH": str(folder / "token"),
        "HF_STORED_TOKENS_PATH": str(folder / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # its storage is another service
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }
    for name, value in changes.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let huggingface_hub talk to another address; what it reads from the environment is frozen."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    page = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + page)


def log_in(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """Be one of the hub's users."""
    monkeypatch.setenv("HF_TOKEN", token)


def unreachable() -> str:
    """An address at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
