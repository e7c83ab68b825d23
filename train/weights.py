"""Where a stage's first weights come from."""

from __future__ import annotations

from pathlib import Path

from configs.schema import Config


def source(config: Config) -> Path | None:
    return None


def prepare(config: Config) -> None:
    return None
