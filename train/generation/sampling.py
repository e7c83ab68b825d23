"""Speech by an exported model: prompts of ids continued to audio codes, in the phase of their groups.

What is asked is one small protocol, so that what speaks can be another thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from configs.schema import Config
from data_pipeline.batch import Sample
from data_pipeline.continuing import Opening
from data_pipeline.drawing import Sampling, grammar_of_codes
from data_pipeline.exported_model import load_exported
from data_pipeline.layouts.groups import group_length
from data_pipeline.speech.continuing import Continuation, codes_said
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train.inference.engine import InferenceEngine, open_engine
from train.inference.transformers import TransformersEngine

STEP_AUDIO = Sampling(temperature=0.7, window=10, share=0.1)  # tts.py of stepfun-ai/Step-Audio


@dataclass(frozen=True)
class SpeechPrompt:
    """ids: what is given, up to where codes begin. end: the id that ends them. groups: at most so many."""

    ids: tuple[int, ...]
    end: int
    groups: int


class Speaker(Protocol):
    """A model that says codes."""

    vocabulary: Vocabulary

    def speak(self, prompts: Sequence[SpeechPrompt], seeds: Sequence[int]) -> list[Continuation]:
        """Codes of each prompt, the same for the same prompt and seed."""


class EngineSpeaker:
    """An engine that has a model's weights."""

    def __init__(self, engine: InferenceEngine, vocabulary: Vocabulary, sampling: Sampling = STEP_AUDIO) -> None:
        self._engine = engine
        self.vocabulary = vocabulary
        self._sampling = sampling

    def speak(self, prompts: Sequence[SpeechPrompt], seeds: Sequence[int]) -> list[Continuation]:
        """As `Speaker.speak`, all prompts continued together; they have one `end`."""
        if not prompts:
            return []
        (end,) = {prompt.end for prompt in prompts}
        grammar = grammar_of_codes(self.vocabulary, end)
        openings = [Opening(prompt.ids, prompt.groups, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return [codes_said(one, grammar) for one in self._engine.continued(openings, grammar, self._sampling)]


def exported_speaker(
    export: Path, sampling: Sampling = STEP_AUDIO, *, device: str | None = None, bf16: bool = False
) -> EngineSpeaker:
    """A run's export (`<run>/export/hf`) on transformers, one model for all who ask for it.

    device: cpu, cuda or cuda:<n>; None: cuda if there. Raises BadInput where the folder is no export.
    """
    vocabulary = vocabulary_of(export)
    model = load_exported(export, str(export), vocabulary.size, device=device, bf16=bf16)
    engine = TransformersEngine(vocabulary.size, device=device, bf16=bf16, model=model)
    return EngineSpeaker(engine, vocabulary, sampling)


def stage_speaker(config: Config, export: Path, sampling: Sampling) -> EngineSpeaker:
    """An export on the engine that the stage asks for. Raises BadInput where the folder is no export, or the engine is
    not there."""
    options, vocabulary = config.generation, vocabulary_of(export)
    engine = open_engine(
        config.inference,
        rows=vocabulary.size,
        device=options.device,
        bf16=options.bf16,
        longest=options.longest,
        batch=options.batch,
    )
    engine.take(export)
    return EngineSpeaker(engine, vocabulary, sampling)


def vocabulary_of(export: Path) -> Vocabulary:
    """Raises BadInput where the folder is no export."""
    if not (export / "config.json").is_file():
        raise BadInput(f"{export} holds no export; make it with: megaphone checkpoint export <run>")
    return Vocabulary.load(export)


def speech_prompt(sample: Sample, given: int, vocabulary: Vocabulary, longest: int) -> SpeechPrompt:
    """The prompt that `sample` begins with, whose last run of codes is what is asked for, but for the first `given`
    groups of it, which are given too. longest: tokens of prompt and codes together.

    Whatever the layout, speech ends with the token after its last code. Raises ValueError for a sample whose codes
    nothing follows, or without codes.
    """
    codes = np.flatnonzero(sample.modality > 0)
    if not len(codes) or codes[-1] + 1 == len(sample):
        raise ValueError(f"sample {sample.key} does not say codes")
    run = codes[np.flatnonzero(np.diff(codes, prepend=-2) > 1)[-1]]  # where the last run begins
    length = group_length(vocabulary)
    start = int(run) + given * length
    return SpeechPrompt(
        ids=tuple(int(token) for token in sample.tokens[:start]),
        end=int(sample.tokens[codes[-1] + 1]),
        groups=max((longest - start - 1) // length, 1),
    )
