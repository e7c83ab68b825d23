"""What the processes of a corpus build do: one shard a task, written whole or not at all.

A shard is finished when `<shard>.done.json` stands beside it: its entry in the manifest, and what was left out of it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Config
from data_pipeline.building.folder import synthesises
from data_pipeline.building.left_out import LeftOut
from data_pipeline.building.parts import Parts, parts_of
from data_pipeline.building.pieces import Piece, spoken, synthesised, unspoken
from data_pipeline.building.recorded import recorded
from data_pipeline.codecs.kmeans import Quantiser, train_quantiser
from data_pipeline.codecs.whisper_kmeans import codebook_file, quantise
from data_pipeline.corpus import describe_shard
from data_pipeline.plan import PlannedShard
from data_pipeline.shards import ShardReader, ShardWriter, replace_atomically
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from runtime.workers import report_done

STAGING = "staging"  # folder inside an unfinished corpus
GATHERED = 300.0  # seconds of sound handed to the codec at a time; it makes its own batches of them


def staged(folder: Path, file: str) -> Path:
    """Where a spoken shard waits for codebooks to be learnt."""
    return folder / STAGING / file


def features_file(folder: Path, file: str) -> Path:
    return staged(folder, file).with_suffix(".features.npz")


def done_file(folder: Path, file: str) -> Path:
    return (folder / file).with_suffix(".done.json")


def is_staged(folder: Path, file: str) -> bool:
    return features_file(folder, file).is_file()


def is_written(folder: Path, file: str) -> bool:
    return done_file(folder, file).is_file()


def read_done(folder: Path, file: str) -> dict[str, Any]:
    """{"entry": of the manifest, "left_out": of LeftOut} of a finished shard. Raises BadInput where it is damaged."""
    path = done_file(folder, file)
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        _ = done["entry"]["duration"], done["left_out"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is damaged ({error!r}); remove it to have its shard written again") from error
    return done


# --- features ---------------------------------------------------------------------------------------------------


def stage_shard(config: Config, cache: Path, folder: Path, number: int) -> None:
    """Sound of a shard into staging, with the features of each utterance beside; reports seconds of speech."""
    parts = parts_of(config, folder, cache)
    planned = parts.plan.read(number)
    features: dict[str, list[np.ndarray]] = {name: [] for name in config.codec.codebooks}
    left_out = LeftOut()
    with ShardWriter(staged(folder, planned.file)) as shard:
        for gathered in _gathered(_pieces(parts, planned, left_out)):
            said = [piece for piece in gathered if len(piece.wave)]
            for of_piece in parts.extractor.features([piece.wave for piece in said]) if said else ():
                for name, frames in of_piece.items():
                    features[name].append(frames)
            _listen(parts, said)
            for piece in gathered:
                shard.write(piece.utterance, piece.flac)
    _save_json(_staged_left_out(folder, planned.file), left_out.describe())
    _save_features(features_file(folder, planned.file), features)


def _staged_left_out(folder: Path, file: str) -> Path:
    return staged(folder, file).with_suffix(".left_out.json")


def _save_features(file: Path, features: dict[str, list[np.ndarray]]) -> None:
    """One array a codebook, utterances end to end, and where each ends."""
    arrays: dict[str, np.ndarray] = {}
    for name, parts in features.items():
        arrays[name] = np.concatenate(parts) if parts else np.zeros((0, 1), np.float16)
        arrays[f"{name}.ends"] = np.cumsum([len(part) for part in parts], dtype=np.int64)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    replace_atomically(file, content.getvalue())


def learn_codebook(config: Config, folder: Path, name: str, files: list[str]) -> None:
    """k-means over the features that the shards `files` have in staging; writes the codebook; reports 1 when done.

    Memory is bounded by `codec.training_minutes` of speech, of which every shard gives an equal part.
    """
    book = config.codec.codebooks[name]
    share = int(config.codec.training_minutes * 60 * book.rate / max(len(files), 1))
    rng = np.random.default_rng(config.corpus.seed)
    frames = []
    for file in files:
        with np.load(features_file(folder, file), allow_pickle=False) as arrays:
            held = arrays[name]
        if len(held) > share:
            held = held[np.sort(rng.choice(len(held), share, replace=False))]
        if len(held):
            frames.append(held.astype(np.float32))
    learnt = train_quantiser(np.concatenate(frames or [np.zeros((0, 1), np.float32)]), book.size, config.corpus.seed)
    learnt.save(codebook_file(folder, name))
    report_done(1)


# --- final shards -----------------------------------------------------------------------------------------------


def write_shard(config: Config, cache: Path, folder: Path, number: int) -> dict[str, Any]:
    """A shard as it stays, with codes where it is spoken; what `read_done` gives. Reports seconds of speech."""
    parts = parts_of(config, folder, cache)
    planned = parts.plan.read(number)
    left_out = LeftOut()
    with ShardWriter(folder / planned.file, parts.vocabulary) as shard:
        for utterance, flac in _finished(parts, planned, left_out):
            shard.write(utterance, flac if config.corpus.keep_audio else None)
    done = {"entry": describe_shard(folder / planned.file, folder), "left_out": left_out.describe()}
    _save_json(done_file(folder, planned.file), done)
    return done


def _finished(parts: Parts, planned: PlannedShard, left_out: LeftOut) -> Iterator[tuple[Utterance, bytes | None]]:
    """The utterances of a shard with their codes, and their flac files."""
    if not planned.spoken:
        return ((utterance, None) for utterance in unspoken(parts, planned))
    if synthesises(parts.config):
        return _whole(((utterance, None) for utterance in synthesised(parts, planned, left_out)), left_out)
    if is_staged(parts.folder, planned.file):
        return _whole(_from_staging(parts, planned, left_out), left_out)
    return _whole(_encoded(parts, _pieces(parts, planned, left_out)), left_out)


def _pieces(parts: Parts, planned: PlannedShard, left_out: LeftOut) -> Iterator[Piece]:
    """The utterances of a shard, measured."""
    make = spoken if parts.config.corpus.speech is None else recorded
    for piece in make(parts, planned, left_out):
        for measure in parts.measures if len(piece.wave) else ():
            values = measure.measure(piece.wave, piece.utterance)
            piece.utterance.quality.update({name: round(float(value), 4) for name, value in values.items()})
        yield piece


def _encoded(parts: Parts, pieces: Iterable[Piece]) -> Iterator[tuple[Utterance, bytes | None]]:
    codec = parts.codec
    for gathered in _gathered(pieces):
        said = [piece for piece in gathered if len(piece.wave)]
        found = codec.encode([piece.at(codec.sample_rate) for piece in said]) if said else []
        for piece, codes in zip(said, found, strict=True):
            piece.utterance.codes.update(codes)
        _listen(parts, said)
        for piece in gathered:
            yield piece.utterance, piece.flac


def _listen(parts: Parts, said: list[Piece]) -> None:
    """Give utterances what the corpus keeps of an encoder."""
    if parts.listener is not None and said:
        for piece, features in zip(said, parts.listener.features([piece.wave for piece in said]), strict=True):
            piece.utterance.features.update(features)


def _gathered(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    held: list[Piece] = []
    seconds = 0.0
    for piece in pieces:
        held.append(piece)
        seconds += piece.utterance.duration
        if seconds >= GATHERED:
            yield held
            held, seconds = [], 0.0
    if held:
        yield held


def _from_staging(parts: Parts, planned: PlannedShard, left_out: LeftOut) -> Iterator[tuple[Utterance, bytes | None]]:
    folder, file = parts.folder, planned.file
    left_out.merge(json.loads(_staged_left_out(folder, file).read_text(encoding="utf-8")))
    quantisers = {name: Quantiser.load(codebook_file(folder, name)) for name in parts.config.codec.codebooks}
    with np.load(features_file(folder, file), allow_pickle=False) as arrays:
        features = {name: iter(np.split(arrays[name], arrays[f"{name}.ends"][:-1])) for name in quantisers}
    with ShardReader(staged(folder, file)) as shard:
        for sample in range(len(shard)):
            utterance = shard.read(sample)
            sound = shard.read_audio(sample)
            if sound is not None:
                utterance.codes.update(quantise({name: next(of) for name, of in features.items()}, quantisers))
            yield utterance, sound
            report_done(utterance.duration)


def _whole(
    utterances: Iterable[tuple[Utterance, bytes | None]], left_out: LeftOut
) -> Iterator[tuple[Utterance, bytes | None]]:
    """Those that have codes of every codebook, or were written; the others are `too_short`. Turns of a conversation
    then stay as their text, for it would make no sense without them."""
    for utterance, flac in utterances:
        if all(codes.shape[1] for codes in utterance.codes.values()):
            yield utterance, flac
        elif utterance.role:
            yield replace(utterance, codes={}, features={}, words=(), duration=0.0), None
        else:
            left_out.add("too_short", utterance.key)


def _save_json(path: Path, content: dict[str, Any]) -> None:
    replace_atomically(path, json.dumps(content, separators=(",", ":")).encode())
