"""Checkpoints of any format as tensors by name, and finding out which format a path holds.

    from checkpoints.formats.source import open_source

    source = open_source(Path("iter_0001000"))
    for name in sorted(source.names):
        shape, dtype = source.shape_and_dtype(name)  # nothing is read
        tensor = source.read(name)                   # whole, on the CPU

A source's names are either those of an architecture at Hugging Face, which a map of `checkpoints.maps` turns into
native ones, or Megatron's, which are native ones with each layer by itself (`checkpoints.formats.stacking`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from runtime.exits import BadInput

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
"""What names of torch files end with."""


class TensorSource(Protocol):
    """Tensors of one checkpoint. Whatever its files look like, each is whole: no rank's part, no padding of ZeRO."""

    folder: Path

    @property
    def names(self) -> set[str]:
        """Of parameters. Optimiser state is no part of it, see `TrainedSource`."""

    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of a tensor, without reading it. Raises BadInput where there is none of that name."""

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor on the CPU, perhaps a view of a memory-mapped file. Raises BadInput likewise."""


@runtime_checkable
class TrainedSource(TensorSource, Protocol):
    """A source that also has the state of Adam. kinds: of `exp_avg`, `exp_avg_sq` and `fp32_param`, those there are."""

    step: int
    kinds: tuple[str, ...]

    def state_names(self, kind: str) -> set[str]:
        """Parameters that have this state: frozen ones do not."""

    def state(self, kind: str, name: str) -> torch.Tensor:
        """Whole, fp32, of the parameter's shape. Raises BadInput where there is none."""


class Format(StrEnum):
    """What a path can hold, as said to users."""

    native = "native checkpoint"
    huggingface = "Hugging Face folder with safetensors"
    safetensors = "plain safetensors"
    megatron_legacy = "Megatron-LM legacy checkpoint"
    deepspeed_universal = "DeepSpeed universal checkpoint"
    deepspeed_pipeline = "DeepSpeed pipeline checkpoint"
    deepspeed_zero = "DeepSpeed checkpoint"
    torch_file = "plain torch files"


def open_source(path: Path) -> TensorSource:
    """The tensors of a folder or file, whatever its format. Raises BadInput where that is none, or damaged."""
    kind, place = detect(path)
    return _opener(kind)(place)


def detect(path: Path) -> tuple[Format, Path]:
    """The format of what lies at `path` and the folder or file of that format: the newest one where a folder of several
    names it (`latest`, `latest_universal`, `latest_checkpointed_iteration.txt`).

    Judged by the names of files alone. Raises BadInput in one line that says what was found where nothing fits.
    """
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    if path.is_file():
        for suffixes, kind in (((".safetensors",), Format.safetensors), (SUFFIXES, Format.torch_file)):
            if path.suffix in suffixes:
                return kind, path
        raise BadInput(f"{path}: not a checkpoint that is read ({_READABLE})")
    place = _pointed_at(path)
    for kind, holds in _SIGNS:
        if holds(place):
            return kind, place
    raise BadInput(f"{place}: holds {_contents(place)}; readable are {_READABLE}")


_READABLE = (
    "native checkpoints, Hugging Face folders and files of safetensors, Megatron-LM's mp_rank_* folders, DeepSpeed's "
    "ZeRO, pipeline and universal folders, and torch files of plain tensors"
)
_POINTERS = (
    ("latest_checkpointed_iteration.txt", lambda text: f"iter_{int(text):07d}"),  # Megatron-LM
    ("latest_universal", str),  # DeepSpeed
    ("latest", str),
)


def _opener(kind: Format) -> Callable[[Path], TensorSource]:
    """What opens a format. The formats stand on this module, so they are imported here."""
    from checkpoints.formats.deepspeed_universal import UniversalSource
    from checkpoints.formats.deepspeed_zero import ZeroSource
    from checkpoints.formats.huggingface import HuggingFaceReader
    from checkpoints.formats.megatron_legacy import MegatronLegacySource
    from checkpoints.formats.plain_files import SafetensorsSource, TorchSource
    from checkpoints.formats.stacking import NativeSource

    openers: dict[Format, Callable[[Path], TensorSource]] = {
        Format.native: NativeSource,
        Format.huggingface: HuggingFaceReader,
        Format.safetensors: SafetensorsSource,
        Format.megatron_legacy: MegatronLegacySource,
        Format.deepspeed_universal: UniversalSource,
        Format.deepspeed_pipeline: ZeroSource,
        Format.deepspeed_zero: ZeroSource,
        Format.torch_file: TorchSource,
    }
    return openers[kind]


def _any(pattern: str) -> Callable[[Path], bool]:
    return lambda folder: next(folder.glob(pattern), None) is not None


_SIGNS: tuple[tuple[Format, Callable[[Path], bool]], ...] = (
    (Format.native, lambda folder: (folder / "manifest.json").is_file() and (folder / "tensors").is_dir()),
    (Format.deepspeed_universal, _any("zero/*/fp32.pt")),
    (Format.megatron_legacy, _any("mp_rank_*/model_optim_rng.pt")),
    (Format.deepspeed_pipeline, _any("layer_*-model_*-model_states.pt")),
    (Format.deepspeed_zero, _any("*mp_rank_*_model_states.pt")),
    (
        Format.huggingface,
        lambda folder: (folder / "config.json").is_file() and _any("*.safetensors")(folder),
    ),
    (Format.safetensors, _any("*.safetensors")),
    (Format.torch_file, lambda folder: any(_any(f"*{suffix}")(folder) for suffix in SUFFIXES)),
)


def _pointed_at(folder: Path) -> Path:
    """The folder itself, or the one in it that its pointer file names."""
    for name, place in _POINTERS:
        file = folder / name
        if file.is_symlink() or not file.is_file():
            continue
        try:
            named = place(file.read_text(encoding="utf-8").strip())
        except ValueError as error:
            raise BadInput(f"{file}: names no checkpoint") from error
        if named in ("", ".", "..") or Path(named).name != named or not _is_own_folder(folder / named):
            raise BadInput(f"{file}: names {named!r}, which is no folder beside it")
        return folder / named
    return folder


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _contents(folder: Path) -> str:
    """A few of the folder's files, for an error's one line."""
    held = sorted(path.name for path in folder.iterdir())
    more = f" and {len(held) - 4} more" if len(held) > 4 else ""
    return (", ".join(held[:4]) + more) if held else "nothing"
