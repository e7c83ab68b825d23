"""Speech beside its codes: what a decoder learns from, which turns codes into sound again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from data_pipeline.audio import SAMPLE_RATE, decode_flac, resample
from data_pipeline.batch import Sample, Wave
from data_pipeline.layouts.assembly import Assembly
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.sample_bytes import DamagedSample
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

SHORTEST = 0.5  # seconds of a crop that is worth a forward pass


def resynthesis(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    seconds: float = 3.0,
    rate: int = 22_050,
    speaker: str = "",
) -> list[Sample]:
    """Crops of utterances that have both codes and sound: whole groups, at most `seconds` of them, end to end from a
    random place of the utterance's first crop on; what is shorter than half a second is left out. No marks around the
    codes and no end of text; no loss on tokens.

    Each sample carries its `Wave` at `rate` Hz and, where `speaker` names an encoder of voices (as
    `corpus.quality.speaker` does), the embedding of the whole utterance. Raises DamagedSample for sound that cannot be
    decoded.
    """
    of_group = vocabulary.group_seconds
    if seconds < of_group or rate < SAMPLE_RATE:
        raise BadInput(
            f"resynthesis: seconds has to be at least one group, {of_group:.3f}, and rate at least {SAMPLE_RATE}; got "
            f"{seconds} and {rate}"
        )
    most, least = int(seconds / of_group + 1e-6), max(1, round(min(SHORTEST, seconds) / of_group))
    samples: list[Sample] = []
    for utterance in utterances:
        groups = lay_groups(utterance, vocabulary)
        if utterance.audio is None or len(groups) < least:
            continue
        heard = _decoded(utterance)
        voice = _voice(heard, speaker)
        sound = resample(heard, SAMPLE_RATE, rate)
        for begin, end in _crops(len(groups), most, rng):
            if end - begin < least:
                continue
            first, last = (round(group * of_group * rate) for group in (begin, end))
            wave = Wave(_fitted(sound[first:last], last - first), voice, int(rng.integers(2**63)))
            codes = Assembly(vocabulary, marks=()).codes(groups[begin:end], 0.0)
            samples.append(codes.sample(f"{utterances[0].document}/{len(samples)}", wave))
    return samples


def _crops(groups: int, most: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Where crops of at most `most` groups begin and end; all groups are in one of them."""
    if groups <= most:
        return [(0, groups)]
    edges = [0, *range(int(rng.integers(1, most + 1)), groups, most), groups]
    return list(itertools.pairwise(edges))


def _decoded(utterance: Utterance) -> np.ndarray:
    assert utterance.audio is not None
    try:
        return decode_flac(utterance.audio)
    except BadInput as error:
        raise DamagedSample("audio", f"utterance {utterance.key}") from error


def _voice(heard: np.ndarray, encoder: str) -> np.ndarray:
    """The speaker's embedding, float32 [width]; zeros of a sound without any voice, width 0 without an encoder."""
    if not encoder:
        return np.zeros(0, np.float32)
    from data_pipeline.quality.speaker import voice_given

    return voice_given(encoder, heard)


def _fitted(sound: np.ndarray, length: int) -> np.ndarray:
    """The sound with silence after it up to `length`: the last codes may stand for a little more than was heard."""
    return np.pad(sound, (0, length - len(sound)))
