"""Recognition and synthesis as chats: what a text model's chat template asks for, and the utterance answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import Assembly, check_stride, check_weight, hear
from data_pipeline.layouts.paired import pairs
from data_pipeline.layouts.templates import filled, template_of
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput


def tts_dialogue(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    system: str = "",
    unnamed: str = "",
    styles: Mapping[str, str] = MappingProxyType({}),
    clone_share: float = 0.0,
    tag: str = "({style})",
    template: str = "step_audio",
    begin: str = "",
    heads: Sequence[str] = (),
    tail: str = "",
    marks: Sequence[str] = (),
    prompt_weight: float = 0.0,
    frames: bool = False,
) -> list[Sample]:
    """Step-Audio-TTS: one sample an utterance that has text and speech, after another one of the same speaker as its
    prompt. `[begin] system, human: prompt text, assistant: prompt codes, human: target text, assistant: target codes`.
    Loss on the target codes and what ends them, and `prompt_weight` on the prompt's.

    The prompt is drawn from the document's other utterances of the speaker; without one there is no sample. A text has
    `tag` before it where its utterance has a style (`(RAP)` in Step-Audio). In system prompts `{speaker}` and `{style}`
    are the target's. `styles` has the prompts of styles with one of their own (RAP and humming in Step-Audio), which
    are prompted with that style too. `unnamed`, or without it `system`, is for utterances without a speaker and for a
    `clone_share` of the others (zero-shot cloning: the voice is in the prompt alone), `system` for the rest. An empty
    one gives no system turn. template, begin, heads, tail: as `chat` has them. `begin` is `<s>` in Step-Audio, whose
    code gives roles and texts to its tokenizer one by one: where that marks the start of what it is given, heads with a
    space before the role (`<|BOT|> human`) give the same ids.
    """
    check_weight("prompt_weight", prompt_weight)
    if not 0 <= clone_share <= 1:
        raise BadInput(f"tts_dialogue: clone_share is a share of samples from 0 to 1, got {clone_share}")
    if clone_share and not unnamed and "{speaker}" in system:
        raise BadInput("tts_dialogue: clone_share needs a system prompt that names no speaker; give it as unnamed")
    chosen = template_of(template, begin, heads, tail)
    whole = list(pairs(utterances, vocabulary))

    def like(target: Utterance, other: Utterance) -> bool:
        return other.speaker == target.speaker and styles.get(other.style) == styles.get(target.style)

    samples = []
    for number, (target, groups) in enumerate(whole):
        others = [i for i, (other, _) in enumerate(whole) if i != number and like(target, other)]
        if not others:
            continue
        prompt, prompt_groups = whole[others[int(rng.integers(len(others)))]]
        cloned = clone_share > 0 and rng.random() < clone_share
        named = system if target.speaker and not cloned else unnamed or system
        assembly = chosen.opened(Assembly(vocabulary, marks=marks, frames=frames))
        if told := filled(styles.get(target.style, named), target):
            chosen.text(assembly, "system", told)
        chosen.text(assembly, "human", _tagged(tag, prompt))
        chosen.spoken(assembly, prompt_groups, prompt_weight, prompt_weight)
        chosen.text(assembly, "human", _tagged(tag, target))
        chosen.spoken(assembly, groups, 1.0, 1.0)
        samples.append(assembly.sample(f"{target.document}/{target.key}"))
    return samples


def asr_dialogue(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    system: str = "",
    instruction: str = "",
    template: str = "step_audio",
    begin: str = "",
    heads: Sequence[str] = (),
    tail: str = "",
    marks: Sequence[str] = (),
    encoder: str = "",
    stride: int = 1,
    frames: bool = False,
) -> list[Sample]:
    """Recognition as a chat: one sample an utterance that has text and speech. `[begin] system, human: instruction and
    audio, assistant: transcript`; `instruction` is plain text, or nothing. Loss on the transcript and what ends it.
    What Step-Audio's "ASR-format data" (section 5.2.1) look like is not published: this is our choice.

    template, begin, heads, tail, encoder, stride: as `chat` has them.
    """
    check_stride(stride)
    chosen = template_of(template, begin, heads, tail)
    samples = []
    for utterance in utterances:
        heard = hear([utterance], vocabulary, encoder, stride)
        if not utterance.text or not heard:
            continue
        assembly = chosen.opened(Assembly(vocabulary, marks=marks, frames=frames))
        if system:
            chosen.text(assembly, "system", filled(system, utterance))
        chosen.heard(assembly, heard, instruction)
        chosen.answer(assembly, utterance.text, 1.0)
        samples.append(assembly.sample(f"{utterance.document}/{utterance.key}"))
    return samples


def _tagged(tag: str, utterance: Utterance) -> str:
    return filled(tag, utterance) + utterance.text if utterance.style else utterance.text
