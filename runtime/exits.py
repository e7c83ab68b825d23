"""Exit codes of every Megaphone process, and the exceptions that carry them.

0 done; 75 stopped early with its progress saved, worth starting again (EX_TEMPFAIL); 2 bad configuration or
input; 3 the run must not go on as it is, and somebody has to decide; 76 ended by the watchdog, since a rank hung,
worth starting again; 1 anything else.
"""

DONE = 0
FAILED = 1
BAD_INPUT = 2
HALTED = 3
STOPPED_EARLY = 75
HUNG = 76


class BadInput(Exception):
    """The user's configuration, files or environment are at fault. The message is one clear line."""

    exit_code = BAD_INPUT


class StoppedEarly(Exception):
    """Work stopped on request with its progress saved; the same command goes on from there."""

    exit_code = STOPPED_EARLY


class Halted(Exception):
    """What the run learns from is not fit to be learned from, and its policy is to stop. The message is one line."""

    exit_code = HALTED
