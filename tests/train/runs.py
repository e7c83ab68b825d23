"""Tiny real runs for tests: a synthetic corpus, a tiny backbone, the real loop on real ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.compose import to_yaml
from configs.schema import BackboneConfig, Config, SourceConfig
from tests.ranks import run_ranks


def tiny_config(folder: Path, corpus: Path, **changes: Any) -> Config:
    """A config whose steps take a fraction of a second; `changes` are dotted keys with __ for the dot."""
    config = Config()
    config.run.name = folder.name
    config.run.folder = str(folder)
    config.corpus.name = "synthetic"
    config.corpus.folder = str(corpus)
    config.codec.name = "synthetic"
    config.mixture.name = "synthetic"
    config.mixture.sources = {
        "continuation": SourceConfig(layout="continuation", weight=2.0),
        "tts": SourceConfig(layout="tts", weight=1.0),
        "interleaved": SourceConfig(layout="interleaved", weight=1.0),
        "text": SourceConfig(layout="text", weight=1.0),
    }
    config.backbone = BackboneConfig(
        name="test", layers=4, hidden=32, ffn=64, heads=4, kv_heads=2, tokenizer="none", init_std=0.1
    )
    config.loader.lanes = 4
    config.loader.packing_window = 4
    config.train.steps = 20
    config.train.global_batch = 4
    config.train.sequence_length = 96
    config.train.validate_every = 0
    config.checkpoint.every = 0
    config.train.validation_packs = 4
    # At 5e-3 Adam blows the rounding of near-zero gradients, which it divides by themselves, up to 1e-3 in 20 steps.
    config.optimizer.lr = 1e-3
    config.optimizer.warmup_steps = 2
    config.optimizer.lr_multipliers = {"embedding": 2.0}
    config.tracker.wandb = "disabled"
    written = OmegaConf.structured(config)
    for key, value in changes.items():
        for part in reversed(key.split("__")):
            value = {part: value}
        written.merge_with(value)
    return OmegaConf.to_object(written)  # type: ignore[return-value]


def run_config(
    config: Config, world: int = 1, timeout: float = 240, program: Callable[[str], int] | None = None
) -> list[dict[str, Any]]:
    """Train `config` on `world` ranks, each of which runs `program` (None: the stage); returns its metrics."""
    folder = Path(config.run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    codes = run_ranks(program or stage, world, str(folder / "config.yaml"), timeout=timeout)
    assert codes == [0] * world, f"exit codes {codes}"
    return metrics(folder)


def stage(config_file: str) -> int:
    from train.stage import main

    return main([config_file])


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
