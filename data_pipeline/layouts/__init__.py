"""Sequence layouts: how the utterances of one document become samples. The one registry of them is here.

A layout is a pure function `(utterances, vocabulary, rng, **options) -> list[Sample]` of one document's utterances:
none, one or many samples, keyed `document/part`, each ended by the end-of-text token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.interleaved import interleaved
from data_pipeline.layouts.paired import asr, tts
from data_pipeline.layouts.single import continuation, text
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

_LAYOUTS: dict[str, Callable[..., list[Sample]]] = {
    "asr": asr,
    "continuation": continuation,
    "interleaved": interleaved,
    "text": text,
    "tts": tts,
}
_WITHOUT_SPEECH = {"text"}


@dataclass(frozen=True)
class Layout:
    """A layout with its options set. `spoken`: whether it wants documents that have speech only."""

    name: str
    options: dict[str, Any]
    spoken: bool

    def __call__(
        self, utterances: Sequence[Utterance], vocabulary: Vocabulary, rng: np.random.Generator
    ) -> list[Sample]:
        return _LAYOUTS[self.name](utterances, vocabulary, rng, **self.options)


def find_layout(name: str, options: Mapping[str, Any]) -> Layout:
    """The layout `name` with `options`. Raises BadInput, naming the choices, for an unknown name or option, and for
    a value that the layout cannot use."""
    if name not in _LAYOUTS:
        raise BadInput(f"unknown layout {name!r}; choose from {', '.join(_LAYOUTS)}")
    parameters = inspect.signature(_LAYOUTS[name]).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for option, value in options.items():
        if option not in known:
            raise BadInput(f"layout {name} has no option {option!r}; it has {', '.join(known) or 'none'}")
        number = int if isinstance(known[option], int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, number):
            raise BadInput(f"layout {name}: option {option} must be a number like {known[option]}, got {value!r}")
    return Layout(name, dict(options), spoken=name not in _WITHOUT_SPEECH)
