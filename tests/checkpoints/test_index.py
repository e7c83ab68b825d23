"""The index that is written here, read by torch, which need not be imported to write it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import metadata as torchs
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult

from checkpoints import index as ours
from checkpoints.index import pickled
from checkpoints.metadata import METADATA_FILE, read_metadata

PLACES = {(0, 0): ("__0_0.distcp", 0, 100), (2, 0): ("__1_0.distcp", 64, 200)}


def test_torch_reads_what_it_would_have_written(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs):
        folder.mkdir()
        for name, offset, length in PLACES.values():
            (folder / name).write_bytes(bytes(offset + length))
    held = {
        "a": ours.TensorStorageMetadata(
            ours.TensorProperties(torch.bfloat16),
            torch.Size([4, 2]),
            [ours.ChunkStorageMetadata(torch.Size(offsets), torch.Size([2, 2])) for offsets in PLACES],
        )
    }
    places = {
        ours.MetadataIndex("a", torch.Size(offsets)): ours.StorageInfo(*where) for offsets, where in PLACES.items()
    }
    (mine / METADATA_FILE).write_bytes(pickled(ours.Metadata(dict(held), places)))
    index = torchs.Metadata(
        {
            "a": torchs.TensorStorageMetadata(
                torchs.TensorProperties(dtype=torch.bfloat16),
                torch.Size([4, 2]),
                [torchs.ChunkStorageMetadata(torch.Size(offsets), torch.Size([2, 2])) for offsets in PLACES],
            )
        }
    )
    results = [
        WriteResult(torchs.MetadataIndex("a", torch.Size(offsets)), where[2], _StorageInfo(*where))
        for offsets, where in PLACES.items()
    ]
    FileSystemWriter(theirs).finish(index, [results])
    one, other = (FileSystemReader(folder).read_metadata() for folder in (mine, theirs))
    assert type(one) is torchs.Metadata and one.version == CURRENT_DCP_VERSION
    assert one.state_dict_metadata == other.state_dict_metadata and one.storage_data == other.storage_data
    read = [read_metadata(folder) for folder in (mine, theirs)]
    assert read[0].state_dict_metadata == read[1].state_dict_metadata == held
    assert read[0].storage_data == read[1].storage_data == places


def test_conversions_import_no_more_of_torch_than_they_use() -> None:
    heavy = "torch.distributed.checkpoint", "torch._dynamo", "sympy", "megatron", "transformers", "hydra"
    script = (
        "import sys; import checkpoints.conversion.engine, checkpoints.conversion.wanted, checkpoints.tools.opening, "
        f"launch.checkpoint_commands; print([name for name in {heavy} if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
