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
    was written. Characters are those without spaces."""

    word_errors: int
    words: int
    character_errors: int
    characters: int


def normalise(text: str, language: str) -> str:
    """`text` as errors are counted on it; `language` as `base_language` gives it."""
    return _english()(text) if language == "en" else _basic()(text).strip()


def has_words(normalised: str) -> bool:
    """Whether there is anything that errors can be counted on."""
    return any(map(str.isalnum, normalised))


def count_errors(written: str, heard: str) -> Errors:
    """Of two normalised texts, the first of which `has_words`."""
    import jiwer

    words = jiwer.process_words(written, heard)
    characters = jiwer.process_characters(written.replace(" ", ""), heard.replace(" ", ""))
    return Errors(*_errors(words), *_errors(characters))


def error_rates(counted: Iterable[Errors], language: str) -> dict[str, float]:
    """`wer` and `cer`: errors over words and characters of all together, at least one; `cer` alone in a language
    without spaces. Above 1 where more is heard than written."""
    held = list(counted)
    rates = {"cer": sum(one.character_errors for one in held) / sum(one.characters for one in held)}
    if language in CHARACTERS_ONLY:
        return rates
    return {"wer": sum(one.word_errors for one in held) / sum(one.words for one in held)} | rates


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
