"""Which tensor of a Hugging Face folder is in which safetensors file: index and headers read strictly and compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.formats.safetensors_header import StoredTensor, read_header
from checkpoints.safety import is_plain_name, quoted, read_json_object
from runtime.exits import BadInput

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SUFFIX = ".safetensors"
_PICKLED = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")

Located = dict[str, tuple[str, StoredTensor]]
"""By a tensor's name, the file it is in and its header's entry."""


def locate(folder: Path) -> Located:
    """All tensors of a folder. Every header is read, no data is.

    Raises BadInput, in one line, where there are no safetensors, a file is not a plain one of the folder, a header is
    broken, or index and headers disagree on which tensor is where or how many bytes they are.
    """
    if os.path.lexists(folder / INDEX_FILE):
        return _indexed(folder, folder / INDEX_FILE)
    if os.path.lexists(folder / WEIGHTS_FILE):
        return {name: (WEIGHTS_FILE, tensor) for name, tensor in read_header(folder / WEIGHTS_FILE).items()}
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise BadInput(
            f"{folder}: no {WEIGHTS_FILE}; only safetensors are read, and {quoted(pickled[0])} is pickled: where you "
            "trust it, load it with transformers and call save_pretrained, which writes safetensors"
        )
    raise BadInput(f"{folder}: no {WEIGHTS_FILE}; only safetensors are read, pickled weights never")


def _indexed(folder: Path, path: Path) -> Located:
    index = read_json_object(path)
    listed = _listed(path, index.get("weight_map"))
    headers = {file: read_header(folder / file) for file in sorted(set(listed.values()))}
    for name, file in listed.items():
        if name not in headers[file]:
            raise BadInput(f"{path}: lists tensor {quoted(name)} in {file}, which lacks it")
    for file, tensors in headers.items():
        for name in tensors:
            if listed.get(name) != file:
                elsewhere = f"lists it in {listed[name]}" if name in listed else "does not list it"
                raise BadInput(f"{folder / file}: holds tensor {quoted(name)}, but {INDEX_FILE} {elsewhere}")
    located = {name: (file, headers[file][name]) for name, file in listed.items()}
    _check_total(path, index.get("metadata"), sum(tensor.end - tensor.begin for _, tensor in located.values()))
    return located


def _listed(path: Path, listed: Any) -> dict[str, str]:
    """The index's file names by tensor, each a plain name of a safetensors file."""
    if not isinstance(listed, Mapping) or not listed:
        raise BadInput(f"{path}: has no weight_map of file names by tensor")
    for name, file in listed.items():
        if not isinstance(file, str):
            raise BadInput(f"{path}: names {quoted(file)} as the file of {quoted(name)}, which is no text")
        if not is_plain_name(file):
            raise BadInput(f"{path}: names a file outside the folder: {quoted(file)}")
        if not file.endswith(_SUFFIX):
            raise BadInput(f"{path}: names {quoted(file)}; only safetensors are read, pickled weights never")
    return dict(listed)


def _check_total(path: Path, metadata: Any, held: int) -> None:
    """Whether `metadata.total_size`, where there is one, is the bytes that the tensors have."""
    if metadata is None:
        return
    if not isinstance(metadata, Mapping):
        raise BadInput(f"{path}: its metadata is malformed: {quoted(metadata)}")
    said = metadata.get("total_size", held)
    if isinstance(said, bool) or not isinstance(said, int | float) or said != held:
        raise BadInput(
            f"{path}: its total_size is {quoted(said)}, its tensors have {held:,} bytes: the index is of other files"
        )
