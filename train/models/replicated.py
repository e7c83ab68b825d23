"""Models that every rank holds whole: no tensor or pipeline parallelism, their checkpoints name each tensor once."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor


class Replicated(torch.nn.Module):
    """Parameters are replicas over tensor-parallel and data-parallel ranks; one of them writes each."""

    def sharded_state_dict(self, prefix: str = "", *_: Any, **__: Any) -> dict[str, ShardedTensor]:
        """Every parameter by its name, as Megatron-Core's own modules tell theirs."""
        tensor = parallel_state.get_tensor_model_parallel_rank()
        data = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        return {
            prefix + name: ShardedTensor.from_rank_offsets(prefix + name, parameter, replica_id=(0, tensor, data))
            for name, parameter in self.named_parameters()
        }
