"""Codes to sound: what a run of the stage `flow`, and perhaps one of the stage `vocoder`, have learnt.

decoder = Decoder.load(Path("runs/decoder/flow"), Path("runs/decoder/vocoder"))
wave, rate = decoder.decode(ids)
for piece in decoder.stream(chunks): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

import numpy as np

from data_pipeline.layouts.groups import group_length
from runtime.exits import BadInput
from train.decoder.saying import Parts, Prompt, Saying
from train.decoder.trained import Trained
from train.models.decoder.flow import Flow
from train.models.decoder.griffin_lim import GriffinLim
from train.models.decoder.mel import Mel
from train.models.decoder.vocoder import Vocoder


@dataclass(frozen=True)
class Window:
    """How a stream is cut, in seconds, rounded up to whole groups. chunk: what is said at a time; before, after: codes
    around it that are decoded along, and whose sound is thrown away; fade: over which pieces go over into each other.

    Where `before` and `after` are at least `Decoder.reach` + `fade`, pieces end to end are the whole, but for rounding.
    """

    chunk: float = 0.6
    before: float = 2.4
    after: float = 0.36
    fade: float = 0.02


class Decoder:
    """Says codes aloud, in one process. `seed` decides the noise: the same codes sound the same."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    @classmethod
    def load(cls, flow: Path, vocoder: Path | None = None, device: str = "cpu") -> Decoder:
        """From run folders (their newest checkpoints) or checkpoints; without a vocoder, Griffin-Lim serves.

        Raises BadInput for folders that hold no such part, and parts that do not go together.
        """
        return cls.of(Trained.read(flow, vocoder), device)

    @classmethod
    def of(cls, trained: Trained, device: str = "cpu") -> Decoder:
        """From parts that were found. Raises BadInput where their tensors are not what they should be."""
        part, other = trained.flow, trained.vocoder
        config, vocabulary = part.config, part.vocabulary
        rate = group_length(vocabulary) / vocabulary.group_seconds
        model = part.fill(Flow(config, sum(book.entries for book in vocabulary.codebooks), rate), "flow.")
        model.eval().to(device)
        if other is None:
            return cls(Parts(config, vocabulary, model, GriffinLim(Mel(config.mel))))
        vocode = other.fill(Vocoder(other.config), "generator.").eval().to(device)
        return cls(Parts(config, vocabulary, model, vocode))

    @property
    def rate(self) -> int:
        """Samples a second of what comes out."""
        return self.parts.config.mel.rate

    @property
    def reach(self) -> float:
        """Seconds before and after a moment that decide how it sounds; infinite where attention sees all, and without a
        trained vocoder: Griffin-Lim finds the phases of a stretch as a whole."""
        flow, vocode, mel = self.parts.flow, self.parts.vocode, self.parts.config.mel
        if not isinstance(vocode, Vocoder) or self.parts.config.flow.reach is None:
            return inf
        frames = flow.encoder_reach / flow.codes_a_frame + flow.frames_reach + vocode.reach
        return frames * mel.hop / mel.rate

    def decode(
        self, ids: np.ndarray, *, speaker: np.ndarray | None = None, prompt: Prompt | None = None, seed: int = 0
    ) -> tuple[np.ndarray, int]:
        """The sound of codes, float32 [samples], and its rate.

        ids: int64 [n], ids of the vocabulary in whole groups; raises BadInput, naming the place, where a token is not
        of the codebook whose turn it is. speaker: float32 [width], as training had it; None: nobody's.
        """
        saying = Saying(self.parts, speaker, prompt, seed)
        saying.add(ids)
        saying.end()
        return saying.piece(0, saying.groups, saying.start, saying.groups)[0], self.rate

    def stream(
        self,
        chunks: Iterable[np.ndarray],
        *,
        speaker: np.ndarray | None = None,
        prompt: Prompt | None = None,
        seed: int = 0,
        window: Window | None = None,
    ) -> Iterator[np.ndarray]:
        """The sound of codes that come in `chunks` of any size, float32 [samples] a piece, each as soon as it and
        `window.after` more have come. A prompt is heard as long as it is within `window.before`. Raises as `decode`."""
        cut = _InGroups.of(window or Window(), self.parts.vocabulary.group_seconds, self.rate)
        saying = Saying(self.parts, speaker, prompt, seed)
        tail = np.zeros(0, np.float32)
        done = saying.start
        for ids in chunks:
            saying.add(ids)
            while saying.groups >= done + cut.chunk + cut.after:
                piece, beyond = cut.piece(saying, done, last=False)
                yield _blended(tail, piece)
                done, tail = done + cut.chunk, beyond
        saying.end()
        while done < saying.groups:
            piece, beyond = cut.piece(saying, done, last=done + cut.chunk >= saying.groups)
            yield _blended(tail, piece)
            done, tail = done + cut.chunk, beyond


@dataclass(frozen=True)
class _InGroups:
    """A `Window` in groups of codes, its `fade` in samples."""

    chunk: int
    before: int
    after: int
    fade: int

    @classmethod
    def of(cls, window: Window, seconds: float, rate: int) -> _InGroups:
        chunk, before, after = (ceil(part / seconds - 1e-6) for part in (window.chunk, window.before, window.after))
        if chunk < 1 or before < 0 or after < 1 or not 0 <= window.fade <= after * seconds:
            raise BadInput(f"{window}: chunk and after have to be above 0, before not below, fade no more than after")
        return cls(chunk, before, after, round(window.fade * rate))

    def piece(self, saying: Saying, begin: int, *, last: bool) -> tuple[np.ndarray, np.ndarray]:
        """The sound of the chunk that begins there, and what the next one is blended with."""
        end = min(begin + self.chunk, saying.groups)
        low, high = max(0, begin - self.before), min(saying.groups, end + self.after)
        return saying.piece(low, high, begin, end, 0 if last else self.fade)


def _blended(tail: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """`piece` and `tail` begin at the same moment: go over from the latter to the former."""
    count = min(len(tail), len(piece))
    share = (np.arange(count, dtype=np.float32) + 0.5) / max(count, 1)
    return np.concatenate([tail[:count] * (1 - share) + piece[:count] * share, piece[count:]])
