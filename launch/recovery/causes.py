"""What lines of a log mean that a failing rank, its libraries, the kernel or Slurm write: one table, first match wins.

The texts are those that the named sources print. `broken` marks what does not go away by starting again on the same
node; `symptom` what a rank says because another one failed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """What a line means. pattern: searched in the text of a line; source: who writes that text."""

    kind: str
    pattern: re.Pattern[str]
    source: str
    broken: bool = False
    symptom: bool = False


def _cause(kind: str, pattern: str, source: str, *, broken: bool = False, symptom: bool = False) -> Cause:
    return Cause(kind, re.compile(pattern), source, broken, symptom)


_XIDS = "https://docs.nvidia.com/deploy/xid-errors"
_CUDA = "cudaGetErrorString, CUDA runtime API, enum cudaError"
_NCCL = "https://github.com/NVIDIA/nccl, src/misc, src/transport"
_PYTORCH = "https://github.com/pytorch/pytorch, torch/csrc/distributed/c10d"
_GLOO = "https://github.com/facebookincubator/gloo, gloo/transport/tcp"

NODE_LOST, KILLED, WATCHDOG, EXCEPTION, SILENT = "node lost", "killed", "hung", "exception", "no heartbeat"
HOST_MEMORY = "out of host memory"

CAUSES = (
    # The driver: 48 double-bit ECC, 64 row remapping failed, 74 NVLink, 79 fallen off the bus, 95 uncontained ECC,
    # 140 unrecovered ECC. Most others are of the program, or may go away.
    _cause("GPU broken", r"NVRM: Xid \([^)]*\): (?:48|64|74|79|95|140)\b", _XIDS, broken=True),
    _cause("GPU error", r"NVRM: Xid \([^)]*\): \d+", _XIDS),
    _cause("GPU broken", r"uncorrectable ECC error encountered", _CUDA + " 214", broken=True),
    _cause("GPU broken", r"uncorrectable NVLink error detected", _CUDA + " 220", broken=True),
    _cause("GPU broken", r"peer GPU memory over nvlink or a hardware error", _CUDA + " 721", broken=True),
    _cause("GPU lost", r"GPU is lost|fallen off the bus", "nvidia-smi, NVML_ERROR_GPU_IS_LOST", broken=True),
    _cause("GPU lost", r"Unable to determine the device handle for", "nvidia-smi", broken=True),
    _cause("GPU lost", r"no CUDA-capable device is detected", _CUDA + " 100", broken=True),
    _cause("GPU unavailable", r"CUDA-capable device\(s\) is/are busy or unavailable", _CUDA + " 46"),
    _cause("GPU unavailable", r"system not yet initialized", _CUDA + " 802"),
    _cause("out of GPU memory", r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory", "torch/c10/cuda"),
    _cause("CUDA error", r"CUDA error: |CUBLAS_STATUS_|CUDNN_STATUS_", _CUDA),
    # The host and what it mounts
    _cause(HOST_MEMORY, r"[Oo]ut [Oo]f [Mm]emory: Killed process|oom[-_]kill", "Linux mm/oom_kill.c, slurmstepd"),
    _cause(HOST_MEMORY, r"DefaultCPUAllocator: |\bMemoryError\b|Cannot allocate memory", "PyTorch, Python, ENOMEM"),
    _cause("file system", r"No space left on device|Read-only file system|Input/output error", "errno(3)"),
    _cause("file system", r"Stale file handle|Transport endpoint is not connected", "errno(3)"),
    # The network
    _cause("network card", r"Got async event : .*(?:catastrophic|fatal|port error)", _NCCL + "/net_ib.cc", broken=True),
    _cause(
        "connection lost", r"remote process exited or there was a network error|ncclRemoteError", _NCCL, symptom=True
    ),
    _cause("connection lost", r"Got completion from peer .* (?:status|error)", _NCCL + "/net_ib.cc", symptom=True),
    _cause("connection lost", r"gloo/transport/.*(?:Connection|Timed out|pair closure)", _GLOO, symptom=True),
    _cause(
        "connection lost",
        r"Connection (?:closed|reset|refused)|Broken pipe|Socket Timeout|recvValue failed|DistNetworkError",
        _PYTORCH,
        symptom=True,
    ),
    _cause(
        "collective timed out",
        r"Watchdog caught collective operation timeout|wait timeout after|Timed out waiting",
        _PYTORCH,
        symptom=True,
    ),
    _cause("NCCL system error", r"unhandled system error|ncclSystemError", _NCCL),
    _cause("NCCL error", r"unhandled cuda error|ncclUnhandledCudaError|ncclInternalError", _NCCL),
    _cause("connection lost", r"DistBackendError|NCCL communicator was aborted|NCCL error", _PYTORCH, symptom=True),
    # Programs
    _cause(KILLED, r"Fatal Python error: |terminate called after", "CPython Python/pylifecycle.c, libstdc++"),
    _cause(EXCEPTION, r"^(?:[\w.]+\.)?\w*(?:Error|Exception)(?::|$)", "CPython traceback module"),
)


def cause_of(text: str) -> Cause | None:
    """What a line means, None where it tells of no failure."""
    return next((cause for cause in CAUSES if cause.pattern.search(text)), None)
