"""Recognition: what the model writes of speech, against what was said."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.sources.evaluation import Item
from data_pipeline.utterance import Utterance
from train.evaluation.figures import Figure
from train.evaluation.judges import error_figures, errors_of
from train.evaluation.measurement import Found, Record
from train.evaluation.subject import Subject


class Asr:
    """`wer` and `cer`. Speech is given as the layout `asr` gave it in training; decoding is greedy."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def prepare(self, item: Item) -> tuple[Item, Utterance]:
        """See `Measurement.prepare`."""
        return item, self._subject.utterance(item)

    def measure(self, prepared: Sequence[tuple[Item, Utterance]]) -> list[Found]:
        """See `Measurement.measure`."""
        heard = self._subject.transcriber.transcribe([utterance for _, utterance in prepared])
        found = []
        for (item, _), text in zip(prepared, heard, strict=True):
            sounds = {} if item.sound is None else {"recording": item.sound.wave}
            found.append(Found({"text": item.text} | errors_of(item.text, text, item.language), sounds))
        return found

    def total(self, records: Sequence[Record]) -> dict[str, Figure]:
        """See `Measurement.total`."""
        return error_figures(records)
