"""What the processes of a build work with, opened once a process, when it is first asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Config, SpeechSourceConfig
from data_pipeline.alignment.registry import open_aligner
from data_pipeline.building.plan_file import Plan
from data_pipeline.codecs import Codec, codebooks_of, open_codec
from data_pipeline.cutting import cut
from data_pipeline.quality.registry import open_measures
from data_pipeline.sources import Source, find_source
from data_pipeline.sources.speech import KINDS, open_speech_source
from data_pipeline.speech import Voice, open_text_to_code, open_voice
from data_pipeline.text_tokenizer import load_tokenizer_json
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput

if TYPE_CHECKING:
    from data_pipeline.alignment.aligner import Aligner
    from data_pipeline.building.listening import Listener
    from data_pipeline.codecs.whisper_kmeans import FeatureExtractor
    from data_pipeline.quality.measure import Measure
    from data_pipeline.sources.recording import Recording, Segment, SpeechSource
    from data_pipeline.speech.text_to_code import TextToCode


class Parts:
    """Of the corpus that `config` describes, built at `folder`, with `cache` for what is prepared once."""

    def __init__(self, config: Config, folder: Path, cache: Path) -> None:
        self.config = config
        self.folder = folder
        self._cache = cache

    @cached_property
    def plan(self) -> Plan:
        return Plan.open(self.folder)

    @cached_property
    def text(self) -> Source:
        return find_source(self.config.corpus.text)

    @cached_property
    def speech(self) -> SpeechSource:
        return open_speech_source(self._speech_config)

    @property
    def _speech_config(self) -> SpeechSourceConfig:
        if self.config.corpus.speech is None:
            raise ValueError("the corpus is not made from recorded speech")
        return self.config.corpus.speech

    def cut(self, recording: Recording) -> tuple[Segment, ...]:
        """Where somebody speaks in a recording that came without segments. Raises UnreadableAudio."""
        language = self._speech_config.language
        if language is None:
            language = KINDS[self._speech_config.kind].language
        return cut(self.speech, recording, self.config.corpus.cut, language)

    @cached_property
    def voice(self) -> Voice:
        return open_voice(self.config.corpus.voice, self._cache)

    @cached_property
    def measures(self) -> list[Measure]:
        return open_measures(self.config.corpus.quality)

    @cached_property
    def aligner(self) -> Aligner | None:
        return open_aligner(self.config.corpus.alignment)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """As the build wrote it: reading it anew takes seconds."""
        return Vocabulary.load(self.folder)

    @cached_property
    def text_to_code(self) -> TextToCode:
        return open_text_to_code(self.config.corpus.voice, self.config.corpus.synthesis, self.vocabulary)

    @cached_property
    def shortest(self) -> float:
        """Seconds below which sound has no code of some codebook."""
        return max(1 / book.rate for book in codebooks_of(self.config.codec))

    @cached_property
    def extractor(self) -> FeatureExtractor:
        from data_pipeline.codecs.whisper_kmeans import FeatureExtractor

        return FeatureExtractor(self.config.codec)

    @cached_property
    def listener(self) -> Listener | None:
        """What makes the features that the corpus keeps of an encoder; None: it keeps none."""
        from data_pipeline.building.listening import Listener

        return Listener(self.config) if self.config.corpus.features else None

    @cached_property
    def codec(self) -> Codec:
        """With the codebooks that the corpus has learnt, where its codec learns them."""
        return open_codec(self.config.codec, self.folder)


def vocabulary_of(config: Config) -> Vocabulary:
    """The vocabulary of the corpus that `config` describes. Raises BadInput where it needs more rows than are asked."""
    tokenizer_json, text_size = load_tokenizer_json(config.backbone.tokenizer)
    vocabulary = Vocabulary(
        text_size=text_size,
        specials=tuple(config.corpus.specials),
        codebooks=codebooks_of(config.codec),
        tokenizer_json=tokenizer_json,
    )
    rows = config.corpus.vocabulary_rows
    if rows is None:
        return vocabulary
    if vocabulary.size > rows:
        raise BadInput(f"corpus.vocabulary_rows={rows}: the vocabulary has {vocabulary.size} ids")
    return replace(vocabulary, multiple=rows)  # of which the first one is enough


_opened: dict[str, Parts] = {}


def parts_of(config: Config, folder: Path, cache: Path) -> Parts:
    """The Parts of this process: the last ones, where nothing differs."""
    key = repr((config, folder, cache))
    if key not in _opened:
        _opened.clear()
        _opened[key] = Parts(config, folder, cache)
    return _opened[key]
