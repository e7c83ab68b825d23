"""Speech in, text out: transcripts by a model trained on the layout `asr`, and how far they are from what was said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Config
from data_pipeline.audio import SAMPLE_RATE, resample
from data_pipeline.codecs.codec import Codec
from data_pipeline.corpus import Corpus
from data_pipeline.decode import decode
from data_pipeline.exported_model import load_exported
from data_pipeline.quality.errors import count_errors, error_rates
from data_pipeline.quality.language import base_language
from data_pipeline.shards import ShardReader
from data_pipeline.sources.recording import MIXED, UnreadableAudio
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train.generation.prompts import asr_prompt, layout_for
from train.generation.writing import continue_text

TOKENS_A_SECOND = 12  # of text, at most: three times as fast as people speak
FEWEST_TOKENS = 16


class Transcriber:
    """A run's exported model and the layout that it learnt speech recognition from.

    Decoding is greedy, among text alone. Raises BadInput where the run has no export, or was not trained on `asr`.
    """

    def __init__(self, config: Config, export: Path, *, device: str | None = None, bf16: bool = False) -> None:
        if not (export / "config.json").is_file():
            raise BadInput(f"{export} holds no export; make it with: megaphone checkpoint export {config.run.folder}")
        self.vocabulary = Vocabulary.load(export)
        self._layout = layout_for(config.mixture, "asr", "audio_weight")
        if not self._layout.plain:
            raise BadInput("this model hears through an encoder or frames of several codes, which no export holds yet")
        self._model = load_exported(export, str(export), self.vocabulary.size, device=device, bf16=bf16)

    def transcribe(self, utterances: Sequence[Utterance]) -> list[str]:
        """The text of each utterance's codes; "" where it has none. Those given together are continued together."""
        prompts = [asr_prompt(self._layout, utterance, self.vocabulary) for utterance in utterances]
        spoken = [number for number, prompt in enumerate(prompts) if prompt]
        texts = [""] * len(utterances)
        if spoken:
            longest = max(utterances[number].duration for number in spoken)
            said = continue_text(
                self._model,
                self.vocabulary,
                [prompts[number] for number in spoken],
                end=self.vocabulary.special(self.vocabulary.end_of_text),
                most=_most_tokens(longest),
            )
            for number, ids in zip(spoken, said, strict=True):
                texts[number] = self.vocabulary.decode_text(ids[: _most_tokens(utterances[number].duration)]).strip()
        return texts


def _most_tokens(seconds: float) -> int:
    return FEWEST_TOKENS + round(TOKENS_A_SECOND * seconds)


# --- what is transcribed --------------------------------------------------------------------------------------------


def heard_in(file: Path, codec: Codec, config: Config) -> list[Utterance]:
    """A sound file as utterances with codes and without text, in order: one, or where it is longer than
    `corpus.cut.longest` its stretches of speech. Raises BadInput for a file that is no sound."""
    from data_pipeline.cutting import segments_of, speech_probabilities

    try:
        sound = decode(file)
    except UnreadableAudio as error:
        raise BadInput(str(error)) from error
    wave = sound.channel(MIXED)
    spans = [(0.0, sound.duration)]
    if sound.duration > config.corpus.cut.longest:
        spans = segments_of(speech_probabilities(resample(wave, sound.rate, SAMPLE_RATE)), config.corpus.cut)
    pieces = [wave[round(start * sound.rate) : round(end * sound.rate)] for start, end in spans]
    codes = codec.encode([resample(piece, sound.rate, codec.sample_rate) for piece in pieces])
    return [
        Utterance(key=f"{number}", text="", document=str(file), start=start, duration=end - start, codes=found)
        for number, ((start, end), found) in enumerate(zip(spans, codes, strict=True))
    ]


def spoken_in(corpus: Corpus, split: str, most: int) -> list[Utterance]:
    """The first utterances of a split that have codes and a text, at most `most`. Raises DamagedSample."""
    found: list[Utterance] = []
    for shard in corpus.shards(split):
        with ShardReader(shard) as reader:
            for number in range(len(reader)):
                if len(found) == most:
                    return found
                utterance = reader.read(number)
                if utterance.spoken and utterance.text:
                    found.append(utterance)
    return found


@dataclass(frozen=True)
class Scored:
    """A transcript beside the text that was spoken, as both were read."""

    key: str
    language: str
    text: str
    heard: str


def score(transcriber: Transcriber, utterances: Sequence[Utterance], batch: int) -> Iterator[Scored]:
    """Each of `utterances`, `batch` of them transcribed together."""
    for first in range(0, len(utterances), batch):
        together = utterances[first : first + batch]
        for utterance, heard in zip(together, transcriber.transcribe(together), strict=True):
            yield Scored(f"{utterance.document}/{utterance.key}", utterance.language, utterance.text, heard)


def error_totals(scored: Sequence[Scored]) -> dict[str, float]:
    """`wer` and `cer` over all together, the former of languages that have words. Raises BadInput where there is
    nothing to count on once normalised."""
    totals = error_rates(count_errors(one.text, one.heard, base_language(one.language)) for one in scored)
    if not totals:
        raise BadInput("no text to compare with is left once normalised")
    return totals
