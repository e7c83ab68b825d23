"""Where the first weights of a stage come from: the backbone, an earlier stage, a checkpoint, or chance."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import xxhash

from checkpoints import lora
from checkpoints.atomic import exclusively
from checkpoints.lora import merge
from checkpoints.manifest import MANIFEST_FILE, MODEL_PREFIX, read_manifest
from checkpoints.store import complete_checkpoints
from configs.parameter_names import matching
from configs.schema import AudioRows, Config, StageKind
from data_pipeline.build import cache_root, corpus_folder
from data_pipeline.codecs.kmeans import Quantiser
from data_pipeline.codecs.whisper_kmeans import codebook_file
from data_pipeline.corpus import Corpus
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from runtime.signals import StopFlag

BACKBONE = "backbone"
MERGED = "merged"  # folder of a run: the checkpoint it starts from, its low-rank updates merged


def prepare(config: Config, stop: StopFlag | None = None) -> None:
    """Convert the backbone's weights, grown to the corpus's vocabulary, or merge the low-rank updates of the checkpoint
    that a stage without any starts from, unless that was done before. One process at a time; for rank 0, before it
    joins the others. Raises StoppedEarly at a stop signal, with nothing half done."""
    native = source(config)
    if native is None or (native / MANIFEST_FILE).is_file():
        return
    if config.stage.weights != BACKBONE:
        with_updates = _named(config)
        print(f"megaphone: merging the low-rank updates of {with_updates} into {native}", flush=True)
        merge(with_updates, native, stop)
        return
    from checkpoints.convert import import_huggingface
    from checkpoints.formats.gguf import materialise_huggingface

    vocabulary = Vocabulary.load(corpus_folder(config))
    with exclusively(native.with_name(f"{native.name}.lock")):
        if (native / MANIFEST_FILE).is_file():
            return
        print(f"megaphone: converting {config.backbone.weights} to {native}", flush=True)
        import_huggingface(
            materialise_huggingface(str(config.backbone.weights), cache_root(config)),
            native,
            config.backbone,
            text_size=vocabulary.text_size,
            padded_size=vocabulary.padded_size,
            vocabulary=vocabulary.describe(),
            texts=vocabulary.files(),
            seed=config.train.seed,
            new_rows=config.stage.new_rows,
            stop=stop,
        )


def source(config: Config) -> Path | None:
    """The native checkpoint that a new run of this stage starts from; None: random weights.

    Where the named one holds low-rank updates and this stage has none, it is the merged copy that `prepare` makes.
    Raises BadInput where the stage names an earlier stage or a folder that has no checkpoint, or where updates of its
    own do not continue the checkpoint's.
    """
    if config.stage.weights == BACKBONE:
        from_backbone = config.backbone.weights and config.stage.kind is not StageKind.decoder
        return _native(config) if from_backbone else None
    checkpoint = _named(config)
    manifest = read_manifest(checkpoint)
    if not lora.updated(manifest.tensors):
        return checkpoint
    if config.stage.lora is None:
        return Path(config.run.folder) / MERGED / checkpoint.name
    ours, theirs = lora.origin(config.stage.lora)[lora.ORIGIN], manifest.origin.get(lora.ORIGIN)
    if ours != theirs:
        raise BadInput(f"stage.lora: {checkpoint} holds updates of {theirs}, this stage's are of {ours}")
    kept = matching(config.stage.lora.targets, (_module(name) for name in lora.updated(manifest.tensors)))
    for name in lora.updated(manifest.tensors):
        if _module(name) not in kept:
            raise BadInput(f"stage.lora.targets: {checkpoint} holds updates of {_module(name)} too; target it as well")
    return checkpoint


def _named(config: Config) -> Path:
    """The checkpoint that `stage.weights` names: the newest of an earlier stage, or a folder."""
    named = config.stage.weights
    earlier = Path(config.run.folder).parent / named / "checkpoints"
    checkpoints = complete_checkpoints(earlier)
    if checkpoints:
        return checkpoints[-1]
    if (Path(named) / MANIFEST_FILE).is_file():
        return Path(named)
    raise BadInput(f"stage.weights={named}: no checkpoint in {earlier}, and {named} is no native checkpoint")


def _module(weight: str) -> str:
    """Checkpoint name of the linear layer that a weight, named as in a manifest, belongs to."""
    return weight.removeprefix(MODEL_PREFIX).removesuffix(".weight")


def audio_rows(config: Config, corpus: Corpus) -> dict[str, torch.Tensor]:
    """Where a new vocabulary's audio rows start, by codebook: float32 [entries, hidden], each column standardised;
    `checkpoints.vocabulary_surgery.spread` lays them among the text rows.

    Empty unless `stage.audio_rows` is centroids and the stage trains a speech LM that starts from a backbone. A random
    projection keeps the distances between centroids (Johnson and Lindenstrauss), so codes of like sounds begin with
    like rows. Raises BadInput where the corpus has no centroids.
    """
    begins = config.stage.weights == BACKBONE and config.stage.kind is not StageKind.decoder
    if config.stage.audio_rows is not AudioRows.centroids or not begins:
        return {}
    rows = {}
    for book in corpus.vocabulary.codebooks:
        file = codebook_file(corpus.folder, book.name)
        if not file.is_file():
            raise BadInput(f"stage.audio_rows=centroids: {corpus.folder} has no centroids of codebook {book.name}")
        centroids = Quantiser.load(file).centroids
        rng = np.random.default_rng([config.train.seed, book.size])
        points = centroids @ rng.standard_normal((centroids.shape[1], config.backbone.hidden))
        rows[book.name] = torch.from_numpy((points - points.mean(0)) / points.std(0)).float()
    return rows


def _native(config: Config) -> Path:
    """Where the converted backbone is kept: its name holds all that decides its tensors."""
    vocabulary = Vocabulary.load(corpus_folder(config)).describe()
    deciding = [asdict(config.backbone), vocabulary, config.train.seed, config.stage.new_rows]
    content = json.dumps(deciding, sort_keys=True, default=str)
    return cache_root(config) / "weights" / f"{config.backbone.name}-{xxhash.xxh3_64_hexdigest(content.encode())}"
