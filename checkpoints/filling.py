"""A model's parameters read straight from a checkpoint of any format: each rank takes the part that it holds.

Nothing is converted beforehand and no process group is needed: of a mapped file, the pages that a rank's parts lie on
are read, and one piece of a parameter is in memory at a time beside the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from checkpoints.conversion.moves import Layouts
from checkpoints.conversion.reading import open_slabs
from checkpoints.rules import Rule
from checkpoints.slices import is_stacked, without_number
from configs.schema import BackboneConfig
from runtime.exits import BadInput


def fill(sharded_state: dict[str, Any], source: Path, backbone: BackboneConfig) -> set[int]:
    """Copy into the live tensors of `sharded_state`, a Megatron model's with native names, what `source` (a Hugging
    Face folder, a native checkpoint, whatever `open_slabs` opens) has of them, in their own dtypes.

    Returns the addresses of the tensors that were filled. Raises BadInput where the source is not of this backbone, or
    has a tensor of another shape.
    """
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    reader = _Reader(source, backbone)
    filled = set()
    with torch.no_grad():
        for value in nested_values(sharded_state):
            if isinstance(value, ShardedTensorFactory):  # pieces that make one tensor, as the halves of a gated MLP
                value.data.copy_(value.merge_fn(dict_list_map_outplace(reader.read, value.build())))
            elif isinstance(value, ShardedTensor):
                value.data.copy_(reader.read(value))
            else:
                continue  # what layers say of themselves, which is nothing here
            filled.add(value.data.data_ptr())
            reader.release()
    return filled


class _Reader:
    def __init__(self, source: Path, backbone: BackboneConfig) -> None:
        self._source = source
        self._backbone = backbone
        self._slabs = open_slabs(source, backbone, partly=True)
        self._rules = {rule.native: rule for rule in self._slabs.rules}
        self._layouts = Layouts(backbone)

    def read(self, piece: Any) -> torch.Tensor:
        """The values of a `ShardedTensor`, of its local shape."""
        rule, layer, offsets = self._place(piece)
        shape, _ = self._slabs.shape_and_dtype(rule, layer)
        wanted = tuple(piece.global_shape[len(piece.global_shape) - len(shape) :])
        if shape != wanted:
            raise BadInput(f"{self._source}: {piece.key} is {list(shape)}, this model's is {list(wanted)}")
        held = [part.held for part in self._slabs.read(rule, layer)]
        whole = self._layouts.fuse(rule.layout, held) if self._slabs.split else held[0]
        sizes = (1,) * (len(shape) - len(piece.local_shape)) + tuple(piece.local_shape)
        return whole.box(offsets, sizes).tensor().view(piece.local_shape)

    def release(self) -> None:
        """Let go of what was mapped for what was read."""
        self._slabs.release()

    def _place(self, piece: Any) -> tuple[Rule, int | None, tuple[int, ...]]:
        """The rule of a piece, its layer where it is of one, and where it begins in the layer's tensor."""
        name, offsets = piece.key, tuple(piece.global_offset)
        rule = self._rules.get(name if is_stacked(name) else without_number(name))
        if rule is None:
            raise BadInput(f"{self._source}: this architecture has no {name}")
        if not rule.layered:
            return rule, None, offsets
        if is_stacked(name):
            return rule, offsets[0], offsets[1:]
        _, _, after = name.partition(".layers.")
        return rule, int(after.partition(".")[0]), offsets
