"""Waveforms: resampling, FLAC in memory, silence. One rate everywhere: 16 kHz mono float32 in [-1, 1]."""

from __future__ import annotations

import io

import numpy as np

from runtime.exits import BadInput

SAMPLE_RATE = 16_000


def resample(wave: np.ndarray, rate: int, to: int = SAMPLE_RATE) -> np.ndarray:
    """`wave`, float [samples] at `rate` Hz, as float32 at `to` Hz."""
    import soxr

    if rate == to:
        return wave.astype(np.float32)
    return soxr.resample(wave.astype(np.float32), rate, to, quality="HQ")


class StreamResampler:
    """Resampling of float32 [samples] that come in blocks: the blocks that come out are those of the whole."""

    def __init__(self, rate: int, to: int = SAMPLE_RATE) -> None:
        import soxr

        self._stream = None if rate == to else soxr.ResampleStream(rate, to, 1, dtype="float32", quality="HQ")

    def feed(self, wave: np.ndarray) -> np.ndarray:
        """What can be said already; a little is held back."""
        return wave if self._stream is None else self._stream.resample_chunk(np.ascontiguousarray(wave))

    def finish(self) -> np.ndarray:
        """What was held back."""
        rest = np.zeros(0, np.float32)
        return rest if self._stream is None else self._stream.resample_chunk(rest, last=True)


def with_silence(wave: np.ndarray, before: float, after: float) -> np.ndarray:
    """`wave` at 16 kHz with seconds of silence around it."""
    return np.pad(wave, (round(before * SAMPLE_RATE), round(after * SAMPLE_RATE)))


def encode_flac(wave: np.ndarray) -> bytes:
    """16-bit FLAC of float [samples] at 16 kHz. Values outside [-1, 1] are clipped."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def encode_wav(wave: np.ndarray, rate: int) -> bytes:
    """A 16-bit WAV file of float [samples]. Values outside [-1, 1] are clipped."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1.0, 1.0), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def decode_flac(data: bytes) -> np.ndarray:
    """float32 [samples] at 16 kHz of a FLAC file. Raises BadInput for bytes that are not one, or another rate."""
    import soundfile

    try:
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise BadInput(f"{len(data)} bytes are not audio: {error}") from error
    if rate != SAMPLE_RATE or wave.ndim != 1:
        raise BadInput(f"expected mono audio at {SAMPLE_RATE} Hz, found shape {wave.shape} at {rate} Hz")
    return wave


def level_db(wave: np.ndarray) -> float:
    """Root-mean-square level in dB below full scale; -120 for silence."""
    return float(20 * np.log10(max(float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))), 1e-6)))
