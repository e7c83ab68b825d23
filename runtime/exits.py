"""Exit codes of every Megaphone process, and the exceptions that carry them.

0 done; 75 stopped early with its progress saved, worth starting again (EX_TEMPFAIL); 2 bad configuration or
input; 1 anything else.
"""

DONE = 0
FAILED = 1
BAD_INPUT = 2
STOPPED_EARLY = 75


class BadInput(Exception):
    """The user's configuration, files or environment are at fault. The message is one clear line."""

    exit_code = BAD_INPUT


class StoppedEarly(Exception):
    """Work stopped on request with its progress saved; the same command goes on from there."""

    exit_code = STOPPED_EARLY
