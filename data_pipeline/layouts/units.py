"""Hearing and speaking at once, cut into units of one second (MiniCPM-o 2.6, and 4.5 in arXiv:2604.27393)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import ceil

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import Assembly, check_weight
from data_pipeline.layouts.cuts import word_texts
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput


def units(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    seconds: float = 1.0,
    encoder: str = "",
    feature_rate: float = 50.0,
    stride: int = 2,
    says: str = "text",
    clock: str = "turns",
    unit: str = "<unit>",
    listen: str = "<|listen|>",
    speak: str = "<|speak|>",
    listen_weight: float = 1.0,
    marks: Sequence[str] = (),
) -> list[Sample]:
    """One sample a document: for each `seconds` of the conversation the template `unit`, what is heard then, and
    `listen`, or `speak` and what is said then. A unit is never cut apart. The exact serialisation of 2.6 is not
    published; that the choice comes before the content, once a unit, is 4.5's.

    Heard are utterances of role human (without roles: of channel 0), as codes, or with an `encoder` as places for its
    vectors, `feature_rate` a second, `stride` of them in a place (2.6 pools 2, later versions 5). Said are those of
    role assistant (channel 1). says: "text" (the words that start in the unit; of an utterance without word times all
    in its first), "speech" (its codes) or "both". clock: "turns" puts utterances one after another by their duration,
    "recording" where their `start` says. Loss on what is said and on `speak`, on `listen` `listen_weight`.
    """
    check_weight("listen_weight", listen_weight)
    if not seconds > 0 or not feature_rate > 0 or stride < 1:
        raise BadInput(
            f"units: need seconds and feature_rate above 0, stride from 1; got {seconds}, {feature_rate}, {stride}"
        )
    if says not in ("text", "speech", "both"):
        raise BadInput(f"units: says must be text, speech or both, got {says!r}")
    if clock not in ("turns", "recording"):
        raise BadInput(f"units: clock must be turns or recording, got {clock!r}")
    heard = [number for number, utterance in enumerate(utterances) if _side(utterance) == "human"]
    said = [number for number, utterance in enumerate(utterances) if _side(utterance) == "assistant"]
    if not said or (encoder and any(encoder not in utterances[number].features for number in heard)):
        return []
    starts = _starts([utterances[number] for number in sorted(heard + said)], clock)
    placed = dict(zip(sorted(heard + said), starts, strict=True))
    length = max(start + utterances[number].duration for number, start in placed.items())
    edges = seconds * np.arange(max(1, ceil(round(length / seconds, 6))) + 1)

    rate = 1 / vocabulary.group_seconds
    codes = {number: lay_groups(utterances[number], vocabulary) for number in placed}
    wanted = ([] if encoder else heard) + ([] if says == "text" else said)
    if any(not len(codes[number]) for number in wanted) or (
        says != "speech" and any(not utterances[n].text for n in said)
    ):
        return []
    cuts = {number: _bounds(edges - placed[number], rate, len(codes[number])) for number in placed}
    vectors = {number: utterances[number].features[encoder] for number in heard} if encoder else {}
    vector_cuts = {n: _bounds(edges - placed[n], feature_rate, len(found)) for n, found in vectors.items()}
    texts = {number: _texts(utterances[number], edges - placed[number]) for number in said}

    assembly = Assembly(vocabulary, marks=marks)
    for k in range(len(edges) - 1):
        begun = len(assembly)
        assembly.markup(unit, 0.0)
        for number in heard:
            if encoder:
                part = vectors[number][vector_cuts[number][k] : vector_cuts[number][k + 1]]
                assembly.features(encoder, part, stride, len(part) / feature_rate)
            else:
                part = codes[number][cuts[number][k] : cuts[number][k + 1]]
                if len(part):
                    assembly.audio(part, 0.0)
        if any(_overlaps(utterances[number], placed[number], edges[k], edges[k + 1]) for number in said):
            assembly.markup(speak, 1.0)
            for number in said:
                if says != "speech":
                    assembly.text(texts[number][k], 1.0)
                part = codes[number][cuts[number][k] : cuts[number][k + 1]]
                if says != "text" and len(part):
                    assembly.audio(part, 1.0)
        else:
            assembly.markup(listen, listen_weight)
        assembly.keep_together(begun)
    return [assembly.end().sample(f"{utterances[0].document}/0")]


def _side(utterance: Utterance) -> str:
    return utterance.role or ("human", "assistant")[min(utterance.channel, 1)]


def _starts(utterances: Sequence[Utterance], clock: str) -> list[float]:
    """Seconds at which each utterance begins, the first thing of all at 0."""
    if clock == "turns":
        return list(accumulate((utterance.duration for utterance in utterances[:-1]), initial=0.0))
    first = min(utterance.start for utterance in utterances)
    return [utterance.start - first for utterance in utterances]


def _bounds(edges: np.ndarray, rate: float, count: int) -> np.ndarray:
    """Where the units' edges, in seconds from the start of an utterance, lie in its `count` frames; the last unit has
    what rounding leaves over."""
    bounds = np.clip(np.round(edges * rate), 0, count).astype(np.int64)
    bounds[-1] = count
    return bounds


def _overlaps(utterance: Utterance, start: float, since: float, until: float) -> bool:
    return start < until and start + max(utterance.duration, 1e-6) > since


def _texts(utterance: Utterance, edges: np.ndarray) -> list[str]:
    """The text of each unit, where `edges` are seconds from the start of the utterance."""
    last = len(edges) - 2
    times = [word.start for word in utterance.words] or [0.0]
    texts = word_texts(utterance, range(len(times))) if utterance.words else [utterance.text]
    found = [""] * (last + 1)
    for time, text in zip(times, texts, strict=True):
        found[min(last, max(0, int(np.searchsorted(edges, time, side="right")) - 1))] += text
    return found
