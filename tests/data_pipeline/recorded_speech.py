"""A folder of recorded speech for builds: sounds like voices, seeded, with transcripts beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from configs.schema import Config, SpeechSourceConfig
from tests.data_pipeline.synthetic import WORDS


def voiced(seconds: float, rate: int, seed: int) -> np.ndarray:
    """float32 [samples]: harmonics of a gliding tone, loud and soft four times a second, and a little noise."""
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.3, 1.0) * at))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    harmonics = sum(np.sin(number * phase + rng.uniform(0, 6)) / number for number in range(1, 12))
    loudness = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * at + rng.uniform(0, 6))
    return (0.1 * harmonics * loudness + 0.002 * rng.standard_normal(len(at))).astype(np.float32)


def write_recordings(folder: Path, count: int, seconds: float = 2.0, rate: int = 16_000) -> Path:
    """`count` flac files, each with a text file of a few words, in two subfolders."""
    rng = np.random.default_rng(5)
    for number in range(count):
        place = folder / f"day {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        soundfile.write(place / f"take{number:03d}.flac", voiced(seconds, rate, number), rate)
        (place / f"take{number:03d}.txt").write_text(" ".join(rng.choice(WORDS, 6)))
    return folder


def recorded_config(config: Config, folder: Path, kind: str = "audio_folder") -> Config:
    """`config` with a corpus of the recordings in `folder` instead of a spoken one."""
    config.corpus.name = "recorded"
    config.corpus.speech = SpeechSourceConfig(kind=kind, path=str(folder), language="en", licence="CC0-1.0")
    return config
