"""Growing a vocabulary: rows for ids that a pretrained text model does not have."""

from __future__ import annotations

from typing import Any

import torch
import xxhash

from runtime.exits import BadInput

METHOD = "mean of the text rows plus normal noise with each column's standard deviation over them"


def grow_rows(rows: torch.Tensor, text_size: int, padded_size: int, seed: int, name: str) -> torch.Tensor:
    """An embedding or output matrix of [padded_size, hidden] whose first `text_size` rows are those of `rows`.

    Each other row is drawn from a normal distribution with the text rows' mean and standard deviation, column by
    column (Hewitt 2021, "Initializing new word embeddings for pretrained language models", with a diagonal
    covariance), so that new tokens start as likely as an average text token. `seed` and `name` fix the draw. Rows of
    the source past `text_size` are padding of its own and are dropped. dtype is kept. Raises BadInput if `rows` has
    fewer than `text_size` rows.
    """
    if not text_size <= min(len(rows), padded_size):
        raise BadInput(f"{name} has {len(rows)} rows and is to have {padded_size}; its tokenizer has {text_size} ids")
    text = rows[:text_size]
    if text_size == padded_size:
        return text
    generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) >> 1)
    noise = torch.randn(padded_size - text_size, rows.shape[1], generator=generator)
    spread, mean = torch.std_mean(text.double(), dim=0, correction=0)
    return torch.cat([text, (mean + spread * noise).to(rows.dtype)])


def describe_growth(text_size: int, padded_size: int, seed: int) -> dict[str, Any]:
    """What a checkpoint records of how its rows were made."""
    return {"kept_rows": text_size, "rows": padded_size, "new_rows": METHOD, "seed": seed}
