"""Adapter and encoder of a native checkpoint as plain safetensors, beside an exported text LLM.

adapter.safetensors      by the names of train/models/inputs/adapter.py
encoder.safetensors      where it is part of the model: by transformers' names of it inside of a Whisper, or FunASR's
audio_input.json         how they are used: the adapter's form and the encoder, and what slots hold
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from checkpoints.atomic import replacing, write_file
from checkpoints.dtypes import DTYPES
from checkpoints.formats.native import NativeReader
from checkpoints.layout import TENSORS
from checkpoints.manifest import MODEL_PREFIX
from checkpoints.maps.parts import SANM_ENCODER, WHISPER_ENCODER
from checkpoints.maps.parts.part import Part, foreign_tensors
from configs.audio_input import AudioInput
from configs.schema import EncoderConfig, EncoderKind, Precision
from runtime.exits import BadInput

ADAPTER_FILE = "adapter.safetensors"
ENCODER_FILE = "encoder.safetensors"
CONFIG_FILE = "audio_input.json"


def export_audio_input(native: Path, out: Path, audio: AudioInput, dtype: Precision) -> Path:
    """Write the folder `out`, which is returned. Raises BadInput where the checkpoint has no adapter, or not the
    encoder that `audio` says is part of the model."""
    reader = NativeReader(native / TENSORS)
    held = {name.removeprefix(MODEL_PREFIX) for name in reader.tensors if name.startswith(MODEL_PREFIX)}

    def read(name: str) -> torch.Tensor:
        return reader.read(MODEL_PREFIX + name).to(getattr(torch, DTYPES[dtype])).contiguous()

    adapter = {name.removeprefix("adapter."): read(name) for name in sorted(held) if name.startswith("adapter.")}
    if not adapter:
        raise BadInput(f"{native} has no adapter to export")
    with replacing(out) as partial:
        save_file(_unstacked(adapter), partial / ADAPTER_FILE)
        if audio.encoder.in_model:
            part, sizes = part_of(audio.encoder)
            encoder = foreign_tensors(part, held, read, sizes)
            save_file({name: tensor.contiguous() for name, tensor in encoder}, partial / ENCODER_FILE)
        described: dict[str, Any] = {"features": audio.features, "stride": audio.stride}
        for name, section in (("adapter", audio.adapter), ("encoder", audio.encoder)):
            described[name] = OmegaConf.to_container(OmegaConf.structured(section), enum_to_str=True)
        write_file(partial / CONFIG_FILE, json.dumps(described, indent=2) + "\n")
    return out


def part_of(encoder: EncoderConfig) -> tuple[Part, dict[str, int]]:
    """The encoder as its publishers name it, and what they call its depth."""
    if encoder.kind is EncoderKind.whisper:
        return WHISPER_ENCODER, {"encoder_layers": encoder.layers}
    further = {"tp_blocks": encoder.tp_layers} if encoder.kind is EncoderKind.sense_voice else {}
    return SANM_ENCODER, {"num_blocks": encoder.layers, **further}


def _unstacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Layers, which native checkpoints stack, one by one."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        head, layers, leaf = name.partition("layers.")
        parts = {f"{head}layers.{number}.{leaf}": one.clone() for number, one in enumerate(tensor)} if layers else {}
        found |= parts or {name: tensor}
    return found
