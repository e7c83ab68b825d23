"""Text in files of the user's: JSON lines, parquet, plain text. Each row or file is a document, cut into pieces."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.sources.address import is_url
from data_pipeline.sources.document import Document
from data_pipeline.sources.keys import safe_key
from data_pipeline.sources.lines import read_json_lines, read_lines, text_in
from data_pipeline.sources.sentences import pieces_of
from runtime.exits import BadInput


def jsonl(path: str, *, field: str = "text", id: str = "id") -> list[Document]:
    """A document a line of `.jsonl` or `.jsonl.gz` files: `path` is one, a folder of them, a pattern or a URL.

    `field` holds the text; `id` the key, where it is there. A row of white space is no document. Raises BadInput for
    a row without the field, and for two rows with one id.
    """
    found = []
    for file in files_of(path, (".jsonl", ".jsonl.gz", ".ndjson")):
        for number, row in read_json_lines(file):
            if field not in row:
                raise BadInput(f"{file} line {number} has no {field}; its keys are {', '.join(row)}")
            found.append((text_in(row, id) or f"{_name(file, path)}-{number}", text_in(row, field)))
    return _documents(path, found)


def parquet(path: str, *, field: str = "text", id: str = "id") -> list[Document]:
    """A document a row of parquet files, as `jsonl` reads lines; no other column is read."""
    import pyarrow
    import pyarrow.parquet

    found = []
    for file in files_of(path, (".parquet",)):
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            if field not in names:
                raise BadInput(f"{file} has no column {field}; it has {', '.join(names)}")
            number = 0
            for batch in table.iter_batches(columns=[field, *([id] if id in names else [])]):
                for row in batch.to_pylist():
                    found.append((text_in(row, id) or f"{_name(file, path)}-{number}", text_in(row, field)))
                    number += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise BadInput(f"{file} is no parquet file, or is damaged: {error}") from error
    return _documents(path, found)


def plain(path: str, *, paragraphs: bool = False) -> list[Document]:
    """A document a `.txt` (or `.txt.gz`) file, or a document a paragraph: lines between empty ones."""
    found = []
    for file in files_of(path, (".txt", ".txt.gz")):
        name = _name(file, path)
        held: dict[int, list[str]] = {}
        last, paragraph = 0, 0
        for number, line in read_lines(file):
            if paragraphs and (number > last + 1 or not line.strip()):
                paragraph += 1
            last = number
            held.setdefault(paragraph, []).append(line)
        for count, lines in enumerate(held.values()):
            found.append((f"{name}-{count}" if paragraphs else name, "\n".join(lines)))
    return _documents(path, found)


def files_of(path: str, suffixes: tuple[str, ...]) -> list[str]:
    """The file `path`, those under it that end so if it is a folder, or those that a pattern with `*` names, sorted.
    Raises BadInput where there are none."""
    if is_url(path) or os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        found = sorted(str(file) for file in Path(path).rglob("*") if file.name.endswith(suffixes) and file.is_file())
    else:
        found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise BadInput(f"{path}: no file {' or '.join('*' + suffix for suffix in suffixes)} there")
    return found


def file_sizes(path: str) -> list[tuple[str, int]]:
    """Names and bytes of the files that `path` stands for; a remote one counts by its address."""
    if is_url(path):
        return [(path, -1)]
    return [(file, os.path.getsize(file)) for file in files_of(path, ("",))]


def _name(file: str, path: str) -> str:
    """What a file is called in `path`, without its ending."""
    name = os.path.relpath(file, path) if os.path.isdir(path) else os.path.basename(file)
    return name.removesuffix(".gz").rpartition(".")[0] or name


def _documents(path: str, found: list[tuple[str, str]]) -> list[Document]:
    return list(_unique(path, found))


def _unique(path: str, found: list[tuple[str, str]]) -> Iterator[Document]:
    seen = set()
    for name, text in found:
        pieces = tuple(pieces_of(text)) if text.strip() else ()
        if not pieces:
            continue
        if name in seen:
            raise BadInput(f"{path}: two documents are called {name}")
        seen.add(name)
        yield Document(safe_key(name), pieces)
