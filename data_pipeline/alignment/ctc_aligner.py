"""Word times by a CTC model of transformers (wav2vec 2.0, HuBERT and their kin) over characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.alignment.ctc import align_tokens, token_spans
from data_pipeline.alignment.pretrained import load_model, load_part
from data_pipeline.alignment.words import words_of
from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.quality.language import base_language
from data_pipeline.utterance import Word
from runtime.exits import BadInput

if TYPE_CHECKING:
    import torch

_CONTEXT = 2.0  # seconds that a window hears on each side of what it is asked about


class CtcAligner:
    """Times of every utterance that has a frame for each character. Sound longer than a window is heard in windows with
    2 s of what surrounds them; the alignment is of the whole. A character that the model does not write is any sound.
    """

    def __init__(self, spec: str, setting: str, window: float) -> None:
        self._spec, self._setting, self._window = spec, setting, window

    @cached_property
    def _loaded(self) -> tuple[Any, dict[str, int], Any]:
        """Model, characters and settings of its input."""
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

        what = "a CTC model's folder or hub name"
        model = load_model(AutoModelForCTC, self._spec, self._setting, what)
        tokenizer = load_part(AutoTokenizer, self._spec, self._setting, what)
        extractor = load_part(AutoFeatureExtractor, self._spec, self._setting, what)
        if extractor.sampling_rate != SAMPLE_RATE:
            raise BadInput(f"{self._setting}={self._spec}: hears {extractor.sampling_rate} Hz, not {SAMPLE_RATE}")
        return model, tokenizer.get_vocab(), extractor

    @cached_property
    def _delimiter(self) -> int | None:
        """The token between words."""
        vocabulary = self._loaded[1]
        return vocabulary.get("|", vocabulary.get(" "))

    def align(self, wave: np.ndarray, text: str, language: str) -> tuple[Word, ...]:
        """See `Aligner.align`."""
        words = words_of(text, base_language(language))
        if not words or not len(wave):
            return ()
        model, vocabulary, _ = self._loaded
        scores = self.scores(wave)
        tokens, firsts = spelled(words, vocabulary, self._delimiter, star=scores.shape[1])
        path = align_tokens(with_star(scores, model.config.pad_token_id), tokens, model.config.pad_token_id)
        if path is None:
            return ()
        spans = token_spans(path, len(tokens)) * (len(wave) / SAMPLE_RATE / len(scores))
        return tuple(
            Word(word, round(float(spans[first, 0]), 3), round(float(spans[last - 1, 1]), 3))
            for word, (first, last) in zip(words, firsts, strict=True)
        )

    def scores(self, wave: np.ndarray) -> torch.Tensor:
        """Log probabilities, float32 [frames, vocabulary], of float32 [samples] at 16 kHz."""
        import torch

        model, _, extractor = self._loaded
        stride = int(np.prod(model.config.conv_stride))
        if extractor.do_normalize:
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        step, context = (round(seconds * SAMPLE_RATE / stride) for seconds in (self._window, _CONTEXT))
        frames = max(len(wave) // stride, 1)
        parts = []
        for first in range(0, frames, step):
            begin, end = max(first - context, 0), min(first + step + context, frames)
            sound = wave[begin * stride : end * stride]
            sound = np.pad(sound, (0, (end - begin) * stride + stride - len(sound)))  # the last frame hears a bit more
            with torch.inference_mode():
                logits = model(torch.from_numpy(np.asarray(sound, np.float32))[None]).logits[0]
            parts.append(logits[first - begin : min(first + step, frames) - begin].log_softmax(-1))
        return torch.cat(parts)

    def identity(self) -> str:
        """See `Aligner.identity`."""
        from data_pipeline.codecs.weights import weights_identity

        weights = weights_identity(self._spec, "aligner") if Path(self._spec).exists() else self._spec
        return f"ctc {weights} window {self._window}"


def spelled(
    words: list[str], vocabulary: Mapping[str, int], delimiter: int | None, star: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens of `words`, with the delimiter between them, and the first token of each word and one past its last.

    A character is taken as it is, else in the other case, else without its marks; punctuation that the model does not
    write is left out. What then is left of neighbours that it cannot write is one `star`, and so is a word without any
    character.
    """
    tokens: list[int] = []
    spans = []
    for word in words:
        if tokens and delimiter is not None:
            tokens.append(delimiter)
        first = len(tokens)
        for character in word:
            token = _token(character, vocabulary)
            if token is not None:
                tokens.append(token)
            elif character.isalnum() and tokens[first:][-1:] != [star]:
                tokens.append(star)
        if len(tokens) == first:
            tokens.append(star)
        spans.append((first, len(tokens)))
    return tokens, spans


def _token(character: str, vocabulary: Mapping[str, int]) -> int | None:
    bare = unicodedata.normalize("NFKD", character)[:1]
    for form in (character, character.lower(), character.upper(), bare, bare.lower(), bare.upper()):
        if form in vocabulary and form != "|":
            return vocabulary[form]
    return None


def with_star(scores: torch.Tensor, blank: int) -> torch.Tensor:
    """`scores` with one more column, for a token that is any sound: in each frame the likeliest that is no blank."""
    import torch

    others = scores.clone()
    others[:, blank] = float("-inf")
    return torch.cat([scores, others.max(1, keepdim=True).values], dim=1)
