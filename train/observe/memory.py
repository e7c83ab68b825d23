"""High-water marks of memory since they were last read, in GiB."""

from __future__ import annotations

from pathlib import Path

import torch

GIB = 2**30
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): puts the peak resident set back to what is resident now
KEYS = ("allocated", "reserved", "host")


class MemoryMeter:
    """Peaks of this process: the device's memory in tensors and taken by the allocator, and the resident set.

    Where the kernel does not let a process reset its peak, `host` is the peak since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._clears = True

    def read(self) -> dict[str, float]:
        """KEYS, since the last call; without a GPU only "host"."""
        found = {"host": self._host()}
        if self._device is not None:
            found["allocated"] = torch.cuda.max_memory_allocated(self._device) / GIB
            found["reserved"] = torch.cuda.max_memory_reserved(self._device) / GIB
            torch.cuda.reset_peak_memory_stats(self._device)
        return found

    def _host(self) -> float:
        peak = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        if self._clears:
            try:
                _CLEAR.write_text(_RESET_PEAK)
            except OSError:
                self._clears = False  # a sandbox without it: the peak of the whole process stands
        return int(peak.split()[1]) * 1024 / GIB
