"""How it is trained: steps, optimiser, topology, engine, and where a run writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

from omegaconf import MISSING


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"  # parameters and activations; main parameters and gradient sums stay fp32


class Fp8Recipe(Enum):
    """How fp8 numbers are scaled; all look at the tensor itself and keep nothing from step to step. TransformerEngine's
    delayed scaling, which does, is left out: its history would have to be unpickled from checkpoints."""

    tensorwise = "tensorwise"  # a scale a tensor; e4m3, gradients of outputs e5m2
    blockwise = "blockwise"  # a scale for 1 x 128 of activations, for 128 x 128 of weights; e4m3; CUDA 12.9
    mxfp8 = "mxfp8"  # a power of two for every 32 numbers; e4m3; GPUs of the Blackwell generation


@dataclass
class Fp8Config:
    """Products of the trunk's linear layers in fp8, forward and backward, by TransformerEngine. Parameters, their
    gradients' sums, norms, attention and the head stay as train.precision=bf16 has them."""

    recipe: Fp8Recipe = Fp8Recipe.tensorwise
    bf16_first: int = 1  # lowest layers whose products stay in bf16
    bf16_last: int = 1  # highest layers, likewise


class AttentionKernel(Enum):
    auto = "auto"  # sdpa on the CPU; on a GPU flex for sqrt_alibi, else varlen in bf16 and sdpa in fp32
    sdpa = "sdpa"  # PyTorch's scaled_dot_product_attention, sample by sample
    varlen = "varlen"  # PyTorch's flash attention of variable lengths
    flex = "flex"  # FlexAttention, compiled
    te = "te"  # TransformerEngine's DotProductAttention, where it is installed


class ExpertKernel(Enum):
    auto = "auto"  # grouped on a GPU in bf16, else sequential
    sequential = "sequential"  # one expert after another
    grouped = "grouped"  # all of a rank's experts in one product (PyTorch's grouped_mm)


class Schedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Verification(Enum):
    contents = "contents"  # every byte is read and hashed, by all ranks together
    sizes = "sizes"  # every file is there in its full length; misses a damaged byte


@dataclass
class RunConfig:
    name: str = MISSING
    folder: str = "runs/${run.name}"
    cache: str | None = None  # corpora and converted weights; None: $MEGAPHONE_CACHE or ~/.cache/megaphone
    remote_shards_gb: float = 64.0  # of the cache, for shards of corpora behind URLs; those used last stay


class Recompute(StrEnum):
    """Which activations the backward pass computes again instead of keeping them."""

    none = "none"
    full = "full"  # all within groups of layers
    selective = "selective"  # those of the parts in recompute_modules


class RecomputeMethod(StrEnum):
    uniform = "uniform"  # all layers, in groups of recompute_layers
    block = "block"  # the first recompute_layers of each stage, one by one; the others keep theirs


@dataclass
class ParallelConfig:
    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int | None = None  # model chunks a pipeline stage, interleaved; None: one, plain 1F1B
    # What each (virtual) stage holds: E embedding, t layer, L head and loss, | next stage, as in "Ett|(ttt|)*2tL";
    # "auto": balanced by cost, the head's rows counted against layers; None: layers evenly.
    pipeline_layout: str | None = None
    context: int = 1  # ranks that share every row of tokens, two runs of it each
    expert: int = 1  # ranks that share out the experts of a layer, each in whole; among the ranks of a pipeline stage
    sequence: bool = False  # sequence parallelism beside tensor parallelism
    data: int | None = None  # derived from the number of processes; if given, must agree with it
    distributed_optimizer: bool = False  # shard optimiser state over data-parallel ranks
    overlap_gradients: bool = False  # reduce gradients over data-parallel ranks while the backward pass goes on
    overlap_parameters: bool = False  # gather parameters, bucket by bucket, as the next forward pass needs them
    bucket_size: int | None = None  # parameters reduced or gathered in one go; None: max(4e7, 1e6 x data-parallel size)
    recompute: Recompute = Recompute.none
    recompute_method: RecomputeMethod = RecomputeMethod.uniform  # of full recompute
    recompute_layers: int = 1  # of full recompute: layers a group (uniform) or a stage (block)
    recompute_modules: list[str] = field(default_factory=lambda: ["core_attn"])  # also mlp, layernorm; of selective


DEFAULT_GROUPS = ("embedding", "head", "trunk", "adapter", "encoder")
"""Parameter groups that are always there; what no group of `optimizer.groups` claims falls into one of them."""


@dataclass
class ParameterGroupConfig:
    """Parameters that learn at a rate of their own. Two groups may not claim one parameter."""

    match: list[str] = MISSING  # name patterns (configs/parameter_names.py)
    lr_multiplier: float = 1.0  # times the scheduled learning rate
    weight_decay: float | None = None  # of its matrices; None: optimizer.weight_decay


@dataclass
class OptimizerConfig:
    name: str = "adamw"
    lr: float = 2e-5
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # matrices only; never norms and biases
    clip_grad: float = 1.0  # global norm; 0: no clipping
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 0
    floor: float = 0.1  # last learning rate over the highest (linear, cosine)
    lr_multipliers: dict[str, float] = field(default_factory=dict)  # by group: embedding, head, trunk, adapter, encoder
    groups: dict[str, ParameterGroupConfig] = field(default_factory=dict)  # further groups by name


@dataclass
class TrainConfig:
    steps: int = 100
    global_batch: int = 8  # packs a step, over all ranks; of stage.objective=ppo: answers
    micro_batch: int = 1  # packs a forward pass
    sequence_length: int = 1024  # tokens a pack
    seed: int = 1234
    precision: Precision = Precision.fp32
    fp8: Fp8Config | None = None  # None: every product in the precision above
    attention: AttentionKernel = AttentionKernel.auto
    experts: ExpertKernel = ExpertKernel.auto  # of a backbone that has experts
    deterministic: bool = True
    log_samples: bool = False  # global sample ids of every step in metrics.jsonl
    validate_every: int = 100  # steps; validation also runs before the first step and after the last; 0: never
    validation_packs: int = 32  # of stage.objective=ppo: questions


@dataclass
class CheckpointConfig:
    """When a run saves its state, and which of what it saved it keeps."""

    every: int = 100  # steps; the last step is always saved; 0: that one alone
    keep: int = 2  # newest ones kept; 0: all
    keep_every: int = 0  # steps; checkpoints of every such step are kept for ever beside the newest; 0: none
    asynchronous: bool = False  # copy the state to host memory and write it while training goes on
    failures: int = 0  # saves in a row that may fail, as on a full disk, with training going on; one more ends the run
    verify: Verification = Verification.contents  # of the newest checkpoint, before a run goes on from it
    # Beside each checkpoint, the same state as DeepSpeed writes it, in <run>/deepspeed for DeepSpeed's own tools;
    # written while training waits, and kept as long as the checkpoint of that step. For engine.name=deepspeed.
    deepspeed: bool = False


@dataclass
class TrackerConfig:
    wandb: str = "offline"  # offline, online or disabled
    project: str = "megaphone"
    console_every: int = 10  # steps between printed lines


@dataclass
class EngineConfig:
    """What runs the steps; options but the name are DeepSpeed's."""

    name: str = "megatron"  # or deepspeed
    # What is cut up over data-parallel ranks. 0: nothing; 1: optimiser state; 2: gradients too; 3: parameters too
    zero_stage: int = 1
    # DeepSpeed's own configuration, passed on as it is: zero_optimization.offload_optimizer, bucket sizes and the like.
    # Keys of what other options here decide are refused.
    deepspeed: dict[str, Any] = field(default_factory=dict)
