"""Megatron-LM's legacy checkpoints: one file for each tensor- and pipeline-parallel rank.

    latest_checkpointed_iteration.txt
    iter_0001000/mp_rank_01/model_optim_rng.pt          tensor-parallel rank 1
    iter_0001000/mp_rank_01_002/model_optim_rng.pt      and pipeline rank 2

A file holds `args` (the run's arguments), `model` or, with interleaved stages, `model0`, `model1`, ..., in the old
names (`language_model.encoder.layers.0.self_attention.query_key_value.weight`, perhaps as mappings within mappings) or
in Megatron-Core's (`decoder.layers.0.self_attention.linear_qkv.weight`), and the optimiser's state, which is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from checkpoints.formats.megatron_names import cut_of, is_parameter, layers_in, native_names
from checkpoints.formats.tensor_parallel import Cut, merged, merged_shape
from checkpoints.formats.torch_files import damaged_unless, fields, load_mapping
from runtime.exits import BadInput

_RANK = re.compile(r"mp_rank_(\d+)(?:_(\d+))?(?:_(\d+))?")
_FILE = "model_optim_rng.pt"
_CHUNK = re.compile(r"model(\d*)")
_HEAD = "output_layer.weight"
_TIED = "word_embeddings_for_head.weight"  # the old name of an embedding's copy on the last stage
_ROW_ORDER = 2.0  # from this version on a head's query, key and value lie together, which is how native tensors are
Part = dict[str, torch.Tensor]  # one rank's tensors by native name


_guarded = damaged_unless("legacy Megatron-LM checkpoint")


class MegatronLegacySource:
    """Parameters whole, layers numbered through all stages. Vocabulary rows are Megatron's, its padding included:
    `grow_rows` drops what is past the tokenizer's ids.

    args: the run's arguments by name, as far as the files hold them.
    """

    @_guarded
    def __init__(self, folder: Path) -> None:
        """Raises BadInput where ranks are missing, files are damaged, or tensors have no place in a native model."""
        self.folder = folder
        files = _rank_files(folder)
        tensor_ranks = 1 + max(tensor for tensor, _ in files)
        stages = 1 + max(stage for _, stage in files)
        for tensor in range(tensor_ranks):
            for stage in range(stages):
                if (tensor, stage) not in files:
                    raise BadInput(f"{folder}: no file of tensor-parallel rank {tensor}, pipeline stage {stage}")
        held = {place: load_mapping(file) for place, file in sorted(files.items())}
        first = held[0, 0]
        self.args: Mapping[str, Any] = fields(first.get("args"))
        _check_version(first, folder)
        self._parts = [
            _numbered([_chunks(held[tensor, stage], folder) for stage in range(stages)], folder)
            for tensor in range(tensor_ranks)
        ]
        self._drop_tied_head()
        names = {frozenset(part) for part in self._parts}
        if len(names) > 1:
            odd = min(frozenset.union(*names) - frozenset.intersection(*names))
            raise BadInput(f"{folder}: some tensor-parallel ranks have {odd}, others not")
        shapes = {name: tuple(tensor.shape) for name, tensor in self._parts[0].items()}
        self._cuts: dict[str, Cut] = {}
        for name in shapes:
            cut = cut_of(name, shapes)
            if cut is None or ".experts." in name:
                raise BadInput(f"{folder}: {name} has no place in a native model")
            self._cuts[name] = cut

    @property
    def names(self) -> set[str]:
        return set(self._cuts)

    @_guarded
    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        parts = self._of(name)
        return merged_shape([part.shape for part in parts], self._cuts[name], name), parts[0].dtype

    @_guarded
    def read(self, name: str) -> torch.Tensor:
        return merged(self._of(name), self._cuts[name], name)

    def _of(self, name: str) -> list[torch.Tensor]:
        if name not in self._cuts:
            raise BadInput(f"{self.folder}: has no tensor {name}")
        return [part[name] for part in self._parts]

    def _drop_tied_head(self) -> None:
        """Of a head that is the embedding again, a pipeline's last stage stores a copy."""
        untied = self.args.get("untie_embeddings_and_output_weights", True)
        for part in self._parts:
            for name in (_TIED,) if untied else (_TIED, _HEAD):
                copy = part.pop(name, None)
                if copy is not None and not torch.equal(copy, part.get("embedding.word_embeddings.weight", copy[:0])):
                    raise BadInput(f"{self.folder}: its head is tied to the embedding, and differs from it")


def _rank_files(folder: Path) -> dict[tuple[int, int], Path]:
    """The files by tensor-parallel rank and pipeline stage."""
    found = {}
    for place in sorted(folder.glob("mp_rank_*")):
        match = _RANK.fullmatch(place.name)
        if not match or not (place / _FILE).is_file():
            continue
        if match[3]:
            raise BadInput(f"{place}: of an expert-parallel run; experts are not read from legacy checkpoints")
        found[int(match[1]), int(match[2] or 0)] = place / _FILE
    if not found:
        raise BadInput(f"{folder}: has no mp_rank_*/{_FILE}")
    return found


def _check_version(first: Mapping[str, Any], folder: Path) -> None:
    version = first.get("checkpoint_version", _ROW_ORDER)
    if not isinstance(version, int | float) or version < _ROW_ORDER:
        raise BadInput(
            f"{folder}: checkpoint_version {version}, which orders queries, keys and values otherwise; loading and "
            "saving it once with Megatron-LM 2.0 or later mends that"
        )


def _chunks(held: Mapping[str, Any], folder: Path) -> list[Part]:
    """A stage's model chunks in order, by the names in the file."""
    numbered = {int(match[1] or 0): held[key] for key in held if (match := _CHUNK.fullmatch(str(key)))}
    if not numbered or sorted(numbered) != list(range(len(numbered))):
        raise BadInput(f"{folder}: a file has neither model nor model0, model1, ...")
    return [dict(_flat(numbered[number])) for number in sorted(numbered)]


def _flat(held: Any, before: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of mappings within mappings, under dotted names."""
    for key, value in held.items() if isinstance(held, Mapping) else ():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, torch.Tensor) and is_parameter(name):
            yield name, value


def _numbered(stages: list[list[Part]], folder: Path) -> Part:
    """One tensor-parallel rank's tensors under native names. Interleaved, the first chunks of all stages come first."""
    chunks = len(stages[0])
    if any(len(stage) != chunks for stage in stages):
        raise BadInput(f"{folder}: its pipeline stages have different numbers of model chunks")
    found: Part = {}
    layers = 0
    for chunk in range(chunks):
        for stage in stages:
            part = stage[chunk]
            for name, native in native_names(part, layers).items():
                native = _TIED if name.endswith(_TIED) else native
                if native in found:
                    raise BadInput(f"{folder}: {name} is there twice")
                found[native] = part[name]
            layers += layers_in(part)
    return found
