"""Bytes on the GPUs of each pipeline stage, part by part, at the fullest instant of a step."""

from __future__ import annotations

from dataclasses import dataclass

from configs.pipeline import stages_of
from configs.schema import Config, Precision, Recompute
from launch.planner.order import in_flight
from launch.planner.work import Held, model_work

_BUFFERS = 2.0e9  # CUDA's context, NCCL's buffers, cuBLAS's workspace


@dataclass(frozen=True)
class StageMemory:
    """Bytes a GPU of one pipeline stage, all its model chunks together."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    encoder: float
    heads: float
    buffers: float

    @property
    def total(self) -> float:
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.logits
            + self.encoder
            + self.heads
            + self.buffers
        )


def memory(config: Config, vocabulary_rows: int) -> list[StageMemory]:
    """One for each pipeline stage. `config.parallel.data` says how many copies share optimiser state; None: one.

    Weights are as `train.precision` has them, gradients and main weights and both of Adam's moments fp32, the last
    three shared by a distributed optimiser (ZeRO, 1910.02054, section 3.1); a layer keeps what its backward pass reads
    (Korthikanti et al. 2022, 2205.05198, section 4.1, with fused attention and SwiGLU).
    """
    parallel, train, backbone = config.parallel, config.train, config.backbone
    work = model_work(config, vocabulary_rows)
    stages = stages_of(backbone, parallel, vocabulary_rows)
    copies = (parallel.data or 1) * parallel.context
    microbatches = max(1, train.global_batch // (parallel.data or 1) // train.micro_batch)
    bf16 = train.precision is Precision.bf16
    size = 2 if bf16 else 4
    deepspeed = config.engine.name == "deepspeed"
    zero = config.engine.zero_stage if deepspeed else int(parallel.distributed_optimizer)
    tokens = train.sequence_length * train.micro_batch / parallel.context
    narrow = tokens / (parallel.tensor if parallel.sequence else 1)
    chunks = parallel.virtual_pipeline or 1
    parts = []
    for rank in range(parallel.pipeline):
        held = Held()
        layers = 0
        for number in range(rank, len(stages), parallel.pipeline):
            held += work.held_by(stages, number)
            layers += stages[number].layers
        if backbone.tied_embeddings and parallel.pipeline > 1 and rank == parallel.pipeline - 1:
            held += work.embedding
        here = held.dense / parallel.tensor + held.experts / parallel.expert
        learnt = held.trained_dense / parallel.tensor + held.trained_experts / parallel.expert
        flights = in_flight(rank, parallel.pipeline, chunks, microbatches) / chunks
        kept = _layer_bytes(config, tokens, narrow, size)
        whole = _layer_bytes(config, tokens, narrow, size, everything=True)
        last = any(stages[number].head for number in range(rank, len(stages), parallel.pipeline))
        parts.append(
            StageMemory(
                weights=here * size / (copies if zero >= 3 else 1),
                gradients=4 * learnt / (copies if zero >= 2 else 1),
                optimizer=(12 if bf16 else 8) * learnt / (copies if zero else 1),
                activations=layers * flights * kept + (whole if kept < whole else 0),
                logits=tokens * vocabulary_rows / parallel.tensor * (size + 8) if last else 0.0,
                encoder=0.0,
                heads=0.0,
                buffers=_BUFFERS,
            )
        )
    return parts


def _layer_bytes(config: Config, tokens: float, narrow: float, size: int, everything: bool = False) -> float:
    """What one layer keeps of a micro-batch; everything: as if nothing were computed again."""
    backbone, parallel = config.backbone, config.parallel
    head_dim = backbone.head_dim or backbone.hidden // backbone.heads
    inputs = narrow * backbone.hidden
    if parallel.recompute is Recompute.full and not everything:
        return inputs * size
    queries, keys = backbone.heads * head_dim, backbone.kv_heads * head_dim
    attention = tokens * (2 * queries + 2 * keys) / parallel.tensor
    mlp = 3 * tokens * backbone.ffn / parallel.tensor
    if backbone.experts is not None:
        copies = backbone.experts.top_k * narrow
        mlp = copies * (3 * backbone.experts.ffn + 2 * backbone.hidden)
    norms = 2 * inputs
    if parallel.recompute is Recompute.selective and not everything:
        mlp = mlp if "mlp" not in parallel.recompute_modules else 0.0
        norms = norms if "layernorm" not in parallel.recompute_modules else 0.0
    return (2 * inputs + norms + attention + mlp) * size
