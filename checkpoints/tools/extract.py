"""Parts of native checkpoints, and whole ones in one file: tensors by name patterns, low-rank factors, optimiser state.

What goes into a safetensors file has one tensor a layer, with the layer's number in its name and without the native
prefix: `decoder.layers.3.mlp.linear_fc2.weight`. In a native checkpoint layers stay stacked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from checkpoints import lora
from checkpoints.derived import Part, derive
from checkpoints.formats.safetensors_file import Entry, write_safetensors
from checkpoints.slices import Slice, TensorReader, slices
from checkpoints.tools.opening import Opened, is_parameter, new_place, opened, parameter_name, target_of
from configs.parameter_names import is_lora, matching
from configs.schema import Precision
from runtime.exits import BadInput

SAFETENSORS = ".safetensors"


def extract(folder: Path, out: Path, patterns: Iterable[str], dtype: Precision | None = None) -> Path:
    """Write the parameters of a native checkpoint whose names match any pattern (configs/parameter_names.py).

    `out` becomes a file where it is named *.safetensors, else a native checkpoint of those tensors alone, without
    optimiser state. Tensors keep their bits unless `dtype` says otherwise. Returns `out`. Raises BadInput where the
    checkpoint is damaged, a pattern chooses nothing, or a native tensor would lack some of its layers.
    """
    patterns = list(patterns)
    with opened(_new(folder, out)) as source:
        held = _parameters(source)
        names = {parameter_name(piece.label) for piece in held}
        for pattern in patterns:
            if not matching([pattern], names):
                raise BadInput(f"{source.folder} holds no parameter like {pattern}; see megaphone checkpoint inspect")
        chosen = matching(patterns, names)
        pieces = [piece for piece in held if parameter_name(piece.label) in chosen]
        if out.suffix == SAFETENSORS:
            return _write_file(source, out, pieces, dtype, "extracting")
        _refuse_part_of_a_stack(pieces, source)
        origin = {**source.manifest.origin, "extracted": {"checkpoint": source.folder.name, "patterns": patterns}}
        return derive(
            source.folder, out, [_parts(source, pieces, dtype)], doing="extracting", topology={}, origin=origin
        )


def extract_lora(folder: Path, out: Path, dtype: Precision | None = None) -> Path:
    """Write the low-rank factors of a native checkpoint as a safetensors file, with rank and alpha in its metadata.

    Raises BadInput where it holds none, or `out` is not named so.
    """
    if out.suffix != SAFETENSORS:
        raise BadInput(f"{out}: low-rank factors go into a file named *{SAFETENSORS}")
    with opened(_new(folder, out)) as source:
        pieces = [piece for piece in _parameters(source) if is_lora(piece.name)]
        if not pieces:
            raise BadInput(f"{source.folder} holds no low-rank updates")
        return _write_file(source, out, pieces, dtype, "extracting")


def consolidate(folder: Path, out: Path, *, optimizer: bool = False, dtype: Precision | None = None) -> Path:
    """Write a native checkpoint as one safetensors file, or as a native checkpoint whose tensors are in one file.

    `optimizer`: with the moments and fp32 parameters, whose names in a safetensors file begin with `optimizer.state.`;
    a native checkpoint then holds all that a run goes on from. `dtype` is that of the parameters; optimiser state is
    never changed, and parameters beside it are not either. Returns `out`.
    """
    if optimizer and dtype is not None:
        raise BadInput("optimiser state goes with parameters of one dtype: leave out one of the two")
    with opened(_new(folder, out)) as source:
        pieces = [piece for piece in slices(source.reader.tensors) if optimizer or is_parameter(piece.name)]
        if out.suffix == SAFETENSORS:
            return _write_file(source, out, pieces, dtype, "consolidating")
        parts = _parts(source, pieces, dtype)
        return derive(source.folder, out, [parts], doing="consolidating", goes_on=optimizer, topology={})


def _new(folder: Path, out: Path) -> Path:
    new_place(out)
    return folder


def _parameters(source: Opened) -> list[Slice]:
    return list(slices({name: record for name, record in source.reader.tensors.items() if is_parameter(name)}))


def _refuse_part_of_a_stack(pieces: Iterable[Slice], source: Opened) -> None:
    held: dict[str, int] = {}
    for piece in pieces:
        held[piece.name] = held.get(piece.name, 0) + 1
    for piece in pieces:
        if piece.layers is not None and held[piece.name] != piece.layers:
            raise BadInput(
                f"{parameter_name(piece.name)}: {held[piece.name]} of {piece.layers} layers were chosen, and a native "
                f"checkpoint stacks them all; write a *{SAFETENSORS} file instead"
            )


def _write_file(source: Opened, out: Path, pieces: list[Slice], dtype: Precision | None, doing: str) -> Path:
    entries = []
    for piece in pieces:
        target = target_of(piece, dtype)
        make = partial(_read, piece, source.reader, target)
        entries.append(Entry(parameter_name(piece.label), piece.shape, target, make))
    metadata = {"format": "pt", "step": str(source.manifest.step)}
    if any(is_lora(piece.name) for piece in pieces):
        metadata |= {lora.ORIGIN: json.dumps(source.manifest.origin.get(lora.ORIGIN, {}))}
    return write_safetensors(out, entries, metadata, doing)


def _parts(source: Opened, pieces: list[Slice], dtype: Precision | None) -> list[Part]:
    made = []
    for piece in pieces:
        target = target_of(piece, dtype)
        made.append(Part.of(replace(piece, dtype=target), partial(_read, piece, source.reader, target)))
    return made


def _read(piece: Slice, reader: TensorReader, dtype: torch.dtype) -> torch.Tensor:
    return piece.read(reader).to(dtype)
