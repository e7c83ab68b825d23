"""Modules with stacks of alike layers, kept in checkpoints as the trunk's are: stacked under one name."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint, sharded_state_dict_default


class Layered(torch.nn.Module):
    """A module that has the layers of each of `stacks` alike, the same on all ranks that hold it."""

    stacks: tuple[str, ...] = ("layers",)
    """Names of these lists of layers."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Megatron-Core's: `<prefix><stack>.<name>` with the layer as first axis, or under its number where optimiser
        state is of some layers alone."""
        by_number = bool((metadata or {}).get("non_homogeneous_layers"))
        group = parallel_state.get_tensor_model_parallel_group()
        state: dict[str, Any] = {}
        for name, module in self.named_children():
            if name not in self.stacks:
                state |= sharded_state_dict_default(module, f"{prefix}{name}.", sharded_offsets, metadata, group)
                continue
            layers = list(module.children())
            for number, layer in enumerate(layers):
                named = f"{prefix}{name}.{number}." if by_number else f"{prefix}{name}."
                held = make_sharded_tensors_for_checkpoint(
                    layer.state_dict(keep_vars=True),
                    named,
                    {},
                    (*sharded_offsets, *(() if by_number else ((0, number, len(layers)),))),
                    tp_group=group,
                    dp_cp_group=(metadata or {}).get("dp_cp_group"),
                )
                state |= {f"{prefix}{name}.{number}.{key.removeprefix(named)}": of for key, of in held.items()}
        return state
