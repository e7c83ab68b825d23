"""Whether a reply holds a known answer, by rule.

Both are normalised as transcripts are (data_pipeline/quality/errors.py: numbers in digits, case, punctuation, fillers)
and lose the articles a, an and the, as TriviaQA's own evaluation does (Joshi et al. 2017). A reply is right where one
of the answers stands in it as a run of whole words; in Chinese, Japanese, Korean and Thai, as a run of characters. So
a reply that names several things is right where one of them is. A judge that reads would call some of these wrong,
and paraphrases right: figures of the two are not the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from data_pipeline.quality.errors import CHARACTERS_ONLY, normalise
from data_pipeline.quality.language import base_language

ARTICLES = ("a", "an", "the")
RULE = (
    "right where an answer or alias stands in the reply as a run of whole words (of characters in zh, ja, ko, th), "
    "both normalised as transcripts are and without the articles a, an, the"
)


def matches(reply: str, answers: Iterable[str], language: str) -> bool:
    """Whether one of `answers` stands in `reply`. Answers of which nothing is left once normalised never do."""
    language = base_language(language)
    said = _plain(reply, language)
    return any(wanted in said for wanted in (_plain(answer, language) for answer in answers) if wanted.strip())


def _plain(text: str, language: str) -> str:
    words = [word for word in normalise(text, language).split() if word not in ARTICLES]
    if language in CHARACTERS_ONLY:
        return "".join(words)
    return f" {' '.join(words)} "  # so that what stands in it does so between spaces
