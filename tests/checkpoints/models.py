"""Tiny random Hugging Face models and their backbones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from checkpoints.maps import of_backbone
from configs.schema import BackboneConfig

ROWS = 96
SPECIALS = ("<|begin|>", "<|end|>")
CODES = tuple(f"<|code_{index}|>" for index in range(10))


def backbone(**changes: Any) -> BackboneConfig:
    settings: dict[str, Any] = {
        "name": "test",
        "layers": 3,
        "hidden": 32,
        "ffn": 48,
        "heads": 4,
        "kv_heads": 2,
        "tokenizer": "none",
        "max_positions": 64,
    }
    return BackboneConfig(**(settings | changes))


def write_model(folder: Path, of: BackboneConfig, dtype: torch.dtype = torch.float32) -> Path:
    """A random model as transformers saves it."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config, model = (Qwen2Config, Qwen2ForCausalLM) if of.qkv_bias else (LlamaConfig, LlamaForCausalLM)
    settings = of_backbone(of).write_config(of)
    settings = {key: value for key, value in settings.items() if key not in ("architectures", "model_type")}
    torch.manual_seed(7)
    made = model(config(vocab_size=ROWS, **settings)).to(dtype)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # biases and norms too: zeros and ones would hide swaps
    made.save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def rewrite(folder: Path, changed: dict[str, torch.Tensor]) -> None:
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def tokenizer_json(size: int) -> str:
    """A word tokenizer of `size` ids: <|endoftext|>, then w1, w2 and so on."""
    words = {"<|endoftext|>": 0, **{f"w{index}": index for index in range(1, size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str()


def vocabulary(text_size: int, specials: tuple[str, ...] = SPECIALS, codes: tuple[str, ...] = CODES) -> dict[str, Any]:
    """What a vocabulary says of itself."""
    start = text_size + len(specials)
    ranges = {"text": [0, text_size], "special": [text_size, start], "code": [start, start + len(codes)]}
    described = {"text_size": text_size, "specials": specials, "end_of_text": "<|endoftext|>", "ranges": ranges}
    return json.loads(json.dumps(described))
