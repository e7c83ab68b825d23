"""Kaldi's `data/<name>` folders: wav.scp, and segments, text, utt2spk, utt2lang and reco2dur if they are there."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import number_in, read_keyed, read_lines
from data_pipeline.sources.recording import MIXED, Recording, Segment
from data_pipeline.sources.speech.places import FileStretch, beside
from runtime.exits import BadInput


def kaldi(path: str, split: str | None, *, audio_folder: str = "") -> Iterator[Recording]:
    """Recordings of wav.scp in its order; `split` is a folder under `path`. Relative paths are relative to
    `audio_folder`, or to where the command runs, as Kaldi has it.

    Commands (lines of wav.scp that end in `|`) are never run. A recording that no line of `segments` or `text` names
    is cut by voice activity.
    """
    folder = Path(path) / (split or "")
    scp = folder / "wav.scp"
    texts, speakers, languages = (_table(folder / name) for name in ("text", "utt2spk", "utt2lang"))
    durations = _table(folder / "reco2dur")
    segments = _segments(folder / "segments", texts, speakers, languages)
    for number, key, file in read_keyed(scp):
        place = _place(file, audio_folder, f"{scp} line {number}")
        if segments is not None:
            said = tuple(sorted(segments.get(key, ()), key=lambda segment: (segment.start, segment.channel)))
        elif key in texts:
            said = (
                Segment(text=texts[key], speaker=speakers.get(key, ""), language=languages.get(key, ""), channel=MIXED),
            )
        else:
            said = ()
        duration = number_in(durations, key, str(folder / "reco2dur"))
        yield Recording(safe_key(key), place, said, duration=duration)


def _place(file: str, folder: str, where: str) -> FileStretch:
    if not file:
        raise BadInput(f"{where} names no file")
    if file.endswith("|") or file.startswith("|"):
        raise BadInput(f"{where} is a command; commands are not run: write audio files and their paths instead")
    if re.search(r"\.ark:\d+$", file):
        raise BadInput(f"{where} points into an archive; write audio files and their paths instead")
    place = beside(folder, file)
    if not isinstance(place, FileStretch):
        raise BadInput(f"{where} names no path: {file!r}")
    return place


def _table(path: Path) -> dict[str, str]:
    return {key: rest for _, key, rest in read_keyed(path)} if path.is_file() else {}


def _segments(
    path: Path, texts: dict[str, str], speakers: dict[str, str], languages: dict[str, str]
) -> dict[str, list[Segment]] | None:
    """Segments by recording, None where the folder has no such file: an utterance is then a whole recording. An end
    of -1 is the recording's."""
    if not path.is_file():
        return None
    found: dict[str, list[Segment]] = defaultdict(list)
    for number, line in read_lines(path):
        try:
            utterance, recording, start, end = line.split()[:4]
            times = float(start), float(end)
        except ValueError as error:
            raise BadInput(f"{path} line {number} is not `utterance recording start end`: {line}") from error
        if not (0 <= times[0] < times[1] or (times[0] >= 0 and times[1] == -1)):
            raise BadInput(f"{path} line {number}: a segment from {start} to {end} s")
        found[recording].append(
            Segment(
                start=times[0],
                end=None if times[1] == -1 else times[1],
                text=texts.get(utterance, ""),
                speaker=speakers.get(utterance, ""),
                language=languages.get(utterance, ""),
                channel=MIXED,
            )
        )
    return found
