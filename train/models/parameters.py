"""The parameters of a model by the names that native checkpoints give them, wherever in the pipeline they are held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.module import MegatronModule

from train.models.replicated import Replicated

# After which the numbers of stacked layers, then of experts, stand in a name; encoders: layers by FunASR's names.
_NUMBERED = ("layers.", "encoders.", "experts.")


@dataclass(frozen=True)
class Named:
    """A parameter of this rank. elements: of the whole parameter, over all tensor-parallel ranks."""

    name: str
    parameter: torch.nn.Parameter
    elements: int


def named_parameters(model: MegatronModule | Replicated) -> Iterator[Named]:
    """Parameters of a model or a chunk of one, under the names that `configs.parameter_names` describes.

    They follow from Megatron's sharded state dict, so they do not depend on which implementation of a layer is at
    work. The copy of a tied embedding on the last pipeline stage has the embedding's name.
    """
    for value in nested_values(model.sharded_state_dict()):
        if not isinstance(value, ShardedTensor | ShardedTensorFactory) or not isinstance(
            value.data, torch.nn.Parameter
        ):
            continue
        piece = next(nested_values(value.build())) if isinstance(value, ShardedTensorFactory) else value
        yield Named(numbered(piece), value.data, prod(piece.global_shape[piece.prepend_axis_num :]))


def numbered(piece: ShardedTensor) -> str:
    """A piece's key with the numbers of the layer and expert that it is of, where these are stacked under one."""
    name = piece.key
    places = [place for place in _NUMBERED if _stacks(name, place)]
    for place, number in zip(places, piece.global_offset[: piece.prepend_axis_num], strict=True):
        before, found, after = name.rpartition(place)
        name = f"{before}{found}{number}.{after}"
    return name


def _stacks(name: str, place: str) -> bool:
    """Whether `place` is in a name without a number after it, as where layers that differ are kept one by one."""
    _, found, after = name.rpartition(place)
    return bool(found) and not after[:1].isdigit()
