"""The decoder of a CTranslate2 Whisper, under the names that transformers gives its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.codecs.ctranslate2_file import read_variables
from data_pipeline.packages import PACKAGE, only_file, package_folder
from runtime.exits import BadInput

if TYPE_CHECKING:
    import torch


def read_packages(spec: str) -> tuple[dict[str, np.ndarray], Path]:
    """Variables of the model that `package:<first>+<second>` carry, and the folder of its tokenizer and settings.

    Raises BadInput where they are not installed or not whole.
    """
    folders = [package_folder(name) for name in spec.removeprefix(PACKAGE).split("+")]
    parts = [only_file(folder, "model.bin*") for folder in folders]
    holders = [part.parent for part in parts if (part.parent / "tokenizer.json").is_file()]
    if not holders or not (holders[0] / "config.json").is_file():
        raise BadInput(f"{spec}: no tokenizer.json and config.json beside model.bin")
    return read_variables(*parts), holders[0]


def decoder_state(variables: Mapping[str, np.ndarray]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """float32 tensors of the decoder and of the output by transformers' names, and the sizes that its config needs."""
    import torch

    held = {name.removeprefix("decoder/"): value for name, value in variables.items() if name.startswith("decoder/")}
    layers = sum(name.endswith("/ffn/linear_0/weight") for name in held)
    vocabulary, width = held["embeddings/weight"].shape
    state = {"embed_tokens.weight": held["embeddings/weight"]}
    state["embed_positions.weight"] = held["position_encodings/encodings"]
    norms = {"layer_norm": "layer_norm"}
    for index in range(layers):
        ours, theirs = f"layers.{index}", f"layer_{index}"
        norms[f"{ours}.self_attn_layer_norm"] = f"{theirs}/self_attention/layer_norm"
        norms[f"{ours}.encoder_attn_layer_norm"] = f"{theirs}/attention/layer_norm"
        norms[f"{ours}.final_layer_norm"] = f"{theirs}/ffn/layer_norm"
        linears = [
            ("self_attn.out_proj", f"{theirs}/self_attention/linear_1"),
            ("encoder_attn.q_proj", f"{theirs}/attention/linear_0"),
            ("encoder_attn.out_proj", f"{theirs}/attention/linear_2"),
            ("fc1", f"{theirs}/ffn/linear_0"),
            ("fc2", f"{theirs}/ffn/linear_1"),
        ]
        for part, linear in linears:
            state[f"{ours}.{part}.weight"], state[f"{ours}.{part}.bias"] = (
                held[f"{linear}/weight"],
                held[f"{linear}/bias"],
            )
        stacked = (
            ("self_attn", f"{theirs}/self_attention/linear_0", ("q_proj", "k_proj", "v_proj")),
            ("encoder_attn", f"{theirs}/attention/linear_1", ("k_proj", "v_proj")),
        )
        for part, linear, projections in stacked:
            for row, projection in enumerate(projections):  # keys have no bias
                rows = slice(row * width, (row + 1) * width)
                state[f"{ours}.{part}.{projection}.weight"] = held[f"{linear}/weight"][rows]
                if projection != "k_proj":
                    state[f"{ours}.{part}.{projection}.bias"] = held[f"{linear}/bias"][rows]
    for ours, theirs in norms.items():
        state[f"{ours}.weight"], state[f"{ours}.bias"] = held[f"{theirs}/gamma"], held[f"{theirs}/beta"]
    tensors = {f"model.decoder.{name}": torch.from_numpy(value.astype(np.float32)) for name, value in state.items()}
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
    end = vocabulary - 1608  # <|endoftext|>: special tokens follow it, as many in English Whispers as in others
    sizes = {
        "vocab_size": vocabulary,
        "decoder_layers": layers,
        "decoder_attention_heads": int(variables["decoder/num_heads"]),
        "decoder_ffn_dim": len(held["layer_0/ffn/linear_0/bias"]),
        "max_target_positions": len(held["position_encodings/encodings"]),
    }
    return tensors, sizes | dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), end
    )
