"""Lines of text files that corpora come with: read one by one, gunzipped, each refused with its number."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.remote.storage import open_file
from data_pipeline.sources.address import is_url
from runtime.exits import BadInput


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not empty; `.gz` is unpacked. Raises BadInput where the file is
    missing, is no UTF-8, or breaks off."""
    try:
        if is_url(str(path)):
            with open_file(str(path), "rt", encoding="utf-8-sig", compression="infer") as remote:
                yield from _numbered(remote)
        elif str(path).endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8-sig") as packed:
                yield from _numbered(packed)
        else:
            with open(path, encoding="utf-8-sig") as plain:
                yield from _numbered(plain)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise BadInput(f"{path} does not exist or is no file") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{path} breaks off or is damaged: {error}") from error


def _numbered(file: Any) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        if text := line.rstrip("\r\n"):
            yield number, text


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line. Raises BadInput for a line that is no JSON object."""
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path} line {number} is no JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise BadInput(f"{path} line {number} is no JSON object")
        yield number, row


def read_table(path: str | Path, delimiter: str = "\t") -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells by column of each line after the first, which names the columns. Quotes are ordinary
    characters in a tab-separated table. Raises BadInput for a line with more or fewer cells."""
    lines = read_lines(path)
    _, first = next(lines, (0, ""))
    columns = _cells(first, delimiter)
    for number, line in lines:
        cells = _cells(line, delimiter)
        if len(cells) != len(columns):
            raise BadInput(f"{path} line {number} has {len(cells)} cells, the first line names {len(columns)} columns")
        yield number, dict(zip(columns, cells, strict=True))


def _cells(line: str, delimiter: str) -> list[str]:
    return line.split("\t") if delimiter == "\t" else next(csv.reader([line], delimiter=delimiter), [])


def read_keyed(path: str | Path) -> Iterator[tuple[int, str, str]]:
    """Number, first word and rest of each line, as Kaldi's tables and many transcripts are written."""
    for number, line in read_lines(path):
        key, _, rest = line.strip().partition(" ") if " " in line.strip() else line.strip().partition("\t")
        yield number, key, rest.strip()


def number_in(row: dict[str, Any], column: str, where: str) -> float | None:
    """A cell as a finite number that is not below 0; None where it is absent, null or empty. Raises BadInput."""
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise BadInput(f"{where}: {column} is no number of at least 0: {value!r}")
    return number


def text_in(row: dict[str, Any], column: str) -> str:
    """A cell as text, white space at its ends removed; empty where it is absent or null."""
    value = row.get(column)
    return "" if value is None else str(value).strip()
