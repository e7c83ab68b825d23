"""Megatron-Core's sharded state dicts from `torch_dist` folders, by all ranks of the default process group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints.agreement import together
from checkpoints.formats.native import COMMON_FILE
from checkpoints.metadata import check_objects, read_metadata, tensor_records
from checkpoints.torch_file import load_plain
from runtime.exits import BadInput


def read_sharded(
    folder: Path, sharded_state: dict[str, Any], optional: Callable[[str], bool] = lambda _: False
) -> dict[str, Any]:
    """Fill a sharded state dict from a `torch_dist` folder, on any topology; returns it with plain values.

    Tensors whose names are `optional` and that the folder does not hold come back as they are in `sharded_state`.
    Raises BadInput on all ranks where the folder is not safe to read or lacks or misfits what is asked for.
    """
    from megatron.core import dist_checkpointing

    wanted = without_extra_state(sharded_state)
    held = together(lambda: tensor_records(read_metadata(folder)), "cannot load")
    wanted = _kept_out(wanted, lambda value: optional(value.key) and value.key not in held)
    together(lambda: _check_fit(folder, wanted), "cannot load")
    return together(lambda: dist_checkpointing.load(wanted, str(folder)), f"cannot load {folder.parent}")


def without_extra_state(sharded_state: dict[str, Any]) -> dict[str, Any]:
    """The same state dict, with the modules' `_extra_state` kept out of the checkpoint.

    Without TransformerEngine these are empty; written down they would tie a checkpoint to one layer implementation.
    """
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    return _kept_out(
        sharded_state, lambda value: isinstance(value, ShardedObject) and value.key.endswith("_extra_state")
    )


def _kept_out(sharded_state: dict[str, Any], chosen: Callable[[Any], bool]) -> dict[str, Any]:
    """The same state dict, with the `chosen` of its sharded values neither written nor read."""
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace
    from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedBase

    def keep_out(value: Any) -> Any:
        return LocalNonpersistentObject(value.data) if isinstance(value, ShardedBase) and chosen(value) else value

    return dict_list_map_outplace(keep_out, sharded_state)


def _check_fit(folder: Path, wanted: dict[str, Any]) -> None:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory

    index = read_metadata(folder)
    check_objects(folder, index)
    load_plain(folder / COMMON_FILE, mmap=False)
    held = tensor_records(index)
    for value in nested_values(wanted):
        if isinstance(value, ShardedTensorFactory | ShardedTensor) and value.key not in held:
            raise BadInput(f"checkpoint {folder.parent} has no {value.key}")
        if isinstance(value, ShardedObject) and value.unique_key not in index.state_dict_metadata:
            raise BadInput(f"checkpoint {folder.parent} has no {value.unique_key}")
        if isinstance(value, ShardedTensor) and not value.allow_shape_mismatch:
            there, here = list(held[value.key].shape), list(value.global_shape)
            if there != here:
                raise BadInput(f"checkpoint {folder.parent}: {value.key} is {there}, this model's is {here}")
