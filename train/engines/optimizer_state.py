"""Optimiser state in the one form that checkpoints hold, whichever optimiser of whichever engine wrote it.

    {"step": steps taken, "tensors": sharded tensors named optimizer.state.<exp_avg, exp_avg_sq>.<parameter>, and, where
     parameters are bf16, optimizer.state.fp32_param.<parameter>}

Megatron-Core's optimisers each have a form of their own, with another name for the fp32 parameters and with parameter
groups, whose every value comes from the config; a run that goes on with another of them, or under DeepSpeed, could not
read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer

from runtime.exits import BadInput

MASTER = "fp32_param"
_MASTERS = ("optimizer.state.param.", f"optimizer.state.{MASTER}.")  # as the distributed optimiser and the others say

Path = tuple[str | int, ...]


def packed(own: dict[str, Any], *, masters: bool, loading: bool) -> dict[str, Any]:
    """A Megatron optimiser's sharded state in that form; `masters`: fp32 parameters are no mere copies.

    `loading`: what is read has to be given back to that optimiser (`unpacked`).
    """
    tensors = {}
    for path, part in _tensors(own):
        key = part.key.replace(_MASTERS[0], _MASTERS[1], 1)
        if masters or not key.startswith(_MASTERS[1]):
            tensors["/".join(map(str, path))] = replace(part, key=key)
    state = {"step": max((_step(part) for part in _parts(own)), default=0), "tensors": tensors}
    return {**state, "form": LocalNonpersistentObject(own)} if loading else state


def unpacked(state: dict[str, Any], optimizer: MegatronOptimizer) -> dict[str, Any]:
    """What `optimizer.load_state_dict` takes, of what was read into a `packed(loading=True)` state of its own."""
    read, step = state.get("tensors", {}), step_of(state)  # a rank that trains nothing has none
    chained = getattr(optimizer, "chained_optimizers", [optimizer])

    def filled(value: Any, path: Path) -> Any:
        if isinstance(value, ShardedTensor | ShardedTensorFactory):
            name = "/".join(map(str, path))
            return read[name] if name in read else _parameter(chained, path)
        return value.unwrap() if isinstance(value, LocalNonpersistentObject) else value

    own: dict[str, Any] = _mapped(state["form"], filled)
    for part in _parts(own):
        inner = part.get("optimizer", part)
        if "state" in inner:
            inner["state"]["common_step"] = torch.tensor(float(step))
        for group in inner["param_groups"]:
            if "step" in group:
                group["step"] = step
    return own


def step_of(state: dict[str, Any]) -> int:
    """Steps that the optimiser whose state was read had taken. Raises BadInput where it does not say."""
    if "step" not in state:
        raise BadInput("the checkpoint's optimiser state is in the form of an older version; start from its weights")
    return int(state["step"])


def _parameter(chained: list[Any], path: Path) -> torch.Tensor:
    """The parameter whose fp32 copy the distributed optimiser asks for at `path`, in fp32 itself and read before."""
    *which, _, index, _ = path
    optimizer = chained[int(which[0]) if which else 0]
    return [parameter for buffer in optimizer.buffers for parameter in buffer.param_index_map][int(index)].data


def _parts(own: dict[str, Any]) -> list[dict[str, Any]]:
    """States of the optimisers that a chained one consists of."""
    return [own] if "param_groups" in own.get("optimizer", own) else list(own.values())


def _step(part: dict[str, Any]) -> int:
    inner = part.get("optimizer", part)
    common = inner.get("state", {}).get("common_step")
    return int(
        common if common is not None else max((group.get("step", 0) for group in inner["param_groups"]), default=0)
    )


def _tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, ShardedTensor | ShardedTensorFactory]]:
    if isinstance(value, ShardedTensor | ShardedTensorFactory):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(inner, (*path, key))


def _mapped(value: Any, change: Callable[[Any, Path], Any], path: Path = ()) -> Any:
    """`value` with `change` done to all in it that is neither a mapping nor a list."""
    if isinstance(value, dict):
        return {key: _mapped(inner, change, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change, (*path, index)) for index, inner in enumerate(value)]
    return change(value, path)
