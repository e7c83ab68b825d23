"""What is trained: the backbone and where its first weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from configs.schema.training import Precision


@dataclass
class BackboneConfig:
    """The text LLM that learns to listen and speak (Llama family: RMSNorm, RoPE, GQA, SwiGLU)."""

    name: str = MISSING
    layers: int = MISSING
    hidden: int = MISSING
    ffn: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    head_dim: int | None = None  # None: hidden / heads
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    qkv_bias: bool = False
    tied_embeddings: bool = True
    init_std: float = 0.02
    max_positions: int = 8192
    tokenizer: str = MISSING  # a Hugging Face folder or hub name, or package:<name> for weights that a package carries
    weights: str | None = None  # same forms; None: random initialisation


class AudioRows(Enum):
    drawn = "drawn"  # like the other rows: at random, with the text rows' mean and deviation where those are trained
    centroids = "centroids"  # the codec's centroids, projected: codes of like sounds start out alike


@dataclass
class StageConfig:
    name: str = "pretrain"
    objective: str = "pretrain"
    weights: str = "backbone"  # "backbone", the name of an earlier stage, or a native checkpoint folder
    audio_rows: AudioRows = AudioRows.drawn  # first embedding (and head) rows of audio codes beside a backbone


@dataclass
class ExportConfig:
    huggingface: bool = True  # write export/hf after the stage
    dtype: Precision = Precision.fp32
