"""The model that is measured, with all that it was trained with: vocabulary, codec, layouts, decoder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from configs.schema import Config
from data_pipeline.audio import SAMPLE_RATE, resample
from data_pipeline.build import codec_of
from data_pipeline.codecs.codec import Codec
from data_pipeline.exported_model import load_exported
from data_pipeline.sources.evaluation import Item, Recorded
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from runtime.run_files import EXPORT
from train.decoder.codes import CodesDecoder
from train.evaluation.judges import Judges
from train.evaluation.measurement import Decode, Speak
from train.evaluation.saying import Saying
from train.generation.sampling import exported_speaker
from train.generation.transcription import Transcriber


class Subject:
    """Parts are opened when they are first asked for. Raises BadInput where there is no export.

    `decode` is the way from codes to sound; None: there is none. `speak` and `codec`: None: the model itself, and the
    config's.
    """

    def __init__(
        self,
        config: Config,
        export: Path,
        *,
        decode: Decode | None = None,
        speak: Speak | None = None,
        codec: Codec | None = None,
    ) -> None:
        if not (export / "config.json").is_file():
            raise BadInput(f"{export} holds no export of a model; run its stage first, or give evaluation.model")
        self.config = config
        self.export = export
        self.decode = decode
        self._speak = speak
        self._codec = codec
        self.vocabulary = Vocabulary.load(export)
        self.judges = Judges(config.corpus.quality)

    @cached_property
    def model(self) -> Any:
        """The model as transformers has it."""
        evaluation = self.config.evaluation
        return load_exported(
            self.export, str(self.export), self.vocabulary.size, device=evaluation.device, bf16=evaluation.bf16
        )

    @cached_property
    def transcriber(self) -> Transcriber:
        evaluation = self.config.evaluation
        return Transcriber(self.config, self.export, device=evaluation.device, bf16=evaluation.bf16)

    @cached_property
    def speak(self) -> Speak:
        """Raises BadInput for a model that did not learn to speak."""
        evaluation = self.config.evaluation
        if self._speak is not None:
            return self._speak
        speaker = exported_speaker(self.export, device=evaluation.device, bf16=evaluation.bf16)
        return Saying(self.config, speaker)

    @cached_property
    def codec(self) -> Codec:
        if self._codec is not None:
            return self._codec
        return codec_of(self.config)

    def utterance(self, item: Item) -> Utterance:
        """The item with its codes: those that a corpus holds, else those of its sound. Raises UnreadableAudio or
        DamagedSample, and BadInput where it has neither."""
        if item.stored is not None:
            return item.stored.utterance()
        if item.sound is None:
            raise BadInput(f"{item.key} has no sound, which this measurement needs; measure another set")
        return self.encoded(item.key, item.text, item.language, item.sound)

    def encoded(self, key: str, text: str, language: str, sound: Recorded) -> Utterance:
        wave = sound.wave()
        (codes,) = self.codec.encode([resample(wave, SAMPLE_RATE, self.codec.sample_rate)])
        return Utterance(key, text, key, language=language, duration=len(wave) / SAMPLE_RATE, codes=codes)

    def fingerprint(self) -> str:
        """What the export is: names, sizes and times of its files."""
        files = sorted(file for file in self.export.iterdir() if file.is_file())
        told = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return xxhash.xxh3_128_hexdigest(repr(told).encode())


def subject_of(config: Config) -> Subject:
    """The model that a stage's config names, with the decoder that it names."""
    subject = Subject(config, export_of(config))
    evaluation = config.evaluation
    if evaluation.decoder is not None:
        named = f"evaluation.decoder: {evaluation.decoder}"
        subject.decode = CodesDecoder.of_model(
            subject.vocabulary, evaluation.decoder, evaluation.vocoder, named=named, device=evaluation.device
        ).decode
    return subject


def export_of(config: Config) -> Path:
    """The folder of the model: `evaluation.model`, or the export of the stage that `stage.weights` names."""
    if config.evaluation.model is not None:
        return Path(config.evaluation.model)
    return Path(config.run.folder).parent / config.stage.weights / EXPORT
