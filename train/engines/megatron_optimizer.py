"""Megatron-Core's optimiser with learning-rate groups, and the mends that its resume needs without fused Adam."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate

from configs.schema import OptimizerConfig, ParallelConfig, Precision

GROUPS = ("embedding", "head", "trunk")


def group_of(name: str, tied: bool) -> str:
    """Learning-rate group of a parameter. A tied head is the embedding, also where a last stage holds its copy."""
    if "output_layer." in name:
        return "embedding" if tied else "head"
    return "embedding" if "embedding." in name else "trunk"


def build_optimizer(
    config: OptimizerConfig,
    parallel: ParallelConfig,
    precision: Precision,
    chunks: list[DistributedDataParallel],
    tied: bool,
) -> MegatronOptimizer:
    """AdamW over all model chunks of this rank; weight decay on matrices only."""

    def override(group: str, decayed: bool) -> tuple[ParamKey, Any]:
        def member(parameter: torch.nn.Parameter, name: str) -> bool:
            return group_of(name, tied) == group and (parameter.dim() > 1) == decayed

        key = ParamKey(with_name_predicate=ParamWithNamePredicate(f"{group}-{decayed}", member))
        return key, {"lr_mult": config.lr_multipliers.get(group, 1.0), "wd_mult": float(decayed)}

    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.beta1,
            adam_beta2=config.beta2,
            adam_eps=config.eps,
            # An infinite bound clips nothing and still has the norm computed.
            clip_grad=config.clip_grad or float("inf"),
            bf16=precision is Precision.bf16,
            params_dtype=torch.bfloat16 if precision is Precision.bf16 else torch.float32,
            use_distributed_optimizer=parallel.distributed_optimizer,
            overlap_param_gather=parallel.overlap_parameters,
        ),
        list(chunks),
        config_overrides=dict(override(group, decayed) for group in GROUPS for decayed in (True, False)),
    )


def set_rates(optimizer: MegatronOptimizer, learning_rate: float, weight_decay: float) -> None:
    """Give every parameter group its learning rate and weight decay for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_mult"]
        group["weight_decay"] = weight_decay * group["wd_mult"]


def prime(optimizer: MegatronOptimizer) -> None:
    """Give torch's Adam the state that it makes only in its first step: saving and loading before then need it."""
    for inner in _torch_adams(optimizer):
        for group in inner.param_groups:
            for parameter in group["params"]:
                if not inner.state[parameter]:
                    inner.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


def unshare_steps(optimizer: MegatronOptimizer) -> None:
    """Give every parameter a step counter of its own after a load.

    Megatron-Core 0.16.1's distributed optimiser hands one tensor to all parameters of torch's Adam, which then counts
    once a parameter instead of once a step: a bias correction that is silently wrong after every resume.
    """
    for inner in _torch_adams(optimizer):
        for state in inner.state.values():
            state["step"] = state["step"].clone()


def keep_steps_on_load() -> None:
    """Let the distributed optimiser's fully reshardable load pass over "step".

    The loader of Megatron-Core 0.16.1 drops "step" from what it read, since it was restored already, and its setter
    then asks for it.
    """
    if getattr(DistributedOptimizer, "_megaphone_keeps_steps", False):
        return
    original = DistributedOptimizer._set_main_param_and_optimizer_states

    def set_states(self: Any, parameter: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        if "step" in state and "step" not in tensors:
            tensors = {**tensors, "step": state["step"]}
        original(self, parameter, tensors)

    DistributedOptimizer._set_main_param_and_optimizer_states = set_states
    DistributedOptimizer._megaphone_keeps_steps = True


def _torch_adams(optimizer: MegatronOptimizer) -> Iterator[torch.optim.Optimizer]:
    """The torch optimisers inside; none where a fused Adam (TransformerEngine, Apex) is at work."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = getattr(part, "optimizer", None)
        if isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
            yield inner
