"""A causal language model in a Hugging Face folder, as `megaphone checkpoint export` writes it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from runtime.exits import BadInput
from runtime.threads import settle_vector_math


@lru_cache(1)
def load_exported(folder: Path, what: str, rows: int, *, device: str | None = None, bf16: bool = False) -> Any:
    """`read_exported`, one for all who ask."""
    return read_exported(folder, what, rows, device=device, bf16=bf16)


def read_exported(folder: Path, what: str, rows: int, *, device: str | None = None, bf16: bool = False) -> Any:
    """The model of `folder`, ready to generate, in fp32 or bfloat16. device: cpu, cuda or cuda:<n>; None: cuda if
    there.

    Raises BadInput, which begins with `what` the folder is to the user, where it is no causal language model, or has
    fewer than `rows` rows in its vocabulary.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from data_pipeline.step1_model import register

    settle_vector_math()
    register()
    logging.disable_progress_bar()
    dtype = torch.bfloat16 if bf16 else torch.float32
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadInput(f"{what} is no causal language model: {' '.join(str(error).split())[:160]}") from error
    found = model.get_output_embeddings().weight.shape[0]
    if found < rows:
        raise BadInput(f"{what} has {found} rows for a vocabulary of {rows}")
    return model.eval().to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))


def padded_prompts(prompts: list[list[int]], padding: int, device: Any) -> dict[str, Any]:
    """`prompts` as one batch that is padded on the left: input_ids and attention_mask, int64 [prompts, longest]."""
    import torch

    width = max(map(len, prompts))
    ids = [[padding] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
