"""A Hugging Face Hub on this machine: the parts of its HTTP interface that the real client uses.

It keeps repositories with commits, small files inside commits and large ones apart ("lfs"), and access tokens that may
write or only read. It can be told to fail: with a status, by hanging up, or by waiting.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WRITE_TOKEN, READ_TOKEN = "hf_WritesToTheTestHub", "hf_ReadsFromTheTestHub"
LFS_SIZE = 10_000  # bytes from which a file is kept apart
_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
_REPO = r"(?P<id>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    is_private: bool
    commits: list[tuple[str, dict[str, bytes]]]  # (name, what stands in it), the newest last
    titles: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def commit(self, files: dict[str, bytes], title: str = "") -> str:
        name = hashlib.sha1(f"{len(self.commits)}{title}{sorted(files)}".encode()).hexdigest()
        self.commits.append((name, files))
        self.titles.append(title)
        return name


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and path hold `pattern`."""

    pattern: str
    then: int | str | threading.Event  # a status, "hang up", or something to wait for
    times: int = 1


@dataclass
class Request:
    method: str
    path: str
    token: str | None
    body: bytes


class Hub:
    """The server's memory, which tests look into."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}  # by kind and name
        self.large_files: dict[str, bytes] = {}  # by SHA-256
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.address = ""

    def environment(self, home: Path) -> dict[str, str]:
        """How a program of its own finds this Hub; with an empty cache in `home`, and nobody logged in."""
        return {
            "HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip

    def add(self, name: str, files: dict[str, bytes], *, is_private: bool = False, kind: str = "model") -> Repository:
        repository = Repository(is_private, [])
        repository.commit({}, "initial commit")
        repository.commit(files)
        self.repositories[kind, name] = repository
        return repository

    def add_folder(self, name: str, folder: Path) -> Repository:
        paths = (path for path in folder.rglob("*") if path.is_file())
        return self.add(name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    def asked_for(self, pattern: str) -> list[Request]:
        return [each for each in self.requests if re.search(pattern, f"{each.method} {each.path}")]

    def downloads(self) -> list[str]:
        """The files that were fetched, by their names in their repositories."""
        return [re.sub(r".*/resolve/[^/]+/", "", each.path) for each in self.asked_for("^GET .*/resolve/")]


class _Refusal(Exception):
    def __init__(self, status: int, **headers: str):
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def handle_any(self) -> None:
        body = self._read_body()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.path = self.path.split("?")[0]
        self._token = token
        self.hub.requests.append(Request(self.command, self.path, token, body))
        try:
            if not self._fails():
                self._route(body)
        except _Refusal as refusal:
            self._send(refusal.status, b"", refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _fails(self) -> bool:
        for fault in self.hub.faults:
            if fault.times and re.search(fault.pattern, f"{self.command} {self.path}"):
                fault.times -= 1
                if isinstance(fault.then, threading.Event):
                    fault.then.wait(60)
                    return False
                if fault.then == "hang up":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return True
                raise _Refusal(int(fault.then))
        return False

    def _route(self, body: bytes) -> None:
        for pattern, answer in (
            (r"/api/repos/create", self._create),
            (rf"/api/(?P<kind>\w+)s/{_REPO}/preupload/main", self._preupload),
            (rf"/api/(?P<kind>\w+)s/{_REPO}/commit/main", self._commit),
            (rf"/api/(?P<kind>\w+)s/{_REPO}/tree/(?P<revision>.+)", self._tree),
            (rf"/api/(?P<kind>\w+)s/{_REPO}(/revision/(?P<revision>.+))?", self._info),
            (rf"/(?P<kind>(datasets/|spaces/)?){_REPO}\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"/lfs/(?P<oid>\w+)", self._lfs_put),
            (rf"/(?P<kind>(datasets/|spaces/)?){_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self._file),
        ):
            match = re.fullmatch(pattern, self.path)
            if match is not None:
                return answer(body, **{name: text for name, text in match.groupdict().items()})
        raise _Refusal(404)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        self._may_write()
        kind, name = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        if (kind, name) in self.hub.repositories:
            raise _Refusal(409)
        # the Hub's own default is public
        is_private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.add(name, {}, is_private=is_private, kind=kind)
        self._answer({"url": f"{self.hub.address}/{_PREFIXES[kind]}{name}"})

    def _preupload(self, body: bytes, kind: str, id: str) -> None:
        self._repository(kind, id)
        self._may_write()
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["size"] >= LFS_SIZE else "regular",
                "shouldIgnore": False,
            }
            for each in json.loads(body)["files"]
        ]
        self._answer({"files": files})

    def _lfs_batch(self, body: bytes, kind: str, id: str) -> None:
        self._repository(_kind(kind), id)
        self._may_write()
        objects = []
        for each in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.address}/lfs/{each['oid']}"}}
            known = each["oid"] in self.hub.large_files
            objects.append({"oid": each["oid"], "size": each["size"], **({} if known else {"actions": upload})})
        self._answer({"objects": objects})

    def _lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400)
        self.hub.large_files[oid] = body
        self._answer({})

    def _commit(self, body: bytes, kind: str, id: str) -> None:
        repository = self._repository(kind, id)
        self._may_write()
        files, title = dict(repository.files), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif value["oid"] in self.hub.large_files:
                files[value["path"]] = self.hub.large_files[value["oid"]]
            else:
                raise _Refusal(400)
        name = repository.commit(files, title)
        self._answer({"commitUrl": f"{self.hub.address}/{id}/commit/{name}", "commitOid": name})

    def _info(self, body: bytes, kind: str, id: str, revision: str | None) -> None:
        repository = self._repository(kind, id)
        name, files = self._commit_of(repository, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        self._answer({"id": id, "sha": name, "private": repository.is_private, "siblings": siblings})

    def _tree(self, body: bytes, kind: str, id: str, revision: str) -> None:
        _, files = self._commit_of(self._repository(kind, id), revision)
        self._answer(
            [
                {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}
                for path, content in sorted(files.items())
            ]
        )

    def _file(self, body: bytes, kind: str, id: str, revision: str, path: str) -> None:
        name, files = self._commit_of(self._repository(_kind(kind), id), revision)
        if path not in files:
            raise _Refusal(404, X_Error_Code="EntryNotFound")
        self._send(200, files[path], {"ETag": _etag(files[path]), "X-Repo-Commit": name})

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        if self._token not in (None, WRITE_TOKEN, READ_TOKEN):
            raise _Refusal(401, X_Error_Message="Invalid credentials in Authorization header")
        if repository is None or (repository.is_private and self._token is None):
            raise _Refusal(404 if self._token else 401, X_Error_Code="RepoNotFound")
        return repository

    def _may_write(self) -> None:
        if self._token != WRITE_TOKEN:
            raise _Refusal(403 if self._token == READ_TOKEN else 401, X_Error_Message="you must use a write token")

    def _commit_of(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        for name, files in repository.commits:
            if name == revision:
                return name, files
        if revision == "main":
            return repository.commits[-1]
        raise _Refusal(404, X_Error_Code="RevisionNotFound")

    def _answer(self, what: object) -> None:
        self._send(200, json.dumps(what).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def _kind(prefix: str) -> str:
    return {prefix: kind for kind, prefix in _PREFIXES.items()}[prefix]


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub without repositories, at `hub.address`."""
    hub = Hub()
    listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{listener.server_port}"
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        listener.shutdown()
        listener.server_close()
