"""A document that changes between reading and speaking: some spans of its words as audio, the rest as text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, repeat

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import MARKS, Assembly
from data_pipeline.layouts.cuts import Stretch, cut, lay_alternating, whole_stretch
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput


def interleaved(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    shortest: int = 4,
    longest: int = 16,
    spoken_share: float = 0.5,
    marks: Sequence[str] = MARKS,
    frames: bool = False,
) -> list[Sample]:
    """One sample a document. Its words are cut into spans of `shortest` to `longest` words, and each span is spoken
    with probability `spoken_share`; neighbours of one kind run together. Loss on every token.

    A span that rounds to no group of codes stays text. Utterances without speech are text; ones without word times
    are one span.
    """
    if not 1 <= shortest <= longest:
        raise BadInput(f"interleaved: need 1 <= shortest <= longest, got {shortest} and {longest}")
    if not 0 <= spoken_share <= 1:
        raise BadInput(f"interleaved: spoken_share must be from 0 to 1, got {spoken_share}")
    drawn = []
    for utterance in utterances:
        groups = lay_groups(utterance, vocabulary)
        if utterance.words and len(groups):
            firsts = [0]
            while (step := firsts[-1] + int(rng.integers(shortest, longest + 1))) < len(utterance.words):
                firsts.append(step)
            stretches = cut(utterance, groups, vocabulary, firsts)
        else:
            stretches = [whole_stretch(utterance, groups)]
        for stretch in stretches:
            spoken = rng.random() < spoken_share
            if stretch.text or len(stretch.groups):
                drawn.append((len(stretch.groups) > 0 and (spoken or not stretch.text), stretch))
    return _sample(utterances, vocabulary, drawn, marks=marks, frames=frames)


def spans(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    ratio: float = 0.3,
    mean_length: float = 10.0,
    level: str = "word",
    marks: Sequence[str] = MARKS,
    frames: bool = False,
) -> list[Sample]:
    """One sample a document, of which spans with lengths from a Poisson distribution are spoken (arXiv:2411.17607, as
    GLM-4-Voice uses it; 10 words and 0.3 are slamkit's values). Loss on every token.

    Spans are added until `ratio` of the document's words with codes are spoken; the last is shortened to meet it, and
    those of no word are drawn again. They lie anywhere without overlap, all such places equally likely (our choice),
    and may touch or reach over the end of an utterance. At `level` "token" lengths and ratio count text tokens, and
    both ends of a span move to the start of the word they fall in. An utterance without word times counts as
    one word; utterances without speech are text.
    """
    if not 0 <= ratio <= 1:
        raise BadInput(f"spans: ratio must be from 0 to 1, got {ratio}")
    if not mean_length >= 1:
        raise BadInput(f"spans: mean_length must be at least 1, got {mean_length}")
    if level not in ("word", "token"):
        raise BadInput(f"spans: level must be word or token, got {level!r}")
    stretches: list[Stretch] = []
    speakable: list[int] = []
    for utterance in utterances:
        groups = lay_groups(utterance, vocabulary)
        if not utterance.text.strip() and not len(groups):
            continue
        timed = utterance.words and len(groups)
        own = (
            cut(utterance, groups, vocabulary, range(len(utterance.words)))
            if timed
            else [whole_stretch(utterance, groups)]
        )
        if len(groups):
            speakable += range(len(stretches), len(stretches) + len(own))
        stretches += own
    texts = (stretches[number].text for number in speakable)
    sizes = [1 if level == "word" else max(1, len(vocabulary.encode_text(text))) for text in texts]
    ends = np.cumsum([0, *sizes])
    spoken = np.zeros(len(stretches), bool)
    for start, end in draw_spans(int(ends[-1]), ratio, mean_length, rng):
        first, last = np.searchsorted(ends[1:], [start, end], side="right")
        spoken[speakable[first:last]] = True
    # What has no text can only be spoken, and a span that rounds to no group of codes only written.
    spoken |= np.array([not stretch.text for stretch in stretches], bool)
    at = 0
    for _, run in groupby(spoken.tolist()):
        end = at + len(list(run))
        if not any(len(stretch.groups) for stretch in stretches[at:end]):
            spoken[at:end] = False
        at = end
    return _sample(
        utterances, vocabulary, list(zip(spoken.tolist(), stretches, strict=True)), marks=marks, frames=frames
    )


def draw_spans(count: int, ratio: float, mean_length: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Spans [start, end) of 0..count-1, ascending, without overlap, that hold round(ratio x count) of them.

    Lengths are Poisson of `mean_length` and at least 1, the last one drawn cut short; all ways to place them are
    equally likely.
    """
    wanted = round(ratio * count)
    lengths: list[int] = []
    left = wanted
    while left:
        length = min(left, int(rng.poisson(mean_length)))
        if length:
            lengths.append(length)
            left -= length
    rng.shuffle(lengths)
    free = count - wanted
    # which of the free items and spans in a row are spans: a uniform draw of so many places
    places = np.sort(rng.choice(free + len(lengths), len(lengths), replace=False)) - np.arange(len(lengths))
    starts = places + np.cumsum([0, *lengths[:-1]]) if lengths else np.zeros(0, np.int64)
    return [(int(start), int(start) + length) for start, length in zip(starts, lengths, strict=True)]


def _sample(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    drawn: list[tuple[bool, Stretch]],
    *,
    marks: Sequence[str],
    frames: bool,
) -> list[Sample]:
    if not drawn:
        return []
    assembly = lay_alternating(Assembly(vocabulary, marks=marks, frames=frames), drawn, repeat(1.0), repeat(1.0))
    return [assembly.end().sample(f"{utterances[0].document}/0")]
