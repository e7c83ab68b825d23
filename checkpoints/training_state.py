"""Training states of DeepSpeed, parameters and moments, as native checkpoints, and native ones as DeepSpeed's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from checkpoints.derived import Part, complete, sound, write_parts, writing
from checkpoints.dtypes import name_of
from checkpoints.formats.deepspeed_universal import write_universal
from checkpoints.formats.native import COMMON_FILE
from checkpoints.formats.source import TrainedSource, open_source
from checkpoints.formats.stacking import NativeSource, common_state, parts
from checkpoints.layout import STATE_FILE, TENSORS
from checkpoints.manifest import Manifest, TensorRecord
from runtime.exits import BadInput, StoppedEarly


def import_training_state(path: Path, native: Path, like: Path | None = None, stop: object = None) -> Path:
    """Write the state in a folder of DeepSpeed (ZeRO, pipeline, universal) as the native checkpoint `native`, with the
    optimiser's moments, bit for bit; memory holds one tensor at a time.

    `like`: a native checkpoint of the same model, whose vocabulary, its files and the config come along, and whose
    tensors have to be the same by name, shape and dtype. Where it is of the same step, so does the place in the data,
    which DeepSpeed does not know, and a run goes on from `native`; else it holds a state to look at and weights to
    start from.

    Returns `native`. Raises BadInput where the folder is damaged, has no optimiser state or other names than
    Megatron's, where it is not like `like`, or the disk fails; StoppedEarly when `stop` turns true. `native` then is as
    it was.
    """
    source = open_source(path)
    if not isinstance(source, TrainedSource) or not source.kinds:
        raise BadInput(f"{path}: has no optimiser state; its weights alone are converted by `checkpoint convert`")
    pieces = parts(source)
    if not any(piece.name.endswith("embedding.word_embeddings.weight") for piece in pieces):
        raise BadInput(
            f"{path}: its names are not Megatron's ({min(source.names)}); an optimiser's state of another model's "
            "implementation is not converted, its weights are by `checkpoint convert`"
        )
    stopping = [replace(piece, make=_stoppable(piece, stop)) for piece in pieces]
    manifest = Manifest(step=source.step, topology={}, tensors={}, parameters=0, files={})
    if like is None:
        return _write(source, stopping, native, manifest, {})
    with sound(like) as known:
        _check_like(pieces, known, path, like)
        texts = {
            name: (like / name).read_text(encoding="utf-8")
            for name in known.files
            if "/" not in name and (name != STATE_FILE or known.step == source.step)
        }
        return _write(source, stopping, native, replace(known, step=source.step, topology={}), texts)


def export_universal(native: Path, out: Path, stop: object = None) -> Path:
    """Write a native checkpoint with its optimiser's state as DeepSpeed's universal folder; see `write_universal`."""
    with sound(native):
        return write_universal(NativeSource(native), out, stop)


def _write(source: TrainedSource, pieces: list[Part], native: Path, manifest: Manifest, texts: dict[str, str]) -> Path:
    with writing(native, sum(piece.nbytes for piece in pieces)) as folder:
        tensors, files = write_parts(folder / TENSORS, [pieces], "converting")
        torch.save(common_state(source), folder / TENSORS / COMMON_FILE)
        for name, text in {STATE_FILE: "{}", **texts}.items():
            (folder / name).write_text(text, encoding="utf-8")
        origin = {**manifest.origin, "training_state": source.folder.name}
        complete(folder, replace(manifest, origin=origin), tensors, files)
    return native


def _check_like(pieces: list[Part], known: Manifest, path: Path, like: Path) -> None:
    ours = {piece.name: TensorRecord(piece.whole, name_of(piece.dtype)) for piece in pieces}
    for name in sorted(ours.keys() | known.tensors.keys()):
        if ours.get(name) != known.tensors.get(name):
            there, here = ours.get(name, "missing"), known.tensors.get(name, "missing")
            raise BadInput(f"{path} is not like {like}: {name} is {there} there, {here} here")


def _stoppable(piece: Part, stop: object) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        if stop:
            raise StoppedEarly("conversion stopped; nothing was kept, the same command starts it again")
        return piece.make()

    return make
