"""What the run folder needs room for, from the config alone, and what it has."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Config, StageKind
from launch.checkpoint_size import of_stage
from runtime.exits import BadInput


@dataclass(frozen=True)
class Room:
    """Bytes of a checkpoint, how many more of them the stage will hold at once, and bytes that are free."""

    each: int
    count: int
    free: int

    @property
    def needed(self) -> int:
        return self.each * self.count


def checkpoints_held(config: Config) -> int:
    """Most checkpoints that the run folder holds at once: those kept, and the one that is written before the oldest
    goes."""
    kept, steps = config.checkpoint, config.train.steps
    saved = -(-steps // kept.every) if kept.every else 1
    if not kept.keep:
        return saved
    for_ever = steps // kept.keep_every if kept.keep_every else 0
    return min(saved, kept.keep + 1 + for_ever)


def room(config: Config, rows: int, folder: Path) -> Room | None:
    """What the stage still needs beside the checkpoints that are there; None where the config does not tell."""
    from checkpoints.layout import complete_checkpoints

    if config.stage.kind is not StageKind.train:
        return None
    try:
        each = of_stage(config, rows)
    except BadInput:
        return None
    if config.checkpoint.deepspeed:
        each *= 2  # DeepSpeed's own folder holds the same again
    held = config.cluster.preflight.checkpoints
    there = len(complete_checkpoints(folder / "checkpoints"))
    count = max(1, checkpoints_held(config) - there) if held is None else held
    return Room(each, count, shutil.disk_usage(folder).free)
