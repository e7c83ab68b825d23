"""The encoder half of Whisper: hidden states of its layers, 50 a second.

Whisper was trained on windows padded to 30 s. Its positions are fixed sinusoids, so that a shorter input is the
start of such a window; encoding only the sound there is costs a fraction. Padding that a batch needs is masked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.codecs.batching import attention_mask, batch_samples, batches, padded, windows
from data_pipeline.codecs.ctranslate2_file import read_variables
from data_pipeline.codecs.log_mel import LogMel
from data_pipeline.codecs.weights import from_pretrained
from data_pipeline.packages import PACKAGE, only_file, package_folder
from runtime.exits import BadInput

if TYPE_CHECKING:
    import torch
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

RATE = 50  # hidden states a second
WINDOW = 30  # seconds, the longest input
FRAME = 320  # samples a hidden state


def load_encoder(spec: str, part: str = "encoder") -> WhisperEncoder:
    """A Whisper encoder, float32, from `package:<name>`, a Hugging Face folder or a hub name."""
    from transformers import WhisperModel

    if spec.startswith(PACKAGE):
        return encoder_of(read_variables(only_file(package_folder(spec.removeprefix(PACKAGE)), "model.bin")))
    return from_pretrained(WhisperModel, spec, part).encoder


def encoder_of(variables: Mapping[str, np.ndarray]) -> WhisperEncoder:
    """The encoder among the variables of a CTranslate2 Whisper."""
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    stored = {k.removeprefix("encoder/"): v for k, v in variables.items() if k.startswith("encoder/")}
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
    """Hidden states of chosen encoder layers, of many waves at once."""

    def __init__(
        self, spec: str, device: str = "cpu", batch_seconds: float | None = None, part: str = "encoder"
    ) -> None:
        """`part`: what the weights are to the configuration, see `weights.setting`."""
        self._encoder = load_encoder(spec, part).to(device)
        self._mel = LogMel(self._encoder.config.num_mel_bins, device)
        self._device = device
        self._budget = batch_samples(batch_seconds, device, SAMPLE_RATE)
        self.layers = len(self._encoder.layers)
        self.width = int(self._encoder.config.d_model)

    def hidden_states(self, waves: Sequence[np.ndarray], layers: Collection[int]) -> list[dict[int, np.ndarray]]:
        """float32 [frames, width] of each wave by layer (1 is the first), frames = samples / 320 rounded down, at
        least one. A wave longer than 30 s is encoded as windows of that length.

        The last layer's states have passed the encoder's final norm, as Whisper's decoder sees them. Raises
        BadInput for a layer the encoder does not have.
        """
        wanted = [layer for layer in layers if not 1 <= layer <= self.layers]
        if wanted:
            raise BadInput(f"codec layer {wanted[0]}: the encoder has layers 1 to {self.layers}")
        pieces, owners = windows([whole_frames(wave) for wave in waves], WINDOW * SAMPLE_RATE)
        encoded: list[dict[int, np.ndarray]] = [{} for _ in pieces]
        for batch in batches([len(piece) for piece in pieces], self._budget):
            for index, states in zip(batch, self._encode([pieces[i] for i in batch], layers), strict=True):
                encoded[index] = states
        of: list[list[dict[int, np.ndarray]]] = [[] for _ in waves]
        for owner, states in zip(owners, encoded, strict=True):
            of[owner].append(states)
        return [{layer: np.concatenate([states[layer] for states in parts]) for layer in layers} for parts in of]

    def _encode(self, pieces: list[np.ndarray], layers: Collection[int]) -> list[dict[int, np.ndarray]]:
        """States of windows of sound, each a whole number of frames."""
        import torch

        lengths = [len(piece) // FRAME for piece in pieces]
        with torch.inference_mode():
            hidden = self._embed(padded([self._mel(piece) for piece in pieces]))
            mask = attention_mask(lengths, self._device)
            states: list[dict[int, np.ndarray]] = [{} for _ in pieces]
            for number, layer in enumerate(self._encoder.layers[: max(layers)], 1):
                hidden = layer(hidden, mask)
                if number in layers:
                    normed = self._encoder.layer_norm(hidden) if number == self.layers else hidden
                    for of, sound, length in zip(states, normed.cpu().numpy(), lengths, strict=True):
                        of[number] = sound[:length]
        return states

    def _embed(self, mel: torch.Tensor) -> torch.Tensor:
        """float32 [sounds, frames, width]: the encoder's convolutions and positions, of mels padded with zeros."""
        from torch.nn.functional import gelu

        hidden = gelu(self._encoder.conv2(gelu(self._encoder.conv1(mel)))).transpose(1, 2)
        return hidden + self._encoder.embed_positions.weight[: hidden.shape[1]]


def whole_frames(wave: np.ndarray) -> np.ndarray:
    """`wave` cut to a whole number of frames, or padded with silence to one."""
    samples = max(len(wave) // FRAME, 1) * FRAME
    return np.pad(wave, (0, max(samples - len(wave), 0)))[:samples]
