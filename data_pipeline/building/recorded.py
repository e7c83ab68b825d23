"""Recordings as utterances: decoded, cut, measured, their words timed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from data_pipeline.audio import SAMPLE_RATE, resample
from data_pipeline.building.cutting import cut_long
from data_pipeline.building.left_out import LeftOut
from data_pipeline.building.parts import Parts
from data_pipeline.building.pieces import Piece, seed_of_piece, sound_of, written
from data_pipeline.plan import PlannedShard
from data_pipeline.sources.recording import Recording, Segment, UnreadableAudio
from data_pipeline.sources.speech.places import Written
from data_pipeline.utterance import Utterance
from runtime.workers import report_done

WINDOW = 600.0  # seconds of a recording that are held at once, unless a segment is longer
_PAST_END = 0.5  # seconds by which a segment may end after its recording does; times in manifests are rounded


def recorded(parts: Parts, planned: PlannedShard, left_out: LeftOut) -> Iterator[Piece]:
    """The utterances of a shard's recordings, in the order they were said; reports seconds of speech.

    Left out: the kinds of UnreadableAudio, for all segments of what could not be read; `silent`, a recording in which
    nobody speaks; `segment`, one that is not in its recording; `too_short` for a code of each codebook; `no_text`
    where `require_text` asks for it; `alignment`, words that could not be timed. `transcript` counts texts that were
    lost because their utterance had to be cut and its words have no times; its sound stays. A conversation that loses
    anything is left out whole: the turns that it still had are `incomplete`.
    """
    for _, document in groupby(planned.recordings, key=lambda recording: recording.document or recording.key):
        recordings = list(document)
        if any(segment.role for recording in recordings for segment in recording.segments):
            found: Iterable[Piece] = _conversation(parts, recordings, left_out)
        else:
            found = (piece for recording in recordings for piece in _of_recording(parts, recording, left_out))
        for piece in found:
            yield piece
            report_done(piece.utterance.duration)


def _conversation(parts: Parts, turns: Sequence[Recording], left_out: LeftOut) -> list[Piece]:
    """All that is said and written in a conversation, or nothing."""
    lost = LeftOut()
    pieces = [piece for turn in turns for piece in _of_recording(parts, turn, lost)]
    if not lost.describe():
        return pieces
    left_out.merge(lost.describe())
    if pieces:
        left_out.add("incomplete", pieces[0].utterance.document, len(pieces))
    return []


def _of_recording(parts: Parts, recording: Recording, left_out: LeftOut) -> Iterator[Piece]:
    if isinstance(recording.audio, Written):
        yield from _written(parts, recording, left_out)
        return
    try:
        segments = recording.segments or parts.cut(recording)
    except UnreadableAudio as unreadable:
        left_out.add(unreadable.kind, unreadable.where)
        return
    if not segments:
        left_out.add("silent", recording.key)
    number = 0
    for window in windows(segments):
        for segment, original, rate in _sounds(parts, recording, window, left_out):
            for piece in _pieces(parts, recording, segment, original, rate, left_out):
                key = f"{recording.key}-{number:04d}"
                number += 1
                yield replace(piece, utterance=replace(piece.utterance, key=key))


def _written(parts: Parts, recording: Recording, left_out: LeftOut) -> Iterator[Piece]:
    """A turn that was written: as it is, or said by the corpus's voice."""
    corpus = parts.config.corpus
    (segment,) = recording.segments
    turn = replace(_described(parts, recording, segment), key=f"{recording.key}-0000")
    if turn.role not in corpus.spoken_roles:
        yield written(turn)
        return
    said = parts.voice.speak(turn.text, seed_of_piece(corpus.seed, turn.key))
    if said is None:
        left_out.add("alignment", turn.key)
    elif len(said.wave) > corpus.longest_seconds * SAMPLE_RATE:
        left_out.add("too_long", turn.key)
    else:
        flac, wave = sound_of(said.wave, SAMPLE_RATE)
        licence = f"text {turn.licence}, voice {parts.voice.licence}"
        spoken = replace(turn, speaker=parts.voice.speaker, duration=len(wave) / SAMPLE_RATE, words=said.words)
        yield Piece(replace(spoken, licence=licence), flac, wave, said.wave, SAMPLE_RATE)


