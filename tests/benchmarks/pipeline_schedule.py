"""The simulated step against Megatron-Core's real schedules: `python tests/benchmarks/pipeline_schedule.py`.

Four processes over gloo run the schedules with the engine's settings. What a stage computes is a sleep of known length,
so that cores do not matter, and stages are unlike: an encoder before the first, a head after the last. Transfers are of
a few bytes, simulated as instant. Of several steps the fastest counts: what is late in one is no property of the order.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.planner.schedule import PipelineCosts, simulate

RANKS = 4
LAYER, ENCODER, HEAD = 0.02, 0.012, 0.016  # seconds forward; backward takes twice as many


def costs_of(chunks: int, microbatches: int, *, even: bool) -> PipelineCosts:
    forward = [[LAYER * 2 / chunks] * chunks for _ in range(RANKS)]
    if not even:
        forward[0][0] += ENCODER
        forward[-1][-1] += HEAD
        forward[1][0] /= 2
    return PipelineCosts(forward, [[2 * cost for cost in row] for row in forward], microbatches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="of each pipeline, the first not counted")
    options = parser.parse_args()
    cases = [
        costs_of(chunks, microbatches, even=even)
        for chunks, microbatches in ((1, 4), (1, 12), (2, 4), (2, 12), (4, 8))
        for even in (True, False)
    ]
    print("| chunks | micro-batches | stages | real s | simulated s | off | bubble |\n|---|---|---|---|---|---|---|")
    for costs, real in zip(cases, _measured(cases, options.steps), strict=True):
        played = simulate(costs)
        even = "alike" if played.imbalance < 1e-9 else "unlike"
        print(
            f"| {costs.chunks} | {costs.microbatches} | {even} | {real:.3f} | {played.seconds:.3f} "
            f"| {100 * (played.seconds / real - 1):+.1f} % | {100 * played.bubble:.1f} % |"
        )


def _measured(cases: list[PipelineCosts], steps: int) -> list[float]:
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here, there = context.Pipe()
    ranks = [context.Process(target=_rank, args=(rank, port, cases, steps, there)) for rank in range(RANKS)]
    for rank in ranks:
        rank.start()
    there.close()  # so that a rank that dies ends the wait
    found: list[float] = here.recv()
    for rank in ranks:
        rank.join()
    return found


def _rank(rank: int, port: int, cases: list[PipelineCosts], steps: int, answer: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    from train.engines import optional_kernels
    from train.engines.cuda_on_cpu import emulate_cuda

    optional_kernels.hush_megatron()
    emulate_cuda()
    import torch.distributed as dist
    from megatron.core import parallel_state

    from configs.schema import ParallelConfig
    from train.engines import process_groups

    found = []
    for costs in cases:
        chunks = costs.chunks if costs.chunks > 1 else None
        process_groups.join(ParallelConfig(pipeline=RANKS, virtual_pipeline=chunks))
        found.append(min(_step(rank, costs) for _ in range(steps)))
        parallel_state.destroy_model_parallel()
    if rank == 0:
        answer.send(found)
    dist.barrier()
    dist.destroy_process_group()


def _step(rank: int, costs: PipelineCosts) -> float:
    import torch
    import torch.distributed as dist
    from megatron.core.enums import ModelType
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer import TransformerConfig

    alone = costs.chunks == 1
    config = TransformerConfig(
        num_layers=RANKS * costs.chunks,
        hidden_size=4,
        num_attention_heads=1,
        pipeline_model_parallel_size=RANKS,
        virtual_pipeline_model_parallel_size=None if alone else costs.chunks,
        pipeline_dtype=torch.float32,
        overlap_p2p_comm=not alone,
        batch_p2p_comm=alone,
        calculate_per_token_loss=True,
    )

    class Nap(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, given: torch.Tensor, forward: float, backward: float) -> torch.Tensor:
            context.backward_seconds = backward
            time.sleep(forward)
            return given.clone()

        @staticmethod
        def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
            time.sleep(context.backward_seconds)
            return gradients[0].clone(), None, None

    class Stage(torch.nn.Module):
        def __init__(self, chunk: int) -> None:
            super().__init__()
            self.config, self.given, self.model_type = config, None, ModelType.encoder_or_decoder
            self.seconds = costs.forward[rank][chunk], costs.backward[rank][chunk]

        def set_input_tensor(self, given: Any) -> None:
            self.given = given[0] if isinstance(given, list) else given

        def forward(self) -> torch.Tensor:
            given = torch.ones(4, 1, 4, requires_grad=True) if self.given is None else self.given
            return Nap.apply(given, *self.seconds)

    def forward(_: Any, stage: Stage) -> Any:
        return stage(), lambda output: (output.sum(), torch.ones((), dtype=torch.int), {})

    dist.barrier()
    begun = time.perf_counter()
    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[None] * costs.chunks,
        model=[Stage(chunk) for chunk in range(costs.chunks)],
        num_microbatches=costs.microbatches,
        seq_length=4,
        micro_batch_size=1,
        forward_only=False,
    )
    dist.barrier()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
