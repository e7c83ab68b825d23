"""Exit codes of every Megaphone process, and the exceptions that carry them.

0 done; 75 stopped early with its progress saved, worth starting again (EX_TEMPFAIL); 2 bad configuration or
input; 3 the run must not go on as it is, and somebody has to decide; 76 ended by the watchdog, since a rank hung,
worth starting again; 77 nodes are sick, named by a preflight: start again without them; 1 anything else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from runtime import log_lines

DONE = 0
FAILED = 1
BAD_INPUT = 2
HALTED = 3
STOPPED_EARLY = 75
HUNG = 76
SICK = 77

EXIT_CODES = "MEGAPHONE_EXIT_CODES"
"""Variable that names a folder where ranks leave their exit codes, each as `rank-<number>`. Under srun and torchrun,
which kill the others as soon as one exits with another code than 0, one that stopped early then exits with 0."""


class BadInput(Exception):
    """The user's configuration, files or environment are at fault. The message is one clear line."""

    exit_code = BAD_INPUT


class StoppedEarly(Exception):
    """Work stopped on request with its progress saved; the same command goes on from there."""

    exit_code = STOPPED_EARLY


class Halted(Exception):
    """What the run learns from is not fit to be learned from, and its policy is to stop. The message is one line."""

    exit_code = HALTED


def leave(code: int) -> NoReturn:
    """End a rank's process at once: threads of a failed one, in a collective that will never end, must not keep it."""
    log_lines.end_output()
    tell(code)
    os._exit(DONE if code == STOPPED_EARLY and EXIT_CODES in os.environ else code)


def tell(code: int) -> None:
    """Leave a rank's exit code where whoever started it looks for it, if anybody does."""
    if folder := os.environ.get(EXIT_CODES):
        (Path(folder) / f"rank-{os.environ.get('RANK', '0')}").write_text(str(code), encoding="utf-8")
