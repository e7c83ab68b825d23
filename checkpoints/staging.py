"""A copy in host memory of the pieces of one save, made and written while training goes on."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

import torch

from checkpoints.pieces import Piece


class Staging:
    """Host buffers as large as all the pieces of this rank, kept from save to save: new memory costs a page fault for
    every 4 KiB, several times the copy itself. Beside GPUs they are page-locked, so that the copy engine fills them."""

    def __init__(self) -> None:
        self._buffers: dict[object, torch.Tensor] = {}

    def stage(self, pieces: Sequence[Piece], abandon: threading.Event | None = None) -> list[Piece]:
        """The same pieces with their tensors in these buffers; returns when they are there, or soon after `abandon` is
        set. From a GPU the copies run on the current stream."""
        staged = [piece if abandon and abandon.is_set() else self._stage(piece) for piece in pieces]
        if _gpus(pieces):
            torch.cuda.current_stream().synchronize()
        return staged

    def _stage(self, piece: Piece) -> Piece:
        if not isinstance(piece.data, torch.Tensor):
            return piece  # serialised for this save alone
        buffer = self._buffers.get(piece.item.index)
        if buffer is None or buffer.shape != piece.data.shape or buffer.dtype != piece.data.dtype:
            buffer = self._buffers[piece.item.index] = _host_like(piece.data)
        buffer.copy_(piece.data, non_blocking=True)
        return replace(piece, data=buffer)


def beside_training(pieces: Iterable[Piece]) -> Callable[[], AbstractContextManager[object]]:
    """A context for another thread, in which it copies these pieces as the thread that calls this has made them: on a
    stream of its own, after what is queued by now and beside what is queued later."""
    made = [(device, torch.cuda.current_stream(device).record_event()) for device in _gpus(pieces)]

    def context() -> AbstractContextManager[object]:
        stack = ExitStack()
        for device, event in made:
            stack.enter_context(torch.cuda.device(device))
            stream = torch.cuda.Stream(device)
            stream.wait_event(event)
            stack.enter_context(torch.cuda.stream(stream))
        return stack

    return context


def _gpus(pieces: Iterable[Piece]) -> list[torch.device]:
    """The device of the pieces that are on a GPU, if any is: a rank has one."""
    found = {piece.data.device for piece in pieces if isinstance(piece.data, torch.Tensor) and piece.data.is_cuda}
    assert len(found) <= 1, f"the pieces of one rank are on {found}"
    return list(found)


def _host_like(tensor: torch.Tensor) -> torch.Tensor:
    """A host tensor of the same shape with a storage of its own.

    Page-locking what is there already: Torch's own pinned allocator rounds sizes up to powers of two.
    """
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    if tensor.is_cuda and host.nbytes:
        runtime = torch.cuda.cudart()
        torch.cuda.check_error(int(runtime.cudaHostRegister(host.data_ptr(), host.nbytes, 0)))
        weakref.finalize(host, runtime.cudaHostUnregister, host.data_ptr())
    return host
