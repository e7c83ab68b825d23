"""Memory of a GPU by formula: what a rank holds, and what a training step adds to it.

What is held follows from counting (Rajbhandari et al., 1910.02054, section 3.1, with fp32 sums of gradients: 2 + 4 + 12
bytes a parameter in bf16, the last shared out by the distributed optimiser). Activations follow the method of
Korthikanti et al. (2205.05198, section 4), applied to what our own modules keep: flash attention keeps no scores
(2307.08691), SwiGLU keeps gate and up, norms keep their input and one number a row, and there is no dropout.
Micro-batches under way are those of 1F1B and of the interleaved schedule (2104.04473, section 2.2), counted by walking
through it. Bytes are of a GPU's kernels and without the allocator's rounding; what CUDA and NCCL take is not in it.

`tests/benchmarks/memory.py` compares all of this with a dry run of the same settings. Activations of experts are an
estimate for evenly spread tokens: nothing here checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from configs.checks.cluster import world_size
from configs.checks.topology import model_parallel_size
from configs.pipeline import PipelineStage, stages_of
from configs.schema import Config, Positions, Precision, Recompute, RecomputeMethod
from launch.planner import parameters

SUM = 4  # bytes of a gradient's sum, and of each of the optimiser's three figures for a parameter


@dataclass(frozen=True)
class StageMemory:
    """Bytes of a rank of one pipeline stage, each part as it is when their sum is highest.

    activations: kept for backward passes; logits: of the head at work, its gradients included; buffers: what else a
    pass works with; encoder, heads: of parts beside the text LLM.
    """

    stage: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    encoder: int
    heads: int
    buffers: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "stage")


def memory(config: Config, vocabulary_rows: int, data: int | None = None) -> list[StageMemory]:
    """Of every pipeline stage of a checked config; data: copies of the model, None: as the config has them."""
    stages = stages_of(config.backbone, config.parallel, vocabulary_rows)
    first, held = 0, []
    for stage in stages:
        held.append(parameters.of_stage(config, stage, first, vocabulary_rows))
        first += stage.layers
    learned = parameters.trained(config, held)
    if data is None:
        data = max(1, world_size(config) // model_parallel_size(config))
    ranks = config.parallel.pipeline
    return [_of_rank(config, rank, stages, held, learned, vocabulary_rows, data) for rank in range(ranks)]


def _of_rank(
    config: Config,
    rank: int,
    stages: list[PipelineStage],
    held: list[dict[str, int]],
    learned: set[str],
    rows: int,
    data: int,
) -> StageMemory:
    ranks = config.parallel.pipeline
    own = {name: size for part in held[rank::ranks] for name, size in part.items()}
    trained = {name: size for name, size in own.items() if name in learned}
    bytes_each = 2 if config.train.precision is Precision.bf16 else 4
    figures = 3 if bytes_each == 2 else 2  # Adam's moments, and in bf16 the weight itself in fp32
    pass_ = _Pass(config, rows, learned)
    kept = [pass_.chunk(stage, layers) for stage, layers in zip(stages[rank::ranks], held[rank::ranks], strict=True)]
    most = _most_under_way(config, rank, kept, data)
    working = pass_.working(own, recomputed=any(stage.layers for stage in stages[rank::ranks]))
    head = (
        pass_.head(trained, tied=stages[-1].embedding and config.backbone.tied_embeddings) if rank == ranks - 1 else 0
    )
    update = max((SUM * size // _shares(config, name, data) for name, size in trained.items()), default=0)
    ahead = pass_.states if rank or len(kept) > 1 else 0  # received before its pass begins
    if update > most + max(head, working) + ahead:  # a gradient being clipped, when no activations are there
        most, head, working, ahead = 0, 0, update, 0
    return StageMemory(
        stage=rank,
        weights=bytes_each * sum(own.values()),
        gradients=SUM * sum(trained.values()),
        optimizer=sum(figures * SUM * size // _shares(config, name, data) for name, size in trained.items()),
        activations=most,
        logits=head if head > working else 0,
        encoder=0,
        heads=0,
        buffers=ahead + (0 if head > working else working),
    )


def _shares(config: Config, name: str, data: int) -> int:
    """Ranks that a parameter's optimiser state is shared out over."""
    parallel = config.parallel
    if not parallel.distributed_optimizer:
        return 1
    if parameters.EXPERTS in name:
        return max(1, parallel.tensor * parallel.context * data // parallel.expert)
    return parallel.context * data


# --- the schedule -----------------------------------------------------------------------------------------------------


def _most_under_way(config: Config, rank: int, kept: list[int], data: int) -> int:
    """Most bytes that forward passes have left for backward passes at any time; kept: what one leaves, by chunk."""
    ranks, chunks = config.parallel.pipeline, len(kept)
    batches = max(1, config.train.global_batch // (data * config.train.micro_batch))
    if ranks == 1:
        return kept[0]
    if chunks == 1:
        return kept[0] * min(ranks - rank, batches)
    passes = min(batches, 4 * ranks) * chunks  # it repeats itself long before
    warm = min(passes, 2 * (ranks - rank - 1) + (chunks - 1) * ranks)
    chunk_of = [step // ranks % chunks for step in range(passes)]
    live = most = sum(kept[chunk] for chunk in chunk_of[:warm])
    for step, chunk in enumerate(chunk_of[warm:]):
        live += kept[chunk]
        most = max(most, live)
        live -= kept[chunks - 1 - chunk_of[step]]
    return most


# --- a pass -----------------------------------------------------------------------------------------------------------


class _Pass:
    """Bytes of one micro-batch: N tokens, n of them on this rank where sequence parallelism shares them out."""

    def __init__(self, config: Config, rows: int, learned: set[str]) -> None:
        backbone, parallel = config.backbone, config.parallel
        self.config, self.learned = config, learned
        self.each = 2 if config.train.precision is Precision.bf16 else 4
        self.row = config.train.sequence_length * config.train.micro_batch // parallel.context
        self.shared = parallel.sequence and parallel.tensor > 1
        self.part = self.row // parallel.tensor if self.shared else self.row
        self.hidden = backbone.hidden
        self.head_dim = backbone.head_dim or backbone.hidden // backbone.heads
        self.heads, self.kv_heads = backbone.heads // parallel.tensor, backbone.kv_heads // parallel.tensor
        self.ffn = backbone.ffn // parallel.tensor
        self.vocabulary = rows // parallel.tensor
        self.modules = set(parallel.recompute_modules) if parallel.recompute is Recompute.selective else set()

    @property
    def whole(self) -> int:
        """Hidden states of all N tokens."""
        return self.row * self.hidden * self.each

    @property
    def states(self) -> int:
        """Those of this rank's n."""
        return self.part * self.hidden * self.each

    def chunk(self, stage: PipelineStage, held: dict[str, int]) -> int:
        """What a forward pass through a model chunk keeps until its backward pass."""
        numbers = sorted({int(name.split(".")[2]) for name in held if name.startswith("decoder.layers.")})
        layers = [self.layer(number, held) for number in numbers]
        parallel, every = self.config.parallel, len(layers)
        if parallel.recompute is Recompute.full and parallel.recompute_method is RecomputeMethod.uniform:
            kept = -(-every // parallel.recompute_layers) * self.states
        elif parallel.recompute is Recompute.full:
            again = min(parallel.recompute_layers, every)
            kept = again * self.states + sum(layers[again:])
        else:
            kept = sum(layers)
        rotated = round(self.head_dim * self.config.backbone.rope_share)
        if self.config.backbone.positions is Positions.rope and every:
            kept += self.row * rotated * self.each  # cosines and sines
        if stage.embedding:
            kept += self.row * 9  # ids, and whose they are
        return kept + (self.states + 4 * self.part if stage.head else self.states)  # what it hands on, or its norm's

    def layer(self, number: int, held: dict[str, int]) -> int:
        """What one layer keeps."""
        prefix = f"decoder.layers.{number}."

        def used(linear: str) -> bool:
            """Whether a linear layer's input is asked for again."""
            own = (f"{prefix}{linear}.weight", f"{prefix}{linear}.lora_a")
            return any(name in self.learned for name in own)

        kept = 2 * self.states + 8 * self.part  # the inputs of both norms, and their scales
        if "layernorm" not in self.modules:
            kept += self.states * used("self_attention.linear_qkv")
        kept += self._attention()
        if f"{prefix}mlp.router.weight" in held:
            return kept + self._experts(number)
        if "mlp" in self.modules:
            kept += self.states
        else:
            if "layernorm" not in self.modules:
                kept += self.states * used("mlp.linear_fc1")
            kept += self.row * self.ffn * self.each * (2 + used("mlp.linear_fc2"))
        return kept + self._narrow(prefix, held)

    def _attention(self) -> int:
        backbone, context = self.config.backbone, self.config.parallel.context
        queries, keys = (self.row * count * self.head_dim * self.each for count in (self.heads, self.kv_heads))
        again = "core_attn" in self.modules
        copied = self.kv_heads > 1  # queries of several groups are gathered out of the fused product
        turned = backbone.positions is Positions.rope and not again
        kept = queries  # the output
        whole_kept = context == 1 or again or backbone.qk_norm  # keys or values are views of the fused product
        if not (copied or turned or backbone.qk_norm):
            whole_kept = True
        kept += (queries + 2 * keys) * whole_kept
        if backbone.qk_norm:
            kept += queries * copied + self.row * (self.heads + self.kv_heads) * 4
            kept += (queries + keys) if context == 1 or again else queries
        elif turned:
            kept += queries + keys * (context == 1)
        elif copied:
            kept += queries
        if context > 1 and not again:
            kept += 2 * keys * context
        return kept + (0 if again else self.row * self.heads * 4)  # log-sums of the scores

    def _narrow(self, prefix: str, held: dict[str, int]) -> int:
        """What LoRA's second factors multiply."""
        lora = self.config.stage.lora
        if lora is None:
            return 0
        names = [name.removeprefix(prefix) for name in held if name.startswith(prefix) and name.endswith("lora_b")]
        column = sum("linear_qkv" in name or "linear_fc1" in name for name in names)
        return lora.rank * self.each * (column * self.row + (len(names) - column) * self.part)

    def _experts(self, number: int) -> int:
        """For tokens that spread evenly: copies before and after the exchange, both inner widths, results, weights."""
        experts = self.config.backbone.experts
        assert experts is not None
        routed = self.part * experts.top_k
        inner = 0 if "mlp" in self.modules else routed * (3 * self.hidden + 3 * experts.ffn)
        return self.states + inner * self.each + self.part * experts.count * 12

    # --- at work ------------------------------------------------------------------------------------------------------

    def working(self, held: dict[str, int], *, recomputed: bool) -> int:
        """What the backward pass of a layer works with beside what is kept, at its most.

        That is in one of the MLP's three: the second product, SwiGLU, the first product, between which what was kept is
        let go. A product whose sum of gradients is made in place leaves a stand-in as large as the weight.
        """
        fc1 = next((name for name in held if name.endswith("mlp.linear_fc1.weight")), None)
        inner = self.row * self.ffn * self.each
        if fc1 is None:
            inner, fc1, fc2 = self.part * self.hidden * self.each, "", ""
        fc2 = fc1.replace("fc1", "fc2")
        stand_in = {name: self.each * held[name] * (name in self.learned) if name else 0 for name in (fc1, fc2)}
        gathered = self.whole * self.shared
        common = gathered + self.states  # room for gathered inputs, and the gradient that comes in
        moments = (
            gathered + stand_in[fc2] + inner,
            2 * inner,
            stand_in[fc1] + self.whole - inner,
        )
        again = 0
        if recomputed and self.config.parallel.recompute is Recompute.full:
            numbers = sorted({int(name.split(".")[2]) for name in held if name.startswith("decoder.layers.")})
            again = self.config.parallel.recompute_layers * self.layer(numbers[-1], held)
            if self.config.parallel.recompute_method is RecomputeMethod.block:
                again = again if len(numbers) <= self.config.parallel.recompute_layers else 0
        elif "mlp" in self.modules:
            again = 3 * inner
        return common + max(moments) + again

    def head(self, trained: dict[str, int], *, tied: bool) -> int:
        """What the head holds while it makes losses and gradients chunk by chunk, or when it hands them on."""
        learned = "embedding.word_embeddings.weight" if self.config.backbone.tied_embeddings else "output_layer.weight"
        weight = self.vocabulary * self.hidden if learned in trained else 0
        chunk = min(self.config.loss.chunk or self.row, self.row)
        logits = chunk * self.vocabulary * (4 + (2 if self.each == 2 else 0))
        gathered = self.whole + self.states * self.shared
        making = gathered + self.whole + 4 * weight + logits + chunk * self.hidden * self.each
        handing = self.whole + 4 * weight + (0 if tied else self.each * weight) + self.states * self.shared
        return max(making, handing)
