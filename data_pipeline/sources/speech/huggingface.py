"""Hugging Face audio datasets on a disk: parquet files, as a hub has them, or a `save_to_disk` folder (arrow).

Read with pyarrow: rows without their audio for the plan, one row's audio at a time for the sound.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_pipeline.decode import decode_blocks
from data_pipeline.remote.storage import open_file
from data_pipeline.sources.address import is_url
from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import number_in, text_in
from data_pipeline.sources.recording import MIXED, Recording, Segment, Sound, UnreadableAudio
from data_pipeline.sources.speech.places import inside
from runtime.exits import BadInput

_TEXTS = ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_transcription", "raw_text")
_SPEAKERS = ("speaker_id", "speaker", "client_id", "spk_id")
_LANGUAGES = ("language", "locale", "lang")
_ROWS = 4096  # held at a time while planning, without their audio


def huggingface(
    path: str,
    split: str | None,
    *,
    audio: str | None = None,
    text: str | None = None,
    speaker: str | None = None,
    language: str | None = None,
    id: str | None = None,
    duration: str | None = None,
    follow_paths: bool = False,
) -> Iterator[Recording]:
    """Rows of a dataset, in its order. The options name columns.

    `audio` is by default the column that the dataset says is audio, else `audio`; the others are the first of the
    usual names that is there: text, sentence, transcription, ...; speaker_id, client_id, ...; language, locale.
    `id` is what keys are made of, else the file and the row. `duration` is a column of seconds. Without a text
    column, rows are cut by voice activity. A cell without the sound itself names a file: in the dataset's folder, or
    anywhere if `follow_paths`. `split` picks a subfolder of a saved DatasetDict, or the parquet files that are named
    for it.
    """
    files = _files(path, split)
    if not files:
        raise BadInput(f"speech source huggingface: no .parquet or .arrow files for split {split} in {path}")
    for file in files:
        table = _Table(file)
        column = audio or table.audio_column
        if column not in table.names:
            raise BadInput(f"{file} has no column {column}; it has {', '.join(table.names)}; name it with audio=")
        wanted = {"text": text, "speaker": speaker, "language": language, "id": id, "duration": duration}
        usual = {"text": _TEXTS, "speaker": _SPEAKERS, "language": _LANGUAGES}
        columns: dict[str, str] = {}
        for role, name in wanted.items():
            if name is not None and name not in table.names:
                raise BadInput(f"{file} has no column {name}; it has {', '.join(table.names)}")
            name = name or next((usual_name for usual_name in usual.get(role, ()) if usual_name in table.names), None)
            if name is not None:
                columns[role] = name
        folder = str(Path(path) if Path(path).is_dir() else Path(path).parent)
        stem = os.path.relpath(file, folder).rpartition(".")[0] if not is_url(file) else file
        for group, row, number, cells in table.rows(columns):
            where = f"{file} row {number}"
            said: tuple[Segment, ...] = ()
            if "text" in columns:
                said = (Segment(text=text_in(cells, "text"), speaker=text_in(cells, "speaker"),
                                language=text_in(cells, "language"), channel=MIXED),)  # fmt: skip
            key = safe_key(text_in(cells, "id") or f"{stem}-{number}")
            cell = Cell(file, column, group, row, number, folder, follow_paths)
            yield Recording(key, cell, said, duration=number_in(cells, "duration", where))


@dataclass(frozen=True)
class Cell:
    """The audio of one row: row `row` of row group `group` of a parquet file, or of an arrow file for group -1."""

    file: str
    column: str
    group: int
    row: int
    number: int  # of the row in its file
    folder: str
    follow_paths: bool

    @property
    def name(self) -> str:
        return f"{self.file} row {self.number}"

    def blocks(self, start: float, end: float | None, lasting: float | None) -> Iterator[Sound]:
        import pyarrow

        try:
            held = _arrow_table(self.file) if self.group < 0 else _row_group(self.file, self.group, self.column)
            value = held.column(self.column)[self.row].as_py()
        except FileNotFoundError as error:
            raise UnreadableAudio("missing", self.name) from error
        except (pyarrow.ArrowException, OSError, IndexError) as error:
            raise UnreadableAudio("decode", self.name, "damaged rows") from error
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(content, str):
            content, path = None, content
        if content is not None:
            yield from decode_blocks(content, f"{self.name}: {path or ''}", start, end, lasting=lasting)
        elif not path:
            raise UnreadableAudio("empty", self.name)
        elif self.follow_paths:
            yield from decode_blocks(os.path.join(self.folder, path), "", start, end, lasting=lasting)
        else:
            yield from inside(self.folder, path).blocks(start, end, lasting)


class _Table:
    """One file's columns, and its rows without their audio."""

    def __init__(self, file: str) -> None:
        import pyarrow

        self.file = file
        self._parquet = file.endswith(".parquet")
        try:
            schema = _parquet_file(file).schema_arrow if self._parquet else _arrow_table(file).schema
        except (pyarrow.ArrowException, OSError) as error:
            raise BadInput(f"{file} is no {'parquet' if self._parquet else 'arrow'} file, or is damaged") from error
        self.names = schema.names
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        self._features: dict[str, Any] = told.get("info", {}).get("features") or {}

    @property
    def audio_column(self) -> str:
        return next((name for name, of in self._features.items() if _type(of) == "Audio"), "audio")

    def rows(self, columns: dict[str, str]) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
        """Row group (-1: none), row in it, row in the file, and cells by role."""
        number = 0
        if not self._parquet:
            table = _arrow_table(self.file).select(list(dict.fromkeys(columns.values())))
            for start in range(0, table.num_rows, _ROWS):
                for cells in self._cells(table.slice(start, _ROWS), columns):
                    yield -1, number, number, cells
                    number += 1
            return
        file = _parquet_file(self.file)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(dict.fromkeys(columns.values())))
            for row, cells in enumerate(self._cells(table, columns, file.metadata.row_group(group).num_rows)):
                yield group, row, number, cells
                number += 1

    def _cells(self, table: Any, columns: dict[str, str], count: int | None = None) -> Iterator[dict[str, Any]]:
        """Cells by role; numbers of a ClassLabel as its names."""
        held = {role: table.column(name).to_pylist() for role, name in columns.items()}
        for role, name in columns.items():
            labels = self._features.get(name, {})
            if _type(labels) == "ClassLabel":
                names = labels["names"]
                held[role] = [
                    names[value] if value is not None and 0 <= value < len(names) else "" for value in held[role]
                ]
        for row in range(table.num_rows if count is None else count):
            yield {role: values[row] for role, values in held.items()}


