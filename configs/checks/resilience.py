"""Policies that cannot do what they say, refused in one line."""

from __future__ import annotations

from configs.schema import Config, OnIncident
from runtime.exits import BadInput


def check_resilience(config: Config) -> None:
    resilience = config.resilience
    if resilience.warmup > resilience.window:
        raise BadInput(
            f"resilience.warmup={resilience.warmup} is above resilience.window={resilience.window}, "
            "the steps that are remembered"
        )
    rewinds = OnIncident.rewind in (resilience.on_nonfinite, resilience.on_spike)
    if resilience.leave_out > 1 and not rewinds:
        raise BadInput(
            f"resilience.leave_out={resilience.leave_out}: only a rewind leaves out more than the step itself; "
            "set resilience.on_spike or resilience.on_nonfinite to rewind"
        )
    if resilience.leave_out > 1 and config.checkpoint.every == 0:
        raise BadInput(
            f"resilience.leave_out={resilience.leave_out} goes back to a checkpoint from before that data, and "
            "checkpoint.every=0 saves none; set it"
        )
