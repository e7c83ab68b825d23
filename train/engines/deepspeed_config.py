"""DeepSpeed's own configuration, made from a stage's, and what of it a stage may add by `engine.deepspeed`."""

from __future__ import annotations

import copy
from typing import Any

from configs.schema import Config, Precision


def deepspeed_config(config: Config, data_parallel: int) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`: `engine.deepspeed` as it is, and beside it what Megaphone decides.

    configs.checks has refused keys in `engine.deepspeed` that are set here.
    """
    train, stage = config.train, config.engine.zero_stage
    made = copy.deepcopy(config.engine.deepspeed)
    made["train_micro_batch_size_per_gpu"] = train.micro_batch
    made["gradient_accumulation_steps"] = train.global_batch // (train.micro_batch * data_parallel)
    # Without ZeRO, DeepSpeed would neither report the norm nor count every pipeline stage in it; the engine does.
    made["gradient_clipping"] = config.optimizer.clip_grad if stage else 0.0
    made["zero_optimization"] = {**made.get("zero_optimization", {}), "stage": stage}
    made["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW steps on the CPU as well, and is not compiled first
    made["steps_per_print"] = 2**31
    if train.precision is Precision.bf16:
        made["bf16"] = {"enabled": True}
        made["data_types"] = {"grad_accum_dtype": "fp32"}
        made["communication_data_type"] = "fp32"
    return made
