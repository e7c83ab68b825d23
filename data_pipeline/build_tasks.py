"""What the processes of a corpus build do: one shard a task, written whole or not at all."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from configs.schema import CodecConfig, Config
from data_pipeline.audio import SAMPLE_RATE, decode_flac, encode_flac, level_db
from data_pipeline.codecs.kmeans import Quantiser, train_quantiser
from data_pipeline.codecs.whisper_encoder import WINDOW
from data_pipeline.codecs.whisper_kmeans import FeatureExtractor, codebook_file, quantise
from data_pipeline.plan import PlannedShard
from data_pipeline.shards import ShardReader, ShardWriter, index_path, replace_atomically
from data_pipeline.sources import Document, find_source
from data_pipeline.speech import Voice, open_voice
from data_pipeline.utterance import Utterance
from data_pipeline.workers import report_done

STAGING = "staging"  # folder inside an unfinished corpus


def staged(folder: Path, planned: PlannedShard) -> Path:
    """Where a spoken shard waits for its codes."""
    return folder / STAGING / planned.file


def features_file(folder: Path, planned: PlannedShard) -> Path:
    return staged(folder, planned).with_suffix(".features.npz")


def is_spoken(folder: Path, planned: PlannedShard) -> bool:
    return features_file(folder, planned).is_file()


def is_written(folder: Path, planned: PlannedShard) -> bool:
    return index_path(folder / planned.file).is_file()


# --- speech and features ----------------------------------------------------------------------------------------


@lru_cache(1)
def _voice(spec: str, cache: Path) -> Voice:
    return open_voice(spec, cache)


_extractors: dict[str, FeatureExtractor] = {}


def _extractor(codec: CodecConfig) -> FeatureExtractor:
    import torch

    torch.set_num_threads(1)
    if repr(codec) not in _extractors:
        _extractors[repr(codec)] = FeatureExtractor(codec)
    return _extractors[repr(codec)]


def speak_shard(config: Config, cache: Path, folder: Path, planned: PlannedShard) -> None:
    """Speak the pieces of a shard into staging, with the features of each beside; reports seconds of speech.

    A piece whose words could not be timed, or that is longer than the encoder's window, is left out.
    """
    voice = _voice(config.corpus.voice, cache)
    extractor = _extractor(config.codec)
    source = find_source(config.corpus.text)
    features: dict[str, list[np.ndarray]] = {name: [] for name in config.codec.codebooks}
    with ShardWriter(staged(folder, planned)) as shard:
        for key, document, text in _pieces(planned):
            seed = xxhash.xxh32_intdigest(f"{config.corpus.seed} {key}".encode())
            spoken = voice.speak(text, seed)
            if spoken is None or len(spoken.wave) > WINDOW * SAMPLE_RATE:
                continue
            duration = len(spoken.wave) / SAMPLE_RATE
            flac = encode_flac(spoken.wave)
            (made,) = extractor.features([decode_flac(flac)])
            for name, frames in made.items():
                features[name].append(frames)
            utterance = Utterance(
                key=key,
                text=text,
                document=document.key,
                language=source.language,
                speaker=voice.speaker,
                duration=duration,
                words=spoken.words,
                source=config.corpus.text,
                licence=f"text {source.licence}, voice {voice.licence}",
                quality={
                    "level_db": round(level_db(spoken.wave), 2),
                    "characters_per_second": round(len(text) / duration, 2),
                },
            )
            shard.write(utterance, flac)
            report_done(duration)
    _save_features(features_file(folder, planned), features)


def _pieces(planned: PlannedShard) -> list[tuple[str, Document, str]]:
    return [
        (f"{document.key}-{number:03d}", document, text)
        for document in planned.documents
        for number, text in enumerate(document.pieces)
    ]


def _save_features(file: Path, features: dict[str, list[np.ndarray]]) -> None:
    """One array a codebook, utterances end to end, and where each ends."""
    arrays: dict[str, np.ndarray] = {}
    for name, parts in features.items():
        arrays[name] = np.concatenate(parts) if parts else np.zeros((0, 1), np.float16)
        arrays[f"{name}.ends"] = np.cumsum([len(part) for part in parts], dtype=np.int64)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    replace_atomically(file, content.getvalue())


# --- codebooks --------------------------------------------------------------------------------------------------


def learn_codebook(config: Config, folder: Path, name: str, shards: list[PlannedShard]) -> None:
    """k-means over the features that `shards` have in staging; writes the codebook; reports 1 when done.

    Memory is bounded by `codec.training_minutes` of speech, of which every shard gives an equal part.
    """
    book = config.codec.codebooks[name]
    share = int(config.codec.training_minutes * 60 * book.rate / max(len(shards), 1))
    rng = np.random.default_rng(config.corpus.seed)
    frames = []
    for planned in shards:
        with np.load(features_file(folder, planned), allow_pickle=False) as arrays:
            held = arrays[name]
        if len(held) > share:
            held = held[np.sort(rng.choice(len(held), share, replace=False))]
        if len(held):
            frames.append(held.astype(np.float32))
    learnt = train_quantiser(np.concatenate(frames or [np.zeros((0, 1), np.float32)]), book.size, config.corpus.seed)
    learnt.save(codebook_file(folder, name))
    report_done(1)


# --- final shards -----------------------------------------------------------------------------------------------


def write_shard(config: Config, folder: Path, planned: PlannedShard) -> None:
    """A shard as it stays: speech with its codes, or text alone; reports pieces."""
    if planned.spoken:
        _write_speech(config, folder, planned)
    else:
        _write_text(config, folder, planned)


def _write_speech(config: Config, folder: Path, planned: PlannedShard) -> None:
    quantisers = {name: Quantiser.load(codebook_file(folder, name)) for name in config.codec.codebooks}
    with np.load(features_file(folder, planned), allow_pickle=False) as arrays:
        features = {name: np.split(arrays[name], arrays[f"{name}.ends"][:-1]) for name in quantisers}
    with ShardReader(staged(folder, planned)) as spoken, ShardWriter(folder / planned.file) as shard:
        for sample in range(len(spoken)):
            utterance = spoken.read(sample)
            utterance.codes.update(quantise({name: of[sample] for name, of in features.items()}, quantisers))
            shard.write(utterance, spoken.read_audio(sample) if config.corpus.keep_audio else None)
            report_done(1)


def _write_text(config: Config, folder: Path, planned: PlannedShard) -> None:
    source = find_source(config.corpus.text)
    with ShardWriter(folder / planned.file) as shard:
        for key, document, text in _pieces(planned):
            shard.write(
                Utterance(
                    key=key,
                    text=text,
                    document=document.key,
                    language=source.language,
                    source=config.corpus.text,
                    licence=source.licence,
                )
            )
            report_done(1)
