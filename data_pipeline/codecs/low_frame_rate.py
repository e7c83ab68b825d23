"""What FunASR's encoders are given: Kaldi filterbanks at a low frame rate, normalised by the numbers of an `am.mvn`.

Seven neighbouring filterbank frames, 10 ms apart, are put side by side every six: 16.67 features a second.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from configs.audio_input import STACKED
from data_pipeline.codecs.weights import setting, weights_identity
from runtime.exits import BadInput

STEP = 6  # filterbank frames from one feature to the next
SHIFT, LENGTH = 160, 400  # samples between and in filterbank frames
BANDS = 80
STATISTICS = "am.mvn"


def frames_in(samples: int) -> int:
    """Filterbank frames of so many samples."""
    return max((samples - LENGTH) // SHIFT + 1, 0)


def filterbank(wave: np.ndarray, bands: int = BANDS) -> np.ndarray:
    """float32 [frames, bands] of float32 [samples] at 16 kHz: Kaldi's log mel energies, Hamming window, no dither, on
    the scale of 16-bit integers; frames = (samples - 400) // 160 + 1."""
    from kaldi_native_fbank import FbankOptions, OnlineFbank

    options = FbankOptions()
    options.frame_opts.samp_freq = 16_000
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hamming"
    options.mel_opts.num_bins = bands
    bank = OnlineFbank(options)
    bank.accept_waveform(16_000, wave * np.float32(1 << 15))
    frames = [bank.get_frame(index) for index in range(bank.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, bands), np.float32)


def stacked(rows: np.ndarray, count: int) -> np.ndarray:
    """float32 [count, 7 bands]: the `count` first stacks of filterbank rows, the last row repeated where they end."""
    at = np.minimum(STEP * np.arange(count)[:, None] + np.arange(STACKED), len(rows) - 1)
    return rows[at].reshape(count, STACKED * rows.shape[1])


def with_head(frames: np.ndarray) -> np.ndarray:
    """A wave's filterbank frames behind three copies of the first, where its stacks begin."""
    return np.concatenate([np.repeat(frames[:1], STACKED // 2, axis=0), frames])


def features_of(wave: np.ndarray, bands: int = BANDS) -> np.ndarray:
    """float32 [features, 7 bands] of a whole wave, float32 [samples] at 16 kHz: one for every six filterbank frames
    begun, at least one. What is shorter than a frame of 25 ms is padded with silence to one."""
    frames = filterbank(np.pad(wave, (0, max(LENGTH - len(wave), 0))), bands)
    return stacked(with_head(frames), -(-len(frames) // STEP))


def read_statistics(file: Path, width: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale, float32 [width], of a Kaldi nnet `am.mvn`: the numbers in brackets behind <AddShift> and
    <Rescale>; a feature is normalised as (feature + shift) * scale. Raises BadInput where they are not there."""
    try:
        text = file.read_text(encoding="utf-8")
        found = [re.search(rf"<{tag}>[^\[]*\[([^\]]*)\]", text) for tag in ("AddShift", "Rescale")]
        shift, scale = (np.array(match[1].split(), np.float32) for match in found if match)
    except (OSError, ValueError) as error:
        raise BadInput(f"{setting(part)}: {file} is no am.mvn with <AddShift> and <Rescale>") from error
    if not len(shift) == len(scale) == width:
        raise BadInput(
            f"{setting(part)}: the encoder takes {width} dimensions, {file} has {len(shift)} and {len(scale)}"
        )
    return shift, scale


def statistics_identity(spec: str, part: str) -> str:
    """What the `am.mvn` of a folder is, for content hashes; of a hub name, this."""
    file = Path(spec) / STATISTICS
    return weights_identity(str(file) if file.is_file() else spec, part)
