"""A web server for tests that serves files held in memory, answers requests for ranges, and counts what it sends."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Files:
    """What is served, by path, and what was sent: (path, first byte, number of bytes) of each request for content."""

    url: str
    content: dict[str, bytes] = field(default_factory=dict)
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    takes_ranges: bool = True
    num_failures: int = 0  # of the next requests, which get the status 503
    fails_after: int | None = None  # requests for content

    def fails_now(self) -> bool:
        self.num_failures -= 1
        return self.num_failures >= 0 or (self.fails_after is not None and len(self.sent) >= self.fails_after)


@contextmanager
def served() -> Iterator[Files]:
    """Serves until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.files = Files(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.files  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True  # head and content are two messages

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_content: bool) -> None:
        files: Files = self.server.files  # type: ignore[attr-defined]
        content = files.content.get(self.path)
        fails = files.fails_now()
        if fails or content is None:
            self.send_error(503 if fails else 404)
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if files.takes_ranges else None
        start, end = (int(span[1]), min(int(span[2]) + 1, len(content))) if span else (0, len(content))
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        if files.takes_ranges:
            self.send_header("Accept-Ranges", "bytes")
        if span:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if with_content:
            files.sent.append((self.path, start, end - start))
            self.wfile.write(content[start:end])
