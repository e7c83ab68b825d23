"""Megatron-Core's optimiser with learning-rate groups, and the mends that its resume needs without fused Adam."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, clip_grads, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.utils import local_multi_tensor_l2_norm, local_multi_tensor_scale

from configs.schema import OptimizerConfig, ParallelConfig, Precision
from train.trainable import Group


def build_optimizer(
    config: OptimizerConfig,
    parallel: ParallelConfig,
    precision: Precision,
    chunks: list[DistributedDataParallel],
    groups: Mapping[torch.nn.Parameter, Group],
) -> MegatronOptimizer:
    """AdamW over the trained parameters of this rank's model chunks; `groups` holds the group of each.

    Megatron tells groups apart by two factors: the learning rate's, and the weight decay's, which here counts in
    `optimizer.weight_decay` (in 1 where that is 0).
    """

    def of(parameter: torch.nn.Parameter) -> tuple[float, float]:
        return factors(parameter, groups[parameter], config)

    def override(pair: tuple[float, float]) -> tuple[ParamKey, Any]:
        key = ParamKey(with_name_predicate=ParamWithNamePredicate(str(pair), lambda p, _: of(p) == pair))
        return key, {"lr_mult": pair[0], "wd_mult": pair[1]}

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
        chunks,
        config_overrides=dict(override(pair) for pair in sorted({of(parameter) for parameter in groups})),
    )


def factors(parameter: torch.nn.Parameter, group: Group, config: OptimizerConfig) -> tuple[float, float]:
    """What `set_rates` multiplies the learning rate and the unit of weight decay by for a parameter of `group`."""
    return group.lr_multiplier, group.decay(parameter.dim()) / _decay_unit(config)


def set_rates(
    optimizer: MegatronOptimizer | torch.optim.Optimizer, learning_rate: float, config: OptimizerConfig
) -> None:
    """Give every parameter group its learning rate and weight decay for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_mult"]
        group["weight_decay"] = _decay_unit(config) * group["wd_mult"]


def _decay_unit(config: OptimizerConfig) -> float:
    return config.weight_decay or 1.0


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """The global norm of the gradients, which are then ready to be applied."""
    optimizer.prepare_grads()
    return optimizer.get_grad_norm()


