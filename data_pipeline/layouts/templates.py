"""Templates of chats: what stands before and after a turn, in the words of the text models that were taught them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.layouts.assembly import Assembly, Heard, specials_in
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput

ROLES = ("system", "human", "assistant")


@dataclass(frozen=True)
class Template:
    """begin: before all. heads: before each role's turn, in the order of ROLES. tail: after every turn. All are
    templates, in which special tokens stand by name."""

    begin: str
    heads: tuple[str, ...]
    tail: str

    @property
    def specials(self) -> list[str]:
        return [name for part in (self.begin, *self.heads, self.tail) for name in specials_in(part)]

    def opened(self, assembly: Assembly) -> Assembly:
        return assembly.markup(self.begin, 0.0)

    def text(self, assembly: Assembly, role: str, text: str) -> None:
        """A turn that is given, as text."""
        assembly.markup(self._head(role), 0.0, then=text).markup(self.tail, 0.0)

    def heard(self, assembly: Assembly, heard: Heard, instruction: str = "") -> None:
        """A human turn, as audio, after what is asked for in words."""
        assembly.markup(self._head("human"), 0.0, then=instruction).heard(heard).markup(self.tail, 0.0)

    def answer(self, assembly: Assembly, text: str, weight: float) -> None:
        """An answer that is asked for, as text: its head is given."""
        assembly.markup(self._head("assistant"), 0.0)
        assembly.ids(assembly.vocabulary.encode_inside(text), weight)
        self.closed(assembly, 1.0)

    def spoken(self, assembly: Assembly, groups: np.ndarray, weight: float, tail_weight: float) -> None:
        """An assistant turn, as audio."""
        assembly.markup(self._head("assistant"), 0.0).audio(groups, weight)
        self.closed(assembly, tail_weight)

    def head_of_answer(self, assembly: Assembly) -> Assembly:
        return assembly.markup(self._head("assistant"), 0.0)

    def closed(self, assembly: Assembly, weight: float) -> None:
        """The tail of an answer. `weight` is of what ends the turn, not of text behind the last special token, such as
        ChatML's line break: a model has stopped before it."""
        names = specials_in(self.tail)
        end = self.tail.rindex(names[-1]) + len(names[-1]) if names else len(self.tail)
        assembly.markup(self.tail[:end], weight).markup(self.tail[end:], 0.0)

    def _head(self, role: str) -> str:
        return self.heads[ROLES.index(role)]


TEMPLATES = {
    # stepaudio.py and tts.py of stepfun-ai/Step-Audio; whether `<s>` begins a chat depends on the tokenizer
    "step_audio": Template("", tuple(f"<|BOT|>{role}\n" for role in ROLES), "<|EOT|>"),
    # Qwen 2 to 3, SmolLM2-Instruct, Yi: the chat_template of their tokenizers
    "chatml": Template("", tuple(f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")), "<|im_end|>\n"),
    # Llama 3 to 3.3: "Llama 3 model cards and prompt formats"
    "llama3": Template(
        "<|begin_of_text|>",
        tuple(f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user", "assistant")),
        "<|eot_id|>",
    ),
}
"""By the name that the option `template` of layouts gives."""


def template_of(template: str, begin: str, heads: Sequence[str], tail: str) -> Template:
    """The template `template`, or one's own where `heads` are given, which `tail` then goes with. A `begin` goes before
    either. Raises BadInput for an unknown name, or heads that are not one a role."""
    if template not in TEMPLATES:
        raise BadInput(f"layout option template must be one of {', '.join(TEMPLATES)}, got {template!r}")
    if heads and len(heads) != len(ROLES):
        raise BadInput(f"layout option heads has a template for each of {', '.join(ROLES)}; got {len(heads)}")
    if tail and not heads:
        raise BadInput("layout option tail goes with heads of one's own; give both, or a template")
    chosen = Template("", tuple(heads), tail) if heads else TEMPLATES[template]
    return replace(chosen, begin=begin) if begin else chosen


def filled(prompt: str, utterance: Utterance) -> str:
    """A system prompt with the speaker and the style of who is to speak in it."""
    return prompt.replace("{speaker}", utterance.speaker).replace("{style}", utterance.style)
