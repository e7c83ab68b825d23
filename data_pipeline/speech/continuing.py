"""Continuing prompts with audio codes, whole groups of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.continuing import Said
from data_pipeline.drawing import Grammar


@dataclass(frozen=True)
class Continuation:
    """ids: int64 [whole groups x group length], without what ended them. ended: whether the model ended them itself."""

    ids: np.ndarray
    ended: bool


def codes_said(said: Said, grammar: Grammar) -> Continuation:
    """Of what a prompt was continued with by a grammar of codes."""
    ended = said.ids[-1] == grammar.end
    return Continuation(np.array(said.ids[: len(said.ids) - ended], np.int64), bool(ended))
