"""Text and speech in turn, so many tokens of each, as a model answers that speaks while it writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import Assembly, check_weight
from data_pipeline.layouts.groups import group_length
from data_pipeline.layouts.paired import pairs
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput


def chunked(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    text_chunk: int = 13,
    audio_chunk: int = 26,
    turn: str = "",
    share: float = 1.0,
    least_ratio: float = 0.0,
    text_weight: float = 1.0,
    audio_weight: float = 1.0,
    frames: bool = False,
) -> list[Sample]:
    """One sample an utterance: `text_chunk` tokens of text, `audio_chunk` of audio, and so on; where the text ends, all
    audio that is left. No marks between chunks.

    13:26 is GLM-4-Voice (arXiv:2412.02612, section 3.3), 5:15 MinMo and CosyVoice 2, 3:10 LLaMA-Omni 2, 10:15
    Step-Audio-AQAA. `turn` is a template put where the text has ended and the rest of the audio begins (CosyVoice 2's
    turn of speech, LLaMA-Omni 2's separator); both train on audio alone: `text_weight` 0. Audio chunks are whole
    groups of codes; with `frames` they count frames. A random `share` of the utterances is laid in chunks, of those
    with more than `least_ratio` audio tokens for each of text (CosyVoice 2: 0.5 and 3), and the others as all text,
    `turn`, all audio. The target that asks for more text at the end of an audio chunk
    (CosyVoice 2's fill token) is not built.
    """
    check_weight("text_weight", text_weight)
    check_weight("audio_weight", audio_weight)
    if not 0 <= share <= 1 or least_ratio < 0:
        raise BadInput(f"chunked: need a share from 0 to 1 and a least_ratio from 0, got {share} and {least_ratio}")
    check_chunks(vocabulary, [text_chunk, audio_chunk], frames=frames)
    samples = []
    for utterance, groups in pairs(utterances, vocabulary):
        assembly = Assembly(vocabulary, marks=(), frames=frames)
        text = vocabulary.encode_text(utterance.text)
        spoken = groups.size if assembly.columns == 1 else len(groups)
        if rng.random() < share and spoken > least_ratio * len(text):
            lay_chunks(assembly, text, groups, [text_chunk, audio_chunk], turn, text_weight, audio_weight)
        else:
            assembly.ids(text, text_weight).markup(turn, audio_weight).codes(groups, audio_weight)
        samples.append(assembly.end().sample(f"{utterance.document}/{utterance.key}"))
    return samples


def check_chunks(vocabulary: Vocabulary, chunks: Sequence[int], *, frames: bool) -> None:
    """Raises BadInput unless `chunks` are the tokens of text and of audio in turn, the latter whole groups."""
    width = 1 if frames else max(1, group_length(vocabulary))
    if len(chunks) != 2 or min(chunks) < 1:
        raise BadInput(f"chunks are numbers of text and audio tokens in turn, from 1 on; got {list(chunks)}")
    if chunks[1] % width:
        raise BadInput(
            f"{chunks[1]} audio tokens a chunk cut a group; with this vocabulary it is a multiple of {width}"
        )


def lay_chunks(
    assembly: Assembly,
    text: Sequence[int],
    groups: np.ndarray,
    chunks: Sequence[int],
    turn: str,
    text_weight: float,
    audio_weight: float,
) -> Assembly:
    """Add text ids and groups of codes in turn. A last chunk of text that is not full, or a full one and its audio, is
    followed by `turn` and all other audio; where audio runs out first, the rest of the text comes in one."""
    per_text = chunks[0]
    per_audio = chunks[1] if assembly.columns > 1 else chunks[1] // group_length(assembly.vocabulary)
    written = said = 0
    while len(text) - written >= per_text and said < len(groups):
        assembly.ids(text[written : written + per_text], text_weight)
        assembly.codes(groups[said : said + per_audio], audio_weight)
        written += per_text
        said += per_audio
    assembly.ids(text[written:], text_weight)
    return assembly.markup(turn, audio_weight).codes(groups[said:], audio_weight)
