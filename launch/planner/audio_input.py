"""Adapter and encoder of a model that hears: their parameters by name, and what the adapter computes.

Names and sizes are those of `train.models.inputs`; all of them stand whole on every rank of the first pipeline stage.
"""

from __future__ import annotations

from configs.audio_input import MEL, AudioInput, audio_input_of, feature_width
from configs.schema import AdapterKind, Config, EncoderConfig, EncoderKind


def of_audio_input(config: Config) -> dict[str, int]:
    """Elements of every parameter that a model has to hear with; none where it hears through codes alone."""
    audio = audio_input_of(config)
    if audio is None:
        return {}
    held = {f"adapter.{name}": size for name, size in _adapter(audio, config.backbone.hidden).items()}
    if audio.encoder.in_model:
        held |= {f"encoder.{name}": size for name, size in _encoder(audio.encoder).items()}
    return held


def adapter_flops(config: Config) -> float:
    """FLOPs of a forward pass of the adapter over one packed row, all of whose places are heard: products of
    `pooling` and of layers are over vectors, all others over places."""
    assert config.adapter is not None
    adapter, places = config.adapter, config.train.sequence_length
    flops = 0.0
    for name, size in of_audio_input(config).items():
        if name.startswith("adapter.") and name.endswith(".weight") and "norm" not in name:
            each = adapter.kind is AdapterKind.pooling or name.startswith("adapter.layers.")
            flops += 2.0 * size * places * (adapter.stride if each else 1)
    return flops


def _adapter(audio: AudioInput, hidden: int) -> dict[str, int]:
    width, adapter = audio.encoder.width, audio.adapter
    if adapter.kind is AdapterKind.transformer:
        layers = _layers(adapter.layers, width, 4 * width)
        conv = {"conv.weight": width * width * adapter.stride, "conv.bias": width}
        return layers | _norm("layer_norm", width) | conv | _linear("linear", width, hidden)
    read = width * adapter.stride if adapter.kind is AdapterKind.mlp else width
    return _linear("linear_1", read, adapter.hidden) | _linear("linear_2", adapter.hidden, hidden)


def _encoder(encoder: EncoderConfig) -> dict[str, int]:
    return _whisper(encoder) if encoder.kind is EncoderKind.whisper else _sanm(encoder)


def _sanm(encoder: EncoderConfig) -> dict[str, int]:
    """SenseVoice-small's or Paraformer's: blocks whose first one takes features, and SenseVoice's further ones."""
    width, further = encoder.width, encoder.kind is EncoderKind.sense_voice

    def block(at: str, entering: int = width) -> dict[str, int]:
        parts = _norm("norm1", entering) | _norm("norm2", width)
        parts |= _linear("self_attn.linear_q_k_v", entering, 3 * width) | _linear("self_attn.linear_out", width, width)
        parts |= {"self_attn.fsmn_block.weight": width * encoder.kernel}
        parts |= _linear("feed_forward.w_1", width, encoder.ffn) | _linear("feed_forward.w_2", encoder.ffn, width)
        return {f"{at}.{name}": size for name, size in parts.items()}

    held = block("encoders0.0", feature_width(encoder, MEL))
    for number in range(encoder.layers - 1):
        held |= block(f"encoders.{number}")
    for number in range(encoder.tp_layers):
        held |= block(f"tp_encoders.{number}")
    return held | _norm("after_norm", width) | (_norm("tp_norm", width) if further else {})


def _whisper(encoder: EncoderConfig) -> dict[str, int]:
    """Whisper's (Radford et al. 2022, 2212.04356): two convolutions of three frames, then transformer
    layers over vectors with a table of positions."""
    width = encoder.width
    assert encoder.positions is not None, "checked"
    return {
        "conv1.weight": 3 * encoder.mels * width,
        "conv1.bias": width,
        "conv2.weight": 3 * width * width,
        "conv2.bias": width,
        "embed_positions.weight": encoder.positions * width,
        **_layers(encoder.layers, width, encoder.ffn),
        **_norm("layer_norm", width),
    }


def _layers(count: int, width: int, ffn: int) -> dict[str, int]:
    parts = _norm("self_attn_layer_norm", width) | _norm("final_layer_norm", width)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        parts |= _linear(f"self_attn.{name}", width, width)
    del parts["self_attn.k_proj.bias"]
    parts |= _linear("fc1", width, ffn) | _linear("fc2", ffn, width)
    return {f"layers.{number}.{name}": size for number in range(count) for name, size in parts.items()}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, int]:
    return {f"{name}.weight": inputs * outputs, f"{name}.bias": outputs}


def _norm(name: str, width: int) -> dict[str, int]:
    return {f"{name}.weight": width, f"{name}.bias": width}
