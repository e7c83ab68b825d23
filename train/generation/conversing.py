"""A conversation in, its next turn out: by a model that was trained on the layout `chat`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.schema import MixtureConfig
from data_pipeline.batch import Sample
from data_pipeline.exported_model import load_exported
from data_pipeline.layouts import Layout, find_layout, layouts_of
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from train.generation.sampling import exported_speaker, speech_prompt
from train.generation.speaking import LONGEST_TOKENS, cut_to, silence
from train.generation.writing import STEP_AUDIO_CHAT, TextSampling, continue_text

CHAT = "chat"
MOST_TOKENS = 2048  # of text in one answer, as in Step-Audio's stepaudio.py
_ANSWER = "."  # stands for what is not said yet; layouts pass over turns without text
_FORM = "AQTA"  # the layout's own


@dataclass(frozen=True)
class Answer:
    """What a model says next. ids: int64 [n] of the vocabulary, whole groups, of a spoken answer; heard: what it wrote
    down of the question, where its form has that (TAQTA)."""

    text: str = ""
    ids: np.ndarray | None = None
    heard: str = ""


def chat_layouts(mixture: MixtureConfig) -> dict[str, Layout]:
    """The chats that a run learnt, by form. Raises BadInput where it learnt none."""
    found = [layout for layout in layouts_of(mixture.sources).values() if layout.name == CHAT]
    if not found:
        raise BadInput(f"mixture {mixture.name} has no layout {CHAT}: this model learnt no conversations")
    return {str(layout.options.get("form", _FORM)): layout for layout in found}


class Assistant:
    """A run's export (`<run>/export/hf`) that answers in one form of chat.

    Raises BadInput where the folder is no export, or the mixture has no chat of that form.
    """

    def __init__(
        self, mixture: MixtureConfig, export: Path, form: str, *, device: str | None = None, bf16: bool = False
    ) -> None:
        known = chat_layouts(mixture)
        if form not in known:
            raise BadInput(f"this model learnt no {form}; it learnt {', '.join(sorted(known))}")
        options = known[form].options
        if options.get("chunks") or not known[form].plain:
            raise BadInput("answers of text and audio in turn, and several columns, are not generated yet")
        self.form = form
        self._layout = find_layout(CHAT, options | {"loss": "last"})
        self._speaker = exported_speaker(export, device=device, bf16=bf16)
        self.vocabulary = self._speaker.vocabulary
        self._model = load_exported(export, str(export), self.vocabulary.size, device=device, bf16=bf16)  # the same

    def answer(
        self,
        turns: Sequence[Utterance],
        *,
        seed: int = 0,
        sampling: TextSampling = STEP_AUDIO_CHAT,
        longest: float | None = None,
        most: int = MOST_TOKENS,
    ) -> Answer:
        """The answer to `turns`, utterances with roles, of which the last is a human's. longest: seconds of a spoken
        one; most: tokens of a written one. Raises BadInput where they lack what the form asks for."""
        heard = ""
        if self.form.startswith("TA"):
            asked = [replace(turn, text=turn.text or _ANSWER) for turn in turns]
            heard = self._write(self._laid(asked), 0, asked[-1].text, TextSampling(), seed, MOST_TOKENS)
            turns = [*turns[:-1], replace(turns[-1], text=heard or _ANSWER)]
        sample = self._laid(turns)
        if self.form.endswith("TA"):
            return Answer(text=self._write(sample, -1, _ANSWER, sampling, seed, most), heard=heard)
        prompt = cut_to(longest, speech_prompt(sample, 0, self.vocabulary, LONGEST_TOKENS), self.vocabulary)
        (said,) = self._speaker.speak([prompt], [seed])
        return Answer(ids=said.ids)

    def _write(self, sample: Sample, run: int, stand_in: str, sampling: TextSampling, seed: int, most: int) -> str:
        """Text, at most `most` tokens, in place of `stand_in`, with which the `run`-th of the stretches that a loss
        covers begins."""
        covered = np.flatnonzero(sample.loss_weight > 0)
        start = int(covered[np.flatnonzero(np.diff(covered, prepend=-2) > 1)[run]])
        end = int(sample.tokens[start + len(self.vocabulary.encode_inside(stand_in))])
        prompt = [int(token) for token in sample.tokens[:start]]
        (ids,) = continue_text(
            self._model,
            self.vocabulary,
            [prompt],
            end=end,
            most=most,
            sampling=sampling,
            seed=seed,
        )
        return self.vocabulary.decode_text(ids).strip()

    def _laid(self, turns: Sequence[Utterance]) -> Sample:
        if not turns or turns[-1].role != "human":
            raise BadInput("the last turn of the conversation has to be a human's")
        spoken = silence(self.vocabulary) if self.form.endswith("AA") else {}
        answer = Utterance(key="answer", text=_ANSWER, document="talk", role="assistant", codes=spoken)
        samples = self._layout([*turns, answer], self.vocabulary, np.random.default_rng(0))
        if not samples:
            wanted = "speech" if "A" in self.form.partition("Q")[0] else "text"
            raise BadInput(f"{self.form} asks for a question as {wanted}, and for the text of every turn before it")
        return samples[0]
