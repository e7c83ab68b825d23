"""What is trained: the backbone and where its first weights come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from configs.schema.training import Precision


class Positions(Enum):
    """How tokens know their order within a sample."""

    rope = "rope"  # queries and keys are rotated (2104.09864)
    sqrt_alibi = "sqrt_alibi"  # -slope x sqrt(distance) is added to scores, as in Step-1
    none = "none"  # by the causal mask alone


class RopeScalingKind(Enum):
    linear = "linear"  # all frequencies / factor
    llama3 = "llama3"  # slow ones / factor, fast ones as they are
    yarn = "yarn"


@dataclass
class RopeScaling:
    """How rotary frequencies are stretched; what linear does not name it does not use."""

    kind: RopeScalingKind = MISSING
    factor: float = MISSING  # positions it is to reach over those it was trained on
    original_positions: int | None = None  # positions it was trained on; llama3 and yarn need it
    low_frequency_factor: float = 1.0  # llama3: what turns fewer times over the original positions is slow
    high_frequency_factor: float = 4.0  # llama3: what turns more often is fast
    beta_fast: float = 32.0  # yarn: turns over the original positions from which nothing is stretched
    beta_slow: float = 1.0  # yarn: turns below which all is stretched
    attention_factor: float | None = None  # yarn: on cosines and sines; None: 0.1 ln(factor) + 1


@dataclass
class ExpertsConfig:
    """SwiGLU experts in place of a layer's MLP, of which a router picks some for each token (Mixtral, Qwen3-MoE).

    Both losses are means over the real tokens of the global batch, added up over the layers and minimised beside what
    the objective says. That of balance is computed pack by pack, so that no topology and no size of a micro-batch
    changes it: E sum_e f_e P_e (Fedus et al. 2021, 2101.03961, eq. 4 to 6), where over the tokens of one pack f_e is
    the share of their choices that fell on expert e, and P_e its mean probability under the router's softmax; 1 where
    all experts are alike. The router's z loss is log(sum_e exp(logit_e))^2 (Zoph et al. 2022, 2202.08906, eq. 5).
    """

    count: int = MISSING  # experts a layer
    ffn: int = MISSING  # inner width of an expert
    top_k: int = 2  # experts a token goes to
    normalise_top_k: bool = True  # a token's weights add up to 1; false: they are probabilities among all experts
    dense_first: int = 0  # the lowest layers, so many of them, keep an MLP of backbone.ffn
    balance: float = 0.0  # coefficient of the balance loss; 0: measured, not minimised
    z: float = 0.0  # coefficient of the router's z loss; 0: measured, not minimised


@dataclass
class BackboneConfig:
    """The text LLM that learns to listen and speak (RMSNorm, GQA, SwiGLU; Llama's family and Step-1's)."""

    name: str = MISSING
    # The published form (checkpoints/maps) that weights are exported in; those of `weights` may be of another with the
    # same fields. What the form does not have is refused where weights are read or exported.
    architecture: str = "llama"
    layers: int = MISSING
    hidden: int = MISSING
    ffn: int = MISSING  # inner width of an MLP
    heads: int = MISSING
    kv_heads: int = MISSING
    head_dim: int | None = None  # None: hidden / heads
    norm_eps: float = 1e-5
    positions: Positions = Positions.rope
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None  # None: frequencies as rope_base gives them
    rope_share: float = 1.0  # of every head's dimensions, the first ones, that rotate; the others stay (GLM-4: 0.5)
    rope_interleaved: bool = False  # dimensions 2i and 2i + 1 turn as a pair (GLM-4), not i and i + half (Llama)
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm of every query and key head, before positions (Qwen3)
    embedding_multiplier: float = 1.0  # on what the embedding gives (MiniCPM, Granite)
    residual_multiplier: float = 1.0  # on what attention and MLP add to the residual stream (MiniCPM, Granite)
    attention_scale: float | None = None  # on scores; None: 1 / sqrt(head_dim)
    logits_divisor: float = 1.0  # the last hidden states are divided by it before the head (MiniCPM, Granite)
    experts: ExpertsConfig | None = None  # None: every layer has an MLP
    tied_embeddings: bool = True
    init_std: float = 0.02
    max_positions: int = 8192
    tokenizer: str = MISSING  # a Hugging Face folder or hub name, or package:<name> for weights that a package carries
    weights: str | None = None  # same forms; None: random initialisation


class NewRows(Enum):
    """How vocabulary rows that a trained backbone lacks begin, in embedding and head (checkpoints/vocabulary_surgery.py
    has what each does to SmolLM2's loss)."""

    covariance = "covariance"  # drawn, with mean and full covariance of the text rows
    mean = "mean"  # all alike, at the text rows' mean


class AudioRows(Enum):
    drawn = "drawn"  # like the other new rows
    centroids = "centroids"  # the codec's centroids, projected: codes of like sounds start out alike


@dataclass
class LoraConfig:
    """Low-rank updates of linear layers (Hu et al. 2021, 2106.09685): W + (alpha / rank) B A, with W frozen."""

    rank: int = 16
    alpha: float = 32.0
    # Patterns for modules by checkpoint name, layers together: decoder.layers.self_attention.linear_qkv and
    # .linear_proj, decoder.layers.mlp.linear_fc1 (gate and up) and .linear_fc2. Experts and routers take no updates.
    targets: list[str] = field(default_factory=lambda: ["*.linear_*"])


class StageKind(Enum):
    """What a stage does."""

    train = "train"  # trains the speech LM
    decoder = "decoder"  # trains what makes sound of codes
    generate = "generate"  # an earlier stage's model makes a corpus
    merge = "merge"  # weights of earlier stages become one model
    evaluate = "evaluate"  # measures an earlier stage's model


@dataclass
class StageConfig:
    name: str = "pretrain"
    kind: StageKind = StageKind.train
    # pretrain or sft: both predict the next token where the layouts weigh it; sft asks for a layout of chats. distill:
    # the same, and follows a teacher (DistillationConfig). dpo or reward: over a layout of pairs, a policy learns what
    # was preferred, or a reward model to tell (PreferenceConfig). ppo: over the questions of such a layout, a policy
    # learns what a reward model likes of its answers (PPOConfig). Of kind decoder: flow (codes to mel) or vocoder (mel
    # to wave)
    objective: str = "pretrain"
    weights: str = "backbone"  # "backbone", the name of an earlier stage, or a native checkpoint folder
    new_rows: NewRows = NewRows.covariance  # first rows of ids that the backbone's weights lack
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
