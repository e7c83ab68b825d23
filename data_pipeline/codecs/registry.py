"""Which codec a config asks for, without its weights and with them."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from configs.checks.codec import check_codec
from configs.schema import CodecConfig
from data_pipeline.codecs.codec import Codec
from data_pipeline.codecs.weights import weights_identity
from data_pipeline.vocabulary import Codebook


def codebooks_of(config: CodecConfig) -> tuple[Codebook, ...]:
    """The codebooks of a vocabulary, in the order of their id ranges; nothing is loaded. Raises BadInput for settings
    that cannot be."""
    check_codec(config)
    return tuple(
        Codebook(name, book.size, book.rate, config.group[name], book.rows) for name, book in config.codebooks.items()
    )


def learns(config: CodecConfig) -> bool:
    """Whether the codebooks are learnt from a corpus, which then keeps them, before anything is encoded."""
    return config.kind == "whisper_kmeans" and "centroids" not in config.weights


def open_codec(config: CodecConfig, folder: Path | None = None) -> Codec:
    """The codec with its weights, ready to encode. `folder` is the corpus that keeps codebooks learnt from it.

    Raises BadInput for weights that are missing or are not what the kind and the codebooks say.
    """
    check_codec(config)
    module = importlib.import_module(f"data_pipeline.codecs.{config.kind}")
    return cast(Codec, module.open_codec(config, folder))


def codec_identity(config: CodecConfig) -> str:
    """All that decides the codes beside the sound and beside codebooks learnt from it, for content hashes; JSON.

    Not where weights lie or how they are run. Raises BadInput for weights that are missing.
    """
    weights = {part: weights_identity(spec, part) for part, spec in sorted(config.weights.items())}
    if config.kind == "whisper_kmeans" and "centroids" in weights:  # of a corpus nothing but its codebooks
        from data_pipeline.codecs.whisper_kmeans import centroid_files

        files = centroid_files(config, None).values()
        weights["centroids"] = "; ".join(weights_identity(str(file), "centroids") for file in files)
    settings: dict[str, Any] = {
        "kind": config.kind,
        "weights": weights,
        "codebooks": [[name, asdict(book)] for name, book in config.codebooks.items()],  # in the order of id ranges
        "group": dict(config.group),
        "options": dict(config.options),
    }
    if learns(config):
        settings["training_minutes"] = config.training_minutes
    return json.dumps(settings, sort_keys=True)
