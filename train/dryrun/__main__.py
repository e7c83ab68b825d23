"""`python -m train.dryrun <request.json>`: builds ranks, and writes what it found as JSON."""

from __future__ import annotations

import sys

from runtime.exits import leave
from train.dryrun.process import main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
