"""Cuts of lhotse, `cuts.jsonl` or `cuts.jsonl.gz`, read by lhotse itself. A cut is a recording."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_pipeline.decode import LONGEST_SECONDS
from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import read_json_lines
from data_pipeline.sources.recording import MIXED, Recording, Segment, Sound, UnreadableAudio
from data_pipeline.sources.speech.places import Place, beside
from data_pipeline.utterance import Word
from runtime.exits import BadInput


def lhotse_cuts(path: str, split: str | None, *, audio_folder: str = "") -> Iterator[Recording]:
    """The cuts of a manifest in its order, a supervision a segment; a cut without any is cut by voice activity.

    Relative paths are relative to `audio_folder`, or to where the command runs, as lhotse has it. Commands as sources
    are never run. What a cut asks for beyond a stretch of a file (mixing, padding, changed speed) lhotse does.
    """
    if split is not None:
        raise BadInput("speech source lhotse_cuts has no splits; name the manifest of one as path")
    for number, row in read_json_lines(path):
        cut = read_cut(row, f"{path} line {number}")
        place, channels = _place(cut, row, audio_folder, f"{path} line {number}")
        yield Recording(safe_key(cut.id), place, segments_of(cut, channels), duration=cut.duration)


def read_cut(row: dict[str, Any], where: str) -> Any:
    """A cut of lhotse from a line of a manifest. Raises BadInput where it is none."""
    from lhotse.cut import Cut
    from lhotse.serialization import deserialize_item

    try:
        cut = deserialize_item(copy.deepcopy(row))  # it takes its argument to pieces
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise BadInput(f"{where} is no cut of lhotse: {error}") from error
    if not isinstance(cut, Cut):
        raise BadInput(f"{where} is a {type(cut).__name__}, not a cut; make cuts of it with `lhotse cut simple`")
    return cut


def segments_of(cut: Any, channels: list[int] | None = None) -> tuple[Segment, ...]:
    """The supervisions of a cut, times from its start, in their order. Where `channels` says which of its recording's
    channels the sound has, theirs are counted in it."""
    segments = []
    for said in cut.supervisions:
        start = max(said.start, 0.0)
        numbers = said.channel if isinstance(said.channel, list) else [said.channel]
        channel = numbers[0] if len(numbers) == 1 else MIXED
        if channels is not None and channel != MIXED:
            channel = channels.index(channel) if channel in channels else 0
        segments.append(
            Segment(
                start=start,
                end=None if said.end >= cut.duration and start == 0 else min(said.end, cut.duration),
                text=(said.text or "").strip(),
                speaker=said.speaker or "",
                language=said.language or "",
                channel=channel,
                words=_words(said, start),
                quality=_numbers(said.custom),
            )
        )
    return tuple(segments)


def _words(said: Any, start: float) -> tuple[Word, ...]:
    """Word times of an alignment, which lhotse counts from the start of the cut, from that of the segment."""
    aligned = (said.alignment or {}).get("word", ())
    return tuple(
        Word(word.symbol, max(word.start - start, 0.0), max(word.end - start, 0.0)) for word in aligned if word.symbol
    )


def _numbers(custom: dict[str, Any] | None) -> tuple[tuple[str, float], ...]:
    return tuple(
        (name, float(value))
        for name, value in (custom or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name.isidentifier() and name.islower()
    )


def _place(cut: Any, row: dict[str, Any], folder: str, where: str) -> tuple[Place, list[int] | None]:
    """Where a cut's sound is, and its channels where they are not all of the file's."""
    for source in _sources(row):
        if source.get("type") == "command":
            raise BadInput(f"{where}: its source is a command; commands are not run: write audio files instead")
    recording = getattr(cut, "recording", None)
    if recording is None or recording.transforms or len(recording.sources) != 1 or "tracks" in row:
        return _of_lhotse(cut, row)
    source = recording.sources[0]
    if source.type not in ("file", "url"):
        return _of_lhotse(cut, row)
    whole = cut.start == 0 and cut.duration == recording.duration
    return beside(folder, source.source, cut.start, None if whole else cut.end), None


def _of_lhotse(cut: Any, row: dict[str, Any]) -> tuple[Place, list[int] | None]:
    channel = getattr(cut, "channel", 0)
    return LhotseCut(cut.id, json.dumps(row)), channel if isinstance(channel, list) else [channel]


def _sources(row: Any) -> Iterator[dict[str, Any]]:
    """All audio sources that a line mentions, at any depth."""
    if isinstance(row, dict):
        yield from (source for source in row.get("sources") or () if isinstance(source, dict))
        for value in row.values():
            yield from _sources(value)
    elif isinstance(row, list):
        for value in row:
            yield from _sources(value)


@dataclass(frozen=True)
class LhotseCut:
    """A cut whose sound lhotse makes: `manifest` is its line."""

    id: str
    manifest: str

    @property
    def file(self) -> str:
        return self.id

    @property
    def name(self) -> str:
        return f"cut {self.id}"

    def blocks(self, start: float, end: float | None, lasting: float | None) -> Iterator[Sound]:
        from lhotse.audio.utils import AudioLoadingError, DurationMismatchError

        cut = read_cut(json.loads(self.manifest), self.name)
        last = cut.duration if end is None else min(end, cut.duration)
        if cut.duration > LONGEST_SECONDS:
            raise UnreadableAudio("too_long", self.name)
        if last <= start:
            raise UnreadableAudio("empty", self.name)
        try:
            samples = cut.load_audio()
        except FileNotFoundError as error:
            raise UnreadableAudio("missing", self.name) from error
        except (AudioLoadingError, DurationMismatchError) as error:
            raise UnreadableAudio("decode", self.name) from error
        if samples is None:
            raise UnreadableAudio("empty", self.name)
        rate = cut.sampling_rate
        yield Sound(samples[:, round(start * rate) : round(last * rate)], rate)  # of the whole: it may be filtered
