"""Log-mel spectrograms and code strips as small PNG images."""

from __future__ import annotations

import colorsys
import struct
import zlib

import numpy as np

MEL_BANDS = 80
WINDOW_SECONDS = 0.025
HOP_SECONDS = 0.010
RANGE_DB = 70.0  # below the loudest cell everything is the darkest colour
GOLDEN_ANGLE = 0.618034  # of a full turn: neighbouring codes get hues far apart

# From silence to the loudest cell.
_RAMP = ((15, 23, 32), (24, 58, 84), (33, 110, 124), (96, 163, 134), (212, 196, 128), (252, 240, 214))


def log_mel(wave: np.ndarray, rate: int) -> np.ndarray:
    """Log-mel spectrogram of a mono waveform, float32 [MEL_BANDS, frames], in dB below the loudest cell.

    Triangular filters, evenly spaced on the mel scale 2595 log10(1 + f / 700) (O'Shaughnessy 1987).
    """
    window, hop = round(WINDOW_SECONDS * rate), round(HOP_SECONDS * rate)
    padded = np.pad(wave.astype(np.float32), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    bins = 1 << (window - 1).bit_length()
    power = np.abs(np.fft.rfft(frames * np.hanning(window).astype(np.float32), bins)) ** 2
    energy = _filters(rate, bins) @ power.T
    loudest = max(float(energy.max()), 1e-10)
    decibels = 10 * np.log10(np.maximum(energy, loudest * 10 ** (-RANGE_DB / 10)) / loudest)
    return decibels.astype(np.float32)


def _filters(rate: int, bins: int) -> np.ndarray:
    """Mel filters [MEL_BANDS, bins / 2 + 1]."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, MEL_BANDS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(bins, 1 / rate)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return np.maximum(0.0, np.minimum(rising, falling))


def spectrogram_png(wave: np.ndarray, rate: int) -> bytes:
    """The log-mel spectrogram as a PNG: time to the right, one pixel a hop, low frequencies at the bottom."""
    shade = np.round((log_mel(wave, rate) / RANGE_DB + 1) * 255).astype(np.uint8)
    return encode_png(shade[::-1], palette())


def palette() -> np.ndarray:
    """Colours from silence to the loudest cell, uint8 [256, 3]."""
    anchors = np.linspace(0, 255, len(_RAMP))
    ramp = np.stack([np.interp(np.arange(256), anchors, channel) for channel in np.array(_RAMP).T], axis=1)
    return np.round(ramp).astype(np.uint8)


def code_strip_png(codes: np.ndarray) -> bytes:
    """One pixel a code, in a colour of its own, so that what repeats is seen to repeat. codes: integers [frames]."""
    seen, indices = np.unique(codes, return_inverse=True)
    colours = np.array([_colour(int(code)) for code in seen], dtype=np.uint8)
    return encode_png(colours[indices].reshape(1, -1, 3))


def _colour(code: int) -> tuple[int, int, int]:
    hue = code * GOLDEN_ANGLE % 1.0
    lightness = 0.46 + 0.14 * (code * 7 % 5) / 4
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.42)
    return round(255 * red), round(255 * green), round(255 * blue)


def encode_png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """PNG (ISO/IEC 15948) of uint8 pixels: [rows, columns] with a palette [256, 3], or [rows, columns, 3]."""
    rows, columns = pixels.shape[:2]
    kind = 2 if palette is None else 3
    header = struct.pack(">IIBBBBB", columns, rows, 8, kind, 0, 0, 0)
    unfiltered = np.zeros((rows, 1), np.uint8)  # filter type 0 leads each row
    raster = np.hstack([unfiltered, pixels.reshape(rows, -1)]).tobytes()
    chunks = [_chunk(b"IHDR", header)]
    if palette is not None:
        chunks.append(_chunk(b"PLTE", palette.tobytes()))
    chunks += [_chunk(b"IDAT", zlib.compress(raster, 9)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