def _type(feature: Any) -> str:
    return feature.get("_type", "") if isinstance(feature, dict) else ""


@lru_cache(4)
def _arrow_table(file: str) -> Any:
    """All rows of an arrow file, mapped and not read: a row costs its own bytes."""
    import pyarrow

    mapped = pyarrow.memory_map(file)
    try:
        return pyarrow.ipc.open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(mapped).read_all()


@lru_cache(4)
def _parquet_file(file: str) -> Any:
    import pyarrow.parquet

    if is_url(file):
        return pyarrow.parquet.ParquetFile(open_file(file))
    return pyarrow.parquet.ParquetFile(file, memory_map=True)


@lru_cache(2)  # neighbouring rows are read one after the other
def _row_group(file: str, group: int, column: str) -> Any:
    return _parquet_file(file).read_row_group(group, columns=[column])


def _files(path: str, split: str | None) -> list[str]:
    """Data files of a dataset in their order: those that `state.json` names, or all parquet files by name."""
    if is_url(path) or Path(path).is_file():
        return [path]
    folder = Path(path)
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        if split is not None and split not in splits:
            raise BadInput(f"speech source huggingface: {path} has no split {split}; it has {', '.join(splits)}")
        return [file for name in (splits if split is None else [split]) for file in _saved(folder / name)]
    if (folder / "state.json").is_file():
        return _saved(folder)
    files = sorted(folder.rglob("*.parquet"))
    if split is not None:
        files = [file for file in files if _is_of(file.relative_to(folder), split)]
    return [str(file) for file in files]


def _saved(folder: Path) -> list[str]:
    try:
        named = json.loads((folder / "state.json").read_text())["_data_files"]
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise BadInput(f"{folder} is no folder that datasets saved: state.json is not there or is damaged") from error
    return [str(folder / Path(entry["filename"]).name) for entry in named]


def _is_of(file: Path, split: str) -> bool:
    """Whether a parquet file is of a split: `<split>-00000-of-00005.parquet`, `<split>.parquet`, or in `<split>/`."""
    return file.stem == split or file.name.startswith((f"{split}-", f"{split}_")) or split in file.parts[:-1]
