"""Low-rank updates in native checkpoints: merged into the weights they update, one tensor at a time.

A checkpoint of a stage with LoRA holds, beside `NAME.weight` [out, in], `NAME.lora_a` [rank, in] and `NAME.lora_b`
[out, rank], and in its manifest's origin the `alpha` they were trained with. The model's weight is
W + (alpha / rank) B A (Hu et al. 2021, 2106.09685, eq. 3); `train.models.lora` trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from checkpoints.formats.native import NativeReader
from checkpoints.layout import TENSORS
from checkpoints.manifest import MODEL_PREFIX, TensorRecord, read_manifest
from checkpoints.slices import Slice, slices
from checkpoints.strips import Strips
from configs.parameter_names import LORA_A, LORA_B, is_lora
from configs.schema import LoraConfig
from runtime.exits import BadInput, StoppedEarly

ORIGIN = "lora"


def origin(lora: LoraConfig | None) -> dict[str, Any]:
    """What a checkpoint's manifest keeps of the stage's updates, so that they can be merged."""
    return {} if lora is None else {ORIGIN: {"rank": lora.rank, "alpha": lora.alpha}}


def updated(tensors: Mapping[str, TensorRecord]) -> list[str]:
    """Names of the weights that a checkpoint holds updates of; `tensors` as its manifest lists them."""
    return sorted(
        f"{module}.weight"
        for module, _, leaf in (name.rpartition(".") for name in tensors)
        if leaf == LORA_A and module.startswith(MODEL_PREFIX)
    )


class MergedReader(NativeReader):
    """A native checkpoint read as if its low-rank updates were part of its weights. Optimiser state is not there."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint / TENSORS)
        self._updated = set(updated(self.tensors))
        self._scale = _scale(checkpoint) if self._updated else 0.0
        self.tensors = {
            name: record for name, record in self.tensors.items() if name.startswith(MODEL_PREFIX) and not is_lora(name)
        }

    def read(self, name: str, layer: int | None = None) -> torch.Tensor:
        """The tensor with its update, summed in fp32 and rounded once to the weight's dtype."""
        weight = super().read(name, layer)
        if name not in self._updated:
            return weight
        module = name.removesuffix("weight")
        a, b = (super(MergedReader, self).read(module + leaf, layer).float() for leaf in (LORA_A, LORA_B))
        return (weight.float() + self._scale * (b @ a)).to(weight.dtype)

    def strips(self, name: str, layer: int | None = None) -> Strips:
        return Strips.of(self.read(name, layer)) if name in self._updated else super().strips(name, layer)


def merge(native: Path, out: Path, stop: object = None) -> Path:
    """Write the parameters of the checkpoint `native` as the checkpoint `out`, with its low-rank updates merged.

    Memory holds one tensor of one layer at a time. Optimiser state and the loader's place stay behind; vocabulary, its
    files and the config come along. Needs no process group. Returns `out`. Raises BadInput where `native` is damaged or
    holds no updates or the disk fails, StoppedEarly when `stop` turns true; `out` then is as it was.
    """
    from checkpoints.derived import Part, derive, sound

    with sound(native) as source:
        if not updated(source.tensors):
            raise BadInput(f"{native} holds no low-rank updates to merge")
        reader = MergedReader(native)

        def make(piece: Slice) -> torch.Tensor:
            if stop:
                raise StoppedEarly("merging stopped; nothing was kept, the same command starts it again")
            return piece.read(reader)

        parts = [Part.of(piece, partial(make, piece)) for piece in slices(reader.tensors)]
        kept = {key: value for key, value in source.origin.items() if key != ORIGIN}
        merged = {"checkpoint": native.name, **source.origin[ORIGIN]}
        return derive(native, out, [parts], doing="merging", topology={}, origin={**kept, "merged": merged})


def _scale(checkpoint: Path) -> float:
    try:
        said = read_manifest(checkpoint).origin[ORIGIN]
        return float(said["alpha"]) / int(said["rank"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BadInput(f"{checkpoint} holds low-rank updates, but its manifest does not say their alpha") from error
