"""A native checkpoint, with the vocabulary beside it, as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path

from checkpoints.convert import export_huggingface
from configs.schema import BackboneConfig, Precision
from data_pipeline.vocabulary import Vocabulary


def export_language_model(
    checkpoint: Path, out: Path, backbone: BackboneConfig, *, dtype: Precision, stop: object = None
) -> Path:
    """Returns `out`. Raises as `checkpoints.convert.export_huggingface` does."""
    vocabulary = Vocabulary.load(checkpoint)
    return export_huggingface(
        checkpoint,
        out,
        backbone,
        vocabulary=vocabulary.describe(),
        tokenizer_json=vocabulary.tokenizer_json,
        token_names=[vocabulary.token_name(index) for index in range(vocabulary.text_size, vocabulary.size)],
        dtype=dtype,
        stop=stop,
    )
