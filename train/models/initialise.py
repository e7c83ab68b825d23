"""Random weights that do not depend on how ranks share the model.

Every tensor is drawn whole from a generator seeded by its checkpoint name (and layer), then each rank keeps its slice:
one seed gives one model on every topology.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from configs.parameter_names import LORA_A, LORA_B
from train.models.inputs.adapter import LAST
from train.models.inputs.published import PublishedEncoder
from train.models.speech_lm import SpeechLM

BeginRows: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ADAPTER, ENCODER = "adapter.", "encoder."
_RESIDUAL_OUTPUTS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight", ".experts.linear_fc2.weight")


@torch.no_grad()
def initialise(model: SpeechLM, seed: int, std: float) -> None:
    """Fill `model` in place: matrices N(0, std), residual outputs N(0, std / sqrt(2 layers)), norms 1, biases 0, and
    LoRA's factors as `train.models.lora` says. Of an adapter, matrices N(0, 1 / sqrt(inputs)), the last one std times
    that: it begins with vectors as large as token embeddings. An encoder has its published weights."""
    for _, fill in fillers(model, seed, std):
        fill()


def fillers(model: SpeechLM, seed: int, std: float) -> Iterator[tuple[torch.nn.Parameter, Callable[[], None]]]:
    """Every parameter of `model`, and what fills it as `initialise` does: what it holds by the time that is called."""
    audio = model.config.audio_input
    published = PublishedEncoder(audio.encoder) if audio is not None and audio.encoder.weights is not None else None
    for value in nested_values(model.sharded_state_dict()):
        if isinstance(value, ShardedTensor | ShardedTensorFactory) and value.data is not None:
            fill = partial(_fill_parts, value, seed, std, model.config.num_layers)
            if published is not None and value.key.startswith(ENCODER):
                fill = partial(published.fill, value)
            yield cast(torch.nn.Parameter, value.data), fill


@torch.no_grad()
def _fill_parts(value: ShardedTensor | ShardedTensorFactory, seed: int, std: float, layers: int) -> None:
    """Fill a parameter, or what a factory makes of one, gate and up of a fused layer."""
    parts = nested_values({"parts": value.build()}) if isinstance(value, ShardedTensorFactory) else [value]
    for part in parts:
        _fill(part, seed, std, layers)


@torch.no_grad()
def place_rows(model: SpeechLM, first: int, begin_rows: BeginRows, text_rows: int) -> None:
    """Set vocabulary rows `first`.. to what `begin_rows` makes of mean [hidden] and covariance [hidden, hidden] of the
    first `text_rows`, all in float64. Embedding and head, wherever this rank has a part of them; all ranks call this.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    for weight in _vocabulary_weights(model):
        start = parallel_state.get_tensor_model_parallel_rank() * len(weight)
        text = weight[: max(0, min(len(weight), text_rows - start))].double()
        mean = text.sum(0) / text_rows
        dist.all_reduce(mean, group=group)
        covariance = (text - mean).T @ (text - mean) / text_rows
        dist.all_reduce(covariance, group=group)
        rows = begin_rows(mean, covariance)
        begin, end = max(start, first), min(start + len(weight), first + len(rows))
        if begin < end:
            weight[begin - start : end - start] = rows[begin - first : end - first].to(weight.dtype)


def _vocabulary_weights(model: SpeechLM) -> list[torch.Tensor]:
    """Tensors of this rank with one row a token id; a tied head on a stage of its own is a copy."""
    weights = [model.embedding.word_embeddings.weight] if model.pre_process else []
    if model.post_process and model.output_layer.weight is not None:
        weights.append(model.output_layer.weight)
    return weights


def _fill(tensor: ShardedTensor, seed: int, std: float, layers: int) -> None:
    stacked = tensor.prepend_axis_num  # leading axes that number the layer, not part of the data
    shape, offset = tensor.global_shape[stacked:], tensor.global_offset[stacked:]
    if len(shape) < 2:
        tensor.data.fill_(0.0 if tensor.key.endswith("bias") else 1.0)
        return
    if tensor.key.endswith(LORA_B):
        tensor.data.fill_(0.0)
        return
    if tensor.key.endswith(_RESIDUAL_OUTPUTS):
        std = std / math.sqrt(2 * layers)
    if tensor.key.startswith(ADAPTER):
        std = (std if tensor.key in LAST else 1.0) / math.sqrt(math.prod(shape[1:]))
    name = f"{seed}/{tensor.key}/{tensor.global_offset[:stacked]}"
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1)
    whole = torch.empty(shape)
    if tensor.key.endswith(LORA_A):
        bound = 1 / math.sqrt(shape[-1])
        whole.uniform_(-bound, bound, generator=generator)
    else:
        whole.normal_(0.0, std, generator=generator)
    mine = tuple(slice(start, start + size) for start, size in zip(offset, tensor.data.shape, strict=True))
    tensor.data.copy_(whole[mine])
