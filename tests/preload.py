"""What the fork server of `tests.ranks` imports once for all ranks."""

import importlib
import os

os.environ["OMP_NUM_THREADS"] = "1"

from runtime.imports import at_once
from train.stage import MERELY_PROBED

with at_once(without=MERELY_PROBED):
    import torch

    from train.engines import absent_names
    from train.engines.cuda_on_cpu import emulate_cuda

    torch.set_num_threads(1)
    emulate_cuda()
    absent_names.fill_in()
    for name in (
        *("megatron.core.dist_checkpointing", "megatron.core.optimizer", "train.engines.megatron", "train.loop"),
        "transformers.models.whisper.modeling_whisper",
    ):
        importlib.import_module(name)
