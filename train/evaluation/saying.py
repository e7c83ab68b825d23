"""Texts said by an exported model, laid as it learnt to speak."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from configs.schema import Config
from data_pipeline.layouts.groups import ungroup
from data_pipeline.utterance import Utterance
from train.generation.sampling import Speaker
from train.generation.speaking import Line, say, speaking_layout


class Saying:
    """`measurement.Speak` by a `Speaker`: in the layout tts_dialogue a text follows the prompt that is its voice, in
    tts a prompt is not heard. Draws depend on the text alone; speech is as long as the corpus's synthesis may be."""

    def __init__(self, config: Config, speaker: Speaker) -> None:
        self._mixture = config.mixture
        self._speaker = speaker
        self._seconds = config.corpus.synthesis.seconds_per_character

    def __call__(self, texts: Sequence[str], prompt: Utterance | None) -> list[dict[str, np.ndarray] | None]:
        """See `measurement.Speak`. Raises BadInput for a model that did not learn to speak, or not without a prompt."""
        said = say(
            self._speaker,
            speaking_layout(self._mixture, prompted=prompt is not None),
            [Line(text) for text in texts],
            [xxhash.xxh3_64_intdigest(text.encode()) for text in texts],
            voice=prompt,
            longest=self._seconds * max(map(len, texts)),
        )
        return [ungroup(one.ids, self._speaker.vocabulary) if one.ended else None for one in said]
