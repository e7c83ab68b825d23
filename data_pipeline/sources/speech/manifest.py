"""Manifests: a line a segment, as JSON (NeMo's keys by default) or as cells of a table.

    {"audio_filepath": "calls/7.wav", "offset": 3.2, "duration": 4.0, "text": "good morning", "speaker": "anna"}

Neighbouring lines of one file are one recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from data_pipeline.sources.address import is_url
from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import number_in, read_json_lines, read_table, text_in
from data_pipeline.sources.recording import MIXED, Recording, Segment
from data_pipeline.sources.speech.places import beside
from runtime.exits import BadInput


def jsonl(
    path: str,
    split: str | None,
    *,
    audio: str = "audio_filepath",
    text: str = "text",
    offset: str = "offset",
    duration: str = "duration",
    end: str = "end",
    speaker: str = "speaker",
    language: str = "lang",
    channel: str = "channel",
    style: str = "style",
    document: str = "document",
    id: str = "id",
    split_column: str = "split",
    audio_folder: str | None = None,
) -> Iterator[Recording]:
    """The lines of a `.jsonl` file (or `.jsonl.gz`), in their order. The options name its keys.

    Only `audio` has to be there. Times are seconds; a `duration` without `offset` is that of the file, and `end` counts
    where `duration` is absent. `channel` counts from 0; lines without one are of all channels mixed, or of the first
    where others of the same file say theirs. `style` is how it is said, such as RAP. Files that follow each other with
    the same `document` are one, such as all of a speaker, who then is a prompt for himself (`tts_dialogue`). `id` is
    what keys are made of, else the file's name and the line's number. Paths are relative to `audio_folder`, else to the
    manifest. A line without a `text` key is cut by voice activity, if it has no times either. `split` keeps the lines
    whose `split_column` says so.
    """
    columns = _Columns(
        audio, text, offset, duration, end, speaker, language, channel, style, document, id, split_column
    )
    return _recordings(path, read_json_lines(path), columns, split, audio_folder)


def tsv(
    path: str,
    split: str | None,
    *,
    audio: str = "path",
    text: str = "text",
    offset: str = "offset",
    duration: str = "duration",
    end: str = "end",
    speaker: str = "speaker",
    language: str = "lang",
    channel: str = "channel",
    style: str = "style",
    document: str = "document",
    id: str = "id",
    split_column: str = "split",
    audio_folder: str | None = None,
    delimiter: str = "\t",
) -> Iterator[Recording]:
    """The rows of a table whose first line names its columns, as `jsonl` reads lines. `delimiter` may be a comma."""
    columns = _Columns(
        audio, text, offset, duration, end, speaker, language, channel, style, document, id, split_column
    )
    return _recordings(path, read_table(path, delimiter), columns, split, audio_folder)


class _Columns:
    def __init__(self, *names: str) -> None:
        (self.audio, self.text, self.offset, self.duration, self.end,
         self.speaker, self.language, self.channel, self.style, self.document, self.id, self.split) = names  # fmt: skip


def _recordings(
    path: str, rows: Iterator[tuple[int, dict[str, Any]]], columns: _Columns, split: str | None, folder: str | None
) -> Iterator[Recording]:
    base = folder or path.rpartition("/")[0] or ("." if not is_url(path) else "")
    wanted = ((number, row) for number, row in rows if split is None or text_in(row, columns.split) == split)
    for file, lines in groupby(wanted, key=lambda line: _file(line, columns, path)):
        held = list(lines)
        number, first = held[0]
        key = text_in(first, columns.id) or f"{Path(file).stem}-{number}"
        unnamed = 0 if any(text_in(row, columns.channel) for _, row in held) else MIXED
        segments = tuple(_segment(row, columns, unnamed, f"{path} line {at}") for at, row in held)
        if len(held) == 1 and columns.text not in first and segments[0].start == 0 and segments[0].end is None:
            segments = ()
        duration = None
        if len(held) == 1 and columns.offset not in first and segments and segments[0].end is None:
            duration = number_in(first, columns.duration, f"{path} line {number}")
        document = text_in(first, columns.document)
        named = safe_key(document) if document else ""
        yield Recording(safe_key(key), beside(base, file), segments, duration=duration, document=named)


def _file(line: tuple[int, dict[str, Any]], columns: _Columns, path: str) -> str:
    number, row = line
    file = text_in(row, columns.audio)
    if not file:
        raise BadInput(f"{path} line {number} has no {columns.audio}; its keys are {', '.join(row)}")
    return file


def _segment(row: dict[str, Any], columns: _Columns, unnamed: int, where: str) -> Segment:
    start = number_in(row, columns.offset, where) or 0.0
    duration, end = number_in(row, columns.duration, where), number_in(row, columns.end, where)
    channel = number_in(row, columns.channel, where)
    if columns.offset not in row and end is None:
        duration = None  # it is that of the file
    return Segment(
        start=start,
        end=start + duration if duration is not None else end,
        text=text_in(row, columns.text),
        speaker=text_in(row, columns.speaker),
        language=text_in(row, columns.language),
        channel=unnamed if channel is None else int(channel),
        style=text_in(row, columns.style),
    )
