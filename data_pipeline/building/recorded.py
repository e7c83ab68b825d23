"""Recordings as utterances: decoded, cut, measured, their words timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from data_pipeline.audio import SAMPLE_RATE, resample
from data_pipeline.building.cutting import cut_long
from data_pipeline.building.left_out import LeftOut
from data_pipeline.building.parts import Parts
from data_pipeline.building.pieces import Piece, basic_quality, sound_of
from data_pipeline.plan import PlannedShard
from data_pipeline.sources.recording import Recording, Segment, Sound, UnreadableAudio
from data_pipeline.utterance import Utterance
from data_pipeline.workers import report_done

_PAST_END = 0.5  # seconds by which a segment may end after its recording does; times in manifests are rounded


def recorded(parts: Parts, planned: PlannedShard, left_out: LeftOut) -> Iterator[Piece]:
    """The utterances of a shard's recordings, in the order they were said; reports seconds of speech.

    Left out: the kinds of UnreadableAudio; `silent`, a recording in which nobody speaks; `segment`, one that is not in
    its recording; `too_short` for one code of each codebook; `no_text` where `require_text` asks for it; `alignment`,
    words that could not be timed. `transcript` counts texts that were lost because their utterance had to be cut and
    its words have no times; its sound stays.
    """
    for recording in planned.recordings:
        spoken = max(len(recording.segments), 1)
        try:
            sound = parts.speech.sound(recording)
            if not sound.samples.size:
                raise UnreadableAudio("empty", recording.key)
            if not np.isfinite(sound.samples).all():
                raise UnreadableAudio("not_finite", recording.key)
        except UnreadableAudio as unreadable:
            left_out.add(unreadable.kind, recording.key, spoken)
            continue
        segments = sorted(recording.segments or parts.cut(sound), key=lambda segment: segment.start)
        if not segments:
            left_out.add("silent", recording.key)
        yield from _utterances(parts, recording, sound, segments, left_out)


def _utterances(
    parts: Parts, recording: Recording, sound: Sound, segments: Sequence[Segment], left_out: LeftOut
) -> Iterator[Piece]:
    number = 0
    for segment in segments:
        where = f"{recording.key} {segment.start:.2f} s"
        original = _slice(sound, segment)
        if original is None:
            left_out.add("segment", where)
            continue
        whole = _described(parts, recording, segment)
        wave = resample(original, sound.rate)
        if len(wave) < parts.shortest * SAMPLE_RATE:
            left_out.add("too_short", where)
            continue
        if not whole.text and parts.config.corpus.require_text:
            left_out.add("no_text", where)
            continue
        if whole.text and not whole.words and parts.aligner is not None:
            whole = replace(whole, words=parts.aligner.align(wave, whole.text, whole.language))
            if not whole.words:
                left_out.add("alignment", where)
                continue
        cuts = cut_long(wave, whole, parts.config.corpus.longest_seconds)
        if whole.text and not any(cut.text for cut in cuts):
            left_out.add("transcript", where)
        for cut in cuts:
            part = original[round(cut.start * sound.rate) : round(cut.end * sound.rate)]
            utterance = replace(
                whole,
                key=f"{recording.key}-{number:04d}",
                text=cut.text,
                words=cut.words,
                start=round(segment.start + cut.start, 4),
                quality=dict(segment.quality),
                codes={},
            )
            number += 1
            yield _piece(utterance, part, sound.rate)


def _slice(sound: Sound, segment: Segment) -> np.ndarray | None:
    """float32 [samples] of a segment; None where the recording has no such stretch or channel."""
    channels, samples = sound.samples.shape
    start = round(segment.start * sound.rate)
    end = samples if segment.end is None else round(segment.end * sound.rate)
    if not 0 <= segment.channel < channels or not 0 <= start < min(end, samples):
        return None
    if end > samples + _PAST_END * sound.rate:
        return None
    return sound.samples[segment.channel, start:end]


def _described(parts: Parts, recording: Recording, segment: Segment) -> Utterance:
    return Utterance(
        key=recording.key,
        text=" ".join(segment.text.split()),
        document=recording.key,
        language=segment.language,
        speaker=segment.speaker,
        words=segment.words,
        source=parts.config.corpus.name,
        licence=parts.speech.licence,
        recording=recording.key,
        channel=segment.channel,
        role=segment.role,
    )


def _piece(utterance: Utterance, original: np.ndarray, rate: int) -> Piece:
    flac, wave = sound_of(original, rate)
    utterance = replace(utterance, duration=len(wave) / SAMPLE_RATE)
    utterance.quality.update(basic_quality(wave, utterance.text))
    report_done(utterance.duration)
    return Piece(utterance, flac, wave, original, rate)
