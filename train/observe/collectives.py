"""Time in collectives counts as communication, wherever they are called: inside layers as well.

Tensor, sequence, context and expert parallelism exchange in the middle of a layer's forward and backward pass. Without
a mark there, a rank that waits for a slow peer would look as slow as that peer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from train.observe.phases import COMMUNICATION
from train.observe.stopwatch import Stopwatch

_NAMES = (
    *("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_single", "_all_gather_base"),
    *("reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single", "_reduce_scatter_base"),
    *("all_to_all", "all_to_all_single", "broadcast", "reduce", "barrier", "send", "recv"),
)
# Where Megatron-Core 0.16.1 keeps some of these under names of its own.
_ALIASES = ("dist_all_gather_func", "dist_reduce_scatter_func")
_ALIASING = tuple(f"megatron.core.tensor_parallel.{name}" for name in ("layers", "mappings", "utils"))

_stopwatch: Stopwatch | None = None


def mark(stopwatch: Stopwatch) -> None:
    """From now on have `stopwatch` count collectives of this process as communication, and no other stopwatch."""
    global _stopwatch
    _stopwatch = stopwatch
    for name in _NAMES:
        _wrap(dist, name)
    for module in _ALIASING:
        for name in _ALIASES:
            _wrap(sys.modules.get(module), name)


def _wrap(holder: Any, name: str) -> None:
    function: Callable[..., Any] | None = getattr(holder, name, None)
    if function is not None and not hasattr(function, "_megaphone_marks"):
        setattr(holder, name, _marked(function))


def _marked(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        stopwatch = _stopwatch
        if stopwatch is None or not stopwatch.running:
            return function(*arguments, **options)
        with stopwatch.phase(COMMUNICATION):
            work = function(*arguments, **options)
        return _Awaited(work, stopwatch) if options.get("async_op") and isinstance(work, dist.Work) else work

    call._megaphone_marks = True  # type: ignore[attr-defined]
    return call


class _Awaited:
    """A collective under way, as `async_op` returns it: waiting for it is communication too."""

    def __init__(self, work: dist.Work, stopwatch: Stopwatch) -> None:
        self._work = work
        self._stopwatch = stopwatch

    def wait(self, *arguments: Any) -> Any:
        with self._stopwatch.phase(COMMUNICATION):
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
