"""Dialogues as chats: turns with roles in a template, questions and answers as text or audio."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import Assembly, Heard, check_stride, check_weight, hear
from data_pipeline.layouts.chunked import check_chunks, lay_chunks
from data_pipeline.layouts.cuts import joined
from data_pipeline.layouts.templates import ROLES, Template, filled, template_of
from data_pipeline.sample_bytes import DamagedSample
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

FORMS = ("TQTA", "AQTA", "TAQTA", "AQAA")


class _Turn(NamedTuple):
    role: str
    text: str
    groups: np.ndarray
    heard: Heard
    first: Utterance

    def has(self, form: str) -> bool:
        """Whether it has the text (T) and the audio (A) that `form` names."""
        audio = bool(self.heard) if self.role == "human" else len(self.groups) > 0
        return ("T" not in form or bool(self.text)) and ("A" not in form or audio)


def chat(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    form: str = "AQTA",
    loss: str = "last",
    history: str = "text",
    chunks: Sequence[int] = (),
    system: str = "",
    tag: str = "",
    template: str = "step_audio",
    begin: str = "",
    heads: Sequence[str] = (),
    tail: str = "",
    end: str = "",
    marks: Sequence[str] = (),
    text_weight: float = 1.0,
    audio_weight: float = 1.0,
    encoder: str = "",
    stride: int = 1,
    frames: bool = False,
) -> list[Sample]:
    """One sample a document, a dialogue whose utterances have roles; neighbours of one role are one turn. It ends with
    the last assistant turn; a document that lacks what the form asks for gives none.

    form: text or audio question, text or audio answer. The question is the last human turn; in TAQTA its transcript is
    an answer of its own with loss after the audio, and comes once more as a given text turn (Step-Audio, section
    5.2.1; that these are turns is our choice). loss: "last" assistant turn only, or "all". history: earlier turns as
    "text", audio replaced by its transcript (Step-Audio), or as "audio" where the form has it and they have codes.
    chunks: in AQAA, text and audio tokens in turn instead of audio alone (10, 15: Step-Audio-AQAA; 13, 26:
    GLM-4-Voice). system: the system prompt of documents without a system turn, in which `{speaker}` and `{style}` are
    those of the last answer. tag: what stands before the text of an answer that has a style, such as `({style})`.

    template: step_audio, chatml or llama3; or one's own by `heads` (of system, human, assistant) and `tail`, what
    stands before and after each turn. begin, end: what stands before and after all. Loss on answers, by `text_weight`
    and `audio_weight`, with what ends them; on no head. encoder: audio questions are places for its vectors, `stride`
    of them each (LLaMA-Omni, MinMo), and need no codes. Raises DamagedSample for a role that is none of the three.
    """
    check_stride(stride)
    _check(form, loss, history, text_weight, audio_weight)
    chosen = template_of(template, begin, heads, tail)
    if chunks:
        check_chunks(vocabulary, chunks, frames=frames)
    turns = _turns(utterances, vocabulary, encoder, stride, tag)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    asked = max((number for number, turn in enumerate(turns) if turn.role == "human"), default=-1)
    question, answer = form.split("Q")[0], form.split("Q")[1][0]
    last = len(turns) - 1
    if asked < 0 or not turns[asked].has(question) or not turns[last].has(answer + ("T" if chunks else "")):
        return []
    earlier = [turn for number, turn in enumerate(turns) if number not in (asked, last)]
    if any(not turn.text and (history == "text" or not turn.has("A")) for turn in earlier):
        return []

    assembly = chosen.opened(Assembly(vocabulary, marks=marks, frames=frames))
    if system and turns[0].role != "system":
        chosen.text(assembly, "system", filled(system, turns[last].first))
    for number, turn in enumerate(turns):
        now = number in (asked, last) or history == "audio"
        scored = number == last or loss == "all"
        weights = (text_weight, audio_weight) if scored else (0.0, 0.0)
        if turn.role == "human" and "A" in question and now and turn.has("A"):
            chosen.heard(assembly, turn.heard)
            if question == "TA" and number == asked:
                chosen.answer(assembly, turn.text, text_weight)
                chosen.text(assembly, "human", turn.text)
        elif turn.role == "assistant" and answer == "A" and now and turn.has("A"):
            if chunks and turn.text:
                _chunks(assembly, chosen, turn, chunks, weights, float(scored))
            else:
                chosen.spoken(assembly, turn.groups, weights[1], float(scored))
        elif turn.role == "assistant" and scored:
            chosen.answer(assembly, turn.text, text_weight)
        else:
            chosen.text(assembly, turn.role, turn.text)
    return [assembly.markup(end, 1.0).sample(f"{utterances[0].document}/0")]


def _turns(utterances: Sequence[Utterance], vocabulary: Vocabulary, encoder: str, stride: int, tag: str) -> list[_Turn]:
    """Runs of utterances of one role; none of a document without roles. Raises DamagedSample for another role."""
    if not any(utterance.role for utterance in utterances):
        return []
    turns = []
    for role, run in groupby(utterances, key=lambda utterance: utterance.role):
        together = list(run)
        if role not in ROLES:
            raise DamagedSample("role", f"{together[0].document}: {together[0].key} has the role {role!r}")
        text = joined((utterance.text, utterance.language) for utterance in together if utterance.text)
        if tag and text and role == "assistant" and together[0].style:
            text = filled(tag, together[0]) + text
        heard = hear(together, vocabulary, encoder, stride)
        turns.append(_Turn(role, text, heard.groups, heard, together[0]))
    return turns


def _chunks(
    assembly: Assembly,
    template: Template,
    turn: _Turn,
    chunks: Sequence[int],
    weights: tuple[float, float],
    tail_weight: float,
) -> None:
    """An answer of text and audio in turn."""
    template.head_of_answer(assembly)
    lay_chunks(assembly, assembly.vocabulary.encode_inside(turn.text), turn.groups, chunks, "", *weights)
    template.closed(assembly, tail_weight)


def _check(form: str, loss: str, history: str, text_weight: float, audio_weight: float) -> None:
    for option, value, choices in (
        ("form", form, FORMS),
        ("loss", loss, ("last", "all")),
        ("history", history, ("text", "audio")),
    ):
        if value not in choices:
            raise BadInput(f"chat: {option} must be one of {', '.join(choices)}, got {value!r}")
    check_weight("text_weight", text_weight)
    check_weight("audio_weight", audio_weight)
