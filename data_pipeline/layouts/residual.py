"""Dialogues as frames of several codes (Sesame CSM: rows of 32 Mimi codes and one text token)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.batch import Sample
from data_pipeline.layouts.assembly import Assembly
from data_pipeline.layouts.groups import frame_columns
from data_pipeline.layouts.paired import pairs
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput


def csm(
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    depth_share: float = 0.0625,
    begin: str = "<|begin_of_text|>",
    end: str = "<|end_of_text|>",
) -> list[Sample]:
    """One sample a document, of its utterances that have text and speech. Each is: the row of `begin`, a row for each
    text token of `[n]text` (n numbers the document's speakers as they come), the row of `end`, a row for each frame
    of codes, and a closing row of code 0 in every column. No end-of-text token.

    Loss on the first codebook of every frame, closing rows included, and on the others in a random `depth_share` of
    the document's frames (1/16 in CSM; at least one; that closing rows count among them is our choice). None on text.
    """
    if not 0 <= depth_share <= 1:
        raise BadInput(f"csm: depth_share is a share of frames from 0 to 1, got {depth_share}")
    frame_columns(vocabulary)
    spoken = list(pairs(utterances, vocabulary))
    if not spoken:
        return []
    closing = vocabulary.first_ids[None]
    counts = [len(groups) + 1 for _, groups in spoken]
    deep = np.zeros(sum(counts), bool)
    wanted = max(1, round(depth_share * len(deep))) if depth_share else 0
    deep[rng.choice(len(deep), wanted, replace=False)] = True
    weights = np.tile(deep[:, None], closing.shape[1]).astype(np.float32)
    weights[:, 0] = 1
    numbers = {name: i for i, name in enumerate(dict.fromkeys(utterance.speaker for utterance, _ in spoken))}
    assembly = Assembly(vocabulary, frames=True)
    for (utterance, groups), own in zip(spoken, np.split(weights, np.cumsum(counts)[:-1]), strict=True):
        assembly.markup(begin, 0.0, then=f"[{numbers[utterance.speaker]}]{utterance.text}").markup(end, 0.0)
        assembly.codes(groups, own[:-1]).codes(closing, own[-1:], speech=False)
    return [assembly.sample(f"{utterances[0].document}/0")]
