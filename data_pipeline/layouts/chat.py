"""Dialogues as chats: turns with roles in a template, questions and answers as text or audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import Assembly, Heard, check_stride, check_weight, hear
from data_pipeline.layouts.chunked import check_chunks, lay_chunks
from data_pipeline.layouts.cuts import joined
from data_pipeline.layouts.paired import pairs
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

ROLES = ("system", "human", "assistant")
STEP_AUDIO = tuple(f"<|BOT|>{role}\n" for role in ROLES)  # heads of Step-Audio's turns (its stepaudio.py and tts.py)
FORMS = ("TQTA", "AQTA", "TAQTA", "AQAA")


class _Turn(NamedTuple):
    role: str
    text: str
    groups: np.ndarray
    heard: Heard

    def has(self, form: str) -> bool:
        """Whether it has the text (T) and the audio (A) that `form` names."""
        audio = bool(self.heard) if self.role == "human" else len(self.groups) > 0
        return ("T" not in form or bool(self.text)) and ("A" not in form or audio)


@dataclass(frozen=True)
class _Template:
    """What stands before each role's turn (in the order of ROLES) and after every turn."""

    heads: Sequence[str]
    tail: str

    def text(self, assembly: Assembly, role: str, text: str) -> None:
        """A turn that is given, as text."""
        assembly.markup(self._head(role), 0.0, then=text).markup(self.tail, 0.0)

    def heard(self, assembly: Assembly, heard: Heard) -> None:
        """A human turn, as audio."""
        assembly.markup(self._head("human"), 0.0).heard(heard).markup(self.tail, 0.0)

    def spoken(self, assembly: Assembly, groups: np.ndarray, weight: float, tail_weight: float) -> None:
        """An assistant turn, as audio."""
        assembly.markup(self._head("assistant"), 0.0).audio(groups, weight).markup(self.tail, tail_weight)

    def answer(self, assembly: Assembly, text: str, weight: float) -> None:
        """An answer that is asked for, as text: its head is given."""
        assembly.markup(self._head("assistant"), 0.0)
        assembly.ids(assembly.vocabulary.encode_inside(text), weight).markup(self.tail, 1.0)

    def chunks(
        self, assembly: Assembly, turn: _Turn, chunks: Sequence[int], weights: tuple[float, float], tail_weight: float
    ) -> None:
        """An answer of text and audio in turn."""
        assembly.markup(self._head("assistant"), 0.0)
        lay_chunks(assembly, assembly.vocabulary.encode_inside(turn.text), turn.groups, chunks, "", *weights)
        assembly.markup(self.tail, tail_weight)

    def _head(self, role: str) -> str:
        return self.heads[ROLES.index(role)]


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
    begin: str = "",
    heads: Sequence[str] = STEP_AUDIO,
    tail: str = "<|EOT|>",
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
    GLM-4-Voice). system: the system prompt of documents without a system turn. begin, heads, tail, end: templates of
    what stands before all, before a turn of each role (system, human, assistant), after each turn, and after all. Loss
    on answers, by `text_weight` and `audio_weight`, with what follows them; on no head. encoder: audio questions are
    places for its vectors, `stride` of them each (LLaMA-Omni, MinMo), and need no codes.
    """
    check_stride(stride)
    _check(form, loss, history, heads, text_weight, audio_weight)
    if chunks:
        check_chunks(vocabulary, chunks, frames=frames)
    turns = _turns(utterances, vocabulary, encoder, stride)
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

    template = _Template(heads, tail)
    assembly = Assembly(vocabulary, marks=marks, frames=frames).markup(begin, 0.0)
    if system and turns[0].role != "system":
        template.text(assembly, "system", system)
    for number, turn in enumerate(turns):
        now = number in (asked, last) or history == "audio"
        scored = number == last or loss == "all"
        weights = (text_weight, audio_weight) if scored else (0.0, 0.0)
        if turn.role == "human" and "A" in question and now and turn.has("A"):
            template.heard(assembly, turn.heard)
            if question == "TA" and number == asked:
                template.answer(assembly, turn.text, text_weight)
                template.text(assembly, "human", turn.text)
        elif turn.role == "assistant" and answer == "A" and now and turn.has("A"):
            if chunks and turn.text:
                template.chunks(assembly, turn, chunks, weights, float(scored))
            else:
                template.spoken(assembly, turn.groups, weights[1], float(scored))
        elif turn.role == "assistant" and scored:
            template.answer(assembly, turn.text, text_weight)
        else:
            template.text(assembly, turn.role, turn.text)
    return [assembly.markup(end, 1.0).sample(f"{utterances[0].document}/0")]


def tts_dialogue(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    system: str = "",
    begin: str = "",
    heads: Sequence[str] = STEP_AUDIO,
    tail: str = "<|EOT|>",
    marks: Sequence[str] = (),
    prompt_weight: float = 0.0,
    frames: bool = False,
) -> list[Sample]:
    """Step-Audio-TTS: one sample an utterance that has text and speech, after another one of the same speaker as its
    prompt. `[begin] system, human: prompt text, assistant: prompt codes, human: target text, assistant: target codes`.
    Loss on the target codes and the tail after them, and `prompt_weight` on the prompt's.

    The prompt is drawn from the document's other utterances of the speaker; without one there is no sample. `{speaker}`
    in `system` is replaced by the speaker's name; an empty `system` gives no system turn. `begin` is `<s>` in
    Step-Audio.
    """
    _check_template(heads)
    check_weight("prompt_weight", prompt_weight)
    template = _Template(heads, tail)
    whole = list(pairs(utterances, vocabulary))
    samples = []
    for number, (target, groups) in enumerate(whole):
        others = [i for i, (other, _) in enumerate(whole) if i != number and other.speaker == target.speaker]
        if not others:
            continue
        prompt, prompt_groups = whole[others[int(rng.integers(len(others)))]]
        assembly = Assembly(vocabulary, marks=marks, frames=frames).markup(begin, 0.0)
        if system:
            template.text(assembly, "system", system.replace("{speaker}", target.speaker))
        template.text(assembly, "human", prompt.text)
        template.spoken(assembly, prompt_groups, prompt_weight, prompt_weight)
        template.text(assembly, "human", target.text)
        template.spoken(assembly, groups, 1.0, 1.0)
        samples.append(assembly.sample(f"{target.document}/{target.key}"))
    return samples


def _turns(utterances: Sequence[Utterance], vocabulary: Vocabulary, encoder: str, stride: int) -> list[_Turn]:
    """Runs of utterances of one role; those of no known role are left out."""
    known = [utterance for utterance in utterances if utterance.role in ROLES]
    turns = []
    for role, run in groupby(known, key=lambda utterance: utterance.role):
        together = list(run)
        text = joined((utterance.text, utterance.language) for utterance in together if utterance.text)
        heard = hear(together, vocabulary, encoder, stride)
        turns.append(_Turn(role, text, heard.groups, heard))
    return turns


def _check(form: str, loss: str, history: str, heads: Sequence[str], text_weight: float, audio_weight: float) -> None:
    for option, value, choices in (
        ("form", form, FORMS),
        ("loss", loss, ("last", "all")),
        ("history", history, ("text", "audio")),
    ):
        if value not in choices:
            raise BadInput(f"chat: {option} must be one of {', '.join(choices)}, got {value!r}")
    _check_template(heads)
    check_weight("text_weight", text_weight)
    check_weight("audio_weight", audio_weight)


def _check_template(heads: Sequence[str]) -> None:
    if len(heads) != len(ROLES):
        raise BadInput(f"layout option heads has a template for each of {', '.join(ROLES)}; got {len(heads)}")
