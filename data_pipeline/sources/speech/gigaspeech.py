"""GigaSpeech as distributed: GigaSpeech.json and audio/{audiobook,podcast,youtube}/**/*.opus."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.sources.lines import text_in
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.sources.speech.long_form import long_form, times_of

PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NO_SPEECH = frozenset(("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"))


def gigaspeech(path: str, split: str | None, *, lower_case: bool = True) -> Iterator[Recording]:
    """Recordings with their segments in `split`: XS, S, M, L, XL, DEV or TEST (None: all).

    Text is in capitals in the corpus; `lower_case` makes it small. Tags of punctuation become punctuation; a segment
    with a tag that says that nobody speaks is left out.
    """

    def segment(entry: dict[str, Any], where: str) -> Segment | None:
        words = text_in(entry, "text_tn").split()
        if NO_SPEECH.intersection(words):
            return None
        start, end = times_of(entry, where)
        text = " ".join(PUNCTUATION.get(word, word.lower() if lower_case else word) for word in words)
        speaker = text_in(entry, "speaker")
        return Segment(start, end, re.sub(r" +([,.?!])", r"\1", text), speaker="" if speaker == "N/A" else speaker)

    return long_form(Path(path), "GigaSpeech.json", split, segment)