def windows(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments in the order of their starts, in runs that span at most WINDOW seconds, or hold one segment."""
    held: list[Segment] = []
    for segment in sorted(segments, key=lambda segment: (segment.start, segment.channel)):
        if held and (held[0].end is None or segment.end is None or segment.end - held[0].start > WINDOW):
            yield held
            held = []
        held.append(segment)
    if held:
        yield held


def _sounds(
    parts: Parts, recording: Recording, window: list[Segment], left_out: LeftOut
) -> Iterator[tuple[Segment, np.ndarray, int]]:
    """Each segment of a window with its float32 [samples] and their rate."""
    first, last = window[0].start, window[-1].end
    if last is not None:
        last = max(segment.end for segment in window if segment.end is not None)
    try:
        sound = parts.speech.sound(recording, first, last)
    except UnreadableAudio as unreadable:
        left_out.add(unreadable.kind, unreadable.where, len(window))
        return
    for segment in window:
        try:
            wave = sound.channel(segment.channel)
        except UnreadableAudio as unreadable:
            left_out.add(unreadable.kind, f"{_where(recording, segment)}: {unreadable.where}")
            continue
        start = round((segment.start - first) * sound.rate)
        end = len(wave) if segment.end is None else round((segment.end - first) * sound.rate)
        if start >= min(end, len(wave)) or end > len(wave) + _PAST_END * sound.rate:
            left_out.add("segment", _where(recording, segment))
        else:
            yield segment, wave[start:end], sound.rate


def _pieces(
    parts: Parts, recording: Recording, segment: Segment, original: np.ndarray, rate: int, left_out: LeftOut
) -> Iterator[Piece]:
    """The utterances that a segment becomes: one, or several where it is too long for one."""
    whole = _described(parts, recording, segment)
    wave = resample(original, rate)
    if len(wave) < parts.shortest * SAMPLE_RATE:
        left_out.add("too_short", _where(recording, segment))
        return
    if not whole.text and parts.config.corpus.require_text:
        left_out.add("no_text", _where(recording, segment))
        return
    if whole.text and not whole.words and parts.aligner is not None:
        whole = replace(whole, words=parts.aligner.align(wave, whole.text, whole.language))
        if not whole.words:
            left_out.add("alignment", _where(recording, segment))
            return
    cuts = cut_long(wave, whole, parts.config.corpus.longest_seconds)
    if whole.text and not any(cut.text for cut in cuts):
        left_out.add("transcript", _where(recording, segment))
    for cut in cuts:
        part = original[round(cut.start * rate) : round(cut.end * rate)]
        flac, heard = sound_of(part, rate)
        utterance = replace(
            whole,
            text=cut.text,
            words=cut.words,
            start=round(segment.start + cut.start, 4),
            duration=len(heard) / SAMPLE_RATE,
            quality=dict(segment.quality),
            codes={},
        )
        yield Piece(utterance, flac, heard, part, rate)


def _where(recording: Recording, segment: Segment) -> str:
    return f"{recording.key} at {segment.start:.2f} s"


def _described(parts: Parts, recording: Recording, segment: Segment) -> Utterance:
    return Utterance(
        key=recording.key,
        text=_plain(" ".join(segment.text.split())),
        document=recording.document or recording.key,
        language=segment.language,
        speaker=_plain(segment.speaker),
        words=segment.words,
        source=parts.config.corpus.name,
        licence=parts.speech.licence,
        recording=recording.key,
        channel=max(segment.channel, 0),  # a mix of all channels counts as the first
        role=_plain(segment.role),
        style=_plain(segment.style),
    )


def _plain(text: str) -> str:
    """Text without halves of surrogate pairs, which stand for bytes that were no UTF-8."""
    return text.encode("utf-8", "replace").decode()
