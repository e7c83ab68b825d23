"""Kills process groups when the process that started this one is gone, however it went.

Reads group ids, one a line, from its standard input, whose other end only the launcher holds. The end of input
means that the launcher has ended, by `kill -9` too; groups that still live are killed with everything in them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the ranks, who get their own; this one goes last
    for group in [int(line) for line in sys.stdin]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
