"""WenetSpeech as distributed: WenetSpeech.json and audio/{train,dev,test_net,test_meeting}/**/*.opus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.sources.lines import number_in, text_in
from data_pipeline.sources.recording import Recording, Segment
from data_pipeline.sources.speech.long_form import long_form, times_of


def wenetspeech(path: str, split: str | None, *, lowest_confidence: float = 0.95) -> Iterator[Recording]:
    """Recordings with their segments in `split`: S, M, L, W, DEV, TEST_NET or TEST_MEETING (None: all).

    Segments whose confidence is below `lowest_confidence` are left out; at 0.95 they are those that the corpus calls
    strongly labelled. The confidence is kept as quality. The corpus names no speakers.
    """

    def segment(entry: dict[str, Any], where: str) -> Segment | None:
        confidence = number_in(entry, "confidence", where)
        if confidence is not None and confidence < lowest_confidence:
            return None
        start, end = times_of(entry, where)
        quality = () if confidence is None else (("confidence", confidence),)
        return Segment(start, end, text_in(entry, "text"), quality=quality)

    return long_form(Path(path), "WenetSpeech.json", split, segment)
