"""Prompts, cut out of the samples that a model was trained on: what it is asked is laid as it was in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from configs.schema import MixtureConfig
from data_pipeline.batch import Sample
from data_pipeline.layouts import Layout, find_layout, layouts_of
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

ANSWER = "."  # stands for the answer in an utterance that has none yet; layouts pass over utterances without text


def layout_for(mixture: MixtureConfig, name: str, unheard: str) -> Layout:
    """The layout `name` as the mixture has it, its options included, but for `unheard`: the weight of what is given,
    which is set to 0, so that the loss begins where the answer does. Raises BadInput as `layout_of` does."""
    return find_layout(name, layout_of(mixture, name).options | {unheard: 0.0})


def layout_of(mixture: MixtureConfig, name: str) -> Layout:
    """The layout `name` as the mixture has it. Raises BadInput where the mixture has it not, or twice with different
    options."""
    layouts = layouts_of(mixture.sources).values()
    found = [layout for layout in layouts if layout.name == name]
    if not found or any(other.options != found[0].options for other in found):
        trained = ", ".join(sorted({layout.name for layout in layouts}))
        which = "more than one" if found else "no"
        raise BadInput(f"mixture {mixture.name} has {which} layout {name}: this model was trained on {trained}")
    return found[0]


def prompt_of(sample: Sample) -> list[int]:
    """The ids before the first that the loss of `sample` covers."""
    covered = np.flatnonzero(sample.loss_weight > 0)
    return [int(token) for token in sample.tokens[: covered[0] if len(covered) else None]]


def asr_prompt(layout: Layout, utterance: Utterance, vocabulary: Vocabulary) -> list[int]:
    """What a model is given to say what it heard. Empty where the utterance has no speech as codes."""
    samples = layout([replace(utterance, text=ANSWER)], vocabulary, np.random.default_rng(0))
    return prompt_of(samples[0]) if samples else []
