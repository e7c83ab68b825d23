"""What sizes an encoder's published weights have, found without loading them, beside those that the options say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from configs.audio_input import STACKED
from configs.schema import EncoderConfig, EncoderKind
from data_pipeline.codecs.ctranslate2_file import read_variables
from data_pipeline.codecs.weights import find_file, one_line, read_config, read_state
from data_pipeline.packages import PACKAGE, only_file, package_folder
from runtime.exits import BadInput

SETTING = "encoder.weights"
_WHISPER = {  # option: what config.json of transformers calls it
    "mels": "num_mel_bins",
    "width": "d_model",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "ffn": "encoder_ffn_dim",
    "positions": "max_source_positions",
}


def check_sizes(encoder: EncoderConfig) -> None:
    """Raise BadInput where `encoder.weights` are not there, or have other sizes than the options say. A hub name is
    taken as it is: what it leads to is told when it was fetched."""
    spec = encoder.weights
    if spec is None or not (spec.startswith(PACKAGE) or Path(spec).exists()):
        return
    found = _of_whisper(spec) if encoder.kind is EncoderKind.whisper else _of_sanm(spec)
    for option, size in found.items():
        if size != getattr(encoder, option):
            raise BadInput(f"encoder.{option}={getattr(encoder, option)}: {SETTING}={spec} has {size}")


def _of_whisper(spec: str) -> dict[str, int]:
    """By option, those that a config.json leaves out left out."""
    if spec.startswith(PACKAGE):
        stored = read_variables(only_file(package_folder(spec.removeprefix(PACKAGE)), "model.bin"))
        if "encoder/num_heads" not in stored:
            raise BadInput(f"{SETTING}={spec} is no Whisper: its model has no encoder/num_heads")
        return {
            "mels": stored["encoder/conv1/weight"].shape[1],
            "width": len(stored["encoder/conv1/bias"]),
            "layers": sum(name.startswith("encoder/") and name.endswith("/ffn/linear_0/weight") for name in stored),
            "heads": int(stored["encoder/num_heads"]),
            "ffn": len(stored["encoder/layer_0/ffn/linear_0/bias"]),
            "positions": len(stored["encoder/position_encodings/encodings"]),
        }
    settings: dict[str, Any] = read_config(spec, SETTING)
    find_file(spec, SETTING, "model.safetensors.index.json", "model.safetensors")
    return {option: settings[key] for option, key in _WHISPER.items() if key in settings}


def _of_sanm(spec: str) -> dict[str, int]:
    """By option, all but heads, which shapes do not tell."""
    file = find_file(spec, SETTING, "model.safetensors", "model.pt")
    shapes = {name.removeprefix("encoder."): shape for name, shape in _shapes(file).items()}

    def blocks(stack: str) -> int:
        return sum(name.startswith(f"{stack}.") and name.endswith(".norm1.weight") for name in shapes)

    try:
        return {
            "mels": shapes["encoders0.0.norm1.weight"][0] // STACKED,
            "width": shapes["after_norm.weight"][0],
            "layers": blocks("encoders0") + blocks("encoders"),
            "tp_layers": blocks("tp_encoders"),
            "ffn": shapes["encoders0.0.feed_forward.w_1.weight"][0],
            "kernel": shapes["encoders0.0.self_attn.fsmn_block.weight"][2],
        }
    except (KeyError, IndexError) as error:
        raise BadInput(f"{SETTING}: {file} holds no encoder of encoder.kind's form: no {error}") from error


def _shapes(file: Path) -> dict[str, list[int]]:
    if file.suffix != ".safetensors":
        return {name: list(tensor.shape) for name, tensor in read_state(file, SETTING, data=False).items()}
    try:
        with safe_open(file, framework="np") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{SETTING}: {file} is damaged: {one_line(error)}") from error
