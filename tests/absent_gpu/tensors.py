"""Tensors of the absent GPU: shapes, dtypes and strides without numbers. Those of the host are as ever."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from train.dryrun.ledger import Ledger, of_one_rank

ROOT = Path(__file__).resolve().parents[2]
_SILENT = ("prim", "profiler")  # namespaces of what asks, and computes nothing
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # which argument is the first factor
_NOTHING_MOVES = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty")


@dataclass
class Work:
    """Of an operation: calls, bytes of the tensors that they read or write, FLOPs if it is a product of matrices."""

    calls: int = 0
    size: int = 0
    flops: int = 0

    def add(self, size: int, flops: int) -> None:
        self.calls, self.size, self.flops = self.calls + 1, self.size + size, self.flops + flops


@dataclass
class Account:
    """waits: numbers that the host asked the device for, by our line that did; operations: what the device would run,
    by name and our line; memory: of its tensors."""

    waits: Counter[str] = field(default_factory=Counter)
    operations: dict[tuple[str, str], Work] = field(default_factory=dict)
    memory: Ledger = field(default_factory=Ledger)

    def add(self, name: str, size: int, flops: int = 0) -> None:
        self.operations.setdefault((name, _our_line()), Work()).add(size, flops)

    def clear(self) -> None:
        """Begin anew, with the memory that is taken."""
        self.waits.clear()
        self.operations.clear()
        self.memory.mark()


class ShapesOnly(TorchDispatchMode):
    """Operations on the device are done for shapes alone. A number that the host asks for is 1, and counted.

    What depends on numbers for its shape (a mask as an index, say) is refused by torch: it is a wait as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.account = Account()
        self._shapes = FakeTensorMode(allow_non_fake_inputs=True)
        self._shapes.may_turn_const = lambda _: False  # type: ignore[method-assign]  # there is nothing to keep

    @classmethod
    def is_infra_mode(cls) -> bool:
        """The compiler would pass by functions that run under another mode."""
        return True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        ours = any(tensor.fake_mode is self._shapes for tensor in given)
        if not ours and (given or not _is_cuda(kwargs.get("device"))):
            return func(*args, **kwargs)  # the host's, or the compiler's
        if func.namespace == "c10d":
            return of_one_rank(func, args)
        if func is torch.ops.aten._local_scalar_dense.default:
            self.account.waits[_our_line()] += 1
            return torch.ones((), dtype=args[0].dtype).item()
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], FakeTensor):
            self.account.waits[_our_line()] += 1
            return args[0].fill_(1)
        args, kwargs = tree_map(self._without_data, (args, kwargs))
        with self._shapes:
            result = func(*args, **kwargs)
        self._count(func, (args, kwargs), result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, FakeTensor) and leaf.device.type == "cuda":
                self.account.memory.count(leaf)
        return tree_map(self._on_host, result)

    def _without_data(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor):
            return self._shapes.from_tensor(leaf)
        return leaf

    def _on_host(self, leaf: Any) -> Any:
        if not isinstance(leaf, FakeTensor) or leaf.device.type != "cpu":
            return leaf
        self.account.waits[_our_line()] += 1
        return torch.ones(leaf.shape, dtype=leaf.dtype)

    def _count(self, func: Any, arguments: Any, result: Any) -> None:
        name = func.__name__.split(".")[0]
        if func.is_view or func.namespace in _SILENT or name in _NOTHING_MOVES:
            return
        tensors = {id(leaf): leaf for leaf in tree_leaves((arguments, result)) if isinstance(leaf, FakeTensor)}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        flops = 0
        if name in _PRODUCTS:
            left, right = arguments[0][_PRODUCTS[name] :][:2]
            flops = 2 * left.numel() * right.shape[-1]
        self.account.add(name, size, flops)


@contextmanager
def without_numbers() -> Iterator[Account]:
    """Inside, tensors of the device are without numbers; what it would do is counted."""

    def move(to: torch.Tensor, other: torch.Tensor) -> None:
        """Modules that change device or dtype swap tensors that have no numbers, unless somebody else holds them."""
        if (to.device, to.dtype) != (other.device, other.dtype):
            to.data = other.data

    mode = ShapesOnly()
    memory = mode.account.memory
    asked = {"memory_allocated": lambda *_: memory.live, "max_memory_allocated": lambda *_: memory.peak}
    asked |= {"reset_peak_memory_stats": lambda *_: memory.mark()}
    library = torch.library.Library("aten", "IMPL")
    # One kernel in torch's CUDA build; without a kernel for the device, the CPU build takes it to pieces.
    library.impl("_fused_rms_norm", _fused_rms_norm, "CUDA")
    threads = torch.autograd.is_multithreading_enabled()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.autograd.set_multithreading_enabled(False)  # the compiler's settings are a thread's own
    try:
        with mode, mock.patch.object(torch.utils, "swap_tensors", move), mock.patch.multiple(torch.cuda, **asked):
            yield mode.account
    finally:
        torch.autograd.set_multithreading_enabled(threads)
        torch._C._set_only_lift_cpu_tensors(False)
        library._destroy()


def _fused_rms_norm(
    x: torch.Tensor, shape: list[int], weight: torch.Tensor | None, eps: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes of its results: of `x`, and a number a row, which its backward pass takes."""
    scale = x.new_empty((*x.shape[: -len(shape)], *[1] * len(shape)), dtype=torch.float32)
    return torch.empty_like(x), scale


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _our_line() -> str:
    """Of the project, the innermost that is under way."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if (name := _ours(frame.f_code.co_filename)) is not None:
            return f"{name}:{frame.f_lineno}"
    return "?"


@cache
def _ours(file: str) -> str | None:
    """Its name in the project, but of this GPU's own modules."""
    path = Path(file)
    if not path.is_relative_to(ROOT):
        return None
    inside = path.relative_to(ROOT)
    return None if inside.parts[0] == ".venv" or inside.is_relative_to("tests/absent_gpu") else str(inside)
