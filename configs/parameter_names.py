"""Parameters by name: the patterns that pick them out of a model, and the names of LoRA's two factors.

A parameter's name is its name in a native checkpoint, with the layer's number in the whole model where layers are
stacked under one name: `embedding.word_embeddings.weight`, `decoder.layers.3.self_attention.linear_qkv.weight`,
`decoder.layers.3.mlp.linear_fc1.layer_norm_weight`, `decoder.final_layernorm.weight`, `output_layer.weight` (where the
head is not tied to the embedding), `reward_head.weight` (of a reward model). A layer of experts has
`decoder.layers.3.pre_mlp_layernorm.weight`, `decoder.layers.3.mlp.router.weight` and
`decoder.layers.3.mlp.experts.experts.5.linear_fc1.weight`, numbered likewise. A model that hears through an adapter has
`adapter.*`, such as `adapter.linear_1.weight`, and with the encoder inside `encoder.*`: of Whisper by transformers'
names of it, `encoder.conv1.weight`, `encoder.layers.3.fc1.weight`; of SenseVoice and Paraformer by FunASR's,
`encoder.encoders0.0.norm1.weight`, `encoder.encoders.3.norm1.weight`. A name is the same on every topology and engine.

A pattern has to match the whole name. `*` stands for any characters, dots included, `?` for one, `[ab]` for one of
these, `<8-15>` for a number from 8 to 15.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from runtime.exits import BadInput

LORA_A = "lora_a"
LORA_B = "lora_b"
REWARD_HEAD = "reward_head.weight"

_RANGE = re.compile(r"<(\d+)-(\d+)>")
_WIDEST = 10_000  # numbers in one range: no model has more layers


AUDIO_INPUT = ("adapter.", "encoder.")
"""What names of parameters begin with that a text LLM has none of, as a stage that adds them finds it."""


def is_lora(name: str) -> bool:
    """Whether a parameter is one of the two factors of a LoRA update."""
    return name.rpartition(".")[2] in (LORA_A, LORA_B)


def is_added(name: str) -> bool:
    """Whether a stage may have a parameter that the checkpoint it starts from lacks."""
    return is_lora(name) or name.endswith(REWARD_HEAD) or name.removeprefix("model.").startswith(AUDIO_INPUT)


def matcher(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression for `fullmatch`. Raises BadInput where it is no pattern."""
    expression, end = "", 0
    for found in _RANGE.finditer(pattern):
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + _WIDEST:
            raise BadInput(f"pattern {pattern!r}: {found[0]} is no range of numbers, write <first-last>")
        expression += _part(pattern[end : found.start()])
        expression += f"(?:{'|'.join(str(number) for number in range(first, last + 1))})"
        end = found.end()
    rest = pattern[end:]
    if not pattern or "<" in _RANGE.sub("", pattern) or ">" in _RANGE.sub("", pattern):
        raise BadInput(f"pattern {pattern!r}: a pattern has characters, * and ?, [ab] and <first-last>, nothing else")
    return re.compile(expression + _part(rest))


def matching(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """The names that any of the patterns matches."""
    known = list(names)
    return {name for wanted in map(matcher, patterns) for name in known if wanted.fullmatch(name)}


def _part(text: str) -> str:
    """A part without ranges, as a regular expression without its end mark."""
    return fnmatch.translate(text).removesuffix(r"\Z").removesuffix(r"\z")
