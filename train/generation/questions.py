"""How a model is asked: in the chats of its mixture, or a base model in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from configs.schema import MixtureConfig
from data_pipeline.layouts import find_layout, layouts_of
from data_pipeline.layouts.templates import specials_in, template_of
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train.generation.prompts import ANSWER, prompt_of

CHAT, PLAIN = "chat", "text"
_TEMPLATE = {"template": "step_audio", "begin": "", "heads": (), "tail": ""}  # with the defaults of `chat`
_FORMS = {True: ("AQTA", "TAQTA", "AQAA"), False: ("TQTA", "TAQTA")}  # that taught a question of this kind, best first


class Asking:
    """Questions as prompts of the layout `chat` with the options that the mixture has for it (form AQTA or TQTA), or
    of `text`: "Question: ...", "Answer:" on two lines, up to the end of the line, our choice for base models.

    Raises BadInput where the mixture has no such chat, or speech is to be asked in plain text.
    """

    def __init__(self, mixture: MixtureConfig, vocabulary: Vocabulary, layout: str, *, spoken: bool) -> None:
        self._vocabulary = vocabulary
        self._plain = layout == PLAIN
        end = vocabulary.special(vocabulary.end_of_text)
        self.ends = [end]
        if self._plain:
            if spoken:
                raise BadInput("a question in plain text is a written one: set asked=written")
            return
        options = _chat_options(mixture, spoken)
        self._layout = find_layout(CHAT, options | {"form": "AQTA" if spoken else "TQTA", "loss": "last"})
        chosen = [options.get(name, default) for name, default in _TEMPLATE.items()]
        tail = template_of(*chosen).tail
        self.ends = [*(vocabulary.special(name) for name in specials_in(tail)[-1:]), end]

    def prompt(self, turns: Sequence[Utterance]) -> list[int]:
        """Ids that the reply follows; `turns` have roles, and the last one asks. Raises BadInput for turns that the
        layout makes no sample of."""
        if self._plain:
            return self._vocabulary.encode_text(f"Question: {turns[-1].text}\nAnswer:")
        reply = replace(turns[-1], key="answer", text=ANSWER, role="assistant", codes={}, duration=0.0)
        samples = self._layout([*turns, reply], self._vocabulary, np.random.default_rng(0))
        if not samples:
            raise BadInput("a question that has neither the text nor the sound that is asked with")
        return prompt_of(samples[0])

    def reply(self, text: str) -> str:
        """What of a continuation answers."""
        return (text.split("\n", 1)[0] if self._plain else text).strip()


def _chat_options(mixture: MixtureConfig, spoken: bool) -> dict[str, Any]:
    """Of the chat whose questions are most like those that are asked."""
    chats = [found for found in layouts_of(mixture.sources).values() if found.name == CHAT and found.plain]
    if not chats:
        trained = ", ".join(sorted({found.name for found in layouts_of(mixture.sources).values()}))
        raise BadInput(f"mixture {mixture.name} has no layout chat to ask in: this model was trained on {trained}")
    forms = _FORMS[spoken]
    by_form = {str(found.options.get("form", "AQTA")): found.options for found in reversed(chats)}
    fitting = next((by_form[form] for form in forms if form in by_form), chats[0].options)
    return {name: value for name, value in fitting.items() if name not in ("chunks", "text_weight", "audio_weight")}
