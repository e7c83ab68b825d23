"""One rank: what it holds, and what a training step adds to that."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from configs.checks.preference import PAIRS
from configs.schema import Config
from data_pipeline.batch import Batch, Pack, collate
from data_pipeline.context import share_of
from train.dryrun import gpu_kernels
from train.dryrun.ledger import Ledger, size_of, without_data
from train.dryrun.ranks import Exchange, joined
from train.engines import megatron
from train.engines.build import build_engine
from train.engines.megatron import MegatronEngine
from train.models.parameters import named_parameters
from train.objectives.build import objective_over
from train.objectives.next_token import TEXT
from train.objectives.objective import Referring
from train.objectives.preference import pair_of

_KEY = "dryrun/0/row/0"  # of a sample


@dataclass(frozen=True)
class RankReport:
    """Of one rank, memory in bytes. stage: of the pipeline; chunks: what it holds, as a layout says it; parameters:
    elements here; step: what a training step holds beside the rest when that is most, None: no step was run; seconds:
    of this machine."""

    rank: int
    stage: int
    chunks: list[str]
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    other: int
    step: int | None
    micro_batches: int
    seconds: float

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.other + (self.step or 0)


def build_rank(
    config: Config, rows: int, exchange: Exchange, rank: int, *, gpu: bool, step: bool
) -> tuple[RankReport, dict[str, int]]:
    """Build `rank` as training does and, if asked, run a step of it on rows full of tokens. Returns a report, and the
    whole size (elements) of every parameter that it has a part of, by name.

    gpu: with a GPU's kernels in place of the CPU's. Raises Waiting where other ranks have to be built first.
    """
    began = time.perf_counter()
    objective = objective_over(config, (TEXT, *config.codec.codebooks))
    if isinstance(objective, Referring):
        objective.references[pair_of(_KEY)] = (0.0, 0.0)
    pretended = gpu_kernels.pretended if gpu else nullcontext
    with joined(config, exchange, rank), pretended(), without_data() as ledger:
        engine: Any = build_engine(config, rows, objective, torch.device("cpu"))
        parameters, gradients, state = _held(engine)
        named = {part.name: part.elements for model in engine.models for part in named_parameters(model)}
        local = sum(parameter.numel() for model in engine.models for parameter in model.parameters())
        held = ledger.live
        micro_batches = _micro_batches(config, exchange.world.size) if step else 0
        peak = _step(config, engine, ledger, micro_batches) - held if step else None
        chunks = [_letters(model) for model in engine.models]
        del engine
    gc.collect()
    report = RankReport(
        rank=rank,
        stage=exchange.world.stage(rank),
        chunks=chunks,
        parameters=local,
        weights=parameters,
        gradients=gradients,
        optimizer=state,
        other=held - parameters - gradients - state,
        step=peak,
        micro_batches=micro_batches,
        seconds=time.perf_counter() - began,
    )
    return report, named


def _held(engine: MegatronEngine) -> tuple[int, int, int]:
    """Bytes of weights, of the sums of gradients, and of the optimiser's state with its fp32 copies of weights."""
    buffers = [buffer for chunk in engine.chunks for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)]
    parameters = [parameter for model in engine.models for parameter in model.parameters()]
    own = {tensor.untyped_storage()._cdata for tensor in parameters}
    state = [tensor for tensor in _optimizer_tensors(engine) if tensor.untyped_storage()._cdata not in own]
    return size_of(parameters), size_of(buffer.grad_data for buffer in buffers), size_of(state)


def _optimizer_tensors(engine: MegatronEngine) -> Iterator[torch.Tensor]:
    for part in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer]):
        inner: Any = getattr(part, "optimizer", None)
        for group in inner.param_groups if inner is not None else ():
            for parameter in group["params"]:
                yield parameter
                yield from (value for value in inner.state[parameter].values() if torch.is_tensor(value))


def _letters(model: Any) -> str:
    return "E" * model.pre_process + "t" * len(model.decoder.layers) + "L" * model.post_process


# --- a step -----------------------------------------------------------------------------------------------------------


def _micro_batches(config: Config, gpus: int) -> int:
    """As many as a rank of the pipeline ever has under way, and a round more; no more than a step has."""
    parallel = config.parallel
    copies = gpus // (parallel.tensor * parallel.pipeline * parallel.context)
    whole = config.train.global_batch // copies // config.train.micro_batch
    return min(whole, 2 if parallel.pipeline == 1 else 2 * parallel.pipeline)


def _step(config: Config, engine: MegatronEngine, ledger: Ledger, micro_batches: int) -> int:
    """Peak bytes of a training step."""
    with _disable_current_modes():
        batch = _full_row(config)
    ledger.mark()
    with mock.patch.object(megatron, "share_of", _with_data):
        engine.train_step([batch] * micro_batches, config.optimizer.lr, [], lambda outcome: True)
    return ledger.peak


def _with_data(batch: Batch, rank: int, ranks: int) -> Batch:
    """Batches are cut by the lengths of their samples, which have to be read."""
    with _disable_current_modes():
        return share_of(batch, rank, ranks)


def _full_row(config: Config) -> Batch:
    """A micro-batch whose packs hold one sample each, without padding, all of it to be learned; of pairs, two answers
    of half a pack."""
    size = config.train.sequence_length
    ones = np.ones(size, np.int64)
    pack = Pack(
        tokens=ones,
        labels=ones,
        loss_weight=np.ones(size, np.float32),
        label_modality=np.zeros(size, np.uint8),
        lengths=(size,),
        keys=(_KEY,),
        padding=0,
        audio_seconds=0.0,
        segments={0: (size // 2, size - size // 2)} if config.stage.objective in PAIRS else {},
    )
    return collate([pack] * config.train.micro_batch)
