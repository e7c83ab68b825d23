"""Waveforms: what goes in comes out, at the rate that was asked for."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipeline.audio import (
    SAMPLE_RATE,
    StreamResampler,
    decode_flac,
    encode_flac,
    encode_wav,
    level_db,
    resample,
    with_silence,
)
from data_pipeline.decode import decode
from runtime.exits import BadInput


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_flac_keeps_sixteen_bits() -> None:
    wave = tone(440, 0.5, SAMPLE_RATE)
    again = decode_flac(encode_flac(wave))
    assert again.dtype == np.float32
    assert np.abs(again - wave).max() <= 1 / 32768


def test_flac_is_reproducible_and_clips() -> None:
    wave = 3 * tone(440, 0.1, SAMPLE_RATE)
    assert encode_flac(wave) == encode_flac(wave)
    assert np.abs(decode_flac(encode_flac(wave))).max() <= 1


def test_a_wav_is_read_again_and_clips(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode_wav(np.array([0.5, -2.0, 0.25], np.float32), 22_050))
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    np.testing.assert_allclose(decode(tmp_path / "a.wav").samples[0], [0.5, -1.0, 0.25], atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_resampling_keeps_pitch_and_length(rate: int) -> None:
    wave = resample(tone(1000, 1.0, rate), rate)
    assert abs(len(wave) - SAMPLE_RATE) <= 1
    assert np.abs(np.fft.rfft(wave)).argmax() == pytest.approx(1000, abs=2)


def test_silence_is_where_it_was_asked_for() -> None:
    padded = with_silence(np.ones(10, np.float32), 0.1, 0.2)
    assert len(padded) == 1600 + 10 + 3200
    assert padded[:1600].max() == 0 and padded[1600] == 1 and padded[1610:].max() == 0


def test_what_is_not_audio_is_refused() -> None:
    with pytest.raises(BadInput, match="not audio"):
        decode_flac(b"these are not the samples")


def test_level() -> None:
    assert level_db(np.ones(100, np.float32)) == pytest.approx(0)
    assert level_db(np.full(100, 0.1, np.float32)) == pytest.approx(-20, abs=1e-3)
    assert level_db(np.zeros(100, np.float32)) == -120


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_resampling_in_blocks_is_that_of_the_whole(rate: int) -> None:
    wave = tone(300, 3.0, rate)
    stream, held, first = StreamResampler(rate), [], 0
    rng = np.random.default_rng(0)
    while first < len(wave):
        size = int(rng.integers(1, 9_000))
        held.append(stream.feed(wave[first : first + size]))
        first += size
    again = np.concatenate([*held, stream.finish()])
    assert again.dtype == np.float32
    assert abs(len(again) - 3 * SAMPLE_RATE) <= 1
    whole = resample(wave, rate)[: len(again)]
    assert np.abs(again[: len(whole)] - whole).max() < 1e-5
