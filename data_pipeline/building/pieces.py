"""What becomes one sample of a shard, before it has codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from data_pipeline.audio import SAMPLE_RATE, decode_flac, encode_flac, resample
from data_pipeline.building.left_out import LeftOut
from data_pipeline.building.parts import Parts
from data_pipeline.plan import PlannedShard
from data_pipeline.sources import Document
from data_pipeline.utterance import Utterance
from runtime.workers import report_done


@dataclass(frozen=True)
class Piece:
    """An utterance without codes, and its sound: `flac` at 16 kHz, `wave` as that file holds it (float32 [samples]),
    and `original`, float32 [samples] at `rate`, where it came with another rate. Text that nobody said has no flac, and
    empty waves."""

    utterance: Utterance
    flac: bytes | None
    wave: np.ndarray
    original: np.ndarray
    rate: int

    def at(self, rate: int) -> np.ndarray:
        """The sound at `rate`, from the best there is: at 16 kHz it is what the shard holds."""
        return self.wave if rate == SAMPLE_RATE else resample(self.original, self.rate, rate)


def written(utterance: Utterance) -> Piece:
    """Text that nobody said, among speech."""
    nothing = np.zeros(0, np.float32)
    return Piece(utterance, None, nothing, nothing, SAMPLE_RATE)


def sound_of(original: np.ndarray, rate: int) -> tuple[bytes, np.ndarray]:
    """flac and wave of a Piece."""
    flac = encode_flac(resample(original, rate))
    return flac, decode_flac(flac)


# --- text -------------------------------------------------------------------------------------------------------


def texts_of(planned: PlannedShard) -> Iterator[tuple[str, Document, str]]:
    """Key, document and text of each piece of text in a shard."""
    for document in planned.documents:
        for number, text in enumerate(document.pieces):
            yield f"{document.key}-{number:03d}", document, text


def seed_of_piece(seed: int, key: str) -> int:
    return xxhash.xxh32_intdigest(f"{seed} {key}".encode())


def unspoken(parts: Parts, planned: PlannedShard) -> Iterator[Utterance]:
    """Text that stays text; reports pieces."""
    corpus = parts.config.corpus
    for key, document, text in texts_of(planned):
        yield Utterance(
            key=key,
            text=text,
            document=document.key,
            language=parts.text.language,
            source=corpus.text,
            licence=parts.text.licence,
        )


def spoken(parts: Parts, planned: PlannedShard, left_out: LeftOut) -> Iterator[Piece]:
    """Text said by the corpus's voice; reports seconds of speech.

    Left out: `alignment`, words that could not be timed; `too_long`.
    """
    corpus, voice = parts.config.corpus, parts.voice
    for key, document, text in texts_of(planned):
        said = voice.speak(text, seed_of_piece(corpus.seed, key))
        if said is None:
            left_out.add("alignment", key)
            continue
        if len(said.wave) > corpus.longest_seconds * SAMPLE_RATE:
            left_out.add("too_long", key)
            continue
        flac, wave = sound_of(said.wave, SAMPLE_RATE)
        utterance = Utterance(
            key=key,
            text=text,
            document=document.key,
            language=parts.text.language,
            speaker=voice.speaker,
            duration=len(wave) / SAMPLE_RATE,
            words=said.words,
            source=corpus.text,
            licence=f"text {parts.text.licence}, voice {voice.licence}",
        )
        yield Piece(utterance, flac, wave, said.wave, SAMPLE_RATE)
        report_done(utterance.duration)


def synthesised(parts: Parts, planned: PlannedShard, left_out: LeftOut) -> Iterator[Utterance]:
    """Text with the codes that the corpus's text-to-code model gives it; reports seconds of speech.

    Left out: `endless`, what the model had not ended at its longest.
    """
    corpus, model = parts.config.corpus, parts.text_to_code
    texts = list(texts_of(planned))
    for first in range(0, len(texts), corpus.synthesis.batch):
        batch = texts[first : first + corpus.synthesis.batch]
        seeds = [seed_of_piece(corpus.seed, key) for key, _, _ in batch]
        said = model.speak([text for _, _, text in batch], seeds)
        for (key, document, text), codes in zip(batch, said, strict=True):
            if codes is None:
                left_out.add("endless", key)
                continue
            utterance = Utterance(
                key=key,
                text=text,
                document=document.key,
                language=parts.text.language,
                speaker=model.speaker,
                duration=round(model.seconds(codes), 4),
                source=corpus.text,
                licence=f"text {parts.text.licence}, codes {model.speaker}",
                codes=codes,
            )
            yield utterance
            report_done(utterance.duration)
