"""DeepSpeed as a library: imported quietly, on the right accelerator, with Megatron-Core's process groups."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from train.engines.cuda_on_cpu import nothing_compiled


def load() -> ModuleType:
    """The `deepspeed` module. Its log goes to stderr, warnings and worse: stdout is the run's progress.

    Nothing of it is compiled: the optimiser is torch's, and DeepSpeed builds its own operators only where one of them
    is asked for. The one that it builds unasked on a CPU is for inference; a rank that was killed while it did so would
    leave a lock behind, at which every later run on the machine waits for ever.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it may ask a CUDA build of torch for its devices
    with silence(), nothing_compiled():
        import deepspeed
        import deepspeed.runtime.zero.muon.original_muon  # compiled as it loads; every engine loads it as it is built
        from deepspeed.utils import logging

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    for handler in logging.logger.handlers:
        handler.setStream(sys.stderr)
    return deepspeed


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep from stdout what DeepSpeed prints past its own logger while it builds something."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class ModelParallelUnit:
    """Megatron-Core's groups under the names by which DeepSpeed asks for them: there, "model parallel" is tensor
    parallel, and the names without "tensor" have gone from Megatron-Core."""

    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)

    @staticmethod
    def get_data_parallel_group_ranks() -> Any:
        return dist.get_process_group_ranks(parallel_state.get_data_parallel_group())
