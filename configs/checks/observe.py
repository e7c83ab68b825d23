"""What is measured: values that cannot be, refused in one line."""

from __future__ import annotations

from configs.schema import Config
from runtime.exits import BadInput


def check_observe(config: Config, processes: int | None = None) -> None:
    profile = config.observe.profile
    if profile.steps < 1:
        raise BadInput(f"observe.profile.steps={profile.steps}: has to be above 0")
    if profile.start is not None and not 1 <= profile.start <= config.train.steps:
        raise BadInput(f"observe.profile.start={profile.start}: no step of 1 to train.steps={config.train.steps}")
    for rank in profile.ranks or []:
        if rank < 0 or (processes is not None and rank >= processes):
            there = f"0 to {processes - 1}" if processes is not None else "0 or above"
            raise BadInput(f"observe.profile.ranks: no rank {rank}; there are {there}")
