"""A server that speaks S3 (moto's), in a process of its own, and a wire to it that counts bytes and can be cut."""

from __future__ import annotations

import json
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

_STARTS = 60.0  # seconds that a server has to start
_REGION = "us-east-1"


class S3Server:
    """`with s3_server(folder) as server`. It keeps objects in memory and takes any credentials until told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=log, stderr=log
            )
        began = time.monotonic()
        while (told := re.search(r"http://127\.0\.0\.1:(\d+)", self.log.read_text())) is None:
            assert self.process.poll() is None and time.monotonic() - began < _STARTS, self.log.read_text()
            time.sleep(0.05)
        self.port = int(told[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def file_system(self) -> Any:
        """The whole of the storage, past the wire."""
        import s3fs

        return s3fs.S3FileSystem(key="any", secret="any", endpoint_url=self.url, skip_instance_cache=True)

    def put(self, folder: Path, place: str) -> None:
        """`folder` as it is at `place`, `bucket/prefix`; the bucket is made."""
        system = self.file_system()
        system.makedirs(place.partition("/")[0], exist_ok=True)
        system.put(f"{folder}/", f"{place}/", recursive=True)

    def answers(self) -> list[tuple[str, str, int]]:
        """Method, path and status of each request so far."""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text())
        return [(one, path, int(status)) for one, path, status in re.findall(r'"(\w+) (\S+) HTTP/1.1" (\d+)', lines)]

    def user(self, *actions: str) -> tuple[str, str]:
        """Key and secret of a new user who may do `actions`, such as s3:GetObject, to everything."""
        import botocore.session

        session = botocore.session.Session()
        session.set_credentials("any", "any")
        iam = session.create_client("iam", region_name=_REGION, endpoint_url=self.url)
        name = f"user{len(iam.list_users()['Users'])}"
        iam.create_user(UserName=name)
        policy = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": list(actions), "Resource": "*"}}
        iam.put_user_policy(UserName=name, PolicyName="may", PolicyDocument=json.dumps(policy))
        made = iam.create_access_key(UserName=name)["AccessKey"]
        return made["AccessKeyId"], made["SecretAccessKey"]

    @contextmanager
    def strict(self) -> Iterator[None]:
        """While inside, signatures and policies count."""
        self._unsigned(b"0")
        try:
            yield
        finally:
            self._unsigned(b"inf")

    def _unsigned(self, requests: bytes) -> None:
        asked = urllib.request.Request(f"{self.url}/moto-api/reset-auth", requests, {"Content-Type": "text/plain"})
        urllib.request.urlopen(asked, timeout=10).close()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder)
    try:
        yield server
    finally:
        server.kill()


class Wire:
    """`with Wire(target) as wire`: a port on this machine whose bytes go to and come from `target`, another one.

    received: bytes that came back. at, then: once `received` has passed `at`, the wire is cut and `then` is called.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.received = 0
        self.at: int | None = None
        self.then: Callable[[], object] = lambda: None
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._serve()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Every connection ends, and none is taken any more: what a machine does whose server is gone."""
        with self._lock, suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        with self._lock:
            for end in self._ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._door = socket.create_server(("127.0.0.1", self.port))
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self._door,), daemon=True).start()

    def _accept(self, door: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = door.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with suppress(OSError), near, socket.create_connection(("127.0.0.1", self.target)) as far:
            with self._lock:
                self._ends |= {near, far}
            try:
                while True:
                    for end in select.select([near, far], [], [])[0]:
                        content = end.recv(1 << 16)
                        if not content:
                            return
                        if end is far and self._count(len(content)):
                            return
                        (near if end is far else far).sendall(content)
            finally:
                with self._lock:
                    self._ends -= {near, far}

    def _count(self, size: int) -> bool:
        """Whether the wire has just been cut."""
        with self._lock:
            self.received += size
            due = self.at is not None and self.received > self.at
            if due:
                self.at = None
        if due:
            self.cut()
            threading.Thread(target=self.then, daemon=True).start()
        return due
