"""Segments of a recording by voice activity, read in blocks: memory does not grow with its sound."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from configs.schema import CutConfig
from data_pipeline.audio import SAMPLE_RATE, StreamResampler
from data_pipeline.cutting.segments import segments_of
from data_pipeline.cutting.silero import VoiceActivity, vad_identity
from data_pipeline.sources.recording import MIXED, Recording, Segment, SpeechSource


def cut(source: SpeechSource, recording: Recording, config: CutConfig, language: str = "") -> tuple[Segment, ...]:
    """Segments of `recording`, none where nobody speaks. Times are those of the recording at its own rate.

    All channels are heard mixed, and segments are of the mix; with `channels: each`, every channel is cut by itself
    and segments are in the order of their starts. Raises UnreadableAudio.
    """
    listeners: dict[int, _Listener] = {}
    seconds = 0.0
    for block in source.blocks(recording):
        if not listeners:
            listeners = {channel: _Listener(block.rate) for channel in _channels(len(block.samples), config)}
        for channel, listener in listeners.items():
            listener.hear(block.channel(channel))
        seconds += block.duration
    segments = [
        Segment(start=start, end=min(end, seconds), language=language, channel=channel)
        for channel, listener in listeners.items()
        for start, end in segments_of(listener.finish(), config)
    ]
    return tuple(sorted(segments, key=lambda segment: (segment.start, segment.channel)))


def _channels(count: int, config: CutConfig) -> list[int]:
    if count == 1:
        return [0]
    return list(range(count)) if config.channels == "each" else [MIXED]


def cut_identity(config: CutConfig) -> dict[str, Any]:
    """What decides the segments, for content hashes."""
    return {"detector": vad_identity(), **asdict(config)}


class _Listener:
    """Probabilities of speech of one channel at any rate."""

    def __init__(self, rate: int) -> None:
        self._resampler = StreamResampler(rate, SAMPLE_RATE)
        self._activity = VoiceActivity()
        self._heard: list[np.ndarray] = []

    def hear(self, wave: np.ndarray) -> None:
        self._heard.append(self._activity.feed(self._resampler.feed(wave)))

    def finish(self) -> np.ndarray:
        """All of them, [frames of 32 ms]."""
        self._heard += [self._activity.feed(self._resampler.finish()), self._activity.finish()]
        return np.concatenate(self._heard)
