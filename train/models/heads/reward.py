"""The reward head: one number for every place, from all that was said up to it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from train.models.heads.terms import HeadLosses
from train.models.trunk_config import TrunkConfig

REWARD = "reward"  # the head's name among losses


class RewardHead(torch.nn.Module):
    """A linear map of the trunk's last hidden states to a scalar, in fp32. All tensor-parallel ranks hold it and
    compute the same, so gradients need no sum over them."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=config.params_dtype))
        if not config.use_cpu_initialization:
            self.to(torch.cuda.current_device())

    def forward(self, hidden: torch.Tensor, group: dist.ProcessGroup, sequence_parallel: bool) -> HeadLosses:
        """hidden: [N, 1, h], or this rank's [N / TP, 1, h] under sequence parallelism. Reported by place: "reward",
        differentiable."""
        if sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False, group=group)
        rewards = hidden[:, 0].float() @ self.weight[0].float()
        return {"total": rewards.new_zeros(()), "places": {"reward": rewards[None]}}
