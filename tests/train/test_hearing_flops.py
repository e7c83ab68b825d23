"""What encoder and adapter take of a step, against what torch counts as their modules run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from configs.audio_input import AudioInput, audio_input_of
from configs.schema import AdapterConfig, AdapterKind, Config, EncoderConfig, EncoderKind
from data_pipeline.batch import FeatureSlots
from tests.launch.planner.configs import tiny
from train.audio_input import Heard, heard_passes, of_audio_input
from train.models.inputs.adapter import make_adapter
from train.models.inputs.encoder import make_encoder
from train.models.inputs.runs import Runs
from train.progress import heard_in

STRIDE, PLACES = 4, 12
VECTORS = STRIDE * PLACES
SANM: dict[str, Any] = {"kind": EncoderKind.sense_voice, "tp_layers": 3, "positions": None}


def hearing(adapter: AdapterKind, **encoder: Any) -> Config:
    config = tiny()
    sizes: dict[str, Any] = {"mels": 8, "width": 16, "layers": 2, "heads": 2, "ffn": 32, "positions": 60}
    config.encoder = EncoderConfig(name="toy", **({"in_model": True} | sizes | encoder))
    config.adapter = AdapterConfig(kind=adapter, stride=STRIDE, hidden=24, heads=4)
    return config


def audio_of(config: Config) -> AudioInput:
    audio = audio_input_of(config)
    assert audio is not None
    return audio


@pytest.mark.parametrize(
    ("kind", "encoder"),
    [
        *((kind, {}) for kind in AdapterKind),
        (AdapterKind.mlp, {"kind": EncoderKind.sense_voice, "tp_layers": 3, "positions": None}),
        (AdapterKind.mlp, {"kind": EncoderKind.paraformer, "kernel": 5}),
    ],
)
def test_what_a_model_hears_with_has_the_names_and_sizes_of_its_modules(
    kind: AdapterKind, encoder: dict[str, Any]
) -> None:
    config = hearing(kind, **encoder)
    audio = audio_of(config)
    modules = {"adapter": make_adapter(audio, config.backbone.hidden), "encoder": make_encoder(audio.encoder)}
    held = {
        f"{part}.{name}": parameter.numel()
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    assert of_audio_input(config) == held
    outside = replace(config, encoder=replace(audio.encoder, in_model=False))
    assert of_audio_input(outside) == {name: size for name, size in held.items() if name.startswith("adapter.")}
    assert of_audio_input(tiny()) == {}


TRAINED: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "adapter": lambda name: name.startswith("adapter."),
    "last layer up": lambda name: fnmatch(name, "adapter.*") or ".1." in name,
    "a norm": lambda name: name in ("encoder.layer_norm.weight", "encoder.after_norm.weight"),
    "a weight inside": lambda name: name.endswith(("layers.1.self_attn.out_proj.weight", "encoders.0.norm2.bias")),
    "the adapter's last": lambda name: name in ("adapter.linear_2.weight", "adapter.linear.weight"),
}


OUTSIDE = {"in_model": False}


@pytest.mark.parametrize(
    ("kind", "encoder", "which"),
    [
        *((AdapterKind.mlp, ears, which) for ears in ({}, SANM) for which in TRAINED if which != "the adapter's last"),
        *((kind, OUTSIDE, which) for kind in list(AdapterKind)[1:] for which in ("all", "the adapter's last")),
    ],
)
def test_flops_are_those_that_torch_counts(kind: AdapterKind, encoder: dict[str, Any], which: str) -> None:
    config, trains = hearing(kind, **encoder), TRAINED[which]
    audio = audio_of(config)
    inside = audio.encoder.in_model
    frames = VECTORS * audio.inputs if inside else VECTORS
    ears = make_encoder(audio.encoder) if inside else None
    adapter = make_adapter(audio, config.backbone.hidden)
    for part, module in (("encoder", ears), ("adapter", adapter)):
        for name, parameter in module.named_parameters() if module is not None else ():
            parameter.requires_grad_(trains(f"{part}.{name}"))
    runs = Runs(torch.randn(frames, audio.width), torch.tensor([0, frames]), frames)
    # Torch's figure of a convolution's gradient knows no groups.
    memory = {torch.ops.aten.convolution_backward: _of_convolution}
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            if ears is not None:  # which gives a few vectors more, of nothing
                runs = _cut(ears(runs))
            heard = adapter(runs, torch.full((PLACES,), STRIDE))
        with FlopCounterMode(display=False, custom_mapping=memory) as backward:
            heard.sum().backward()
    passes = list(heard_passes(config, Heard(frames, VECTORS, PLACES, VECTORS**2, VECTORS**2), trains))
    assert sum(one.forward for one in passes) == forward.get_total_flops()
    assert sum(one.backward for one in passes) == backward.get_total_flops()


def _cut(vectors: Runs) -> Runs:
    return Runs(vectors.frames[:VECTORS], vectors.ends, vectors.longest)


def _of_convolution(made: Any, read: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """2 a weight, row and place that it makes, for each of the gradients of weight and input that are asked for."""
    once = 2 * int(np.prod(weight)) * made[0] * made[2]
    return once * sum(gradient is not None for gradient in out_shape[:2])


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ({"in_model": False}, Heard(130, 130, 33, 2 * 60**2 + 10**2, 130**2)),
        ({}, Heard(130, 65, 17, 60**2 + 5**2, 65**2)),
        (SANM, Heard(130, 130, 33, 130**2, 130**2)),
    ],
)
def test_what_is_heard_is_counted_of_slots(encoder: dict[str, Any], expected: Heard) -> None:
    audio = audio_of(hearing(AdapterKind.mlp, **encoder))
    run = FeatureSlots(audio.features, np.zeros((130, audio.width), np.float16), audio.stride, start=3)
    other = replace(run, encoder="another")
    assert heard_in(audio, [run, other]) == expected
    assert heard_in(audio, [run, run]) == Heard(*(2 * number for number in expected))
