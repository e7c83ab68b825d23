"""Text in, speech as codes out: by a model that was trained on the layouts `tts` or `tts_dialogue`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from configs.schema import MixtureConfig
from data_pipeline.batch import Sample
from data_pipeline.layouts import Layout, layouts_of
from data_pipeline.layouts.groups import group_length
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train.generation.prompts import layout_for
from train.generation.sampling import Speaker, SpeechPrompt, speech_prompt

PLAIN, PROMPTED = "tts", "tts_dialogue"
LONGEST_TOKENS = 8192  # of prompt and speech together, as in Step-Audio's tts.py
_TARGET = "target"


@dataclass(frozen=True)
class Line:
    """What is to be said, by whom (a name that the model was taught), and how (a style that it was taught)."""

    text: str
    speaker: str = ""
    style: str = ""


@dataclass(frozen=True)
class Speech:
    """ids: int64 [n] of the vocabulary, whole groups. ended: whether the model ended it, rather than the limit."""

    ids: np.ndarray
    seconds: float
    ended: bool


def speaking_layout(mixture: MixtureConfig, *, prompted: bool) -> Layout:
    """The layout that a run learnt to speak by: `tts_dialogue` where a voice is given as a prompt, else `tts`.

    Raises BadInput where it learnt neither, or only the one that needs a prompt.
    """
    names = {layout.name for layout in layouts_of(mixture.sources).values()}
    if prompted and PROMPTED in names:
        return layout_for(mixture, PROMPTED, "prompt_weight")
    if not prompted and PLAIN not in names and PROMPTED in names:
        raise BadInput("this model speaks in the voice of a prompt: give a recording and its text")
    if prompted and PLAIN in names:
        raise BadInput(f"mixture {mixture.name} has no layout {PROMPTED}: this model takes no prompt of a voice")
    return layout_for(mixture, PLAIN, "text_weight")


def say(
    speaker: Speaker,
    layout: Layout,
    lines: Sequence[Line],
    seeds: Sequence[int],
    *,
    voice: Utterance | None = None,
    longest: float | None = None,
) -> list[Speech]:
    """Speech of `lines`, continued together, by the model of `speaker`; `voice`, an utterance with text and codes, is
    what is continued by a layout of prompts. longest: seconds of each; None: as long as `LONGEST_TOKENS` let it be."""
    prompts = [prompt_of_line(layout, line, speaker.vocabulary, voice) for line in lines]
    prompts = [cut_to(longest, prompt, speaker.vocabulary) for prompt in prompts]
    return [
        Speech(one.ids, seconds_of(one.ids, speaker.vocabulary), one.ended) for one in speaker.speak(prompts, seeds)
    ]


def cut_to(longest: float | None, prompt: SpeechPrompt, vocabulary: Vocabulary) -> SpeechPrompt:
    """`prompt`, asked for at most so many seconds; None: for as many as it was."""
    if longest is None:
        return prompt
    return replace(prompt, groups=min(prompt.groups, max(1, round(longest / vocabulary.group_seconds))))


def prompt_of_line(layout: Layout, line: Line, vocabulary: Vocabulary, voice: Utterance | None) -> SpeechPrompt:
    """What the model is given to say `line`, laid as in training."""
    return speech_prompt(_laid(layout, line, vocabulary, voice), 0, vocabulary, LONGEST_TOKENS)


def silence(vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """One group of codes that stand for speech which is not there yet."""
    return {book.name: np.zeros((book.rows, book.per_group), np.int64) for book in vocabulary.codebooks}


def seconds_of(ids: np.ndarray, vocabulary: Vocabulary) -> float:
    """How long the speech of ids in whole groups is."""
    return len(ids) // group_length(vocabulary) * vocabulary.group_seconds


def _laid(layout: Layout, line: Line, vocabulary: Vocabulary, voice: Utterance | None) -> Sample:
    target = Utterance(
        key=_TARGET,
        text=line.text,
        document="said",
        speaker=line.speaker,
        style=line.style,
        codes=silence(vocabulary),
        duration=vocabulary.group_seconds,
    )
    given = [] if voice is None else [replace(voice, key="voice", document="said", speaker=line.speaker)]
    samples = layout([*given, target], vocabulary, np.random.default_rng(0))
    wanted = [sample for sample in samples if sample.key.endswith(f"/{_TARGET}")]
    if not wanted:
        raise BadInput("nothing can be said: the text is empty, or the prompt has no text or no speech of its style")
    return wanted[0]
