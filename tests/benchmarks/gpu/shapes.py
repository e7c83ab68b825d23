"""What is trained: the published shapes, and the same paths at sizes that a CPU core computes in a moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from configs.schema import BackboneConfig, Positions
from tests.benchmarks.gpu.rows import SMALL, STEP_AUDIO, Ids

BACKBONES = Path(__file__).resolve().parents[3] / "configs" / "backbone"

# TinyLlama-1.1B's shape (2401.02385, table 1), as `tests/benchmarks/conversion.py` has it.
_ONE_B: dict[str, Any] = {
    "name": "1b",
    "layers": 22,
    "hidden": 2048,
    "ffn": 5632,
    "heads": 32,
    "kv_heads": 4,
    "tied_embeddings": False,
    "tokenizer": "none",
}


@dataclass(frozen=True)
class Scale:
    """length: tokens a pack; warm and timed: steps."""

    tiny: bool
    ids: Ids
    length: int
    words: tuple[int, int]
    warm: int
    timed: int


FULL = Scale(tiny=False, ids=STEP_AUDIO, length=8192, words=(30, 500), warm=2, timed=5)
TINY = Scale(tiny=True, ids=SMALL, length=128, words=(4, 20), warm=1, timed=2)


def backbone(name: str, positions: str, scale: Scale) -> BackboneConfig:
    """135m, 1b or 3b, of random weights; tiny: one layer of two heads in its place."""
    if name == "1b":
        found = BackboneConfig(**_ONE_B)
    else:
        file = BACKBONES / {"135m": "smollm2_135m.yaml", "3b": "step_audio_tts_3b.yaml"}[name]
        merged = OmegaConf.merge(OmegaConf.structured(BackboneConfig), OmegaConf.load(file))
        found = cast(BackboneConfig, OmegaConf.to_object(merged))
    found.positions = Positions(positions)
    found.weights = None
    if scale.tiny:
        found.layers, found.hidden, found.ffn, found.heads, found.kv_heads = 1, 32, 64, 2, 1
        found.init_std = 0.02
    return found
