"""Speech that the model makes: of texts (tts), and of recordings through codec and decoder (resynthesis).

What is heard of it is read by an outside recogniser, its voice is compared with the prompt's or the recording's, and
DNSMOS guesses what listeners would say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.audio import resample
from data_pipeline.sources.evaluation import Item, Turn
from data_pipeline.sources.recording import UnreadableAudio
from data_pipeline.utterance import Utterance
from runtime.exits import BadInput
from train.evaluation.figures import Figure, share
from train.evaluation.judges import listened
from train.evaluation.measurement import Decode, Found, Record, Speak
from train.evaluation.subject import Subject

SPEECH, RESYNTHESIS = "speech", "resynthesis"  # names of the sounds that the model made
RECORDING = "recording_"  # before the names of what is told of the original sound


class _Prompted(NamedTuple):
    item: Item
    prompt: Utterance | None
    voice: np.ndarray | None


class Tts:
    """`wer`, `cer`, `similarity` to the voice of the prompt, DNSMOS, and `unended`: texts whose speech did not end,
    which have no other figures. A set without prompts has no similarity."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._speak, self._decode = _ways(subject)

    def prepare(self, item: Item) -> _Prompted:
        """See `Measurement.prepare`."""
        if item.prompt is None or item.prompt.sound is None:
            return _Prompted(item, None, None)
        return _Prompted(item, self._prompt(item, item.prompt), item.prompt.sound.wave())

    def _prompt(self, item: Item, prompt: Turn) -> Utterance:
        assert prompt.sound is not None
        return self._subject.encoded(f"{item.key}-prompt", prompt.text, item.language, prompt.sound)

    def measure(self, prepared: Sequence[_Prompted]) -> list[Found]:
        """See `Measurement.measure`. Texts without a prompt are said together, others one by one."""
        if any(one.prompt for one in prepared):
            said = [self._speak([one.item.text], one.prompt)[0] for one in prepared]
        else:
            said = self._speak([one.item.text for one in prepared], None)
        return [self._judged(one, codes) for one, codes in zip(prepared, said, strict=True)]

    def _judged(self, one: _Prompted, codes: dict[str, np.ndarray] | None) -> Found:
        record: Record = {"text": one.item.text, "unended": codes is None}
        if codes is None:
            return Found(record)
        wave = _sound_of(self._decode, codes, one.voice)
        record |= self._subject.judges.listen(one.item.text, wave, one.item.language, one.voice)
        sounds = {SPEECH: lambda: wave}
        if one.item.prompt is not None and one.item.prompt.sound is not None:
            sounds["prompt"] = one.item.prompt.sound.wave
        return Found(record, sounds)

    def total(self, records: Sequence[Record]) -> dict[str, Figure]:
        """See `Measurement.total`."""
        unended = share([float(record["unended"]) for record in records], [1.0] * len(records))
        return listened(records) | {"unended": unended}


class _Recorded(NamedTuple):
    item: Item
    utterance: Utterance
    wave: np.ndarray


class Resynthesis:
    """What codec and decoder lose: `wer`, `cer`, DNSMOS, and `similarity` to the recording, beside `recording_wer` and
    so on of the recording itself."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        if subject.decode is None:
            raise BadInput(NO_DECODER)
        self._decode = subject.decode

    def prepare(self, item: Item) -> _Recorded:
        """See `Measurement.prepare`."""
        if item.sound is None:
            raise UnreadableAudio("missing", item.key, "the set has no recording of it")
        return _Recorded(item, self._subject.utterance(item), item.sound.wave())

    def measure(self, prepared: Sequence[_Recorded]) -> list[Found]:
        """See `Measurement.measure`."""
        return [self._judged(one) for one in prepared]

    def _judged(self, one: _Recorded) -> Found:
        judges, language = self._subject.judges, one.item.language
        wave = _sound_of(self._decode, one.utterance.codes, one.wave)
        record: Record = {"text": one.item.text} | judges.listen(one.item.text, wave, language, one.wave)
        original = judges.listen(one.item.text, one.wave, language, None)
        record |= {RECORDING + name: value for name, value in original.items()}
        return Found(record, {RESYNTHESIS: lambda: wave, "recording": lambda: one.wave})

    def total(self, records: Sequence[Record]) -> dict[str, Figure]:
        """See `Measurement.total`."""
        originals = [
            {name.removeprefix(RECORDING): value for name, value in record.items() if name.startswith(RECORDING)}
            for record in records
        ]
        return listened(records) | listened(originals, RECORDING)


NO_DECODER = "no decoder makes sound of this model's codes; give evaluation.decoder, the run folder of one"


def _ways(subject: Subject) -> tuple[Speak, Decode]:
    if subject.decode is None:
        raise BadInput(NO_DECODER)
    return subject.speak, subject.decode


def _sound_of(decode: Decode, codes: dict[str, np.ndarray], voice: np.ndarray | None) -> np.ndarray:
    """float32 [samples] at 16 kHz, which the judges hear."""
    return resample(*decode(codes, voice))
