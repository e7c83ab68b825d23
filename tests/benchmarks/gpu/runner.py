"""Measurements one after the other, each in a process of its own with a limit; what is known is on disk at once."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tests.benchmarks.gpu.plan import MARK, Measurement

ROOT = Path(__file__).resolve().parents[3]
Results = dict[str, Any]


class Process:
    """A measurement that has started and is importing; `turn` gives it the device."""

    def __init__(self, measurement: Measurement, scale: str, scratch: Path, log: IO[str]) -> None:
        self.measurement = measurement
        self._lines: queue.Queue[str | None] = queue.Queue()
        log.write(f"==== {measurement.name}\n")
        log.flush()
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.gpu.measure", measurement.name, scale],
            cwd=ROOT,
            env=_environment(measurement, scale, scratch),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # with the compilers it starts, to be ended together
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def turn(self, seconds: float, found: Results, save: Any) -> None:
        """Fill `found` with parts and how it ended, within so many seconds; `save` is called after each part."""
        assert self._process.stdin is not None
        began = time.monotonic()
        found |= {"state": "failed", "parts": {}}
        with suppress(BrokenPipeError):  # it died while importing; its last lines say why
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        try:
            while (line := self._lines.get(timeout=max(0.0, began + seconds - time.monotonic()))) is not None:
                if not line.startswith(MARK):
                    self._log.write(line)
                    continue
                said = json.loads(line.removeprefix(MARK))
                if "part" in said:
                    found["parts"][said["part"]] = said["figures"]
                    save()
                elif "failed" in said:
                    found["why"] = said["failed"]
                else:
                    found["state"] = "done"
        except queue.Empty:
            found |= {"state": "out of time", "why": f"not done after {seconds:.0f} s"}
        self.end()
        if found["state"] == "failed":
            code = self._process.returncode
            found.setdefault("why", f"ended with {code} and said nothing; see the log")
        found["seconds"] = time.monotonic() - began
        save()

    def end(self) -> None:
        """End it, and all that it has started."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _environment(measurement: Measurement, scale: str, scratch: Path) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        **os.environ,
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NCCL_SOCKET_IFNAME": "lo",  # a machine's own name may be known to nobody
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "compiled"),  # one measurement's kernels serve the next
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # as Megatron-Core asks for it
        "MEGAPHONE_GPU_BENCH_SCRATCH": str(scratch),
    }
    if scale == "tiny":
        given.setdefault("OMP_NUM_THREADS", "1")
    return on_the_cpu(given) if measurement.hidden else given


def on_the_cpu(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environment` for a process that is to see no GPU."""
    return {**environment, "CUDA_VISIBLE_DEVICES": ""}


def run(
    wanted: list[Measurement], scale: str, until: float, results: Results, file: Path, scratch: Path, log: IO[str]
) -> None:
    """Measure until `until` (`time.monotonic`); `results["measurements"]`, in `file` after every part, says what came
    of each."""
    measurements: Results = results.setdefault("measurements", {})

    def save() -> None:
        write(results, file)

    ready = Process(wanted[0], scale, scratch, log) if wanted else None
    for number, measurement in enumerate(wanted):
        process, ready = ready, None
        assert process is not None
        if number + 1 < len(wanted):  # imports while this one has the device
            ready = Process(wanted[number + 1], scale, scratch, log)
        left = until - time.monotonic()
        found = measurements.setdefault(measurement.name, {})
        if left < 10:
            found |= {"state": "not run", "why": "the time was up", "parts": {}}
            process.end()
        else:
            print(f"{measurement.name} ...", end=" ", flush=True)
            process.turn(min(measurement.seconds, left) if scale == "full" else left, found, save)
            print(f"{found['state']} after {found['seconds']:.1f} s", flush=True)
    save()


def write(results: Results, file: Path) -> None:
    """Whole or not at all."""
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, file)
