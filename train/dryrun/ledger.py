"""Tensors without data, and a ledger of the memory that they would take.

Shapes, dtypes and the lifetime of storages are real; a storage counts from the operation that makes it until nothing
refers to it, as in an allocator without rounding.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_SIZE = "_megaphone_bytes"  # of a storage: a list of one number
_SCALAR = torch.ops.aten._local_scalar_dense.default


class Ledger(TorchDispatchMode):
    """Bytes of all storages made under it: `live` now, `peak` at most since `mark`.

    Whoever reads a number out of a tensor gets one, or true: nothing of a step's shapes depends on more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0

    def mark(self) -> None:
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _SCALAR:
            kind = args[0].dtype
            return True if kind is torch.bool else 1.0 if kind.is_floating_point else 1
        if func.namespace == "c10d" and "coalesced" in func.__name__:  # these alone have no form without data
            return of_one_rank(func, args)
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, tuple | list) else (result,):
            if isinstance(output, torch.Tensor):
                self.count(output)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        """Count the storage of `tensor`, if it is a new one."""
        storage: Any = tensor.untyped_storage()
        if hasattr(storage, _SIZE):
            return
        size = [0]
        setattr(storage, _SIZE, size)
        weakref.finalize(storage, self._set, size, 0)
        self._set(size, storage.nbytes())

    def _set(self, size: list[int], new: int) -> None:
        """Let a storage count `new` bytes; `size` is its own note of how many it does."""
        self.live += new - size[0]
        size[0] = new
        self.peak = max(self.peak, self.live)

    def resized(self, storage: Any) -> None:
        if hasattr(storage, _SIZE):
            self._set(getattr(storage, _SIZE), storage.nbytes())


def of_one_rank(func: Any, args: Any) -> Any:
    """What a collective `func` returns that is over at once and leaves its tensors as they are."""
    work = FakeWork().boxed()
    return work if len(func._schema.returns) == 1 else (args[0], work)


@contextmanager
def without_data() -> Iterator[Ledger]:
    """Inside, new tensors have no data; those from outside may be used beside them."""
    ledger = Ledger()
    with _mended(ledger), FakeTensorMode(allow_non_fake_inputs=True), ledger:
        yield ledger


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of `tensors`, each once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@contextmanager
def _mended(ledger: Ledger) -> Iterator[None]:
    """What asks for data that is not there, cannot take such tensors, or resizes storages past every dispatch."""
    import megatron.core.optimizer.clip_grads as clipping
    import megatron.core.tensor_parallel.random as random_state

    resize = torch.UntypedStorage.resize_

    def resized(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        result = resize(storage, size)
        ledger.resized(storage)
        return result

    nothing: dict[str, Any] = {"get_rng_state": _nothing, "set_rng_state": _nothing, "manual_seed": _nothing}
    state: dict[str, Any] = {"_get_cuda_rng_state": _nothing, "_set_cuda_rng_state": _nothing}
    with (
        mock.patch.multiple(torch.cuda, **nothing),
        mock.patch.multiple(random_state, **state),
        mock.patch.object(clipping, "l2_norm_impl", _norm),
        mock.patch.object(torch.nn.Module, "_apply", _apply),
        mock.patch.object(torch.UntypedStorage, "resize_", resized),
    ):
        yield


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _norm(chunk: int, flag: Any, tensors: Any, each: bool) -> tuple[torch.Tensor, None]:
    return torch.ones(1), None


def _apply(self: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
    """`Module.to` and its like. PyTorch's own would exchange fake parameters, which gradient hooks then lose."""
    for child in self.children():
        child._apply(function)
    with torch.no_grad():
        for parameter in self._parameters.values():
            if parameter is not None and (moved := function(parameter)) is not parameter:
                parameter.data = moved
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = function(buffer)
    return self
