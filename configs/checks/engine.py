"""The engine and its options: topologies that it cannot do, and keys of its own configuration that others decide."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from configs.schema import Config, Precision
from runtime.exits import BadInput

# Keys of DeepSpeed's configuration, dotted, that other options decide, or that would change what a step is.
_DECIDED = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch and train.micro_batch",
    "managed_gradient_accumulation": "train.global_batch and train.micro_batch",
    "gradient_allreduce_op": "the objective: losses are divided by their global counts",
    "gradient_clipping": "optimizer.clip_grad",
    "optimizer": "optimizer.*",
    "scheduler": "optimizer.schedule",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "communication_data_type": "train.precision",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.zenflow": "optimizer.*",
    "zero_force_ds_cpu_optimizer": "optimizer.*",
    "tensor_parallel": "parallel.tensor",
    "sequence_parallel_size": "parallel.context",
    "expert_parallel": "parallel.expert",
    "pipeline": "parallel.pipeline",
    "checkpoint": "checkpoint.*",
    "steps_per_print": "tracker.console_every",
    "elasticity": "loader.lanes, which lets a run go on with another number of ranks",
    "curriculum_learning": "mixture and loader",
    "data_efficiency": "mixture and loader",
}


def check_engine(config: Config) -> None:
    check_own_form(config)
    if config.engine.name == "deepspeed":
        if importlib.util.find_spec("deepspeed") is None:
            raise BadInput(
                "engine.name=deepspeed: DeepSpeed is not installed; ./install.sh .venv/bin/python installs it"
            )
        _check_zero(config)
        _check_topology(config)
        _check_own(config)
    elif config.engine.deepspeed:
        raise BadInput(f"engine.deepspeed is for engine.name=deepspeed; this is engine.name={config.engine.name}")


def check_own_form(config: Config) -> None:
    """DeepSpeed's own checkpoints beside native ones: only where its tools could read them."""
    if not config.checkpoint.deepspeed:
        return
    if config.engine.name != "deepspeed":
        raise BadInput(f"checkpoint.deepspeed is for engine.name=deepspeed; this is engine.name={config.engine.name}")
    if config.engine.zero_stage == 0:
        raise BadInput(
            "checkpoint.deepspeed with engine.zero_stage=0: DeepSpeed's tools read no checkpoints without ZeRO; "
            "take engine.zero_stage=1"
        )


def _check_zero(config: Config) -> None:
    stage = config.engine.zero_stage
    if stage not in range(4):
        raise BadInput(f"engine.zero_stage={stage}: has to be from 0 to 3")
    if stage == 0 and config.train.precision is Precision.bf16:
        raise BadInput(
            "engine.zero_stage=0 with train.precision=bf16: DeepSpeed would add gradients up in bf16; "
            "engine.zero_stage=1 adds them in fp32"
        )
    zero = config.engine.deepspeed.get("zero_optimization", {})
    for key, first in (("offload_optimizer", 1), ("offload_param", 3)):
        options = zero.get(key) if isinstance(zero, Mapping) else None
        if not options:
            continue
        name = f"engine.deepspeed.zero_optimization.{key}"
        if stage < first:
            raise BadInput(f"{name} needs engine.zero_stage={first} or above; it is {stage}")
        if options.get("device") not in ("cpu", "none"):
            raise BadInput(f"{name}.device={options.get('device')}: has to be cpu or none")


def _check_topology(config: Config) -> None:
    parallel, stage = config.parallel, config.engine.zero_stage
    for key, size in (
        ("virtual_pipeline", parallel.virtual_pipeline or 1),
        ("context", parallel.context),
        ("expert", parallel.expert),
    ):
        if size > 1:
            raise BadInput(f"parallel.{key}={size}: engine.name=deepspeed cannot; engine.name=megatron can")
    for key, instead in (
        ("distributed_optimizer", "engine.zero_stage"),
        ("overlap_gradients", "engine.deepspeed.zero_optimization.overlap_comm"),
        ("overlap_parameters", "engine.deepspeed.zero_optimization.overlap_comm"),
        ("bucket_size", "engine.deepspeed.zero_optimization.reduce_bucket_size"),
    ):
        if value := getattr(parallel, key):
            raise BadInput(f"parallel.{key}={str(value).lower()} is Megatron's; DeepSpeed's is {instead}")
    if parallel.tensor > 1 and stage == 3:
        raise BadInput(
            f"parallel.tensor={parallel.tensor} with engine.zero_stage=3: ZeRO-3 cuts up parameters by itself; "
            "take engine.zero_stage=2 at most, or parallel.tensor=1"
        )
    if parallel.pipeline > 1 and stage > 1:
        raise BadInput(
            f"parallel.pipeline={parallel.pipeline} with engine.zero_stage={stage}: a pipeline adds gradients up over "
            "its micro-batches, where ZeRO-2 and 3 would cut them up in each; take engine.zero_stage=1 at most"
        )


def _check_own(config: Config) -> None:
    own: Mapping[str, Any] = config.engine.deepspeed
    for dotted, instead in _DECIDED.items():
        *path, last = dotted.split(".")
        inside: Any = own
        for key in path:
            inside = inside.get(key, {})
            if not isinstance(inside, Mapping):
                raise BadInput(f"engine.deepspeed.{key} has to be a mapping; it is {inside!r}")
        if last in inside:
            raise BadInput(f"engine.deepspeed.{dotted} is not for DeepSpeed's configuration: {instead} decides it")
