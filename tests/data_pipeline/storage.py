"""A web server that serves a folder with byte ranges, counts what it sends, and fails as it is told to."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self


class Storage:
    """`with Storage(folder) as storage: ... storage.url`. sent: bytes by path; requests: GETs by path.

    fault: called with the path and the number of its GET, from 1; gives None, an HTTP status to answer with, or "cut"
    for a connection that ends in the middle. ranges: whether Range headers are understood.
    """

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.sent: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.fault: Callable[[str, int], int | str | None] = lambda path, number: None
        storage, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                file = folder / self.path.lstrip("/")
                self._head(200 if file.is_file() else 404, file.stat().st_size if file.is_file() else 0)

            def do_GET(self) -> None:
                path = self.path.lstrip("/")
                with lock:
                    storage.requests[path] += 1
                    number = storage.requests[path]
                fault = storage.fault(path, number)
                file = folder / path
                if isinstance(fault, int) or not file.is_file():
                    self._head(fault if isinstance(fault, int) else 404, 0)
                    return
                content = file.read_bytes()
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if ranges else None
                if asked:
                    content = content[int(asked[1]) : int(asked[2]) + 1]
                self._head(206 if asked else 200, len(content))
                if fault == "cut":
                    content = content[: len(content) // 2]
                    self.close_connection = True
                self.wfile.write(content)
                with lock:
                    storage.sent[path] += len(content)

            def _head(self, status: int, length: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                if ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
