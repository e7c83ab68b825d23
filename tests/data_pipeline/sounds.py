"""Sound for tests: waves that no codec would call silent, and files of every kind that hold them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import soundfile

# By ending: what writes it. soundfile's format and subtype, or FFmpeg's codec.
SNDFILE = {
    "wav": ("WAV", "PCM_16"),
    "24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "sph": ("NIST", "PCM_16"),
    "mp3": ("MP3", None),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}
FFMPEG = {"m4a": "aac", "aac": "aac", "webm": "libopus", "g722": "g722"}
LOSSLESS = ("wav", "24.wav", "float.wav", "flac", "sph")
KINDS = (*SNDFILE, *FFMPEG)


def speechlike(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """float32 [samples, channels]: harmonics of a wandering pitch with syllables of loudness, each channel its own."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    waves = []
    for _ in range(channels):
        pitch = 120 + 20 * np.sin(2 * np.pi * (0.4 + rng.random()) * time)
        phase = 2 * np.pi * np.cumsum(pitch) / rate
        wave = sum(np.sin(k * phase) / k for k in range(1, 12))
        waves.append(0.15 * wave * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time + rng.random())))
    sound = np.stack(waves, axis=1)
    return (np.round(sound * 32767) / 32768).astype(np.float32)  # what 16 bits hold exactly


def peak_megabytes() -> float:
    """Most memory that this process has held at once. (`ru_maxrss` would be that of the process it was forked from.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def write_sound(path: Path, wave: np.ndarray, rate: int = 16_000, kind: str | None = None) -> Path:
    """`wave`, [samples] or [samples, channels], as the file `path`, whose ending says of what kind it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = kind or next(kind for kind in sorted(KINDS, key=len, reverse=True) if path.name.endswith(f".{kind}"))
    wave = wave if wave.ndim == 2 else wave[:, None]
    if kind in SNDFILE:
        container, subtype = SNDFILE[kind]
        soundfile.write(path, wave, rate, format=container, subtype=subtype)
        return path
    layout = "mono" if wave.shape[1] == 1 else "stereo"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(FFMPEG[kind], rate=rate)
        stream.layout = layout
        samples = np.ascontiguousarray((wave * 32767).astype(np.int16).reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)
    return path
