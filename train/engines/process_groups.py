"""Joining the process group that torchrun, srun or the local launcher described in the environment."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from configs.schema import ParallelConfig
from runtime.host_memory import keep_freed_memory


def join(parallel: ParallelConfig, timeout_minutes: float = 30) -> torch.device:
    """Join RANK of WORLD_SIZE at MASTER_ADDR:MASTER_PORT, then lay out the model-parallel groups. Returns the device
    of this rank."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=1,  # every expert is whole on its rank
    )
    return device


def leave() -> None:
    """Tear the groups down again."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
