"""Texts said by an exported model, laid as it learnt to speak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xxhash

from configs.schema import Config
from data_pipeline.layouts import Layout, layouts_of
from data_pipeline.layouts.groups import group_seconds, ungroup
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from train.generation.prompts import layout_of
from train.generation.sampling import Speaker, SpeechPrompt, speech_prompt

PROMPTED = "tts_dialogue"  # wants another utterance of the voice
_LAYOUTS = (PROMPTED, "tts")  # that teach to speak, best first


class Saying:
    """`measurement.Speak` by a `Speaker`. In the layout tts_dialogue a text follows the prompt that is its voice; in
    tts a prompt is not heard. Draws depend on the text alone; speech is as long as the corpus's synthesis may be.

    Raises BadInput where the mixture has no layout that teaches to speak.
    """

    def __init__(self, config: Config, speaker: Speaker) -> None:
        names = {layout.name for layout in layouts_of(config.mixture.sources).values()}
        name = next((name for name in _LAYOUTS if name in names), None)
        if name is None:
            trained = ", ".join(sorted(names))
            raise BadInput(f"mixture {config.mixture.name} has no layout that teaches to speak: trained on {trained}")
        self._layout: Layout = layout_of(config.mixture, name)
        self._speaker = speaker
        self._longest = config.backbone.max_positions
        self._seconds = config.corpus.synthesis.seconds_per_character

    def __call__(self, texts: Sequence[str], prompt: Utterance | None) -> list[dict[str, np.ndarray] | None]:
        """See `measurement.Speak`. Raises BadInput where the layout wants a prompt and there is none."""
        said = self._speaker.speak(
            [self._prompt(text, prompt) for text in texts],
            [xxhash.xxh3_64_intdigest(text.encode()) for text in texts],
        )
        return [ungroup(one.ids, self._speaker.vocabulary) if one.ended else None for one in said]

    def _prompt(self, text: str, voice: Utterance | None) -> SpeechPrompt:
        vocabulary = self._speaker.vocabulary
        # The layout wants codes to lay; the prompt ends before them.
        codes = {book.name: np.zeros((book.rows, book.per_group), np.int64) for book in vocabulary.codebooks}
        target = Utterance("target", text, "", codes=codes)
        together = [target]
        if self._layout.name == PROMPTED:
            if voice is None:
                raise BadInput(f"layout {PROMPTED} speaks in the voice of a prompt, which the set does not have")
            together = [replace(voice, key="voice", document="", speaker="", style=""), target]
        samples = self._layout(together, vocabulary, np.random.default_rng(0))
        sample = next((sample for sample in samples if sample.key.endswith("/target")), None)
        if sample is None:
            raise BadInput(f"layout {self._layout.name} makes no sample of the text {text[:40]!r}")
        found = speech_prompt(sample, 0, vocabulary, self._longest)
        most = max(1, round(self._seconds * len(text) / group_seconds(vocabulary)))
        return replace(found, groups=min(found.groups, most))
