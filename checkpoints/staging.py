"""A copy in host memory of the pieces of one save, so that training goes on while they are written."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace

import torch

from checkpoints.pieces import Piece


class Staging:
    """Host buffers as large as all the pieces of this rank, kept from save to save: new memory costs a page fault for
    every 4 KiB, several times the copy itself. Beside GPUs they are page-locked, so that the copy engine fills them."""

    def __init__(self) -> None:
        self._buffers: dict[object, torch.Tensor] = {}

    def stage(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The same pieces with their tensors in these buffers. From a GPU the copies run on the current stream, before
        anything that is launched after them; returns when they are done."""
        staged = [self._stage(piece) for piece in pieces]
        if any(isinstance(piece.data, torch.Tensor) and piece.data.is_cuda for piece in pieces):
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
