"""An utterance: what one sample of a shard holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np


class Word(msgspec.Struct, frozen=True, array_like=True):
    """A word and when it is spoken, in seconds from the start of the utterance.

    In JSON it is [text, start, end]. No dataclass, since a loader makes more of them than of anything else.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """Text, and where it was spoken, the speech as codes.

    `codes` maps a codebook's name to integers of shape [rows, frames], one row but for residual codebooks; `features`
    maps an encoder's name to float16 of shape [frames, width]. `duration` is in seconds, 0 for text that was not
    spoken. `recording`, `start` (seconds) and `channel` say what it was cut from, `role` who speaks in a chat (system,
    human or assistant; chosen or rejected, of two answers to compare), `style` how it is said where its source tells,
    such as RAP. `quality` holds what was measured, by column. Utterances of one `document` stand next to each other, in
    order, in one shard; those of a conversation are its turns, or parts of them, spoken or written. `audio` is its
    sound, a FLAC file at 16 kHz, for readers that ask for it (None: they did not, or the corpus keeps none). `ids` are
    those of `text` by the corpus's tokenizer, as its shard keeps them (empty: it keeps none); layouts get them from
    `Vocabulary.encode_text`, which is told of them as a document is read.
    """

    key: str
    text: str
    document: str
    language: str = "en"
    speaker: str = ""
    duration: float = 0.0
    words: tuple[Word, ...] = ()
    source: str = ""
    licence: str = ""
    recording: str = ""
    start: float = 0.0
    channel: int = 0
    role: str = ""
    style: str = ""
    quality: dict[str, float] = field(default_factory=dict)
    codes: dict[str, np.ndarray] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    audio: bytes | None = None
    ids: tuple[int, ...] = ()

    @property
    def spoken(self) -> bool:
        return bool(self.codes)
