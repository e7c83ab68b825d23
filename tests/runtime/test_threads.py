"""The first call of an elementwise function is as exact as the second, whichever threads come first together.

    python tests/runtime/test_threads.py <processes> [unsettled]

counts the processes, forked from one that has torch and has called nothing yet, in which it is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
AT_ONCE = 6  # more than there are cores, so that threads are kept waiting in odd places


def first_call_differs(settled: bool) -> bool:
    from runtime.threads import settle_vector_math

    torch.set_num_threads(2)
    torch.ones(1 << 20).mul(2)  # both threads are there before the function is
    if settled:
        settle_vector_math()
    angles = torch.linspace(0.1, 40, 1 << 17)
    return not torch.equal(angles.cos(), angles.cos())


def storm(processes: int, settled: bool) -> int:
    """How many of so many processes came to another result the first time."""
    differing = 0
    for begin in range(0, processes, AT_ONCE):
        children = []
        for _ in range(min(AT_ONCE, processes - begin)):
            child = os.fork()
            if not child:
                os._exit(first_call_differs(settled))
            children.append(child)
        differing += sum(os.waitpid(child, 0)[1] != 0 for child in children)
    return differing


def test_the_first_call_is_as_exact_as_the_second() -> None:
    said = subprocess.run(
        [sys.executable, __file__, "60"], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert said.stdout == "0 of 60\n", said.stderr


if __name__ == "__main__":
    count = int(sys.argv[1])
    print(f"{storm(count, settled=sys.argv[2:] != ['unsettled'])} of {count}")
