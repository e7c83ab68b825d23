"""Decoding: what files hold comes out, whole, in part and in blocks; damaged ones are named by kind."""

import os
import pickle
import struct
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.decode import decode, decode_blocks
from data_pipeline.sources.recording import MIXED, Sound, UnreadableAudio
from tests.data_pipeline.sounds import KINDS, LOSSLESS, speechlike, write_sound

RUN_IN = 0.02  # amplitude that a codec with memory may be off by where decoding began a second before


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Highest correlation of two waves over shifts of up to 4,000 samples: encoders delay."""
    count = min(len(a), len(b))
    product = np.fft.irfft(np.fft.rfft(a[:count], 2 * count) * np.conj(np.fft.rfft(b[:count], 2 * count)))
    peak = max(product[:4000].max(), product[-4000:].max())
    return float(peak / np.sqrt((a[:count] ** 2).sum() * (b[:count] ** 2).sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_sound_that_was_written(tmp_path: Path, kind: str) -> None:
    wave = speechlike(3.0)[:, 0]
    sound = decode(write_sound(tmp_path / f"a.{kind}", wave))
    assert sound.samples.dtype == np.float32 and len(sound.samples) == 1
    assert sound.rate == (48_000 if kind == "webm" else 16_000)
    if kind in LOSSLESS:
        assert np.array_equal(sound.samples[0], wave)
    else:
        assert sound.duration == pytest.approx(3.0, abs=0.08)
        again = sound.samples[0, :: sound.rate // 16_000]
        assert likeness(again, wave) > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretch_is_that_part_of_the_whole(tmp_path: Path, kind: str) -> None:
    file = write_sound(tmp_path / f"a.{kind}", speechlike(8.0))
    whole = decode(file)
    for start, end in ((0.0, 1.0), (2.51, 4.0), (5.25, None), (7.9, 30.0)):
        part = decode(file, start=start, end=end)
        first = round(start * whole.rate)
        last = whole.samples.shape[1] if end is None else min(round(end * whole.rate), whole.samples.shape[1])
        wanted = whole.samples[:, first:last]
        assert part.samples.shape == wanted.shape
        if kind in LOSSLESS:
            assert np.array_equal(part.samples, wanted)
        else:
            assert np.abs(part.samples - wanted).max() < RUN_IN


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_the_whole(tmp_path: Path, kind: str) -> None:
    file = write_sound(tmp_path / f"a.{kind}", speechlike(5.0))
    blocks = list(decode_blocks(file, block=0.7))
    assert len(blocks) > 5
    assert all(block.duration <= 0.7 + 0.2 for block in blocks)
    assert np.array_equal(np.concatenate([b.samples for b in blocks], axis=1), decode(file).samples)


@pytest.mark.parametrize("kind", ["wav", "flac", "opus", "m4a", "webm"])
def test_bytes_paths_and_urls_are_the_same(tmp_path: Path, kind: str) -> None:
    file = write_sound(tmp_path / f"a.{kind}", speechlike(1.0))
    with fsspec.open(f"memory://sounds/a.{kind}", "wb") as remote:
        remote.write(file.read_bytes())
    local = decode(file).samples
    assert np.array_equal(decode(file.read_bytes()).samples, local)
    assert np.array_equal(decode(f"memory://sounds/a.{kind}").samples, local)
    part = decode(f"memory://sounds/a.{kind}", start=0.5, end=0.75).samples
    assert np.array_equal(part, decode(file, start=0.5, end=0.75).samples)


@pytest.mark.parametrize("kind", ["wav", "flac", "sph", "ogg", "m4a"])
def test_channels_stay_apart(tmp_path: Path, kind: str) -> None:
    wave = speechlike(2.0, channels=2)
    sound = decode(write_sound(tmp_path / f"a.{kind}", wave))
    assert len(sound.samples) == 2
    for channel in (0, 1):
        assert likeness(sound.channel(channel), wave[:, channel]) > 0.99
        assert likeness(sound.channel(channel), wave[:, 1 - channel]) < 0.9
    assert np.allclose(sound.channel(MIXED), sound.samples.mean(axis=0))
    with pytest.raises(UnreadableAudio, match="channel 2 of 2"):
        sound.channel(2)


# --- damage ---------------------------------------------------------------------------------------------------------


def kind_of(file: Path | bytes | str, **stretch: float) -> str:
    with pytest.raises(UnreadableAudio) as caught:
        decode(file, **stretch)
    return caught.value.kind


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert kind_of(tmp_path / "no.wav") == "missing"
    assert kind_of(tmp_path) == "missing"
    assert kind_of(tmp_path / ("x" * 400)) == "missing"
    assert kind_of("memory://sounds/no.wav") == "missing"


def test_files_without_sound(tmp_path: Path) -> None:
    (tmp_path / "nothing.wav").touch()
    assert kind_of(tmp_path / "nothing.wav") == "empty"
    for kind in ("wav", "flac", "sph"):
        assert kind_of(write_sound(tmp_path / f"empty.{kind}", np.zeros(0, np.float32))) == "empty"
    assert kind_of(write_sound(tmp_path / "a.wav", speechlike(1.0)), start=1.5) == "empty"


@pytest.mark.parametrize("kind", ["wav", "24.wav", "float.wav", "flac", "sph", "mp3", "m4a"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_files_cut_short(tmp_path: Path, kind: str, share: float) -> None:
    file = write_sound(tmp_path / f"a.{kind}", speechlike(6.0))
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert kind_of(file) in ("truncated", "decode")
    assert kind_of(file.read_bytes()) in ("truncated", "decode")


def test_a_size_that_was_not_known_when_it_was_written_is_no_damage(tmp_path: Path) -> None:
    wave = speechlike(1.0)
    file = write_sound(tmp_path / "a.wav", wave)
    content = bytearray(file.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # as programs write that pipe a wav
    assert np.array_equal(decode(bytes(content)).samples.T, wave)


def test_numbers_that_are_no_sound(tmp_path: Path) -> None:
    wave = speechlike(1.0)
    for value, kind in ((np.nan, "not_finite"), (np.inf, "not_finite"), (3e4, "scale")):
        spoilt = wave.copy()
        spoilt[5000] = value
        assert kind_of(write_sound(tmp_path / "a.float.wav", spoilt)) == kind
    wave[5000] = 1.25
    assert decode(write_sound(tmp_path / "a.float.wav", wave)).samples.max() == 1.0


@pytest.mark.parametrize("rate", [1, 100, 2_000_000])
def test_rates_that_cannot_be_speech(tmp_path: Path, rate: int) -> None:
    file = write_sound(tmp_path / "a.wav", speechlike(1.0))
    content = bytearray(file.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    assert kind_of(bytes(content)) == "rate"


def test_sphere_files_compressed_with_shorten_say_so(tmp_path: Path) -> None:
    head = "NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
    (tmp_path / "a.sph").write_bytes(head.encode().ljust(1024) + b"ajkg" + os.urandom(1000))
    with pytest.raises(UnreadableAudio, match=r"shorten.*sph2pipe") as caught:
        decode(tmp_path / "a.sph")
    assert caught.value.kind == "decode"


def test_playlists_do_not_open_other_files(tmp_path: Path) -> None:
    secret = write_sound(tmp_path / "secret.aac", speechlike(1.0))
    playlist = tmp_path / "a.m4a"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    assert kind_of(playlist) == "decode"
    playlist.write_text(f"ffconcat version 1.0\nfile {secret}\n")
    assert kind_of(playlist) == "decode"


@settings(max_examples=60)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"NIST_1A\n   1024\n"]),
)
def test_random_bytes_are_unreadable_or_sound_but_nothing_else(content: bytes, head: bytes) -> None:
    try:
        sound = decode(head + content)
    except UnreadableAudio as error:
        assert error.kind in UnreadableAudio.KINDS
    else:
        assert np.isfinite(sound.samples).all()


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "m4a", "webm", "g722"])
def test_flipped_bytes_are_unreadable_or_sound_but_nothing_else(tmp_path: Path, kind: str) -> None:
    content = write_sound(tmp_path / f"a.{kind}", speechlike(1.0)).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(30):
        spoilt = bytearray(content)
        for at in rng.integers(0, len(spoilt), 20):
            spoilt[at] ^= 1 << int(rng.integers(8))
        try:
            assert np.isfinite(decode(bytes(spoilt), f"a.{kind}").samples).all()
        except UnreadableAudio as error:
            assert error.kind in UnreadableAudio.KINDS


def test_more_than_an_hour_is_not_held_at_once(tmp_path: Path) -> None:
    file = tmp_path / "long.wav"
    with soundfile.SoundFile(file, "w", 4000, 1, "PCM_U8") as long:
        for _ in range(62):
            long.write(np.zeros(60 * 4000))
    assert kind_of(file) == "too_long"
    assert decode(file, start=3700).duration == pytest.approx(20)


def test_what_is_unreadable_crosses_processes() -> None:
    again = pickle.loads(pickle.dumps(UnreadableAudio("decode", "a.wav", "why")))
    assert (again.kind, again.where, str(again)) == ("decode", "a.wav", "a.wav: why (decode)")
    assert Sound(np.zeros((2, 8000), np.float32), 16_000).duration == 0.5
