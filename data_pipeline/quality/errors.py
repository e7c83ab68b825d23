"""Word and character errors of a transcript, and the text that they are counted on.

English is normalised as OpenAI's evaluation does (numbers, contractions, fillers; without its table of British
spellings), other languages by case, punctuation and spaces. Chinese, Japanese, Korean and Thai have character error
rates only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

NORMALISER = (
    "English: Whisper's EnglishTextNormalizer without its table of British spellings; other languages: Whisper's "
    "BasicTextNormalizer (case, punctuation, symbols, spaces). Characters are counted without spaces; Chinese, "
    "Japanese, Korean and Thai by characters alone. Chinese script variants and numerals are left as they are."
)
CHARACTERS_ONLY = ("zh", "ja", "ko", "th")


@dataclass(frozen=True)
class Errors:
    """Least edits (substitutions, deletions, insertions) that lead from a written text to the one heard, and how much
    was written. Characters are those without spaces; no words are counted of a language that has none between spaces.
    """

    word_errors: int
    words: int
    character_errors: int
    characters: int


def normalise(text: str, language: str) -> str:
    """`text` as errors are counted on it; `language` as `base_language` gives it."""
    return _english()(text) if language == "en" else _basic()(text).strip()


def has_words(text: str, language: str) -> bool:
    """Whether there is anything in it, once normalised, that errors can be counted on."""
    return any(map(str.isalnum, normalise(text, language)))


def count_errors(text: str, heard: str, language: str) -> Errors | None:
    """Of `heard` against `text`, both normalised; None where the latter then `has_words` no more."""
    import jiwer

    if not has_words(text, language):
        return None
    written, read = normalise(text, language), normalise(heard, language)
    words = (0, 0) if language in CHARACTERS_ONLY else _errors(jiwer.process_words(written, read))
    characters = jiwer.process_characters(written.replace(" ", ""), read.replace(" ", ""))
    return Errors(*words, *_errors(characters))


def error_rates(counted: Iterable[Errors | None]) -> dict[str, float]:
    """`wer` and `cer`: errors over words and characters of all together, above 1 where more is heard than written; each
    where any are counted."""
    held = [one for one in counted if one is not None]
    words, characters = sum(one.words for one in held), sum(one.characters for one in held)
    rates = {"wer": sum(one.word_errors for one in held) / words} if words else {}
    return rates | ({"cer": sum(one.character_errors for one in held) / characters} if characters else {})


def _errors(output: Any) -> tuple[int, int]:
    """Edits, and the length of the reference, of jiwer's word or character output."""
    edits = output.substitutions + output.deletions
    return edits + output.insertions, edits + output.hits


@lru_cache(1)
def _english() -> Any:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


@lru_cache(1)
def _basic() -> Any:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()
