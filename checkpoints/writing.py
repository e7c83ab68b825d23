"""One rank's tensor file of a `torch_dist` folder, written and hashed in one pass."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult

from checkpoints.hashed_file import ALIGNED, HashedFile, write_tensor
from checkpoints.manifest import FileRecord
from checkpoints.pieces import Piece


@dataclass(frozen=True)
class Written:
    """What one rank wrote: where each piece is, and size and hash of its file by name."""

    places: list[WriteResult]
    files: dict[str, FileRecord]


class Abandoned(Exception):
    """Another rank failed, so that what this one writes is of no use."""


def write_pieces(folder: Path, rank: int, pieces: Iterable[Piece], abandon: threading.Event) -> Written:
    """Write this rank's pieces into one file of `folder` and sync it; no file where there are none.

    The pieces' tensors may be on any device; they are brought to the CPU one at a time. An iterator's, which are made
    one at a time too, get a file in any case. Raises OSError where the disk fails, with the file's name, and Abandoned
    soon after `abandon` is set.
    """
    if not pieces:
        return Written([], {})
    name = f"__{rank}_0.distcp"
    with HashedFile(folder / name) as file:
        places = [_write_piece(file, name, piece, abandon) for piece in pieces]
        record = file.finish()
    return Written(places, {name: record})


def _write_piece(file: HashedFile, name: str, piece: Piece, abandon: threading.Event) -> WriteResult:
    if abandon.is_set():
        raise Abandoned
    file.write(bytes(-file.size % ALIGNED))
    start = file.size
    if isinstance(piece.data, io.BytesIO):
        file.write(piece.data.getbuffer())
    else:
        write_tensor(file, piece.data.cpu())
    length = file.size - start
    return WriteResult(piece.item.index, length, _StorageInfo(name, start, length))
