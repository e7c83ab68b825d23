"""Hugging Face folders and native checkpoints that somebody has tampered with, and what a refusal has to be like."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.convert import import_huggingface
from checkpoints.inspect import verify
from checkpoints.manifest import record_file, record_files
from checkpoints.maps import of_backbone
from configs.schema import BackboneConfig
from runtime.exits import BadInput
from tests.checkpoints.models import backbone

ROWS = 24
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


def tiny() -> BackboneConfig:
    return backbone(layers=2, hidden=8, ffn=12, heads=2, kv_heads=1)


def weights() -> dict[str, torch.Tensor]:
    """All tensors of `tiny`, random."""
    torch.manual_seed(3)
    shapes = {EMBEDDING: (ROWS, 8), NORM: (8,)}
    for layer in range(2):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (8,),
                "post_attention_layernorm": (8,),
                "self_attn.q_proj": (8, 8),
                "self_attn.k_proj": (4, 8),
                "self_attn.v_proj": (4, 8),
                "self_attn.o_proj": (8, 8),
                "mlp.gate_proj": (12, 8),
                "mlp.up_proj": (12, 8),
                "mlp.down_proj": (8, 12),
            }.items()
        }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def write_source(folder: Path) -> Path:
    """A whole model in one file."""
    folder.mkdir(parents=True)
    config = {**of_backbone(tiny()).write_config(tiny()), "vocab_size": ROWS}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def split(folder: Path) -> dict[str, Any]:
    """The same model in two files; writes and returns the index."""
    held = weights()
    (folder / WEIGHTS).unlink()
    names = sorted(held)
    halves = (names[:9], names[9:])
    for file, part in zip(PARTS, halves, strict=True):
        save_file({name: held[name] for name in part}, folder / file)
    listed = {name: file for file, part in zip(PARTS, halves, strict=True) for name in part}
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in held.values())},
        "weight_map": listed,
    }
    write_index(folder, index)
    return index


def write_index(folder: Path, index: Any) -> None:
    (folder / INDEX).write_text(index if isinstance(index, str) else json.dumps(index))


def rewrite_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = split(folder)
    write_index(folder, change(index) or index)


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def rewrite_weights(folder: Path, **changes: Any) -> None:
    """Replace tensors, names with __ for dots; None takes one away."""
    held: dict[str, Any] = weights() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, folder / WEIGHTS)


def rewrite_header(
    folder: Path, change: Callable[[dict[str, Any]], Any], data: Callable[[bytes], bytes] = bytes
) -> None:
    """Change what the header says, as an object or, returned, as bytes; and the data behind it."""
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(changed or header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data(content[8 + length :]))


def write_native(folder: Path) -> Path:
    """A native checkpoint of the same model."""
    native = to_native(write_source(folder.parent / f"{folder.name}-source"), folder)
    assert verify(native) == []
    return native


def to_native(source: Path, native: Path) -> Path:
    return import_huggingface(source, native, tiny(), text_size=ROWS, padded_size=ROWS)


def change_manifest(native: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((native / "manifest.json").read_text())
    changed = change(manifest)
    (native / "manifest.json").write_text(changed if isinstance(changed, str) else json.dumps(manifest))


def vouch(native: Path) -> None:
    """Have the manifest give its files the hashes they have now, as whoever tampers would."""
    records = {name: asdict(record) for name, record in record_files(native, {}).items()}
    change_manifest(native, lambda manifest: manifest.update(files=records))


def replace_file(native: Path, name: str, content: bytes) -> None:
    """Put other bytes into a file of a checkpoint, and have the manifest vouch for them."""
    (native / name).write_bytes(content)
    record = asdict(record_file(native / name))
    change_manifest(native, lambda manifest: manifest["files"].update({name: record}))


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@contextmanager
def refused(parent: Path, says: str) -> Iterator[None]:
    """The block raises BadInput with one line that says so, and leaves in `parent` what was there, nothing more."""
    before = listing(parent)
    with pytest.raises(BadInput, match=says) as raised:
        yield
    said = str(raised.value)
    assert "\n" not in said and said.isprintable() and len(said) < 1000, said
    assert listing(parent) == before
