"""A model named by its place on the Hub: downloaded once, then taken from the cache without a network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from library.models.options import ModelOptions
from library.models.registry import load_family
from library.models.vae_loading import load_vae

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """The few answers of the Hub's HTTP interface that a download needs, for one model "someone/tiny"."""

    folder: Path
    asked_for: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        names = sorted(file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file())
        if path.startswith("/api/models/someone/tiny/tree/"):
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in ((name, self.folder / name) for name in names)
            ]
            return self._send(200, json.dumps(entries).encode(), with_body)
        if path.startswith("/api/models/someone/tiny"):
            info = {"id": "someone/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self._send(200, json.dumps(info).encode(), with_body)
        name = path.rsplit(f"/resolve/{COMMIT}/", 1)[-1].rsplit("/resolve/main/", 1)[-1]
        if path.startswith("/someone/tiny/resolve/") and name in names:
            if with_body:
                self.asked_for.append(name)
            file = self.folder / name
            return self._send(200, file.read_bytes(), with_body, {"ETag": _etag(file), "X-Repo-Commit": COMMIT})
        return self._send(404, b"", with_body, {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        pass


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@dataclass
class Hub:
    """A Hub on this machine, seen by programs that look for it at `environment`."""

    handler: type[_Hub]
    environment: dict[str, str]

    def local_path(self, name: str, **environment: str) -> str:
        """What `local_path` says of a name, in a program of its own: the Hub's library reads its settings once."""
        program = """
import sys
from library.cli.errors import UserError
from library.models.hub import local_path
try:
    print(local_path(sys.argv[1], "--model"))
except UserError as error:
    print("error:", error, error.hint)
"""
        done = subprocess.run(
            [sys.executable, "-c", program, name],
            env={**os.environ, **self.environment, **environment}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def server(folder_v1: Path, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that has one model, "someone/tiny", and an empty cache."""
    handler = type("Handler", (_Hub,), {"folder": folder_v1, "asked_for": []})
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{listener.server_port}"
    yield Hub(handler, {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    listener.shutdown()
    listener.server_close()


def test_a_model_is_downloaded_once_and_then_taken_from_the_cache(server: Hub, folder_v1: Path) -> None:
    path = Path(server.local_path("someone/tiny"))
    family = load_family(ModelOptions(str(path)))
    assert family.version == "sd_v1"
    asked_for = set(server.handler.asked_for)
    assert {"model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"} <= asked_for
    server.handler.asked_for.clear()
    assert Path(server.local_path("someone/tiny")) == path
    assert server.handler.asked_for == []
    for nowhere in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        assert Path(server.local_path("someone/tiny", **nowhere)) == path


def test_of_each_part_one_file_of_weights_is_downloaded(server: Hub, folder_v1: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_v1, tmp_path / "model")
    for name in ("vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors", "v1.ckpt"):
        (folder / name).write_bytes(b"unwanted")
    server.handler.folder = folder
    server.local_path("someone/tiny")
    weights = [name for name in server.handler.asked_for if not name.endswith((".json", ".txt"))]
    assert sorted(weights) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_a_vae_of_the_hub_is_downloaded(server: Hub, folder_v1: Path) -> None:
    server.handler.folder = folder_v1 / "vae"
    path = server.local_path("someone/tiny")
    assert sorted(server.handler.asked_for) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert load_vae(path).config.latent_channels == 4


def test_what_the_hub_does_not_have_is_said_in_two_lines(server: Hub) -> None:
    said = server.local_path("someone/else")
    assert said.startswith("error: --model someone/else: neither a file or folder here nor a model on the Hub")
    offline = server.local_path("someone/tiny", HF_HUB_OFFLINE="1")
    assert offline.startswith("error: --model someone/tiny: no file or folder here, the Hub cannot be reached")


def test_a_model_in_another_layout_is_refused(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.ckpt").write_bytes(b"x")
    server.handler.folder = tmp_path / "other"
    assert "not in the layout of Diffusers" in server.local_path("someone/tiny")
