"""Reads and cuts long files of human speech (Asterisk's prompts, repeated) and says how fast and in how much memory.

Needs Debian's asterisk-core-sounds-en-g722 and asterisk-core-sounds-en. One core, one process a row.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs.schema import CutConfig, SpeechSourceConfig
from data_pipeline.cutting import cut, speech_probabilities
from data_pipeline.sources.recording import SpeechSource
from data_pipeline.sources.speech import open_speech_source
from tests.data_pipeline.sounds import peak_megabytes, write_sound
from tests.data_pipeline.test_cutting import frame_by_frame

PROMPTS = "/usr/share/asterisk/sounds/en"
HOURS = {"flac": 3.0, "mp3": 0.5, "opus": 0.5, "m4a": 0.5}  # encoding the others takes long
RATE = 16_000


def prompts() -> np.ndarray:
    """All prompts with pauses of 0.2 to 2.5 s between them, float32 [samples]."""
    rng = np.random.default_rng(0)
    source = open_speech_source(SpeechSourceConfig(kind="asterisk", path=PROMPTS))
    parts = []
    for recording in source.recordings():
        parts.append(source.sound(recording).samples[0])
        parts.append(np.zeros(int(RATE * rng.uniform(0.2, 2.5)), np.float32))
    return np.concatenate(parts)


def opened(folder: Path) -> SpeechSource:
    return open_speech_source(SpeechSourceConfig(kind="audio_folder", path=str(folder)))


def read(folder: Path) -> str:
    source = opened(folder)
    (recording,) = source.recordings()
    seconds = sum(block.duration for block in source.blocks(recording))
    return f"{seconds / 3600:.2f} h"


def stretches(folder: Path) -> str:
    source = opened(folder)
    (recording,) = source.recordings()
    for start in np.random.default_rng(0).uniform(0, 1600, 100):
        source.sound(recording, start, start + 15)
    return "100 stretches of 15 s"


def cut_all(folder: Path) -> str:
    source = opened(folder)
    (recording,) = source.recordings()
    lengths = [segment.end - segment.start for segment in cut(source, recording, CutConfig())]
    held = sum(lengths) / 3600
    return f"{len(lengths)} segments, {held:.2f} h, mean {np.mean(lengths):.1f} s, longest {max(lengths):.2f} s"


def measured(task: Callable[[Path], str], folder: Path, row: str, hours: float) -> None:
    import av  # noqa: F401
    import onnxruntime  # noqa: F401
    import soundfile  # noqa: F401
    import soxr  # noqa: F401

    before = peak_megabytes()
    start = time.process_time()
    said = task(folder)
    seconds = time.process_time() - start
    grown = peak_megabytes() - before
    print(f"| {row} | {seconds:.1f} | {hours * 3600 / seconds:.0f} | {grown:.0f} | {said} |", flush=True)


def main() -> None:
    wave = prompts()
    difference = np.abs(speech_probabilities(wave) - frame_by_frame(wave)).max()
    print(f"{len(wave) / RATE / 60:.1f} minutes of prompts and pauses; the two networks differ by {difference:.1e}")
    print("| what | CPU seconds | times real time | MB grown at the peak | result |")
    print("|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for kind, hours in HOURS.items():
        with tempfile.TemporaryDirectory() as name:
            count = int(hours * 3600 * RATE)
            write_sound(Path(name) / f"long.{kind}", np.tile(wave, -(-count // len(wave)))[:count])
            for task, row in ((read, "read in blocks"), (stretches, "stretches"), (cut_all, "cut")):
                title = f"{row}, {hours} h of {kind}"
                worker = context.Process(target=measured, args=(task, Path(name), title, hours))
                worker.start()
                worker.join()


if __name__ == "__main__":
    main()
