"""Small native checkpoints made of given tensors, without a model or a process group."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from checkpoints.derived import Part, write_parts
from checkpoints.formats.native import COMMON_FILE, NativeReader
from checkpoints.layout import STATE_FILE, TENSORS
from checkpoints.manifest import Manifest, TensorRecord, count_parameters, record_files, write_manifest
from checkpoints.slices import slices

VOCABULARY = {
    "text_size": 10,
    "specials": ["<|a|>", "<|b|>"],
    "multiple": 4,
    "ranges": {"text": [0, 10], "special": [10, 12], "code": [12, 17]},
}
ROWS = 20


def weights(seed: int = 0, dtype: torch.dtype = torch.float32, tied: bool = True) -> dict[str, torch.Tensor]:
    """Parameters of a two-layer model, some of them stacked, by native name."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embedding.word_embeddings.weight": (ROWS, 6),
        "model.decoder.layers.mlp.linear_fc2.weight": (2, 6, 4),
        "model.decoder.layers.mlp.linear_fc1.layer_norm_weight": (2, 6),
        "model.decoder.final_layernorm.weight": (6,),
        **({} if tied else {"model.output_layer.weight": (ROWS, 6)}),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def trained(parameters: Mapping[str, torch.Tensor], masters: bool = False) -> dict[str, torch.Tensor]:
    """The same with Adam's state beside them."""
    kinds = ("exp_avg", "exp_avg_sq", *(("fp32_param",) if masters else ()))
    state = {
        f"optimizer.state.{kind}.{name}": tensor.float() + 1e-4 * (number + 1)
        for number, kind in enumerate(kinds)
        for name, tensor in parameters.items()
    }
    return {**parameters, **state}


def make_native(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    step: int = 3,
    texts: Mapping[str, str] | None = None,
    **manifest: Any,
) -> Path:
    """A native checkpoint of `tensors`, in two files; `texts` lie beside them by name, `manifest` are further fields of
    its manifest."""
    records = {name: TensorRecord(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}

    def of(name: str, layer: int | None) -> torch.Tensor:
        return tensors[name] if layer is None else tensors[name][layer]

    parts = [Part.of(s, lambda s=s: of(s.name, s.layer)) for s in slices(records)]
    folder.mkdir(parents=True)
    written, _ = write_parts(folder / TENSORS, [parts[::2], parts[1::2]], "testing")
    torch.save({"optimizer": {"step": step}}, folder / TENSORS / COMMON_FILE)
    (folder / STATE_FILE).write_text(json.dumps({"progress": {"step": step}}))
    for name, text in {"config.yaml": "a: 1\n", **(texts or {})}.items():
        (folder / name).write_text(text)
    fields = {"topology": {"tensor": 2}, "vocabulary": VOCABULARY, **manifest}
    files = record_files(folder, {})
    write_manifest(
        folder, Manifest(step=step, tensors=written, parameters=count_parameters(written), files=files, **fields)
    )
    return folder


def read_native(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a native checkpoint, whole."""
    reader = NativeReader(folder / TENSORS)
    return {name: reader.read(name) for name in reader.tensors}
