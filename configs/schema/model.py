"""What is trained: the backbone and where its first weights come from."""

from __future__ import annotations

from dataclasses import dataclass, field
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
class LoraConfig:
    """Low-rank updates of linear layers (Hu et al. 2021, 2106.09685): W + (alpha / rank) B A, with W frozen."""

    rank: int = 16
    alpha: float = 32.0
    # Patterns for modules by checkpoint name, layers together: decoder.layers.self_attention.linear_qkv and
    # .linear_proj, decoder.layers.mlp.linear_fc1 (gate and up) and .linear_fc2.
    targets: list[str] = field(default_factory=lambda: ["*.linear_*"])


@dataclass
class StageConfig:
    name: str = "pretrain"
    objective: str = "pretrain"
    weights: str = "backbone"  # "backbone", the name of an earlier stage, or a native checkpoint folder
    audio_rows: AudioRows = AudioRows.drawn  # first embedding (and head) rows of audio codes beside a backbone
    # Name patterns (configs/parameter_names.py) of what is trained. None: everything, or with `lora` its factors alone,
    # which are trained in any case.
    trainable: list[str] | None = None
    frozen: list[str] = field(default_factory=list)  # name patterns of what is not, taken out of the above
    lora: LoraConfig | None = None  # None: no low-rank updates


@dataclass
class ExportConfig:
    huggingface: bool = True  # write export/hf after the stage
    dtype: Precision = Precision.fp32
