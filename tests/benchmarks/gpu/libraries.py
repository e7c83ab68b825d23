"""What is installed, without importing any of it, and how to bring what is not."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

# Distributions by what they are for. Nothing can be measured without the first; the second is what others are measured
# with, the third what is faster where it is there, the last what runs the tests of kernels.
NEEDED = ("torch", "numpy", "tokenizers", "safetensors", "xxhash", "msgspec", "megatron-core", "omegaconf")
PEERS = ("transformers", "deepspeed")
FASTER = ("triton", "flash-attn", "transformer-engine")
TESTING = ("pytest", "pytest-timeout", "hypothesis")
_BESIDE = {"omegaconf": ("antlr4-python3-runtime", "PyYAML")}  # what a library needs that may be missing as well


def versions() -> dict[str, str | None]:
    """By distribution, None where it is not installed; and Python's."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in (*NEEDED, *PEERS, *FASTER, *TESTING)},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def how_to_bring(missing: list[str]) -> str:
    """One line that fetches wheels where there is an index, and one command for where there is none."""
    beside = [name for one in missing for name in _BESIDE.get(one, ()) if _version(name) is None]
    pinned = " ".join(_pinned(name) for name in (*missing, *beside))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"where there is a package index, with Python {version}: `pip wheel --no-deps -w .whl {pinned}`; here: "
        "`python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site`"
    )


def _pinned(name: str) -> str:
    """With the version that `constraints.txt` has."""
    found = re.search(rf"^{re.escape(name)}==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE | re.IGNORECASE)
    return found.group(0) if found else name
