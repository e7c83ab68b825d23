"""Audio files of any common kind into samples, whole, in part or in a stream of blocks, at the rate they have.

libsndfile reads wav, flac, ogg (Vorbis, Opus) and NIST sphere. FFmpeg reads mp3, whose bit reservoir libsndfile loses
between two reads, and what libsndfile refuses: m4a, aac, webm, g722 and others. A file is a path, an fsspec URL, or
bytes. What comes out is what the file holds: a stretch is sample for sample the same as that part of the whole (for
codecs with memory, after a second of run-in).

A file that was cut short is told by its header (wav, flac, sphere, mp4, most mp3). One of ogg, webm, aac or g722 has
none that says how long it is: only a source that knows the duration tells it from a short one.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_pipeline.remote.storage import open_file
from data_pipeline.sources.address import is_url
from data_pipeline.sources.recording import Sound, UnreadableAudio
from runtime.exits import BadInput

BLOCK_SECONDS = 30.0
LONGEST_SECONDS = 3600.0  # of a stretch that is held in memory at once
LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000
_DURATION_SLACK = 0.5  # seconds by which a file may last more or less than its source says,
_DURATION_SHARE = 0.02  # or this share of it, if that is more
_LOUDEST = 16.0  # a sample above is no overshoot of a codec: the file is in another scale
_RUN_IN_SECONDS = 1.0
# Only formats that hold sound themselves: FFmpeg's playlists would open other files and addresses.
_FORMATS = "aac,amr,asf,caf,flac,matroska,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,wav,webm,w64,aiff,au"
_WITHOUT_HEADER = {".g722": "g722"}  # formats that only the name of a file tells


def decode_blocks(
    file: str | Path | bytes,
    name: str = "",
    start: float = 0.0,
    end: float | None = None,
    *,
    lasting: float | None = None,
    block: float = BLOCK_SECONDS,
) -> Iterator[Sound]:
    """The sound of `file` from `start` to `end` seconds (None: its end) in blocks of at most `block` seconds.

    `name` says what the bytes are called, for messages. An `end` after the end of the file is its end. `lasting` is
    how many seconds the whole file should have: one whose header says otherwise was cut short, or lies about its rate.
    Raises UnreadableAudio, also after some blocks: what came before is then not to be trusted either.
    """
    where = name or (f"{len(file)} bytes" if isinstance(file, bytes) else str(file))
    with _opened(file, where) as stream:
        found = 0
        for samples, rate in _decoded(stream, where, start, end, lasting, block):
            found += samples.shape[1]
            yield Sound(_checked(samples, where), rate)
    if not found:
        raise UnreadableAudio("empty", where)


def decode(file: str | Path | bytes, name: str = "", start: float = 0.0, end: float | None = None) -> Sound:
    """The sound of `file` from `start` to `end` seconds, at once. Raises UnreadableAudio; more than an hour is."""
    parts: list[np.ndarray] = []
    seconds, rate = 0.0, 0
    for sound in decode_blocks(file, name, start, end):
        parts.append(sound.samples)
        rate = sound.rate
        seconds += sound.duration
        if seconds > LONGEST_SECONDS:
            raise UnreadableAudio("too_long", name or str(file))
    return Sound(np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0], rate)


@contextmanager
def _opened(file: str | Path | bytes, where: str) -> Iterator[BinaryIO]:
    if isinstance(file, bytes):
        yield io.BytesIO(file)
        return
    try:
        if is_url(str(file)):
            with open_file(str(file)) as remote:
                yield remote
        else:
            with Path(file).open("rb") as local:
                yield local
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UnreadableAudio("missing", where) from error
    except PermissionError as error:
        raise BadInput(f"{where} may not be read: {error.strerror}") from error
    except OSError as error:
        if "name too long" in str(error):
            raise UnreadableAudio("missing", where) from error
        raise


def check_duration(seconds: float, lasting: float | None, where: str) -> None:
    """Raises UnreadableAudio where `seconds` are not about `lasting`."""
    if lasting is not None and abs(seconds - lasting) > max(_DURATION_SLACK, _DURATION_SHARE * lasting):
        raise UnreadableAudio("duration", where, f"lasts {seconds:.2f} s where its source says {lasting:.2f} s")


def _checked(samples: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise UnreadableAudio("not_finite", where)
    if samples.size and np.abs(samples).max() > _LOUDEST:
        raise UnreadableAudio("scale", where)
    return np.clip(samples, -1.0, 1.0)


def _decoded(
    stream: BinaryIO, where: str, start: float, end: float | None, lasting: float | None, block: float
) -> Iterator[tuple[np.ndarray, int]]:
    """float32 [channels, samples] and their rate, from the decoder that knows the file."""
    import soundfile

    head = stream.read(1024)
    stream.seek(0)
    if not head:
        raise UnreadableAudio("empty", where)
    if head.startswith(b"NIST_1A") and b"embedded-" in head:
        raise UnreadableAudio("decode", where, "sphere file compressed with shorten; unpack it with sph2pipe first")
    try:
        file = soundfile.SoundFile(stream)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: it takes some suffixes for header-less audio
        file = None
    if file is None or file.format == "MP3":
        stream.seek(0)
        yield from _with_ffmpeg(stream, where, start, end, lasting, block)
        return
    with file:
        told = re.search(rb"^sample_count -i (\d+)", head, re.MULTILINE) if file.format == "NIST" else None
        if _is_cut_short(file) or (told is not None and file.frames < int(told[1])):
            raise UnreadableAudio("truncated", where)
        check_duration(file.frames / _plausible(file.samplerate, where), lasting, where)
        yield from _with_sndfile(file, where, start, end, block)


def _with_sndfile(
    file: Any, where: str, start: float, end: float | None, block: float
) -> Iterator[tuple[np.ndarray, int]]:
    import soundfile

    rate = file.samplerate
    first = min(round(start * rate), file.frames)
    last = file.frames if end is None else min(round(end * rate), file.frames)
    try:
        if first:
            file.seek(first)
        while first < last:
            wanted = min(round(block * rate), last - first)
            samples = file.read(wanted, dtype="float32", always_2d=True)
            if len(samples) < wanted:
                raise UnreadableAudio("truncated", where)
            first += wanted
            yield np.ascontiguousarray(samples.T), rate
    except soundfile.LibsndfileError as error:
        raise UnreadableAudio("decode", where) from error


def _is_cut_short(file: Any) -> bool:
    """Whether a wav file ends before its data chunk does. libsndfile makes do with what is there and says so only in
    its log. A size of about 4 GB is what programs write that do not know yet how much will follow."""
    if file.format not in ("WAV", "WAVEX", "RF64", "W64"):
        return False
    told = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    return told is not None and int(told[2]) < int(told[1]) < 0x7FFF0000


def _plausible(rate: int, where: str) -> int:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise UnreadableAudio("rate", where, f"a sample rate of {rate} Hz cannot be speech")
    return rate


def _with_ffmpeg(
    stream: BinaryIO, where: str, start: float, end: float | None, lasting: float | None, block: float
) -> Iterator[tuple[np.ndarray, int]]:
    """Frames of FFmpeg, gathered to blocks. Positions are those that the container states, so that a stretch can
    begin anywhere; a format without positions is decoded from its beginning."""
    import av

    suffix = os.path.splitext(where)[1].lower()
    options = {"format_whitelist": _FORMATS + "," + ",".join(_WITHOUT_HEADER.values()), "protocol_whitelist": ""}
    held: list[np.ndarray] = []
    count = 0
    try:
        opened: Any = av.open(stream, format=_WITHOUT_HEADER.get(suffix), options=options)
        with opened as container:
            rate = getattr(container.streams.audio[0], "rate", None) if container.streams.audio else None
            if rate is None:  # no sound, or of a kind that a damaged header made up
                raise UnreadableAudio("decode", where)
            _plausible(rate, where)
            if container.duration and container.format.name not in _ESTIMATED_DURATION:
                check_duration(container.duration / av.time_base, lasting, where)
            first, last = round(start * rate), None if end is None else round(end * rate)
            size = round(block * rate)
            for position, samples in _frames(container, where, max(start - _RUN_IN_SECONDS, 0.0)):
                stop = samples.shape[1] if last is None else min(samples.shape[1], last - position)
                wanted = samples[:, max(first - position, 0) : max(stop, 0)]
                if wanted.shape[1]:
                    held.append(wanted)
                    count += wanted.shape[1]
                if count >= size:
                    yield np.concatenate(held, axis=1), rate
                    held, count = [], 0
                if last is not None and position + samples.shape[1] >= last:
                    break
    except av.error.FFmpegError as error:
        raise UnreadableAudio("decode", where) from error
    if held:
        yield np.concatenate(held, axis=1), rate


_ESTIMATED_DURATION = {"aac", "g722"}  # formats that do not say how long they are; FFmpeg guesses from the size
_EXACT_TIMES = {"mov,mp4,m4a,3gp,3g2,mj2"}  # containers whose clock can name a sample


def _frames(container: Any, where: str, start: float) -> Iterator[tuple[int, np.ndarray]]:
    """Decoded frames with the number of their first sample, from at most `start` seconds on."""
    import av

    stream = container.streams.audio[0]
    rate, origin = stream.rate, stream.start_time or 0
    if start > 0 and container.format.name not in _WITHOUT_HEADER.values():
        container.seek(origin + int(start / stream.time_base), stream=stream, backward=True)
    planar = av.AudioResampler(format="fltp")
    length = None  # of the whole in samples, without what the encoder filled its last frame with
    if stream.duration and container.format.name not in _ESTIMATED_DURATION:
        length = round(float(stream.duration * stream.time_base) * rate)
    position = None
    for frame in container.decode(stream):
        if position is None or container.format.name in _EXACT_TIMES:
            told = 0 if frame.pts is None else frame.pts - origin
            position = round(float(told * stream.time_base) * rate)
        for part in planar.resample(frame):
            if part.rate != rate:
                raise UnreadableAudio("rate", where, "its sample rate changes in the middle")
            samples = part.to_ndarray()
            if length is not None:
                samples = samples[:, : max(length - position, 0)]
            yield position, samples
            position += samples.shape[1]
    if position is not None and length is not None and position < length - rate // 10:
        raise UnreadableAudio("truncated", where)
