"""Corpora of long recordings that one large JSON file describes: `{"audios": [{..., "segments": [...]}]}`.

Such a file is gigabytes, so it is read an audio at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import number_in
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.sources.speech.places import inside
from runtime.exits import BadInput

_CHUNK = 1 << 20  # characters


def read_audios(path: Path, chunk: int = _CHUNK) -> Iterator[dict[str, Any]]:
    """The objects of the array `audios` in a JSON file. Raises BadInput where it is missing, or breaks off."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        held = ""
        while (opening := re.search(r'"audios"\s*:\s*\[', held)) is None:
            more = file.read(chunk)
            if not more:
                raise BadInput(f'{path} has no list of "audios"')
            held = held[-64:] + more
        held = held[opening.end() :]
        size = chunk
        while True:
            held = held.lstrip(" \t\r\n,")
            if held.startswith("]"):
                return
            try:
                audio, end = decoder.raw_decode(held)
            except json.JSONDecodeError as error:
                more = file.read(size)
                if not more:
                    raise BadInput(f"{path} breaks off or is no JSON: {error.msg}") from error
                held, size = held + more, size * 2  # so that a large object is not tried for every chunk of it
                continue
            if not isinstance(audio, dict):
                raise BadInput(f"{path}: an entry of audios is no object")
            held, size = held[end:], chunk
            yield audio


def long_form(
    folder: Path, metadata: str, split: str | None, read_segment: Callable[[dict[str, Any], str], Segment | None]
) -> Iterator[Recording]:
    """Recordings of the corpus in `folder` with the segments whose `subsets` name `split` (None: any). `read_segment`
    turns the corpus's own segment into one, or into None where it is none."""
    file = folder / metadata
    if not file.is_file():
        raise BadInput(f"{file} is not there: the folder should hold it beside audio/")
    for audio in read_audios(file):
        name = str(audio.get("aid") or audio.get("path") or "")
        where = f"{file}: {name}"
        segments = []
        for entry in audio.get("segments") or ():
            subsets = {str(subset).strip("{}") for subset in entry.get("subsets") or ()}
            if (split is None or split in subsets) and (segment := read_segment(entry, where)) is not None:
                segments.append(segment)
        if segments:
            place = inside(folder, str(audio.get("path") or ""))
            duration = number_in(audio, "duration", where)
            yield Recording(safe_key(name), place, tuple(segments), duration=duration)


def times_of(entry: dict[str, Any], where: str) -> tuple[float, float]:
    """`begin_time` and `end_time` of a segment. Raises BadInput where they are no stretch."""
    start, end = number_in(entry, "begin_time", where), number_in(entry, "end_time", where)
    if start is None or end is None or end <= start:
        raise BadInput(f"{where}: segment {entry.get('sid')} lasts from {start} to {end} s")
    return start, end
