"""A node's memory, shared memory and versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launch.preflight.node import Report
from runtime.source_tree import commit

_PACKAGES = ("torch", "megatron-core", "deepspeed", "transformer-engine", "flash-attn", "numpy", "transformers")
_GROUP = Path("/sys/fs/cgroup")
_GB = 1e9


def memory(meminfo: Path = Path("/proc/meminfo"), group: Path = _GROUP) -> Report:
    """Memory of the node and what is available of it, or the control group's limit where that is less."""
    lines = (line.partition(":") for line in meminfo.read_text(encoding="ascii").splitlines())
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in lines if rest.split()}
    total, available = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    limit, used = (_number(group / name) for name in ("memory.max", "memory.current"))
    if limit is not None and limit < total:
        total, available = limit, min(available, limit - (used or 0))
    return Report(figures={"memory": total / _GB, "available": available / _GB})


def shared_memory(folder: str = "/dev/shm") -> Report:
    """Free bytes of the file system that ranks and workers share tensors by."""
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return Report(troubles=[f"{folder}: {error.strerror or error}"])
    return Report(figures={"shared_memory": found.f_bavail * found.f_frsize / _GB})


def versions() -> Report:
    """Versions that have to be equal on all nodes, and the commit of our own code."""
    facts = {"python": platform.python_version(), "commit": commit() or "unknown"}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "none"
    return Report(facts=facts)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # no such limit: the file says "max", or there is none
