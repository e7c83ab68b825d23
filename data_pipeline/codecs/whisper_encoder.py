"""The encoder half of Whisper: hidden states of its layers, 50 a second.

Whisper was trained on windows padded to 30 s. Its positions are fixed sinusoids, so that a shorter input is the
start of such a window; encoding only the sound there is costs a fraction, and no code depends on its batch.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.ctranslate2_file import read_variables
from data_pipeline.packages import PACKAGE, only_file, package_folder, package_version
from runtime.exits import BadInput

if TYPE_CHECKING:
    import torch
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

RATE = 50  # hidden states a second
WINDOW = 30  # seconds, the longest input
_HOP = 160  # samples a mel frame; two mel frames make a hidden state


def encoder_identity(spec: str) -> str:
    """What determines the features beside the sound, for content hashes. Raises BadInput for a missing package."""
    if spec.startswith(PACKAGE):
        name = spec.removeprefix(PACKAGE)
        return f"{package_folder(name).name} {package_version(name)}"
    weights = sorted(Path(spec).glob("*.safetensors")) if Path(spec).is_dir() else []
    return " ".join([spec, *(f"{file.name} {file.stat().st_size}" for file in weights)])


def load_encoder(spec: str) -> WhisperEncoder:
    """A Whisper encoder, float32, from `package:<name>`, a Hugging Face folder or a hub name."""
    from transformers import WhisperModel
    from transformers.utils import logging

    if spec.startswith(PACKAGE):
        return _from_ctranslate2(only_file(package_folder(spec.removeprefix(PACKAGE)), "model.bin"))
    logging.disable_progress_bar()
    try:
        return WhisperModel.from_pretrained(spec, use_safetensors=True).encoder.float().eval()
    except (OSError, ValueError) as error:
        raise BadInput(f"codec.encoder={spec} is not a Whisper folder, hub name or package: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _from_ctranslate2(file: Path) -> WhisperEncoder:
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    stored = {k.removeprefix("encoder/"): v for k, v in read_variables(file).items() if k.startswith("encoder/")}
    layers = sum(name.endswith("/ffn/linear_0/weight") for name in stored)
    width = len(stored["conv1/bias"])
    config = WhisperConfig(
        num_mel_bins=stored["conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=int(stored["num_heads"]),
        encoder_ffn_dim=len(stored["layer_0/ffn/linear_0/bias"]),
        max_source_positions=len(stored["position_encodings/encodings"]),
        attn_implementation="sdpa",
    )
    state: dict[str, np.ndarray] = {"embed_positions.weight": stored["position_encodings/encodings"]}
    for name in ("conv1", "conv2"):
        state[f"{name}.weight"], state[f"{name}.bias"] = stored[f"{name}/weight"], stored[f"{name}/bias"]
    norms = {"layer_norm": "layer_norm"}
    for index in range(layers):
        ours, theirs = f"layers.{index}", f"layer_{index}"
        norms[f"{ours}.self_attn_layer_norm"] = f"{theirs}/self_attention/layer_norm"
        norms[f"{ours}.final_layer_norm"] = f"{theirs}/ffn/layer_norm"
        for part, linear in (
            ("self_attn.out_proj", "self_attention/linear_1"),
            ("fc1", "ffn/linear_0"),
            ("fc2", "ffn/linear_1"),
        ):
            state[f"{ours}.{part}.weight"] = stored[f"{theirs}/{linear}/weight"]
            state[f"{ours}.{part}.bias"] = stored[f"{theirs}/{linear}/bias"]
        for row, part in enumerate(("q_proj", "k_proj", "v_proj")):  # stacked in one linear; keys have no bias
            rows = slice(row * width, (row + 1) * width)
            state[f"{ours}.self_attn.{part}.weight"] = stored[f"{theirs}/self_attention/linear_0/weight"][rows]
            if part != "k_proj":
                state[f"{ours}.self_attn.{part}.bias"] = stored[f"{theirs}/self_attention/linear_0/bias"][rows]
    for ours, theirs in norms.items():
        state[f"{ours}.weight"], state[f"{ours}.bias"] = stored[f"{theirs}/gamma"], stored[f"{theirs}/beta"]
    with torch.device("meta"):
        encoder = WhisperEncoder(config)
    encoder.load_state_dict(
        {name: torch.from_numpy(value.astype(np.float32)) for name, value in state.items()}, strict=True, assign=True
    )
    return encoder.eval()


class WhisperFeatures:
    """Hidden states of chosen encoder layers."""

    def __init__(self, spec: str) -> None:
        from transformers import WhisperFeatureExtractor

        self._encoder = load_encoder(spec)
        self._mel = WhisperFeatureExtractor(feature_size=self._encoder.config.num_mel_bins)
        self.layers = len(self._encoder.layers)

    def hidden_states(self, wave: np.ndarray, layers: Collection[int]) -> dict[int, np.ndarray]:
        """float32 [frames, width] by layer (1 is the first), frames = samples / 320 rounded down, at least one.

        The last layer's states have passed the encoder's final norm, as Whisper's decoder sees them. Raises
        BadInput for a wave longer than 30 s or a layer the encoder does not have.
        """
        import torch

        wanted = [layer for layer in layers if not 1 <= layer <= self.layers]
        if wanted:
            raise BadInput(f"codec layer {wanted[0]}: the encoder has layers 1 to {self.layers}")
        if len(wave) > WINDOW * SAMPLE_RATE:
            raise BadInput(f"an utterance of {len(wave) / SAMPLE_RATE:.1f} s is longer than the encoder's {WINDOW} s")
        with torch.inference_mode():
            hidden = self._embed(self._log_mel(wave))
            states = {}
            for number, layer in enumerate(self._encoder.layers, 1):
                hidden = layer(hidden, None)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
                if number in layers:
                    normed = self._encoder.layer_norm(hidden) if number == self.layers else hidden
                    states[number] = normed[0].numpy()
                if number == max(layers):
                    break
        return states

    def _log_mel(self, wave: np.ndarray) -> torch.Tensor:
        """float32 [1, mels, mel frames], an even number of frames."""
        import torch

        samples = max(len(wave) // (2 * _HOP), 1) * 2 * _HOP
        padded = np.pad(wave, (0, max(samples - len(wave), 0)))[:samples]
        features = self._mel(
            padded, sampling_rate=SAMPLE_RATE, padding="do_not_pad", truncation=False, return_tensors="np"
        )
        return torch.from_numpy(features["input_features"])

    def _embed(self, mel: torch.Tensor) -> torch.Tensor:
        """float32 [1, frames, width]: the encoder's convolutions and positions."""
        from torch.nn.functional import gelu

        hidden = gelu(self._encoder.conv2(gelu(self._encoder.conv1(mel)))).transpose(1, 2)
        return hidden + self._encoder.embed_positions.weight[: hidden.shape[1]]
