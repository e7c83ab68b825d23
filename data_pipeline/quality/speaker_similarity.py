"""How near each utterance's voice is to the other utterances of the speaker that it is labelled with."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from data_pipeline.audio import decode_flac
from data_pipeline.corpus import SPLITS, Corpus
from data_pipeline.quality.speaker import WIDTH, has_voice, open_encoder
from data_pipeline.shards import DamagedSample, ShardReader, add_columns, read_index
from runtime.exits import BadInput
from runtime.progress import Progress
from runtime.signals import StopFlag
from runtime.workers import Task, Workers, report_done


def add_speaker_similarity(corpus: Corpus, encoder: str, workers: int, stop: StopFlag | None = None) -> None:
    """Give every shard the column `speaker_similarity`: the cosine of an utterance's embedding and the mean of all
    others of its speaker in the corpus. Missing where the speaker has no name or no other utterance, and of sounds
    shorter than 0.8 s. Memory holds 256 numbers a speaker; embeddings wait on disk. Raises StoppedEarly."""
    corpus.require_local("measuring")
    shards = [shard for split in SPLITS for shard in corpus.shards(split)]
    with tempfile.TemporaryDirectory(prefix=".speakers-", dir=corpus.folder) as scratch, Workers(workers) as pool:
        files = [Path(scratch) / f"{number}.npy" for number in range(len(shards))]
        tasks: list[Task] = [(embed_shard, (shard, encoder, file)) for shard, file in zip(shards, files, strict=True)]
        pool.run("voices", tasks, len(shards), Progress(f"speakers in {corpus.name}"), stop)
        sums: dict[str, np.ndarray] = {}
        counts: dict[str, int] = {}
        for shard, file in zip(shards, files, strict=True):
            if not file.is_file():
                continue
            embeddings, speakers = np.load(file, allow_pickle=False), _speakers(shard)
            for name, rows in _by_speaker(embeddings, speakers):
                sums[name] = sums.get(name, np.zeros(WIDTH)) + embeddings[rows].sum(0, dtype=np.float64)
                counts[name] = counts.get(name, 0) + len(rows)
        for shard, file in zip(shards, files, strict=True):
            if file.is_file():
                embeddings, speakers = np.load(file, allow_pickle=False), _speakers(shard)
                column = np.full(len(embeddings), np.nan, np.float32)
                for name, rows in _by_speaker(embeddings, speakers):
                    if counts[name] > 1:
                        own = embeddings[rows].astype(np.float64)
                        others = sums[name] - own
                        column[rows] = (own * others).sum(1) / np.linalg.norm(others, axis=1)
                add_columns(shard, {"speaker_similarity": column})


def _speakers(shard: Path) -> np.ndarray:
    index = read_index(shard)
    return index.labels.get("speaker", np.full(len(index), ""))


def _by_speaker(embeddings: np.ndarray, speakers: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The rows of each speaker with a name that have an embedding."""
    usable = embeddings.any(1) & (speakers != "")
    return [(name, np.flatnonzero(usable & (speakers == name))) for name in np.unique(speakers[usable]).tolist()]


def embed_shard(shard: Path, encoder: str, target: Path) -> None:
    """Write the embeddings of a shard, float32 [samples, 256], zeros where there is no sound to hear; reports 1.
    Nothing is written of a shard that cannot be opened."""
    import torch

    torch.set_num_threads(1)
    voices = open_encoder(encoder)
    try:
        reader = ShardReader(shard)
    except DamagedSample:
        return
    with reader:
        embeddings = np.zeros((len(reader), WIDTH), np.float32)
        for sample in range(len(reader)):
            try:
                flac = reader.read_audio(sample)
                wave = np.zeros(0, np.float32) if flac is None else decode_flac(flac)
            except (DamagedSample, BadInput):
                continue
            if has_voice(wave):
                embeddings[sample] = voices.embed(wave)
            report_done(1 / len(reader))
    np.save(target, embeddings)
