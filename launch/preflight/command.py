"""`megaphone preflight`: one rank of it, or ranks of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from configs.checks import check
from configs.schema import Config
from launch.local import run_ranks
from launch.training import local_ranks


def look(config: Config, variables: Mapping[str, str]) -> NoReturn:
    """Be one rank of the process group around this process, and end with its exit code: threads in a collective that
    does not end must not keep it."""
    from launch.preflight.rank import preflight

    check(config)
    os.environ.update(variables)
    code = preflight(config, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def locally(config: Config, words: Sequence[str]) -> int:
    """The same command line as ranks of this machine, as many as the stage has here; returns the exit code."""
    check(config)
    command = [sys.executable, "-m", "launch.cli", "preflight", *words]
    return run_ranks(command, ranks=local_ranks(config), logs=Path(config.run.folder) / "logs" / "preflight")
