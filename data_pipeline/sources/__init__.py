"""Where text comes from. A source is a function that yields documents, registered here by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline.sources import world_english_bible
from data_pipeline.sources.document import Document
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


def find_source(name: str) -> Source:
    """The source called `name`. Raises BadInput naming the ones there are."""
    if name not in SOURCES:
        raise BadInput(f"corpus.text={name}: no such text source; there are {', '.join(SOURCES)}")
    return SOURCES[name]


__all__ = ["SOURCES", "Document", "Source", "find_source"]
