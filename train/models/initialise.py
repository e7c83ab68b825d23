"""Random weights that do not depend on how ranks share the model.

Every tensor is drawn whole from a generator seeded by its checkpoint name (and layer), then each rank keeps its slice:
one seed gives one model on every topology.
"""

from __future__ import annotations

import hashlib
import math

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from train.models.speech_lm import SpeechLM

_RESIDUAL_OUTPUTS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


@torch.no_grad()
def initialise(model: SpeechLM, seed: int, std: float) -> None:
    """Fill `model` in place: matrices N(0, std), residual outputs N(0, std / sqrt(2 layers)), norms 1, biases 0."""
    sharded = model.sharded_state_dict()
    apply_factories(sharded)
    for tensor in nested_values(sharded):
        if isinstance(tensor, ShardedTensor) and tensor.data is not None:
            _fill(tensor, seed, std, model.config.num_layers)


def _fill(tensor: ShardedTensor, seed: int, std: float, layers: int) -> None:
    stacked = tensor.prepend_axis_num  # leading axes that number the layer, not part of the data
    shape, offset = tensor.global_shape[stacked:], tensor.global_offset[stacked:]
    if len(shape) < 2:
        tensor.data.fill_(0.0 if tensor.key.endswith("bias") else 1.0)
        return
    if tensor.key.endswith(_RESIDUAL_OUTPUTS):
        std = std / math.sqrt(2 * layers)
    name = f"{seed}/{tensor.key}/{tensor.global_offset[:stacked]}"
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1)
    whole = torch.empty(shape).normal_(0.0, std, generator=generator)
    mine = tuple(slice(start, start + size) for start, size in zip(offset, tensor.data.shape, strict=True))
    tensor.data.copy_(whole[mine])
