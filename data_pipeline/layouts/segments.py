"""Documents cut into segments at punctuation and pauses (Baichuan-Audio, arXiv:2502.17239, table 4 and section 3).

Its segments are chosen by a language model and are not published; here they end where a word is followed by
punctuation or by a pause.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import MARKS, Assembly, check_weight
from data_pipeline.layouts.cuts import Stretch, cut, lay_alternating, whole_stretch, word_texts
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

_PUNCTUATION = tuple(".,;:!?…。，；：！？、")
_QUOTES = "\"'”’»)]）】」』"  # may follow it


def intlv(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    pause: float = 0.3,
    shortest: int = 1,
    audio_weight: float = 0.0,
    marks: Sequence[str] = MARKS,
    frames: bool = False,
) -> list[Sample]:
    """One sample a document: its segments in turn spoken and written, beginning with a spoken one; nothing is said
    twice. Loss on text alone, on audio `audio_weight`.

    A segment ends where a word is followed by punctuation or by a silence of at least `pause` seconds, but not before
    it has `shortest` words. Utterances without speech are written, and do not count as a turn.
    """
    _check(pause, shortest, "audio_weight", audio_weight)
    drawn: list[tuple[bool, Stretch]] = []
    speaks = True
    for segment in _segments(utterances, vocabulary, pause, shortest):
        spoken = len(segment.groups) > 0 and (speaks or not segment.text)
        if len(segment.groups):
            speaks = not spoken
        drawn.append((spoken, segment))
    if not any(spoken for spoken, _ in drawn):
        return []
    assembly = Assembly(vocabulary, marks=marks, frames=frames)
    lay_alternating(assembly, drawn, repeat(audio_weight), repeat(1.0))
    return [assembly.end().sample(f"{utterances[0].document}/0")]


def itts(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    pause: float = 0.3,
    shortest: int = 1,
    first_weight: float = 0.0,
    marks: Sequence[str] = MARKS,
    frames: bool = False,
) -> list[Sample]:
    """One sample a document: each segment written, then spoken. Loss on all but the text of the first segment, which
    has `first_weight`. Segments are cut as `intlv` cuts them; those without speech or text are left out."""
    _check(pause, shortest, "first_weight", first_weight)
    segments = [s for s in _segments(utterances, vocabulary, pause, shortest) if s.text.strip() and len(s.groups)]
    if not segments:
        return []
    assembly = Assembly(vocabulary, marks=marks, frames=frames)
    drawn = [(spoken, segment) for segment in segments for spoken in (False, True)]
    lay_alternating(assembly, drawn, repeat(1.0), iter([first_weight, *repeat(1.0, len(segments))]))
    return [assembly.end().sample(f"{utterances[0].document}/0")]


def _segments(
    utterances: Sequence[Utterance], vocabulary: Vocabulary, pause: float, shortest: int
) -> Iterator[Stretch]:
    for utterance in utterances:
        groups = lay_groups(utterance, vocabulary)
        if utterance.words and len(groups):
            yield from cut(utterance, groups, vocabulary, segment_starts(utterance, pause, shortest))
        elif utterance.text.strip() or len(groups):
            yield whole_stretch(utterance, groups)


def segment_starts(utterance: Utterance, pause: float, shortest: int) -> list[int]:
    """The first word of each segment of an utterance that has word times."""
    words = utterance.words
    texts = word_texts(utterance, range(len(words)))
    firsts = [0]
    for number in range(1, len(words)):
        ended = texts[number - 1].rstrip().rstrip(_QUOTES).endswith(_PUNCTUATION)
        paused = words[number].start - words[number - 1].end >= pause
        if (ended or paused) and number - firsts[-1] >= shortest:
            firsts.append(number)
    return firsts


def _check(pause: float, shortest: int, option: str, weight: float) -> None:
    check_weight(option, weight)
    if not pause > 0:
        raise BadInput(f"layout option pause is in seconds and must be above 0, got {pause}")
    if shortest < 1:
        raise BadInput(f"layout option shortest is a number of words and must be at least 1, got {shortest}")
