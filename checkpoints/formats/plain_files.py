"""Tensors by name in files of their own, without a model's configuration: safetensors, and what `torch.save` wrote.

DeepSpeed's `zero_to_fp32` writes both, with an index where there are several files. Megatron's names come in their
native spelling, others as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from checkpoints.formats.huggingface import HuggingFaceReader
from checkpoints.formats.megatron_names import is_parameter, native_names
from checkpoints.formats.safetensors_folder import INDEX_FILE, Located, locate
from checkpoints.formats.safetensors_header import read_header
from checkpoints.formats.source import SUFFIXES
from checkpoints.formats.torch_files import load_mapping
from checkpoints.safety import quoted
from runtime.exits import BadInput


class SafetensorsSource(HuggingFaceReader):
    """One safetensors file, or all those of a folder."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput where an index or a header is not what it should be; no data is read."""
        self.folder = path if path.is_dir() else path.parent
        self.config: dict[str, Any] = {}
        self._open: dict[str, Any] = {}
        self._located = locate(path) if (path / INDEX_FILE).is_file() else _located(path)
        self._foreign = {native: name for name, native in native_names(sorted(self._located)).items()}

    @property
    def names(self) -> set[str]:
        return set(self._foreign)

    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        return super().shape_and_dtype(self._foreign.get(name, name))

    def read(self, name: str) -> torch.Tensor:
        return super().read(self._foreign.get(name, name))


class TorchSource:
    """One torch file, or all those of a folder, each a mapping of names to tensors, perhaps under a key of its own
    ("state_dict", "module" or "model"). What else is in them is left out."""

    def __init__(self, path: Path) -> None:
        self.folder = path
        found: dict[str, torch.Tensor] = {}
        for file in [path] if path.is_file() else _weight_files(path):
            for name, tensor in _state_dict(load_mapping(file)).items():
                if isinstance(tensor, torch.Tensor) and is_parameter(str(name)):
                    if name in found:
                        raise BadInput(f"{file}: {name} is in another file of {path} as well")
                    found[name] = tensor
        if not found:
            raise BadInput(f"{path}: holds no tensors by name")
        self._tensors = {native: found[name] for name, native in native_names(sorted(found)).items()}

    @property
    def names(self) -> set[str]:
        return set(self._tensors)

    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        tensor = self.read(name)
        return tuple(tensor.shape), tensor.dtype

    def read(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise BadInput(f"{self.folder}: has no tensor {name}")
        return self._tensors[name]


def _located(path: Path) -> Located:
    """Tensors of a file, or of files that no index lists."""
    found: Located = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        for name, stored in read_header(file).items():
            if name in found:
                raise BadInput(f"{file}: {quoted(name)} is in {found[name][0]} as well")
            found[name] = (file.name, stored)
    return found


def _weight_files(folder: Path) -> list[Path]:
    """Files of weights; a training state that lies beside `pytorch_model*.bin` is none."""
    named = sorted(folder.glob("pytorch_model*.bin"))
    return named or sorted(file for suffix in SUFFIXES for file in folder.glob(f"*{suffix}"))


def _state_dict(held: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("state_dict", "module", "model"):
        if isinstance(held.get(key), Mapping):
            return held[key]
    return held
