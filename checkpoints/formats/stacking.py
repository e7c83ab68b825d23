"""Native checkpoints with each layer's tensors by themselves, and such tensors as a native checkpoint.

Native names stack layers, `decoder.layers.mlp.linear_fc1.weight` [layers, ...]; Megatron's and DeepSpeed's files hold
`decoder.layers.3.mlp.linear_fc1.weight` for each. Where not all layers have a tensor, as the optimiser's of frozen
ones, native checkpoints keep the numbers too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from checkpoints.derived import Part
from checkpoints.formats.native import COMMON_FILE, NativeReader
from checkpoints.formats.source import TensorSource, TrainedSource
from checkpoints.formats.torch_files import load_mapping
from checkpoints.layout import TENSORS
from checkpoints.manifest import MODEL_PREFIX
from checkpoints.slices import Slice
from runtime.exits import BadInput

STATE_PREFIX = "optimizer.state."
_NUMBERED = re.compile(r"(.*\.layers\.)(\d+)\.(.+)")
_STACKED = re.compile(r"(.*\.layers\.)(?!\d+\.)(.+)")


class NativeSource:
    """A native checkpoint as a source: names without `model.`, layers apart. Has the optimiser's state if it does."""

    def __init__(self, checkpoint: Path) -> None:
        self.folder = checkpoint
        self._reader = NativeReader(checkpoint / TENSORS)
        self._places: dict[str, dict[str, tuple[str, int | None]]] = {}  # by prefix, by name: tensor and layer
        for name in self._reader.tensors:
            prefix, short = _prefix_of(name)
            if prefix is not None:
                self._places.setdefault(prefix, {}).update(self._apart(name, short))
        kinds = [prefix.split(".")[2] for prefix in self._places if prefix.startswith(STATE_PREFIX)]
        self.kinds = tuple(sorted(kinds))
        self.step = _step(checkpoint / TENSORS / COMMON_FILE) if kinds else 0

    @property
    def names(self) -> set[str]:
        return set(self._places.get(MODEL_PREFIX, ()))

    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        stored, layer = self._place(MODEL_PREFIX, name)
        record = self._reader.tensors[stored]
        return record.shape if layer is None else record.shape[1:], getattr(torch, record.dtype)

    def read(self, name: str) -> torch.Tensor:
        return self._reader.read(*self._place(MODEL_PREFIX, name))

    def state_names(self, kind: str) -> set[str]:
        return set(self._places.get(_state_prefix(kind), ()))

    def state(self, kind: str, name: str) -> torch.Tensor:
        return self._reader.read(*self._place(_state_prefix(kind), name))

    def _apart(self, name: str, short: str) -> dict[str, tuple[str, int | None]]:
        match = _STACKED.fullmatch(short)
        if not match:
            return {short: (name, None)}
        layers = self._reader.tensors[name].shape[0]
        return {f"{match[1]}{layer}.{match[2]}": (name, layer) for layer in range(layers)}

    def _place(self, prefix: str, name: str) -> tuple[str, int | None]:
        if name not in self._places.get(prefix, {}):
            raise BadInput(f"{self.folder}: has no tensor {prefix}{name}")
        return self._places[prefix][name]


def parts(source: TensorSource) -> list[Part]:
    """What `checkpoints.derived.write_parts` takes: the parameters of a source with Megatron names, and the optimiser's
    state where it has that. Raises BadInput where layers are missing or differ.

    Nothing is read before a part is made.
    """
    found = list(
        _stacked(MODEL_PREFIX, sorted(source.names), source.shape_and_dtype, lambda name: partial(source.read, name))
    )
    if isinstance(source, TrainedSource):
        for kind in source.kinds:
            names = sorted(source.state_names(kind))
            found += _stacked(
                _state_prefix(kind),
                names,
                lambda name: (source.shape_and_dtype(name)[0], torch.float32),
                _reading_state(source, kind),
                by_layer=_partly(names, source.names),
            )
    return found


def common_state(source: TensorSource) -> dict[str, Any]:
    """What stands beside the tensors of such a checkpoint, in `common.pt`: how many steps its optimiser took."""
    return {"optimizer": {"step": source.step}} if isinstance(source, TrainedSource) and source.kinds else {}


def _stacked(
    prefix: str,
    names: list[str],
    described: Callable[[str], tuple[tuple[int, ...], torch.dtype]],
    making: Callable[[str], Callable[[], torch.Tensor]],
    *,
    by_layer: bool = False,
) -> Iterator[Part]:
    """Parts of one kind, layers stacked unless they go `by_layer`."""
    layers = 1 + max((int(match[2]) for name in names if (match := _NUMBERED.fullmatch(name))), default=-1)
    groups: dict[str, dict[int | None, str]] = {}
    for name in names:
        match = None if by_layer else _NUMBERED.fullmatch(name)
        groups.setdefault(f"{match[1]}{match[3]}" if match else name, {})[int(match[2]) if match else None] = name
    for stacked, members in sorted(groups.items()):
        if None not in members and sorted(members) != list(range(layers)):  # type: ignore[type-var]
            missing = min(set(range(layers)) - members.keys())
            raise BadInput(f"{stacked}: layer {missing} of {layers} has none")
        shape, dtype = described(next(iter(members.values())))
        for layer, name in sorted(members.items(), key=lambda member: member[0] or 0):
            if described(name) != (shape, dtype):
                raise BadInput(
                    f"{name}: is {described(name)}, other layers' are {(shape, dtype)}; layers have to be alike"
                )
            yield Part.of(Slice(prefix + stacked, shape, dtype, layer, None if layer is None else layers), making(name))


def _reading_state(source: TrainedSource, kind: str) -> Callable[[str], Callable[[], torch.Tensor]]:
    return lambda name: partial(source.state, kind, name)


def _partly(names: Iterable[str], all_names: Iterable[str]) -> bool:
    """Whether some layers have state of a parameter that others have none of."""
    held, whole = _layers_of(names), _layers_of(all_names)
    return any(layers != whole.get(stacked) for stacked, layers in held.items())


def _layers_of(names: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            found.setdefault(match[1] + match[3], set()).add(match[2])
    return found


def _state_prefix(kind: str) -> str:
    return f"{STATE_PREFIX}{kind}.{MODEL_PREFIX}"


def _prefix_of(name: str) -> tuple[str | None, str]:
    """The prefix of a stored name, and the parameter's name after it."""
    if name.startswith(MODEL_PREFIX):
        return MODEL_PREFIX, name.removeprefix(MODEL_PREFIX)
    match = re.match(rf"{re.escape(STATE_PREFIX)}\w+\.{re.escape(MODEL_PREFIX)}", name)
    return (match[0], name[match.end() :]) if match else (None, name)


def _step(file: Path) -> int:
    try:
        return int(load_mapping(file)["optimizer"]["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{file}: its optimiser state does not say how many steps were taken") from error
