"""The first call of an elementwise function is as exact as the second, whichever threads come first together.

    python tests/runtime/test_threads.py <processes> [unsettled]

counts the processes in which it is not; it takes many of them, on a machine with too few cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
AT_ONCE = 4
FIRST_CALL = """
import sys
import torch
from runtime.threads import use_threads
if sys.argv[1] == "settled":
    use_threads(4)
else:
    torch.set_num_threads(4)
angles = torch.linspace(-9, 9, 1 << 18)
sys.exit(not all(torch.equal(function(angles), function(angles)) for function in (torch.sin, torch.cos)))
"""


def differing(processes: int, settled: bool) -> int:
    """How many of so many new processes came to another result the first time."""
    command = [sys.executable, "-c", FIRST_CALL, "settled" if settled else "unsettled"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    found = 0
    for begin in range(0, processes, AT_ONCE):
        count = min(AT_ONCE, processes - begin)
        started = [subprocess.Popen(command, env=environment) for _ in range(count)]
        codes = [one.wait(120) for one in started]
        assert set(codes) <= {0, 1}, codes
        found += sum(codes)
    return found


def test_the_first_call_is_as_exact_as_the_second() -> None:
    assert differing(AT_ONCE, settled=True) == 0


if __name__ == "__main__":
    count = int(sys.argv[1])
    print(f"{differing(count, settled=sys.argv[2:] != ['unsettled'])} of {count}")
