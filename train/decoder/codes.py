"""Sound of a model's codes, by a decoder that was trained on the same codebooks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.quality.speaker import voice_given
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from train.decoder.trained import Trained

if TYPE_CHECKING:
    from train.decoder.synthesis import Decoder


class CodesDecoder:
    """Says codes by codebook; the same codes sound the same. Weights are read when it first does.

    device: cpu, cuda or cuda:<n>; None: cuda if there.
    """

    def __init__(self, trained: Trained, device: str | None = None) -> None:
        self._trained = trained
        self._device = device

    @classmethod
    def of_model(
        cls, vocabulary: Vocabulary, flow: str, vocoder: str | None, *, named: str, device: str | None = None
    ) -> CodesDecoder:
        """From run folders, for a model with that vocabulary; ids of codes may be others in the decoder's.

        Raises BadInput as `Trained.read`, and, beginning with what the decoder is `named` to the user, where it has
        other codebooks.
        """
        trained = Trained.read(Path(flow), None if vocoder is None else Path(vocoder))
        if trained.flow.vocabulary.codebooks != vocabulary.codebooks:
            raise BadInput(f"{named} makes sound of other codebooks than this model's")
        return cls(trained, device)

    @cached_property
    def _decoder(self) -> Decoder:
        import torch

        from train.decoder.synthesis import Decoder

        return Decoder.of(self._trained, self._device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def decode(self, codes: Mapping[str, np.ndarray], voice: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """float32 [samples], and samples a second, of codes int [rows, frames]. voice: float32 [samples] at 16 kHz, a
        recording whose voice it is, of which a decoder that knows one voice alone takes no notice; None: nobody's."""
        from data_pipeline.layouts.groups import lay_groups  # which imports torch

        parts = self._decoder.parts
        ids = lay_groups(Utterance("", "", "", codes=dict(codes)), parts.vocabulary).reshape(-1)
        encoder = parts.config.speaker
        speaker = voice_given(encoder, voice) if encoder and voice is not None else None
        return self._decoder.decode(ids, speaker=speaker)

    def identity(self) -> dict[str, str]:
        """What decides the sound beside the codes, for content hashes."""
        return self._trained.identity()
