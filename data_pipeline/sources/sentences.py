"""Running text into pieces that a voice says in about 5 to 14 seconds."""

from __future__ import annotations

import re

SHORTEST, LONGEST = 90, 235  # characters; a voice says 15 to 18 a second
_WIDE = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"  # East Asian characters and stops, which no spaces part
_SENTENCE_END = re.compile(r"[.!?]['\")]*\s+|[。！？]+[”’」』）》]*\s*")
_CLAUSE_ENDS = (
    re.compile(r"(?<=[;:])\s+|(?<=[；：])\s*"),
    re.compile(r"(?<=,)\s+|(?<=[，、])\s*"),
    re.compile(r"\s+"),
    re.compile(rf"(?<=[{_WIDE}])"),
)
_WIDE_BEFORE = re.compile(rf"[{_WIDE}][”’]*\Z")
_WIDE_AFTER = re.compile(rf"[“‘]*[{_WIDE}]")


def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, closing quotes and brackets kept with their sentence."""
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        sentences.append(text[start : end.end()].strip())
        start = end.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def joined(one: str, other: str) -> str:
    """Two pieces that followed each other: with a space between, but not in East Asian text."""
    return one + other if _WIDE_BEFORE.search(one) and _WIDE_AFTER.match(other) else f"{one} {other}"


def pieces_of(text: str, shortest: int = SHORTEST, longest: int = LONGEST) -> list[str]:
    """`text` in pieces of at most `longest` characters that end where a sentence or a clause ends.

    Neighbouring short sentences are joined until `shortest` is reached. No character other than white space
    is lost: the pieces `joined` are the text with its white space made single.
    """
    parts = [part for sentence in split_sentences(" ".join(text.split())) for part in _shortened(sentence, longest)]
    pieces: list[str] = []
    for part in parts:
        if pieces and len(pieces[-1]) < shortest and len(joined(pieces[-1], part)) <= longest:
            pieces[-1] = joined(pieces[-1], part)
        else:
            pieces.append(part)
    if len(pieces) > 1 and len(pieces[-1]) < shortest and len(joined(pieces[-2], pieces[-1])) <= longest:
        pieces[-2:] = [joined(pieces[-2], pieces[-1])]
    return pieces


def _shortened(sentence: str, longest: int, level: int = 0) -> list[str]:
    """A sentence cut at the strongest punctuation that makes its parts short enough, evenly filled."""
    if len(sentence) <= longest or level == len(_CLAUSE_ENDS):
        return [sentence]
    clauses = [clause for clause in _CLAUSE_ENDS[level].split(sentence) if clause]
    parts = [part for clause in clauses for part in _shortened(clause, longest, level + 1)]
    target = len(sentence) / -(-len(sentence) // longest)
    filled: list[str] = []
    for part in parts:
        if filled and len(filled[-1]) < target and len(joined(filled[-1], part)) <= longest:
            filled[-1] = joined(filled[-1], part)
        else:
            filled.append(part)
    return filled
