"""Spoken and written questions, answered in text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from configs.schema import Asked, MeasurementConfig
from data_pipeline.sources.evaluation import Item, Turn
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from train.evaluation.figures import Figure, share
from train.evaluation.matching import matches
from train.evaluation.measurement import Found, Record
from train.evaluation.subject import Subject
from train.generation.conversing import Assistant, chat_layouts
from train.generation.writing import GREEDY, continue_text

PLAIN = "text"
_FORMS = {Asked.spoken: ("AQTA", "TAQTA"), Asked.written: ("TQTA",)}  # of chats that answer in text, best first


class _Question(NamedTuple):
    item: Item
    turns: list[Utterance]


class Questions:
    """`accuracy` of the questions whose answers are known (matching.py has the rule), `answered`: the share of replies
    with any word, and `unjudged`: how many have no known answer, whose replies are for a person or another model.

    Questions are asked in a chat that the model learnt, or, of a base model, in plain text: `Question: ...`, `Answer:`
    on two lines, up to the end of the line (our choice). Decoding is greedy.
    """

    def __init__(self, subject: Subject, config: MeasurementConfig) -> None:
        self._subject = subject
        self._asked = config.asked
        self._most = config.answer_tokens
        if config.layout == PLAIN and config.asked is Asked.spoken:
            raise BadInput("a question in plain text is a written one: set asked=written")
        self._answer = self._continued if config.layout == PLAIN else self._in_chat()

    def prepare(self, item: Item) -> _Question:
        """See `Measurement.prepare`."""
        turns = [*item.turns, Turn("human", item.text, item.sound)]
        return _Question(item, [self._utterance(item, number, turn) for number, turn in enumerate(turns)])

    def _utterance(self, item: Item, number: int, turn: Turn) -> Utterance:
        last = number == len(item.turns)
        if self._asked is Asked.written or (turn.sound is None and not last):
            return Utterance(str(number), turn.text, item.key, role=turn.role)
        if last:
            heard = self._subject.utterance(item)
        else:
            assert turn.sound is not None
            heard = self._subject.encoded(str(number), turn.text, item.language, turn.sound)
        return replace(heard, key=str(number), document=item.key, role=turn.role)

    def measure(self, prepared: Sequence[_Question]) -> list[Found]:
        """See `Measurement.measure`."""
        found = []
        for item, turns in prepared:
            reply = self._answer(turns)
            record: Record = {"text": item.text, "reply": reply, "answered": any(map(str.isalnum, reply))}
            if item.answers:
                record |= {"answers": list(item.answers), "right": matches(reply, item.answers, item.language)}
            if item.category:
                record["category"] = item.category
            found.append(Found(record, {} if item.sound is None else {"question": item.sound.wave}))
        return found

    def _in_chat(self) -> Callable[[list[Utterance]], str]:
        config, subject = self._subject.config, self._subject
        learnt = chat_layouts(config.mixture)
        forms = _FORMS[self._asked]
        form = next((form for form in forms if form in learnt), forms[0])  # which is refused where it was not learnt
        evaluation = config.evaluation
        assistant = Assistant(config.mixture, subject.export, form, device=evaluation.device, bf16=evaluation.bf16)
        return lambda turns: assistant.answer(turns, sampling=GREEDY, most=self._most).text

    def _continued(self, turns: list[Utterance]) -> str:
        vocabulary = self._subject.vocabulary
        prompt = vocabulary.encode_text(f"Question: {turns[-1].text}\nAnswer:")
        end = vocabulary.special(vocabulary.end_of_text)
        (ids,) = continue_text(self._subject.model, vocabulary, [prompt], end=end, most=self._most)
        return vocabulary.decode_text(ids).split("\n", 1)[0].strip()

    def total(self, records: Sequence[Record]) -> dict[str, Figure]:
        """See `Measurement.total`."""
        judged = [record for record in records if "right" in record]
        figures = {}
        if judged:
            figures["accuracy"] = share([float(record["right"]) for record in judged], [1.0] * len(judged))
        figures["answered"] = share([float(record["answered"]) for record in records], [1.0] * len(records))
        return figures | {"unjudged": Figure(float(len(records) - len(judged)), "questions")}