def apply(optimizer: MegatronOptimizer, norm: float) -> None:
    """Clip the gradients, whose global norm is known, and take the step: the second half of Megatron-Core's `step`."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not getattr(part, "is_stub_optimizer", False) and (parameters := part.get_parameters()):
            clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=norm)
    optimizer.step_with_ready_grads()


def prime(optimizer: MegatronOptimizer) -> None:
    """Give torch's Adam the state that it makes only in its first step: saving and loading before then need it.

    And have it step in one pass over its tensors, where it would make several.
    """
    for inner in _torch_adams(optimizer):
        for group in inner.param_groups:
            group["fused"] = True
            for parameter in group["params"]:
                if not inner.state[parameter]:
                    inner.state[parameter] = {
                        "step": torch.tensor(0.0, device=parameter.device),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


def sharded_state(
    optimizer: MegatronOptimizer,
    model: dict[str, Any],
    *,
    loading: bool,
    metadata: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """The optimiser's state as sharded tensors that follow those of `model`; all ranks call this.

    The step number is common to all parameters, and a checkpoint takes it from the first rank. Where that rank trains
    nothing, as a frozen pipeline stage does, it has none of its own: it gets that of the others.
    """
    own = [float(state["step"]) for inner in _torch_adams(optimizer) for state in inner.state.values()]
    own += [float(group["step"]) for group in optimizer.param_groups if "step" in group]
    agreed = torch.tensor(max(own, default=0.0), device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    parts = _parts(optimizer)
    for part in parts:
        part._megaphone_step = agreed.item()
    state: dict[str, Any] = optimizer.sharded_state_dict(model, is_loading=loading, metadata=metadata)
    for part in [state] if len(parts) == 1 else state.values():
        inner = part.get("optimizer", part)
        if "state" in inner and agreed.item():  # Megatron writes no step 0
            inner["state"].setdefault("common_step", agreed.cpu())
        if not part.get("param_state", True):  # nothing here: written by the first rank, it would stand in for all
            del part["param_state"]
    return state


def unshare_steps(optimizer: MegatronOptimizer) -> None:
    """Give every parameter a step counter of its own after a load, where the parameter is.

    Megatron-Core 0.16.1's distributed optimiser hands one tensor to all parameters of torch's Adam, which then counts
    once a parameter instead of once a step: a bias correction that is silently wrong after every resume.
    """
    for inner in _torch_adams(optimizer):
        for group in inner.param_groups:
            group["fused"] = True  # a checkpoint may bring what was so when it was written
        for parameter, state in inner.state.items():
            state["step"] = state["step"].to(parameter.device, torch.float32, copy=True)


def mend_distributed_optimizer() -> None:
    """Two mends of Megatron-Core 0.16.1's distributed optimiser on torch's Adam. Idempotent.

    The loader of the fully reshardable format drops "step" from what it read, since it was restored already, and its
    setter then asks for it. And a rank without trained parameters of its own, as on a frozen pipeline stage or past
    the end of a short buffer, fails to tell its state; here it tells the step that all agreed on.
    """
    if getattr(DistributedOptimizer, "_megaphone_mended", False):
        return
    told = DistributedOptimizer.state_dict
    original = DistributedOptimizer._set_main_param_and_optimizer_states

    def set_states(self: Any, parameter: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        if "step" in state and "step" not in tensors:
            tensors = {**tensors, "step": state["step"]}
        original(self, parameter, tensors)

    def state_dict(self: Any) -> dict[str, Any]:
        if self.optimizer.state:
            state: dict[str, Any] = told(self)
        else:
            groups = self.optimizer.state_dict()["param_groups"]
            bare = [{key: value for key, value in group.items() if key != "params"} for group in groups]
            state = {"optimizer": {"param_groups": bare}}
        for group in state["optimizer"]["param_groups"]:
            group.setdefault("step", getattr(self, "_megaphone_step", 0.0))
        return state

    DistributedOptimizer._set_main_param_and_optimizer_states = set_states
    DistributedOptimizer.state_dict = state_dict
    DistributedOptimizer._megaphone_mended = True


def norms_without_waiting() -> None:
    """Have Megatron-Core 0.16.1 measure and clip gradients in few kernels where neither TransformerEngine nor Apex is.
    Idempotent.

    Its own stand-ins for theirs fetch every tensor's norm to the host, one by one, and scale every tensor into a copy.
    """
    names: Any = clip_grads
    if names.l2_norm_impl is local_multi_tensor_l2_norm:
        names.l2_norm_impl = _norm_of_all
    if names.multi_tensor_scale_impl is local_multi_tensor_scale:
        names.multi_tensor_scale_impl = _scale_all


def _norm_of_all(_: int, __: Any, tensors: list[list[torch.Tensor]], *___: Any) -> tuple[torch.Tensor, None]:
    """float32 [1], where the tensors are."""
    norms = torch._foreach_norm(tensors[0], 2, dtype=torch.float32)  # of bf16 too
    return torch.linalg.vector_norm(torch.stack(norms)).float()[None], None


def _scale_all(_: int, __: Any, tensors: list[list[torch.Tensor]], factor: float) -> None:
    """Into `tensors[1]` what is in `tensors[0]`, times `factor`."""
    for given, scaled in zip(*tensors, strict=True):
        if given is not scaled:
            scaled.copy_(given)
    torch._foreach_mul_(tensors[1], factor)


def _parts(optimizer: MegatronOptimizer) -> list[Any]:
    """The optimisers that a chained one consists of."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _torch_adams(optimizer: MegatronOptimizer) -> Iterator[torch.optim.Optimizer]:
    """The torch optimisers inside; none where a fused Adam (TransformerEngine, Apex) is at work."""
    for part in _parts(optimizer):
        inner = getattr(part, "optimizer", None)
        if isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
            yield inner
