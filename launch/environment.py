"""What a run ran on: versions, cores and GPUs. Nothing heavy is imported."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runtime.source_tree import commit

PACKAGES = ("torch", "megatron-core", "transformers", "tokenizers", "numpy", "webdataset", "safetensors", "wandb")
OPTIONAL_PACKAGES = ("transformer-engine", "apex", "flash-attn")


@cache
def gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that this process may use, as nvidia-smi and CUDA_VISIBLE_DEVICES say."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    names = tuple(line.strip() for line in listed.stdout.splitlines() if line.strip()) if not listed.returncode else ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    chosen = [entry.strip() for entry in visible.split(",") if entry.strip()]
    if "-1" in chosen:  # CUDA stops reading at the first index that is none
        chosen = chosen[: chosen.index("-1")]
    return tuple(names[int(entry)] if entry.isdigit() else names[0] for entry in chosen if names)[: len(names)]


def describe() -> dict[str, Any]:
    """The environment as a JSON-ready mapping; a package that is not installed is null. Holds no host or user names."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "gpus": list(gpus()),
        "packages": {name: _version(name) for name in (*PACKAGES, *OPTIONAL_PACKAGES)},
        "git_commit": commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
