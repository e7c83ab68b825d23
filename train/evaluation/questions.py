"""Spoken and written questions, answered in text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from configs.schema import Asked, MeasurementConfig
from data_pipeline.sources.evaluation import Item
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from train.evaluation.figures import Figure, share
from train.evaluation.matching import matches
from train.evaluation.measurement import Found, Record
from train.evaluation.subject import Subject
from train.generation.questions import CHAT, Asking
from train.generation.writing import continue_text


class _Asked(NamedTuple):
    item: Item
    prompt: list[int]


class Questions:
    """`accuracy` of the questions whose answers are known (matching.py has the rule), `answered`: the share of replies
    with any word, and `unjudged`: how many have no known answer, whose replies are for a person or another model."""

    def __init__(self, subject: Subject, config: MeasurementConfig) -> None:
        self._subject = subject
        self._spoken = config.asked is Asked.spoken
        self._most = config.answer_tokens
        self._asking = Asking(subject.config.mixture, subject.vocabulary, config.layout or CHAT, spoken=self._spoken)

    def prepare(self, item: Item) -> _Asked:
        """See `Measurement.prepare`."""
        if not self._spoken:
            if not item.text:
                raise BadInput(f"{item.key} has no written question; measure the set with asked=spoken")
            turns = [Utterance(f"{n}", turn.text, "", role=turn.role) for n, turn in enumerate(item.turns)]
            return _Asked(item, self._asking.prompt([*turns, Utterance("q", item.text, "", role="human")]))
        turns = []
        for number, turn in enumerate(item.turns):
            if turn.sound is None:
                turns.append(Utterance(f"{number}", turn.text, "", role=turn.role))
            else:
                heard = self._subject.encoded(f"{number}", turn.text, item.language, turn.sound)
                turns.append(_as(heard, turn.role))
        return _Asked(item, self._asking.prompt([*turns, _as(self._subject.utterance(item), "human")]))

    def measure(self, prepared: Sequence[_Asked]) -> list[Found]:
        """See `Measurement.measure`."""
        subject = self._subject
        said = continue_text(
            subject.model,
            subject.vocabulary,
            [one.prompt for one in prepared],
            ends=self._asking.ends,
            most=self._most,
        )
        found = []
        for (item, _), ids in zip(prepared, said, strict=True):
            reply = self._asking.reply(subject.vocabulary.decode_text(ids))
            record: Record = {"text": item.text, "reply": reply, "answered": any(map(str.isalnum, reply))}
            if item.answers:
                record |= {"answers": list(item.answers), "right": matches(reply, item.answers, item.language)}
            if item.category:
                record["category"] = item.category
            found.append(Found(record, {} if item.sound is None else {"question": item.sound.wave}))
        return found

    def total(self, records: Sequence[Record]) -> dict[str, Figure]:
        """See `Measurement.total`."""
        judged = [record for record in records if "right" in record]
        figures = {}
        if judged:
            figures["accuracy"] = share([float(record["right"]) for record in judged], [1.0] * len(judged))
        figures["answered"] = share([float(record["answered"]) for record in records], [1.0] * len(records))
        return figures | {"unjudged": Figure(float(len(records) - len(judged)), "questions")}


def _as(utterance: Utterance, role: str) -> Utterance:
    return replace(utterance, role=role)
