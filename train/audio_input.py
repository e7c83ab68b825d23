"""Adapter and encoder of a model that hears: their parameters by name, and what they compute.

Names and sizes are those of `train.models.inputs`; all of them stand whole on every rank of the first pipeline stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from configs.audio_input import MEL, RATES, AudioInput, audio_input_of, feature_width
from configs.schema import AdapterKind, Config, EncoderConfig, EncoderKind
from train.flops import ProductFlops

_CLIP = 30  # seconds that sound is taken to have at a time where an encoder has no window


def of_audio_input(config: Config) -> dict[str, int]:
    """Elements of every parameter that a model has to hear with; none where it hears through codes alone."""
    audio = audio_input_of(config)
    if audio is None:
        return {}
    held = {f"adapter.{name}": size for name, size in _adapter(audio, config.backbone.hidden).items()}
    if audio.encoder.in_model:
        held |= {f"encoder.{name}": size for name, size in _encoder(audio.encoder).items()}
    return held


class Heard(NamedTuple):
    """What is heard in some packs: frames that the encoder reads, vectors that it gives, places of the sequence that
    the adapter makes of these; attended, adapted: summed over vectors, how many each attends to in the encoder and in
    the adapter's layers."""

    frames: float = 0.0
    vectors: float = 0.0
    places: float = 0.0
    attended: float = 0.0
    adapted: float = 0.0


def most_heard(audio: AudioInput, places: int) -> Heard:
    """Where all of so many places are heard, of clips as long as the encoder's window, or 30 s where it has none."""
    vectors, clip = places * audio.adapter.stride, clip_of(audio.encoder)
    return Heard(vectors * audio.inputs, vectors, places, vectors * clip, vectors * clip)


def clip_of(encoder: EncoderConfig) -> int:
    """Vectors that sound is taken to have at a time, where nothing tells."""
    return encoder.positions or round(_CLIP / RATES[encoder.kind].seconds)


def heard_passes(config: Config, heard: Heard, trains: Callable[[str], bool]) -> Iterator[ProductFlops]:
    """FLOPs of encoder, where it is in the model, and adapter, product by product in the order of the forward pass;
    none of a model that hears through codes alone. `trains`: whether the parameter of a name learns.

    As `train.flops.step_flops` counts: a matrix or convolution of n elements takes 2 n for each frame, vector or place
    that it makes, attention over all of a window 4 w a for a vector that attends to a others, w its width. Backward,
    2 n more for a weight that learns, and 2 n for the gradient of what the product reads, which is asked for where
    anything before it learns: nothing of a frozen encoder, but all of a frozen layer above one that learns. Attention's
    backward pass then counts whole, twice its forward one.
    """
    sizes = of_audio_input(config)
    below = into = False
    for product in _products(config, heard):
        below = below or any(name in sizes and trains(name) for name in product.before)
        into = into if product.beside else below
        if product.attention:
            forward, backward = product.attention, 2 * product.attention * below
        else:
            weight = f"{product.name}.weight"
            forward = 2.0 * sizes[weight] * product.times
            backward = (into + trains(weight)) * forward
            below = below or trains(weight) or trains(f"{product.name}.bias")
        yield ProductFlops(product.name, -1, 0, 0, forward, backward, 0.0, below)


class _Product(NamedTuple):
    """name: of its module; times: how many it makes, unless it is attention's own two, of so many FLOPs. before: other
    parameters that what it reads has passed since the product before; beside: it reads what that one reads."""

    name: str
    times: float = 0.0
    before: tuple[str, ...] = ()
    beside: bool = False
    attention: float = 0.0


def _products(config: Config, heard: Heard) -> Iterator[_Product]:
    audio = audio_input_of(config)
    if audio is None:
        return
    encoder, adapter = audio.encoder, audio.adapter
    normed: tuple[str, ...] = ()
    if encoder.in_model:
        if encoder.kind is EncoderKind.whisper:
            yield _Product("encoder.conv1", heard.frames)
            yield _Product("encoder.conv2", heard.vectors)
            places = ("encoder.embed_positions.weight",)
            yield from _layers_over(
                "encoder.layers", encoder.layers, encoder.width, heard.vectors, heard.attended, places
            )
            normed = _both("encoder.layer_norm")
        else:
            yield from _sanm_over(encoder, heard)
            normed = (*_both("encoder.after_norm"), *_both("encoder.tp_norm"))
    if adapter.kind is AdapterKind.transformer:
        yield from _layers_over("adapter.layers", adapter.layers, encoder.width, heard.vectors, heard.adapted, normed)
        yield _Product("adapter.conv", heard.places, _both("adapter.layer_norm"))
        yield _Product("adapter.linear", heard.places)
    else:
        count = heard.places if adapter.kind is AdapterKind.mlp else heard.vectors
        yield _Product("adapter.linear_1", count, normed)
        yield _Product("adapter.linear_2", count)


def _layers_over(
    at: str, layers: int, width: int, count: float, attended: float, before: tuple[str, ...]
) -> Iterator[_Product]:
    for number in range(layers):
        layer = f"{at}.{number}"
        yield _Product(f"{layer}.self_attn.q_proj", count, (*before, *_both(f"{layer}.self_attn_layer_norm")))
        yield _Product(f"{layer}.self_attn.k_proj", count, beside=True)
        yield _Product(f"{layer}.self_attn.v_proj", count, beside=True)
        yield _Product(f"{layer}.self_attn", attention=4.0 * width * attended)
        yield _Product(f"{layer}.self_attn.out_proj", count)
        yield _Product(f"{layer}.fc1", count, _both(f"{layer}.final_layer_norm"))
        yield _Product(f"{layer}.fc2", count)


def _sanm_over(encoder: EncoderConfig, heard: Heard) -> Iterator[_Product]:
    """A block's memory reads what its attention does, and is added behind that one's last product."""
    blocks = [("encoders0", 1), ("encoders", encoder.layers - 1), ("tp_encoders", encoder.tp_layers)]
    for stack, number in ((stack, number) for stack, count in blocks for number in range(count)):
        block, count = f"encoder.{stack}.{number}", heard.vectors
        before = _both("encoder.after_norm") if stack == "tp_encoders" else ()
        yield _Product(f"{block}.self_attn.linear_q_k_v", count, (*before, *_both(f"{block}.norm1")))
        yield _Product(f"{block}.self_attn", attention=4.0 * encoder.width * heard.attended)
        yield _Product(f"{block}.self_attn.linear_out", count)
        yield _Product(f"{block}.self_attn.fsmn_block", count, beside=True)
        yield _Product(f"{block}.feed_forward.w_1", count, _both(f"{block}.norm2"))
        yield _Product(f"{block}.feed_forward.w_2", count)


def _both(norm: str) -> tuple[str, str]:
    return f"{norm}.weight", f"{norm}.bias"


# --- names and sizes ----------------------------------------------------------------------------------------------


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
