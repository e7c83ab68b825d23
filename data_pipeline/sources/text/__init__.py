"""Where text comes from. A source is a function that yields documents, registered here by name.

A named source is whole in itself; a kind reads what the user has, and is written `<kind>:<path>?<options>`, such as
`jsonl:/data/books/*.jsonl.gz?field=body&language=de`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import xxhash

from data_pipeline.sources.document import Document
from data_pipeline.sources.options import check_options
from data_pipeline.sources.text import world_english_bible
from data_pipeline.sources.text.files import file_sizes, jsonl, parquet, plain
from runtime.exits import BadInput


@dataclass(frozen=True)
class Source:
    """`documents()` reads the whole source, in its own order; `identity()` says what was read, for content hashes."""

    documents: Callable[[], list[Document]]
    identity: Callable[[], str]
    licence: str
    language: str


SOURCES = {
    "world_english_bible": Source(
        documents=world_english_bible.documents,
        identity=world_english_bible.identity,
        licence=world_english_bible.LICENCE,
        language="en",
    ),
}
KINDS: dict[str, Callable[..., list[Document]]] = {"jsonl": jsonl, "parquet": parquet, "plain": plain}
_OF_ALL = {"language": "en", "licence": "not stated"}  # options that every kind has


def find_source(name: str) -> Source:
    """The source called `name`, or of the kind `<kind>:<path>?<options>` (language, licence, and those of the kind).
    Raises BadInput naming the ones there are."""
    if name in SOURCES:
        return SOURCES[name]
    kind, colon, rest = name.partition(":")
    if not colon or kind not in KINDS:
        choices = [*SOURCES, *(f"{known}:<path>" for known in KINDS)]
        raise BadInput(f"corpus.text={name}: no such text source; there are {', '.join(choices)}")
    path, given = _options(rest)
    of_all = {option: given.pop(option, default) for option, default in _OF_ALL.items()}
    checked = check_options(f"corpus.text={kind}", KINDS[kind], given)
    return Source(
        documents=partial(KINDS[kind], path, **checked),
        identity=partial(_identity, kind, path, checked),
        licence=str(of_all["licence"]),
        language=str(of_all["language"]),
    )


def _options(rest: str) -> tuple[str, dict[str, Any]]:
    """Path and options of `<path>?<option>=<value>&...`; a `?` that no option follows is part of a pattern."""
    path, mark, written = rest.rpartition("?")
    if not mark or "=" not in written:
        return rest, {}
    words: dict[str, Any] = {"true": True, "false": False}
    return path, {option: words.get(value, value) for option, value in parse_qsl(written, keep_blank_values=True)}


def _identity(kind: str, path: str, options: dict[str, Any]) -> str:
    """Changes when files come, go or change size."""
    content = f"{kind} {sorted(options.items())} {file_sizes(path)}"
    return f"{kind} {xxhash.xxh3_128_hexdigest(content.encode('utf-8', 'surrogatepass'))}"


__all__ = ["KINDS", "SOURCES", "Document", "Source", "find_source"]
