"""Recordings that came without segments, cut where nobody speaks: voice activity, then segments of it."""

from data_pipeline.cutting.cut import cut, cut_identity
from data_pipeline.cutting.segments import segments_of, speech_of
from data_pipeline.cutting.silero import FRAME_SECONDS, VoiceActivity, speech_probabilities

__all__ = [
    "FRAME_SECONDS",
    "VoiceActivity",
    "cut",
    "cut_identity",
    "segments_of",
    "speech_of",
    "speech_probabilities",
]
