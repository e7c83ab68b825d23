"""What the fork server of `tests.ranks` imports once for all ranks."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

from train.engines.cuda_on_cpu import emulate_cuda

emulate_cuda()

import megatron.core.dist_checkpointing  # noqa: F401
import megatron.core.optimizer  # noqa: F401

import train.engines.megatron  # noqa: F401
