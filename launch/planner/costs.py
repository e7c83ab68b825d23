"""What a step costs under a config, on a kind of GPU: seconds of every pipeline chunk, of transfers, and of its end.

`chunk_costs` is what schedules are played with; `launch.planner.rank` adds it up in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.pipeline import stage_count, stages_of
from configs.schema import Config
from launch.planner.attached import Attached
from launch.planner.hardware import MEGAPHONE, Gpu, Software
from launch.planner.schedule import PipelineCosts
from launch.planner.times import (
    BF16,
    FP32,
    LATENCY,
    Seconds,
    Setting,
    head_seconds,
    layer_seconds,
    transfer_seconds,
)
from launch.planner.work import Held, ModelWork, model_work

# Bytes that Adam moves for each parameter of a rank's share: gradient, main weight and two moments read, the last three
# written, all fp32, and the weight written in bf16 (Kingma & Ba 2014, 1412.6980, algorithm 1).
ADAM_BYTES = 7 * FP32 + BF16
NOTHING = Attached()
HOST = 0.010  # seconds of a step that its GPUs wait for the host: loading, norms, logging; ours, rounded


@dataclass(frozen=True)
class ChunkCosts:
    """Seconds of one step of one data-parallel copy on `ranks` GPUs in all.

    forward, backward: of one micro-batch through each pipeline stage, virtual ones counted each, in the order of the
    layers (stage i is on pipeline rank i % pipeline); recomputation is in `backward`. transfer: of one micro-batch from
    a stage to the next, or of its gradient back. gradients, parameters: what is left of reducing gradients and
    gathering parameters over data-parallel ranks once it is hidden where the config asks for it. optimizer: the update.
    """

    forward: list[float]
    backward: list[float]
    transfer: float
    gradients: float
    parameters: float
    optimizer: float
    pipeline: int
    microbatches: int
    parts: Seconds  # of the busiest pipeline rank and one micro-batch

    @property
    def tail(self) -> float:
        return self.gradients + self.parameters + self.optimizer

    @property
    def chunks(self) -> int:
        return len(self.forward) // self.pipeline

    def schedule(self) -> PipelineCosts:
        """The same by pipeline rank and chunk, for `launch.planner.schedule.simulate`."""
        ranks = range(self.pipeline)
        return PipelineCosts(
            forward=[self.forward[rank :: self.pipeline] for rank in ranks],
            backward=[self.backward[rank :: self.pipeline] for rank in ranks],
            microbatches=self.microbatches,
            p2p=self.transfer if self.pipeline > 1 else 0.0,
            tail=self.tail,
        )


def chunk_costs(
    config: Config,
    vocabulary_rows: int,
    ranks: int,
    gpu: Gpu,
    software: Software = MEGAPHONE,
    attached: Attached = NOTHING,
) -> ChunkCosts:
    """`config` has to fit `ranks` GPUs (`configs.checks.check`); vocabulary_rows: of the embedding and the head,
    padding included."""
    parallel = config.parallel
    work = model_work(config, vocabulary_rows)
    stages = stages_of(config.backbone, parallel, vocabulary_rows)
    setting = Setting.of(config, gpu, software)
    data = ranks // (parallel.tensor * parallel.pipeline * parallel.context)
    known = [layer_seconds(layer, setting) for layer in work.kinds]
    forward, backward = [], []
    for number, stage in enumerate(stages):
        there, back = Seconds(), Seconds()
        for kind, count in work.of_stage(stages, number):
            there += known[kind][0] * count
            back += known[kind][1] * count
        if stage.head:
            of_head = head_seconds(work.head, setting)
            there, back = there + of_head[0], back + of_head[1]
        forward.append(there)
        backward.append(back)
    of_encoder = attached.first_seconds(setting, config.train.micro_batch)
    of_heads = attached.last_seconds(setting, config.train.micro_batch, config.train.sequence_length)
    forward[0], backward[0] = forward[0] + of_encoder[0], backward[0] + of_encoder[1]
    forward[-1], backward[-1] = forward[-1] + of_heads[0], backward[-1] + of_heads[1]
    busy = [
        sum((forward[stage] + backward[stage] for stage in range(rank, len(stages), parallel.pipeline)), Seconds())
        for rank in range(parallel.pipeline)
    ]
    of_ranks = held_by_rank(config, work, vocabulary_rows)
    for place in (0, -1):
        there_is, trained = attached.held(first=place == 0)
        of_ranks[place] += Held(dense=there_is * parallel.tensor, trained_dense=trained * parallel.tensor)  # not cut up
    ends = [
        _end(
            config,
            held,
            setting,
            data,
            sum(one.total for one in forward[rank :: parallel.pipeline]),
            sum(one.total for one in backward[rank :: parallel.pipeline]),
        )
        for rank, held in enumerate(of_ranks)
    ]
    gradients, parameters, optimizer = max(ends, key=sum)
    return ChunkCosts(
        forward=[one.total for one in forward],
        backward=[one.total for one in backward],
        transfer=transfer_seconds(setting, ranks // parallel.pipeline),
        gradients=gradients,
        parameters=parameters,
        optimizer=optimizer,
        pipeline=parallel.pipeline,
        microbatches=config.train.global_batch // data // config.train.micro_batch,
        parts=max(busy, key=lambda seconds: seconds.total),
    )


def held_by_rank(config: Config, work: ModelWork, vocabulary_rows: int) -> list[Held]:
    """Parameters of each pipeline rank, before tensor and expert parallelism cut them up; a tied head, that a last
    stage of its own holds too, included."""
    parallel = config.parallel
    stages = stages_of(config.backbone, parallel, vocabulary_rows)
    held = [Held() for _ in range(parallel.pipeline)]
    for number in range(stage_count(parallel)):
        held[number % parallel.pipeline] += work.held_by(stages, number)
    if config.backbone.tied_embeddings and parallel.pipeline > 1:
        held[-1] += work.embedding
    return held


def _end(
    config: Config, held: Held, setting: Setting, data: int, forward: float, backward: float
) -> tuple[float, float, float]:
    """Seconds of gradients, parameters and the update that follow a step of one pipeline rank, whose micro-batch takes
    `forward` and `backward`.

    Gradients are fp32 and scattered over data- and context-parallel ranks, parameters gathered in bf16 (ZeRO,
    Rajbhandari et al. 2019, 1910.02054, section 7), or gradients all-reduced where the optimiser is not sharded. Where
    they are overlapped, the last micro-batch's backward pass hides the one and the first one's forward pass the other,
    all but the last bucket. Engines that cut gradients (ZeRO-2) or parameters too (ZeRO-3) do so in every micro-batch.
    """
    parallel, engine = config.parallel, config.engine
    copies = data * parallel.context
    zero = engine.zero_stage if engine.name == "deepspeed" else int(parallel.distributed_optimizer)
    deepspeed = engine.name == "deepspeed"
    bucket = parallel.bucket_size or max(40e6, 1e6 * data)
    elements = [
        (held.trained_dense / setting.tensor, held.dense / setting.tensor, copies, parallel.tensor),
        (
            held.trained_experts / setting.expert,
            held.experts / setting.expert,
            copies * setting.tensor // setting.expert,
            setting.expert,
        ),
    ]
    microbatches = config.train.global_batch // data // config.train.micro_batch
    scatter = gather = fetched = 0.0
    update, buckets = HOST, 1.0
    for trained, every, members, inner in elements:
        shared = max(1, members)
        update += setting.moved(ADAM_BYTES * trained / (shared if zero else 1) + 2 * FP32 * trained)  # cleared, norm
        if shared == 1 or not every:
            continue
        ring = (shared - 1) / shared / setting.link(shared, inner)
        scatter += FP32 * trained * ring * (1 if zero else 2)
        gather += BF16 * trained * ring if zero else 0.0
        fetched += 2 * BF16 * every * ring
        buckets = max(buckets, trained / bucket)
    passes = microbatches if deepspeed and zero >= 2 else 1
    steps = LATENCY * buckets
    gradients = passes * _left(scatter, backward, buckets, deepspeed or parallel.overlap_gradients) + steps
    if deepspeed and zero == 3:
        parameters = microbatches * _left(fetched, forward + backward, buckets, hides=True)
    else:
        parameters = _left(gather, forward, buckets, parallel.overlap_parameters)
    return gradients, parameters, update


def _left(seconds: float, window: float, buckets: float, hides: bool) -> float:
    """What is left of a communication that goes on beside `window` seconds of computation."""
    return max(seconds - window, seconds / buckets) if hides else seconds
