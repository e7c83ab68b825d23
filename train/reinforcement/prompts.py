"""Questions of a corpus of preferences, and what has to stand behind an answer to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from configs.schema import Config
from data_pipeline.corpus import Corpus
from data_pipeline.damage import DamageTally
from data_pipeline.layouts import Layout
from data_pipeline.layouts.preferences import ANSWERS
from data_pipeline.mixture import Source, open_mixture
from data_pipeline.order import Cursor
from data_pipeline.sample_bytes import DamagedSample
from runtime.exits import BadInput

FORMS = ("TQTA", "AQTA")
_STAND_INS = (".", "!")  # for answers: a layout passes over pairs that are alike
_FORM = "AQTA"  # the layout's own


@dataclass(frozen=True)
class Prompt:
    """ids: what is given, up to where an answer begins. end: the id that ends the answer. closing: what the layout
    writes behind that."""

    key: str
    ids: tuple[int, ...]
    end: int
    closing: tuple[int, ...]


def check_prompts(layouts: Mapping[str, Layout]) -> None:
    """Raises BadInput for a mixture, its layouts by source, whose questions cannot be answered here."""
    if len(layouts) > 1:
        raise BadInput(f"stage.objective=ppo takes its questions from one source; here are {', '.join(layouts)}")
    for source, layout in layouts.items():
        form = layout.options.get("form", _FORM)
        if form not in FORMS:
            raise BadInput(
                f"source {source}: form {form}: the answers of stage.objective=ppo are written; take "
                f"{' or '.join(FORMS)}"
            )
        if layout.hears is not None:
            raise BadInput(f"source {source}: stage.objective=ppo asks in text and codes, not in an encoder's features")
        if layout.options.get("text_weight", 1.0) <= 0:
            raise BadInput(f"source {source}: text_weight=0 leaves no answer to learn")


class Prompts:
    """The questions of the one source of a config's mixture, `count` of a split at a time, in the source's order, epoch
    after epoch."""

    def __init__(self, config: Config, corpus: Corpus, split: str, count: int) -> None:
        self._longest = config.train.sequence_length - config.ppo.longest
        (self.source,) = open_mixture(config, corpus, split, DamageTally(config.loader.damaged_share)).sources
        self._count = count

    @property
    def bounded(self) -> bool:
        return self.source.epochs is not None

    def first(self) -> Cursor:
        return self.source.order.normal(Cursor(0, 0), 0, 1)

    def suffice(self, cursor: Cursor) -> bool:
        """Whether there are documents for so many at `cursor`."""
        if self.source.epochs is None:
            return True
        left = (self.source.epochs - cursor.epoch) * len(self.source.documents) - cursor.place
        return left >= self._count

    def take(self, cursor: Cursor) -> tuple[list[Prompt], Cursor]:
        """The questions from `cursor` on, and where the next ones begin. Raises BadInput where a whole pass has none
        that fits."""
        found: list[Prompt] = []
        passed = 0
        while len(found) < self._count:
            number = self.source.order.document(cursor, 0, 1)
            prompt = prompt_of(self.source, number, cursor.epoch)
            if prompt is not None and len(prompt.ids) + 1 + len(prompt.closing) <= self._longest:
                found.append(prompt)
                passed = 0
            elif (passed := passed + 1) >= len(self.source.documents):
                raise BadInput(
                    f"source {self.source.name} has no question that leaves room for an answer of ppo.longest tokens "
                    "in train.sequence_length"
                )
            cursor = self.source.order.normal(Cursor(cursor.epoch, cursor.place + 1), 0, 1)
        return found, cursor


def prompt_of(source: Source, number: int, epoch: int) -> Prompt | None:
    """The question of a document, laid as the pairs of it are; None where the layout makes no pair of it."""
    vocabulary = source.vocabulary
    given = source.documents.read(number)
    answers = [utterance for utterance in given if utterance.role in ANSWERS]
    if {utterance.role for utterance in answers} != set(ANSWERS):
        return None
    first = answers[0]
    stand_ins = [
        replace(first, role=role, text=text, words=(), codes={}) for role, text in zip(ANSWERS, _STAND_INS, strict=True)
    ]
    asked = [utterance for utterance in given if utterance.role not in ANSWERS]
    try:
        samples = source.layout([*asked, *stand_ins], vocabulary, source.draws(number, epoch))
    except DamagedSample:
        return None
    if not samples:
        return None
    (sample,) = samples
    tokens, weights = sample.tokens[: sample.segments[0]], sample.loss_weight[: sample.segments[0]]
    start = int(np.flatnonzero(weights > 0)[0])
    behind = start + len(vocabulary.encode_inside(_STAND_INS[0]))
    ids = [int(token) for token in tokens]
    return Prompt(f"{source.name}/{epoch}/{sample.key}", tuple(ids[:start]), ids[behind], tuple(ids[behind + 1 :]))
